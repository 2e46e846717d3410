"""What can be asked for: catalogues of effects as data. Handlers live in the edges, and in the runtime.

sql     statements and transactions          http    an exchange with another service
kv      keys and values                      clock   time, as recorded
random  chance, as recorded              queue   runs for later: jobs
"""

from zerver.effects import clock as clock
from zerver.effects import http as http
from zerver.effects import kv as kv
from zerver.effects import queue as queue
from zerver.effects import random as random
from zerver.effects import sql as sql
