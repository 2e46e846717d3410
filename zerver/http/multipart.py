"""multipart/form-data: what a browser sends when a form has a file in it. Pure; RFC 7578, as the WHATWG has it written.

Law: the strict form is read and no other: nothing before the first boundary or after the last, CRLF at every end, one
Content-Disposition in each part. What is read is a body that is in memory, under the server's own limit; each limit
here has its own words, and is checked before what it limits is made. A file's name is the client's word: data, with no
control characters in it, and never a path.

An own reading, and no library's: of the two that are kept well, one passes over what stands around the parts and finds
it or not depending on how the bytes were cut, the other had its holes in just that (CVE-2024-53981). Over bytes that
are all there, the format is one `split`, and its cost is linear (aiohttp's was an endless loop: CVE-2024-30251).
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from zerver.errors import ProtocolViolation

#: How many parts a form may have (413); as many as a form of the other kind may have fields.
MAX_PARTS: Final = 1_000
#: Bytes of one part's head, the line ends included (431), and how many fields it may have (431).
MAX_PART_HEAD: Final = 4 * 1024
MAX_PART_FIELDS: Final = 8
#: Bytes of one field that is no file (413).
MAX_FIELD: Final = 64 * 1024

_BOUNDARY_CHARS: Final = r"[0-9A-Za-z'()+_,\-./:=?]"
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_PARAMETER: Final = re.compile(rf';[ \t]*+({_TOKEN}++)=(?:({_TOKEN}++)|"((?:[^"\\]|\\.)*+)")[ \t]*+')
_BOUNDARY: Final = re.compile(rf"(?:{_BOUNDARY_CHARS}|[ ](?=.)){{1,70}}", re.DOTALL)
_FIELD: Final = re.compile(rf"({_TOKEN}++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)")
_ESCAPED: Final = re.compile(r'\\(["\\])')
_AS_IT_IS: Final = ("7bit", "8bit", "binary")


@attrs.frozen
class Upload:
    """One file of a form: `picture: Annotated[Upload, Form()]`; a `list[Upload]` takes all of that name.

    filename: as the client says it: data, and no path. Make up your own name for what you store. content_type: what the
    client says it is, in lower case, without parameters. body: its bytes.
    """

    filename: str
    content_type: str
    body: bytes = attrs.field(repr=lambda body: f"<{len(body)} bytes>")


@attrs.frozen
class Parts:
    """What a form holds. fields: from the name to every text; files: to every file. Both in the order of arrival."""

    fields: dict[str, list[str]] = attrs.Factory(dict)
    files: dict[str, list[Upload]] = attrs.Factory(dict)


def is_multipart(content_type: str | None) -> bool:
    """Whether a body says that it is multipart/form-data."""
    return content_type is not None and content_type.partition(";")[0].strip(" \t").lower() == "multipart/form-data"


def read_multipart(content_type: str, body: bytes) -> Parts:
    """The parts of a body. Raises ProtocolViolation: 400 malformed, 413 and 431 over a limit, 415 a coded part."""
    delimiter = b"\r\n--" + _boundary_of(content_type)
    if not body.startswith(delimiter[2:]):
        raise ProtocolViolation("the form does not begin with its boundary")
    pieces = body[len(delimiter) - 2 :].split(delimiter, MAX_PARTS + 1)
    end = pieces.pop()
    if len(pieces) > MAX_PARTS:
        raise ProtocolViolation(f"the form has more than {MAX_PARTS} parts", status=413)
    if end not in (b"--", b"--\r\n"):
        raise ProtocolViolation("the form does not end with its boundary")
    parts = Parts()
    for piece in pieces:
        _read_part(piece, parts)
    return parts


def _boundary_of(content_type: str) -> bytes:
    found = [value for name, value in _parameters(content_type.partition(";")[1:]) if name == "boundary"]
    if len(found) != 1 or not _BOUNDARY.fullmatch(found[0]):
        raise ProtocolViolation("the form's boundary is missing or malformed")
    return found[0].encode("ascii")


def _read_part(piece: bytes, parts: Parts) -> None:
    """Add one part: a CRLF, its head, an empty line, its content."""
    if not piece.startswith(b"\r\n"):
        raise ProtocolViolation("the form has its boundary inside of a part")
    # From its second byte on, the CRLF before the head may be the empty line's, too: a part without a head.
    end = piece.find(b"\r\n\r\n", 0, MAX_PART_HEAD + 4)
    if end < 0:
        over = len(piece) > MAX_PART_HEAD + 4
        raise ProtocolViolation("the head of a part is malformed or over the limit", status=431 if over else 400)
    fields = _read_head(piece[2:end]) if end else {}
    name, filename = _disposition(fields.get("content-disposition"))
    if fields.get("content-transfer-encoding", "binary").lower() not in _AS_IT_IS:
        raise ProtocolViolation("a part has a Content-Transfer-Encoding, and none is understood", status=415)
    content = piece[end + 4 :]
    if filename is None:
        parts.fields.setdefault(name, []).append(_text(content))
    elif filename or content:  # a browser sends both empty for a file that nobody has chosen
        media = fields.get("content-type", "application/octet-stream").partition(";")[0].strip(" \t").lower()
        parts.files.setdefault(name, []).append(Upload(filename, media, content))


def _read_head(head: bytes) -> dict[str, str]:
    lines = head.split(b"\r\n")
    if len(lines) > MAX_PART_FIELDS:
        raise ProtocolViolation(f"a part has more than {MAX_PART_FIELDS} fields in its head", status=431)
    fields: dict[str, str] = {}
    for line in lines:
        try:
            matched = _FIELD.fullmatch(line.decode("utf-8"))
        except UnicodeDecodeError:
            matched = None
        if matched is None or matched[1].lower() in fields:
            raise ProtocolViolation("the head of a part is malformed")
        fields[matched[1].lower()] = matched[2].rstrip(" \t")
    return fields


def _disposition(value: str | None) -> tuple[str, str | None]:
    """The name of the field, and the name of the file if it is one."""
    kind, *parameters = (value or "").partition(";")
    said = _parameters(parameters)
    names = [name for name, _ in said]
    if kind.strip(" \t").lower() != "form-data" or len(set(names)) != len(names) or "name" not in names:
        raise ProtocolViolation("a part's Content-Disposition is missing or malformed")
    if "filename*" in names:  # RFC 7578 §4.2: not to be used; who reads it and who does not see two files
        raise ProtocolViolation("a part's name is given in a form that forms do not have")
    found = {name: _ESCAPED.sub(r"\1", text).replace("%22", '"') for name, text in said}
    return found["name"], found.get("filename")


def _parameters(rest: tuple[str, ...] | list[str]) -> list[tuple[str, str]]:
    """The parameters of a header's value, behind what it says first; as they are written, without their quotes."""
    text = "".join(rest).rstrip(" \t")
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        matched = _PARAMETER.match(text, at)
        if matched is None:
            raise ProtocolViolation("a parameter of the form is malformed")
        found.append((matched[1].lower(), matched[2] if matched[2] is not None else matched[3]))
        at = matched.end()
    return found


def _text(content: bytes) -> str:
    if len(content) > MAX_FIELD:
        raise ProtocolViolation(f"a field of the form is over {MAX_FIELD} bytes", status=413)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolViolation("a field of the form is not UTF-8") from None
    if "\0" in text:
        raise ProtocolViolation("a field of the form contains NUL")
    return text
