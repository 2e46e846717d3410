"""How it runs: actors, nurseries, cancel scopes.

Embed Zerver in any Trio program with `open_runtime`; build services of your own with actors and supervisors.
"""

from zerver.runtime.result import Result as Result
from zerver.runtime.run import Runtime as Runtime
from zerver.runtime.run import RuntimeStatistics as RuntimeStatistics
from zerver.runtime.run import open_runtime as open_runtime
