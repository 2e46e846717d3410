"""`zerver serve` without a timeline: nobody observes, and the engine is compiled without what appends records.

What "off" means here: every statement `….records.append((…))` of the engine is left out when its module is compiled,
with the tuple it makes and the clock it reads; no recorder, no metrics, no trace file, no page. A list that drops its
appends would still pay for tuples and calls. With RECORDS=1 the records stay, and only the observers are away. Nothing
but this benchmark runs so: without records there is no replay, no recovery.
"""

import ast
import importlib
import os
import sys
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader

ENGINE = ("zerver.core.machine", "zerver.runtime.")


class WithoutRecords(ast.NodeTransformer):
    left_out = 0

    def visit_Expr(self, node):
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append":
            owner = call.func.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if name == "records" and isinstance(call.args[0], ast.Tuple):
                WithoutRecords.left_out += 1
                return ast.copy_location(ast.Pass(), node)
        return node


class Loader(SourceFileLoader):
    def get_code(self, fullname):
        """From the source, never from a cache of what was compiled otherwise."""
        path = self.get_filename(fullname)
        tree = WithoutRecords().visit(ast.parse(self.get_data(path)))
        return compile(tree, path, "exec", dont_inherit=True)


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if not name.startswith(ENGINE):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        loader = Loader(name, spec.loader.path)
        return ModuleSpec(name, loader, origin=spec.origin, is_package=spec.submodule_search_locations is not None)


class Nobody:
    """In place of `zerver.observing.Observing`."""

    observers = ()
    on_defect = print

    def __init__(self):
        self.beside = {}

    def attach(self, *what):
        pass


@asynccontextmanager
async def open_nobody(app, settings=None, *, page=None):
    yield Nobody()


def main() -> None:
    if not os.environ.get("RECORDS"):
        sys.meta_path.insert(0, Finder)
        importlib.import_module("zerver.runtime")  # now, so that it is known whether there was anything to leave out
        if WithoutRecords.left_out < 30:
            raise SystemExit(f"only {WithoutRecords.left_out} statements were left out: the engine records otherwise")
    commands = importlib.import_module("zerver.cli.main")
    importlib.import_module("zerver.cli.serve")
    sys.modules["zerver.cli.serve"].open_observing = open_nobody
    commands.main()


if __name__ == "__main__":
    main()
