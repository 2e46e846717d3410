"""Discovery: which effects a step's code can ask for, found without running it.

Law: this reads code and believes nothing else: source text where Python has it, names in the bytecode where it has
not (a REPL, `exec`). It may miss an effect that is chosen dynamically, which `@step(effects=[...])` then declares;
it never invents one. It is only run while an app is being checked.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from zerver.core.effects import EffectKind


@attrs.frozen
class Mention:
    """One place in a step's code that makes an effect.

    line: in the file that defines the function, or 0. policy: constant keywords of `.with_policy(...)` around it.
    compensated: whether `.compensate(...)` is called on it. hedge_after: `after=` of a hedge around it, if constant.
    handed_on: it is not called here, but given to something that may, as `.compensate(refund)`. undoes: it is given to
    `.compensate(...)`, or called in there, and so performed by the rollback. about: its first argument, where that is
    a constant, or a name of something.
    """

    kind: EffectKind[..., Any]
    line: int = 0
    policy: Mapping[str, Any] = attrs.field(factory=dict)
    compensated: bool = False
    hedge_after: object = None
    handed_on: bool = False
    undoes: bool = False
    about: object = None


def mentions(function: Callable[..., Any]) -> tuple[Mention, ...]:
    """Every effect that the function, or a plain function it names, can ask for."""
    found: list[Mention] = []
    seen: set[types.CodeType] = set()
    todo: list[Callable[..., Any]] = [function]
    while todo:
        target = inspect.unwrap(todo.pop())
        if not isinstance(target, types.FunctionType) or target.__code__ in seen:
            continue
        seen.add(target.__code__)
        inside, called = _scan(target)
        found += inside
        # Only helpers of the user's own module are followed: a library is not where effects are hidden.
        todo += [helper for helper in called if helper.__module__ == function.__module__]
    return tuple(found)


def _scan(function: types.FunctionType) -> tuple[list[Mention], list[types.FunctionType]]:
    names = _names(function)
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source)
        if isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
            tree.body[0].decorator_list = []  # what decorates the code is not asked for by it
    except (OSError, TypeError, SyntaxError):
        objects = list(_bytecode_objects(function.__code__, names))
        kinds = [Mention(o) for o in objects if isinstance(o, EffectKind)]
        return kinds, [o for o in objects if isinstance(o, types.FunctionType)]
    visitor = _Visitor(names, function.__code__.co_firstlineno)
    visitor.visit(tree)
    return visitor.found, visitor.called


def _names(function: types.FunctionType) -> dict[str, Any]:
    closure = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            closure[name] = cell.cell_contents
        except ValueError:  # not assigned yet: a function that refers to itself
            continue
    shadowed = function.__code__.co_varnames
    return {name: value for name, value in {**function.__globals__, **closure}.items() if name not in shadowed}


class _Visitor(ast.NodeVisitor):
    """Collects calls whose callee resolves to an effect kind or to a function."""

    def __init__(self, names: Mapping[str, Any], first_line: int) -> None:
        self.names = names
        self.first_line = first_line
        self.found: list[Mention] = []
        self.called: list[types.FunctionType] = []
        self._outer: list[ast.Call] = []  # the calls around the node being visited, outermost first
        self._undoing = False  # whether it is in the arguments of a `.compensate(...)`

    def visit_Call(self, node: ast.Call) -> None:
        callee = _resolve(node.func, self.names)
        kind = callee if isinstance(callee, EffectKind) else getattr(callee, "__zerver_kind__", None)
        if isinstance(kind, EffectKind):
            self.found.append(self._mention(kind, node))
        elif isinstance(callee, types.FunctionType):
            self.called.append(callee)
        self._outer.append(node)
        self.visit(node.func)
        before = self._undoing
        self._undoing = before or (isinstance(node.func, ast.Attribute) and node.func.attr == "compensate")
        for argument in (*node.args, *node.keywords):
            self.visit(argument)
        self._undoing = before
        self._outer.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._mention_reference(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._mention_reference(node)

    def _mention_reference(self, node: ast.Attribute | ast.Name) -> None:
        """What is handed on, as in `.compensate(refund)` or `Need(…, resume=after)`, will be asked for, or called."""
        if self._outer and self._outer[-1].func is node:
            return
        value = _resolve(node, self.names)
        kind = value if isinstance(value, EffectKind) else getattr(value, "__zerver_kind__", None)
        if isinstance(kind, EffectKind):
            self.found.append(Mention(kind, self._line(node), handed_on=True, undoes=self._undoing))
        elif isinstance(value, types.FunctionType):
            self.called.append(value)

    def _mention(self, kind: EffectKind[..., Any], node: ast.Call) -> Mention:
        policy: dict[str, Any] = {}
        compensated, hedge_after, inner = False, None, node
        for outer in reversed(self._outer):
            func = outer.func
            if isinstance(func, ast.Attribute) and func.value is inner:
                if func.attr == "with_policy":
                    policy.update(_constants(outer))
                compensated = compensated or func.attr == "compensate"
                inner = outer
            elif isinstance(func, ast.Attribute) and func.attr == "hedge" and inner in outer.args:
                hedge_after = _constants(outer).get("after")
                inner = outer
            else:
                break
        about = _resolve(node.args[0], self.names) if node.args else None
        return Mention(kind, self._line(node), policy, compensated, hedge_after, undoes=self._undoing, about=about)

    def _line(self, node: ast.expr) -> int:
        return self.first_line + node.lineno - 1


def _constants(call: ast.Call) -> dict[str, Any]:
    return {
        keyword.arg: keyword.value.value
        for keyword in call.keywords
        if keyword.arg is not None and isinstance(keyword.value, ast.Constant)
    }


def _resolve(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The object an expression of names and attributes stands for, or a constant, or None. Runs no property: data
    only.
    """
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, names)
        return None if owner is None else inspect.getattr_static(owner, node.attr, None)
    return None


def _bytecode_objects(code: types.CodeType, names: Mapping[str, Any]) -> Iterator[Any]:
    current: Any = None
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME"):
            current = names.get(name)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and current is not None:
            current = inspect.getattr_static(current, name, None)
        else:
            current = None
        if isinstance(current, EffectKind | types.FunctionType):
            yield current
        elif isinstance(getattr(current, "__zerver_kind__", None), EffectKind):
            yield current.__zerver_kind__
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _bytecode_objects(constant, names)
