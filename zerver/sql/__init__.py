"""SQL: databases behind one port, and the `sql` effects on them.

sqlite(path)            the capability to give to an App
Driver, open_sqlite     the port, and a driver to use by hand
"""

from zerver.sql.capability import sql_capability as sql_capability
from zerver.sql.capability import sqlite as sqlite
from zerver.sql.driver import Changed as Changed
from zerver.sql.driver import Driver as Driver
from zerver.sql.driver import DriverStatistics as DriverStatistics
from zerver.sql.driver import Rows as Rows
from zerver.sql.driver import Statement as Statement
from zerver.sql.sqlite import SqliteDriver as SqliteDriver
from zerver.sql.sqlite import open_sqlite as open_sqlite
