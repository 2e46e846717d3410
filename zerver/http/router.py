"""The router: which route a request is for, decided from its method and path alone.

Law: pure; routes in, an immutable table out; whatever can be wrong with a table is a DefinitionError. A path is cut at
"/" before it is percent-decoded, so `%2F` is a character of its segment and never a separator.

Segment by segment, from the left, a literal wins over `{id:int}` and `{id:uuid}`, these over `{id}`, and that over
`{rest:path}`, which takes all that is left. So two routes clash only when they have one method and one shape; every
other route can be reached, and nothing depends on the order of definition.

A trailing slash is a part of the path. There are no redirects; a 404 tells that the other spelling exists.

A lookup visits each node of the trie at most once, since a node stands for one prefix of patterns: its cost is bounded
by the path's length and by the patterns that overlap, whatever the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

import attrs

from zerver.core.app import App
from zerver.errors import DefinitionError
from zerver.http.messages import RequestHead
from zerver.http.patterns import FITS, NO_VALUE, Param, Pattern, parse_pattern, tail_start

T = TypeVar("T")

#: What a route without parameters gives.
NO_PARAMS: Final[Mapping[str, str]] = MappingProxyType({})


# ---- answers --------------------------------------------------------------------------------


@attrs.frozen
class Entry(Generic[T]):
    """One route. payload: what a match gives back. name: for `url_for`, by custom the flow's."""

    method: str
    path: str
    payload: T
    name: str = ""

    @property
    def label(self) -> str:
        return f"route {self.method} {self.path}"


@attrs.frozen
class Match(Generic[T]):
    """A route was found. params: the path's parameters, decoded, as text."""

    payload: T
    params: Mapping[str, str] = NO_PARAMS


@attrs.frozen
class Miss:
    """No route was found.

    status: 404; 405 when the path exists for other methods; 204 when OPTIONS asks for them. allow: these methods,
    sorted; empty for 404. hint: a sentence for whoever misspelt a path, or "".
    """

    status: int
    allow: tuple[str, ...] = ()
    hint: str = ""


# ---- the table ------------------------------------------------------------------------------


class _Target(Generic[T]):
    """What a route's end gives: one Match for ever, or one made from the segments."""

    __slots__ = ("_fixed", "_names", "_payload", "_tail")

    def __init__(self, payload: T, pattern: Pattern) -> None:
        places = [(at, param) for at, param in enumerate(pattern.segments) if isinstance(param, Param)]
        self._payload = payload
        self._fixed = None if places else Match(payload)
        self._names = tuple((param.name, at) for at, param in places if param.kind != "path")
        self._tail = next(((param.name, at) for at, param in places if param.kind == "path"), None)

    def match(self, segments: tuple[str, ...]) -> Match[T]:
        if self._fixed is not None:
            return self._fixed
        params = {}
        for name, at in self._names:  # a comprehension would cost a call, and most have one name
            params[name] = segments[at]
        if self._tail is not None:
            name, start = self._tail
            params[name] = "/".join(segments[start:])
        return Match(self._payload, params)


class _Node(Generic[T]):
    """A prefix of patterns. methods: the routes that end here."""

    __slots__ = ("literals", "methods", "plain", "tail", "typed")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.typed: dict[str, _Node[T]] = {}
        self.plain: _Node[T] | None = None
        self.tail: _Node[T] | None = None
        self.methods: dict[str, _Target[T]] = {}

    def child(self, segment: str | Param) -> _Node[T]:
        """The node one segment further, made if it is missing."""
        if isinstance(segment, str):
            return self.literals.setdefault(segment, _Node())
        if segment.kind == "path":
            self.tail = self.tail or _Node()
            return self.tail
        if segment.kind == "str":
            self.plain = self.plain or _Node()
            return self.plain
        return self.typed.setdefault(segment.kind, _Node())


