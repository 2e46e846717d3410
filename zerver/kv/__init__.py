"""Keys and values: stores behind one port, and the `kv` effects on them."""

from zerver.kv.memory import MemoryStore as MemoryStore
from zerver.kv.memory import Store as Store
from zerver.kv.memory import StoreStatistics as StoreStatistics
from zerver.kv.memory import memory as memory
from zerver.kv.memory import store_capability as store_capability
