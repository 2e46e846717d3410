"""Files as answers: `file` names one, `static` serves a directory; what is sent is decided when the request is at hand.

Law: what a client writes never leads out of the directory it was meant for. Names are checked as text, and then opened
one by one, from the directory down, following no symbolic link: nothing is resolved first and opened later, so nothing
can be exchanged in between (aiohttp CVE-2024-23334, Starlette CVE-2023-29159, Sanic CVE-2017-16762).

Every touch of the file system happens in a thread. A file of up to 64 KiB costs one hop and is never left open; a
larger one is read piece by piece, as its client takes it, and closed in every case.

The entity tag is the time of the last change, in nanoseconds, and the size. It is strong, unless the file was changed
within the last two seconds and may change again in the same tick of its clock: then it is weak, as Apache's is. Who
replaces files by others of the same size and the same time, as some reproducible builds do, gives an `etag` of his own.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping
from typing import IO, Annotated, Any, Final
from urllib.parse import quote

import attrs
import trio

from zerver.core.decisions import Done
from zerver.core.flows import Flow
from zerver.core.steps import step
from zerver.errors import DefinitionError
from zerver.http.conditions import Validators, judge, read_range
from zerver.http.messages import Deferred, Headers, HeadersLike, RequestHead, Response
from zerver.http.parts import Path
from zerver.http.response import problem

#: Bytes that are read at a time.
PIECE: Final = 64 * 1024

#: By extension. A table of our own: what the machine's says differs from machine to machine (`mimetypes` reads it).
CONTENT_TYPES: Final[Mapping[str, str]] = {
    ".avif": "image/avif", ".bin": "application/octet-stream", ".css": "text/css; charset=utf-8",
    ".csv": "text/csv; charset=utf-8", ".gif": "image/gif", ".gz": "application/gzip",
    ".htm": "text/html; charset=utf-8", ".html": "text/html; charset=utf-8", ".ico": "image/x-icon",
    ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".js": "text/javascript; charset=utf-8", ".json": "application/json",
    ".map": "application/json", ".md": "text/markdown; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
    ".mp3": "audio/mpeg", ".mp4": "video/mp4", ".ogg": "audio/ogg", ".otf": "font/otf", ".pdf": "application/pdf",
    ".png": "image/png", ".svg": "image/svg+xml", ".tar": "application/x-tar", ".tif": "image/tiff",
    ".tiff": "image/tiff", ".ttf": "font/ttf", ".txt": "text/plain; charset=utf-8", ".wasm": "application/wasm",
    ".wav": "audio/wav", ".webm": "video/webm", ".webmanifest": "application/manifest+json", ".webp": "image/webp",
    ".woff": "font/woff", ".woff2": "font/woff2", ".xml": "application/xml", ".zip": "application/zip",
}  # fmt: skip

_THREADS: Final = 16  # a slow disk shall not take all the threads that there are
_FRESH_NS: Final = 2_000_000_000

#: What opening a file says when there is no such file to be served. A file that may not be read is a fault of ours.
_NOT_THERE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO}
)
_OPEN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # O_NONBLOCK: a FIFO must not hold the thread
_ENTER: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY

_limiter: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("zerver.http.files")


def file(
    path: str | os.PathLike[str],
    *,
    under: str | os.PathLike[str] | None = None,
    content_type: str | None = None,
    filename: str | None = None,
    etag: str | None = None,
    status: int = 200,
    headers: HeadersLike = (),
) -> Response:
    """A file, sent in pieces: `Done(file("invoices/7.pdf", filename="invoice.pdf"))`.

    under: a directory that `path` is relative to and must not leave: required when any of path comes from a client.
    Such a path has no "..", no dot file, no backslash, and no symbolic link in it; else the answer is 404.
    content_type: by the extension. filename: what the client should save it as. etag: without quotes, instead of the
    file's own.

    ETag, Last-Modified and the conditional and range requests that follow from them (304, 412, 206, 416) are seen to,
    for GET and HEAD and status 200. A file that is not there, or is no plain file, is 404. It is opened after the run.

    Raises ValueError for an etag that cannot be sent.
    """
    name = os.fspath(path)
    fields = Headers.of(headers)
    if "content-type" not in fields:
        fields = fields.adding("content-type", content_type or content_type_of(name))
    if filename is not None:
        fields = fields.setting("content-disposition", _attachment(filename))
    if "x-content-type-options" not in fields:
        fields = fields.adding("x-content-type-options", "nosniff")
    if etag is not None and not all("\x20" < character < "\x7f" and character != '"' for character in etag):
        raise ValueError(f"not an entity tag: {etag!r}")
    return Response(status, fields, StoredFile(name, None if under is None else os.path.abspath(under), etag))


def static(
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    index: str | None = "index.html",
    headers: HeadersLike = (),
) -> Flow:
    """A flow that serves the files below a directory, and nothing else of it: no listings, no dot files, no links.

        app.route("GET", "/assets/{path:path}", static("public", headers={"cache-control": "max-age=3600"}))

    name: of the flow; by default after the directory. index: what a path that is empty or ends in "/" stands for; None
    for 404.

    Raises DefinitionError when there is no such directory.
    """
    root = os.path.abspath(directory)
    if not os.path.isdir(root):
        raise DefinitionError(f"static({os.fspath(directory)!r}): there is no such directory", "give one that is there")
    fields = Headers.of(headers)

    @step(name="static.file")
    def serve_file(path: Annotated[str, Path()]) -> Done:
        if index is not None and (not path or path.endswith("/")):
            path += index
        return Done(file(path, under=root, headers=fields))

    return Flow(name or f"static {os.path.basename(root)}", [serve_file])


def content_type_of(name: str) -> str:
    """By the extension; what is unknown is application/octet-stream, which browsers save and do not run."""
    return CONTENT_TYPES.get(os.path.splitext(name)[1].lower(), "application/octet-stream")


@attrs.frozen
class StoredFile(Deferred):
    """A file by its name. under: the directory that it must be below, or None for any."""

    path: str
    under: str | None
    etag: str | None = None

    async def open(self, response: Response, head: RequestHead, resources: Mapping[type, Any]) -> Response:
        # Not abandoned when cancelled: what the thread has opened comes back, and is closed with the response.
        return await trio.to_thread.run_sync(_answer, self, response, head, limiter=_threads())


# ---- in a thread ----------------------------------------------------------------------------


def _answer(wanted: StoredFile, response: Response, head: RequestHead) -> Response:
    try:
        opened = _open(wanted)
    except FileNotFoundError:
        return problem(404)
    try:
        about = os.fstat(opened.fileno())
        now = _validators(about, wanted.etag)
        answer, wanted_bytes = _decide(response, head, now, about.st_size)
        if not wanted_bytes:
            opened.close()
        elif len(wanted_bytes) <= PIECE:
            answer = _with_body(answer, _read(opened, wanted_bytes))
            opened.close()
        else:
            answer = _with_body(answer, FilePieces(opened, wanted_bytes))
    except BaseException:
        opened.close()
        raise
    return answer


def _decide(response: Response, head: RequestHead, now: Validators, size: int) -> tuple[Response, range]:
    """The answer without its body, and which bytes of the file are its body."""
    headers, nothing = response.headers, range(0)
    whole = range(size)
    if response.status == 200 and head.method in ("GET", "HEAD"):
        # What the caller says of the same things comes first.
        for name, value in (("accept-ranges", "bytes"), ("etag", now.etag), ("last-modified", now.last_modified)):
            headers = headers if name in headers else headers.adding(name, value)
        verdict = judge(head, now)
        if verdict == 412:
            return problem(412), nothing
        if verdict == 304:
            return Response(304, _without(headers, b"content-type", b"content-disposition")), nothing
        part = read_range(head, now, size)
        if part is not None and not part:
            refusal = problem(416)
            return Response(416, refusal.headers.adding("content-range", f"bytes */{size}"), refusal.body), nothing
        if part is not None:
            headers = headers.setting("content-range", f"bytes {part.start}-{part.stop - 1}/{size}")
            return Response(206, headers.setting("content-length", str(len(part)))), part
    answer = Response(response.status, headers.setting("content-length", str(size)))
    return answer, nothing if head.method == "HEAD" else whole


def _open(wanted: StoredFile) -> IO[bytes]:
    """Raises FileNotFoundError for whatever is no plain file of that name, OSError when it cannot be read."""
    try:
        descriptor = os.open(wanted.path, _OPEN) if wanted.under is None else _open_below(wanted.under, wanted.path)
    except ValueError:  # NUL
        raise FileNotFoundError(wanted.path) from None
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise FileNotFoundError(wanted.path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(wanted.path)
    return os.fdopen(descriptor, "rb", buffering=0)


def _open_below(root: str, path: str) -> int:
    names = path.split("/")
    if not all(map(_is_plain_name, names)):
        raise FileNotFoundError(path)
    at = os.open(root, _ENTER)  # the root itself may be a link: whoever wrote it down meant it
    try:
        for name in names[:-1]:
            inner = os.open(name, _ENTER | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(names[-1], _OPEN | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)


def _is_plain_name(name: str) -> bool:
    """Not empty, hidden or "..", and nothing that is a separator or a drive anywhere."""
    return bool(name) and not name.startswith(".") and not any(c in "\\:/" or c < " " or c == "\x7f" for c in name)


def _validators(about: os.stat_result, etag: str | None) -> Validators:
    fresh = abs(time.time_ns() - about.st_mtime_ns) < _FRESH_NS
    own = f'{"W/" if fresh else ""}"{about.st_mtime_ns:x}-{about.st_size:x}"'
    return Validators(own if etag is None else f'"{etag}"', about.st_mtime_ns // 1_000_000_000)


def _read(opened: IO[bytes], wanted: range) -> bytes:
    """Exactly these bytes."""
    data = b""
    while len(data) < len(wanted):
        piece = os.pread(opened.fileno(), len(wanted) - len(data), wanted.start + len(data))
        if not piece:
            raise EOFError(f"{opened.name}: the file has become shorter while it was sent")
        data += piece
    return data


# ---- sending --------------------------------------------------------------------------------


class FilePieces:
    """The bytes of an open file, as they are asked for. Closing it closes the file."""

    def __init__(self, opened: IO[bytes], wanted: range) -> None:
        self._file = opened
        self._left = wanted

    def __aiter__(self) -> FilePieces:
        return self

    async def __anext__(self) -> bytes:
        wanted, self._left = self._left[:PIECE], self._left[PIECE:]
        if not wanted:
            raise StopAsyncIteration
        return await trio.to_thread.run_sync(_read, self._file, wanted, limiter=_threads())

    async def aclose(self) -> None:
        """Close the file. No checkpoint: a read that is under way has been waited for, and closing never waits."""
        self._file.close()


def _threads() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(_THREADS)
        _limiter.set(limiter)
        return limiter


def _with_body(response: Response, body: bytes | FilePieces) -> Response:
    return Response(response.status, response.headers, body)


def _without(headers: Headers, *names: bytes) -> Headers:
    return Headers(tuple(field for field in headers.raw if field[0] not in names))


def _attachment(filename: str) -> str:
    """RFC 6266: a plain form for all, and the whole name for those that read UTF-8. Neither can break out."""
    plain = "".join(c if " " <= c < "\x7f" and c not in '"\\%/' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