class Router(Generic[T]):
    """An immutable table of routes. Raises DefinitionError for a path that is none, and for two routes that clash."""

    def __init__(self, entries: Iterable[Entry[T]]) -> None:
        self._entries = tuple(entries)
        self._root: _Node[T] = _Node()
        self._literal: dict[str, dict[str, Match[T]]] = {}
        self._named: dict[str, list[Pattern]] = {}
        self._has_tails = False
        self._build()

    def find(self, head: RequestHead) -> Match[T] | Miss:
        """The route of a request. GET routes answer HEAD too. Raises ProtocolViolation (400) for a bad escape."""
        literal, target = self._literal, head.target
        methods = literal.get(target)
        if methods is None and "?" in target:  # the path, if the target has the usual form
            methods = literal.get(target.partition("?")[0])
        if methods is None and not target.startswith("/"):
            methods = literal.get(head.path)
        if methods is not None:
            found = methods.get(head.method)
            if found is not None:
                return found
        return self._search(head)

    def url_for(self, name: str, /, **params: object) -> str:
        """The path, percent-encoded, of the first route of this name that has exactly these parameters.

        Raises LookupError when there is none, ValueError for a value that the route itself would not take.
        """
        return _url(name, self._named.get(name, ()), params)

    @property
    def entries(self) -> tuple[Entry[T], ...]:
        """The routes, in order of definition."""
        return self._entries

    # -- building --

    def _build(self) -> None:
        seen: dict[tuple[str, tuple[str | tuple[str], ...]], Entry[T]] = {}
        for entry in self._entries:
            pattern = parse_pattern(entry.path, entry.label)
            shape = tuple((s.kind,) if isinstance(s, Param) else s for s in pattern.segments)
            twin = seen.setdefault((entry.method, shape), entry)
            if twin is not entry:
                raise DefinitionError(
                    f"{entry.label} takes the same requests as {twin.label}",
                    "remove one of them, or tell them apart by a type, as in {id:int}",
                )
            self._add(entry, pattern)
        for node in _nodes(self._root):
            if "GET" in node.methods:
                node.methods.setdefault("HEAD", node.methods["GET"])
            self._has_tails = self._has_tails or node.tail is not None
        self._index_literals()

    def _add(self, entry: Entry[T], pattern: Pattern) -> None:
        node = self._root
        for segment in pattern.segments:
            node = node.child(segment)
        node.methods[entry.method] = _Target(entry.payload, pattern)
        if entry.name:
            self._named.setdefault(entry.name, []).append(pattern)

    def _index_literals(self) -> None:
        # Literals win everywhere, so a path that is all literals needs no trie: often the hottest routes.
        for entry in self._entries:
            segments = parse_pattern(entry.path).segments
            if not any(isinstance(segment, Param) for segment in segments):
                node = self._root
                for segment in segments:
                    node = node.child(segment)
                self._literal[entry.path] = {method: target.match(()) for method, target in node.methods.items()}

    # -- searching --

    def _search(self, head: RequestHead) -> Match[T] | Miss:
        if head.target[:1] == "*" and head.path == "*":  # OPTIONS *: about the server as a whole (RFC 9110 §9.3.7)
            methods = {method for node in _nodes(self._root) for method in node.methods}
            return _miss(head.method, methods) if head.method == "OPTIONS" else Miss(404)
        segments = head.segments
        target = self._straight(segments).get(head.method)
        if target is not None:
            return target.match(segments)
        allowed: set[str] = set()
        for ends in self._ends(segments):
            target = ends.get(head.method)
            if target is not None:
                return target.match(segments)
            allowed.update(ends)
        return _miss(head.method, allowed) if allowed else Miss(404, hint=self._hint(segments))

    def _straight(self, segments: tuple[str, ...]) -> Mapping[str, _Target[T]]:
        """The first of `_ends`, where the best child of each node leads there: so it is for nearly all requests."""
        node = self._root
        for segment in segments:
            child = node.literals.get(segment)
            if child is None:
                child = node.plain
                if child is None or node.typed or segment in NO_VALUE:
                    return _NOWHERE
            node = child
        return node.methods

    def _ends(self, segments: tuple[str, ...]) -> Iterator[dict[str, _Target[T]]]:
        """Where the routes for a path end, best first: a walk of the trie, depth first, literals first."""
        depth = len(segments)
        start = tail_start(segments) if self._has_tails else depth
        stack = [(self._root, 0)]
        while stack:
            node, at = stack.pop()
            if at == depth:
                if node.methods:
                    yield node.methods
                continue
            segment = segments[at]
            # What is pushed last is looked at first.
            if node.tail is not None and at >= start:
                stack.append((node.tail, depth))
            if segment not in NO_VALUE:
                if node.plain is not None:
                    stack.append((node.plain, at + 1))
                for kind, child in node.typed.items():  # no segment is both an int and a UUID
                    if FITS[kind](segment):
                        stack.append((child, at + 1))
            literal = node.literals.get(segment)
            if literal is not None:
                stack.append((literal, at + 1))

    def _hint(self, segments: tuple[str, ...]) -> str:
        if len(segments) > 1 and segments[-1] == "":
            other, hint = segments[:-1], "there is such a path without the trailing slash"
        else:
            other, hint = (*segments, ""), "there is such a path with a trailing slash"
        return hint if any(self._ends(other)) else ""


_NOWHERE: Final[Mapping[str, Any]] = MappingProxyType({})


def url_for(app: App, name: str, /, **params: object) -> str:
    """The path, percent-encoded, of an app's first route whose flow has this name and whose parameters are just these.

        return Done(redirect(url_for(app, "order", id=7)))  # in a step, which looks `app` up when it runs

    Raises LookupError when there is none, ValueError for a value that the route itself would not take.
    """
    return _url(name, (parse_pattern(route.path) for route in app.routes if route.flow.name == name), params)


def _url(name: str, patterns: Iterable[Pattern], params: Mapping[str, object]) -> str:
    for pattern in patterns:
        if pattern.names == params.keys():
            return "".join("/" + _written(segment, params) for segment in pattern.segments)
    wanted = ", ".join(sorted(params)) or "no parameters"
    raise LookupError(f"no route is called {name!r} and has {wanted}")


def _miss(method: str, allowed: set[str]) -> Miss:
    allow = tuple(sorted(allowed | {"OPTIONS"}))
    return Miss(204 if method == "OPTIONS" else 405, allow)


def _nodes(root: _Node[T]) -> Iterator[_Node[T]]:
    stack = [root]
    while stack:
        node = stack.pop()
        yield node
        stack += [*node.literals.values(), *node.typed.values()]
        stack += [child for child in (node.plain, node.tail) if child is not None]


def _written(segment: str | Param, params: Mapping[str, object]) -> str:
    if isinstance(segment, str):
        return quote(segment, safe="")
    text = str(params[segment.name])
    if "\0" in text or not FITS[segment.kind](text):
        raise ValueError(f"{text!r} cannot be the value of {{{segment.name}:{segment.kind}}} in a path")
    return quote(text, safe="/" if segment.kind == "path" else "")
