"""SQL: databases behind one port, and the `sql` effects on them.

sqlite(path)                      a capability to give to an App: a file, embedded
postgres(conninfo)                another one: a server, shared (extra `postgres`; psycopg is loaded on opening)
triopg(pool)                      the same on a triopg pool that the service has already (extra `triopg`)
Driver                            the port; open_sqlite, open_postgres, open_triopg: drivers to use by hand
"""

from zerver.sql.capability import postgres as postgres
from zerver.sql.capability import sql_capability as sql_capability
from zerver.sql.capability import sqlite as sqlite
from zerver.sql.driver import Changed as Changed
from zerver.sql.driver import Driver as Driver
from zerver.sql.driver import DriverStatistics as DriverStatistics
from zerver.sql.driver import Rows as Rows
from zerver.sql.driver import Statement as Statement
from zerver.sql.postgres import PostgresDriver as PostgresDriver
from zerver.sql.postgres import open_postgres as open_postgres
from zerver.sql.postgres_listen import Listener as Listener
from zerver.sql.postgres_listen import Notification as Notification
from zerver.sql.postgres_pool import PoolStatistics as PoolStatistics
from zerver.sql.postgres_work import Transaction as Transaction
from zerver.sql.sqlite import SqliteDriver as SqliteDriver
from zerver.sql.sqlite import open_sqlite as open_sqlite
from zerver.sql.triopg import open_triopg as open_triopg
from zerver.sql.triopg import triopg as triopg
