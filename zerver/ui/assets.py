"""Assets: the page's own files, in memory.

Law: what can be asked for is a table made when the page is: a name that is not in it is not there, so no path leads
anywhere. A file's entity tag is made of its content, and a browser asks each time whether it has that still: a new
version of the program is never shown with half of the old one's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from zerver.http import RequestHead, Response
from zerver.http.conditions import Validators, judge
from zerver.http.files import CONTENT_TYPES

STATIC: Final = Path(__file__).parent / "static"

_INDEX: Final = "index.html"


@attrs.frozen
class Asset:
    """One file. etag: in quotes."""

    body: bytes
    content_type: str
    etag: str

    def response(self, head: RequestHead) -> Response:
        """The file, or 304 for who has it."""
        fields = (("content-type", self.content_type), ("etag", self.etag), ("cache-control", "private, no-cache"))
        if judge(head, Validators(self.etag, 0)) == 304:
            return Response(304, fields[1:])
        return Response(200, fields, self.body)


def read_assets(directory: Path = STATIC) -> Mapping[str, Asset]:
    """The files below a directory by their path, as "app.js"; "" is the index. Kinds that a page has no use for, and
    hidden files, are left out; a directory that is not there has none.
    """
    found: dict[str, Asset] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        content_type = CONTENT_TYPES.get(path.suffix)
        if content_type is None or any(part.startswith(".") for part in path.parts[len(directory.parts) :]):
            continue
        if path.is_file():
            body = path.read_bytes()
            found[name] = Asset(body, content_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    if _INDEX in found:
        found[""] = found[_INDEX]
    return found
