"""The journal: timelines on disk while their runs are under way, so that a run survives its process.

open_journal(url)                   either of these, by its URL
open_sqlite_journal(path)           embedded, for the processes of one machine
open_postgres_journal(conninfo)     shared by many machines
open_memory_journal(disk)           for tests and simulations
sqlite_receipts(path)               idempotency keys that workers share, for App(capabilities=[…])
postgres_receipts(conninfo)         those that many machines share
Cipher                              what encrypts the lines, as cryptography's Fernet
read_cipher(path)                   one of the keys in a file

The port is `zerver.runtime.journal`; `zerver.testing.check_journal` is its proof kit.
"""

from zerver.journal.keys import read_cipher as read_cipher
from zerver.journal.lines import Cipher as Cipher
from zerver.journal.memory import Disk as Disk
from zerver.journal.memory import open_memory_journal as open_memory_journal
from zerver.journal.places import open_journal as open_journal
from zerver.journal.postgres import open_postgres_journal as open_postgres_journal
from zerver.journal.receipts import open_sqlite_receipts as open_sqlite_receipts
from zerver.journal.receipts import sqlite_receipts as sqlite_receipts
from zerver.journal.receipts_postgres import open_postgres_receipts as open_postgres_receipts
from zerver.journal.receipts_postgres import postgres_receipts as postgres_receipts
from zerver.journal.sqlite import open_sqlite_journal as open_sqlite_journal
