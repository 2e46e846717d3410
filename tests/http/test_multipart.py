"""Forms with files: one strict form is read, however it is cut; limits hold exactly; names are data and no paths."""

from __future__ import annotations

from functools import partial
from json import loads
from typing import Annotated

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.http.talking import MemoryListener, bytewise, parse_answers, talk
from tests.http.vectors import head
from zerver import App, Done, Flow, step
from zerver.errors import ProtocolViolation
from zerver.http import Form, Upload, json
from zerver.http.multipart import (
    MAX_FIELD,
    MAX_PART_FIELDS,
    MAX_PART_HEAD,
    MAX_PARTS,
    Parts,
    is_multipart,
    read_multipart,
)
from zerver.serve import serve
from zerver.testing import client

TYPE = "multipart/form-data; boundary=xyz"


def part(disposition: str, content: bytes = b"", *lines: str) -> bytes:
    fields = (f"Content-Disposition: form-data; {disposition}", *lines)
    return b"--xyz\r\n" + "".join(line + "\r\n" for line in fields).encode() + b"\r\n" + content + b"\r\n"


END = b"--xyz--\r\n"
NAME = part('name="name"', "Zoë".encode())
FILE = part('name="photo"; filename="a.png"', b"\x89PNG\r\n--xy\r\n\r\n\0", "Content-Type: image/PNG; x=y")


def read(*parts: bytes) -> Parts:
    return read_multipart(TYPE, b"".join(parts) + END)


def status_of(body: bytes, content_type: str = TYPE) -> int:
    with pytest.raises(ProtocolViolation) as refused:
        read_multipart(content_type, body)
    return refused.value.status


# ---- what is read ---------------------------------------------------------------------------


def test_fields_and_files() -> None:
    again = part('name="name"')
    assert read(NAME, FILE, again) == Parts(
        {"name": ["Zoë", ""]}, {"photo": [Upload("a.png", "image/png", b"\x89PNG\r\n--xy\r\n\r\n\0")]}
    )
    assert read() == Parts()  # as a browser sends a form without fields
    assert read_multipart(TYPE, NAME + b"--xyz--") == Parts({"name": ["Zoë"]})


def test_a_file_that_nobody_has_chosen_is_absent() -> None:
    assert read(part('name="photo"; filename=""', b"", "Content-Type: application/octet-stream")) == Parts()
    assert read(part('name="photo"; filename=""', b"x")).files["photo"][0].body == b"x"


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=----WebKitFormBoundary7MA4", b"----WebKitFormBoundary7MA4"),
        ('Multipart/Form-Data ;charset=utf-8; BOUNDARY="a b:c=?"', b"a b:c=?"),
        ("multipart/form-data;boundary=" + "x" * 70, b"x" * 70),
    ],
)
def test_boundaries(content_type: str, boundary: bytes) -> None:
    assert is_multipart(content_type)
    body = NAME.replace(b"--xyz", b"--" + boundary) + b"--" + boundary + b"--\r\n"
    assert read_multipart(content_type, body) == Parts({"name": ["Zoë"]})


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="xyz "',
        'multipart/form-data; boundary="x\xe9"',
        "multipart/form-data; boundary=xyz; boundary=xyz",
        "multipart/form-data; boundary=xyz; Boundary=abc",
        'multipart/form-data; boundary="xyz',
        "multipart/form-data, boundary=xyz",
    ],
)
def test_bad_boundaries(content_type: str) -> None:
    assert status_of(NAME + END, content_type) == 400


MALFORMED = {
    "empty": b"",
    "no boundary": b"hello",
    "no end": NAME,
    "cut in the head": (NAME + END)[:30],
    "cut in the end": (NAME + END)[:-3],
    "bare LF": (NAME + END).replace(b"\r\n", b"\n"),
    "text before it": b"preamble\r\n" + NAME + END,
    "a line end before it": b"\r\n" + NAME + END,
    "text after it": NAME + END + b"epilogue",
    "a second form after it": NAME + END + NAME + END,
    "blanks after a boundary": (NAME + END).replace(b"--xyz\r\n", b"--xyz \r\n"),
    "a longer boundary inside": part('name="a"', b"x\r\n--xyzabc") + END,
    "no head": b"--xyz\r\n\r\nx\r\n" + END,
    "no empty line": b"--xyz\r\nContent-Disposition: form-data; name=a\r\n" + END,
    "no disposition": b"--xyz\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END,
    "no name": part("filename=a") + END,
    "two names": part("name=a; name=b") + END,
    "two file names": part("name=a; filename=b; FILENAME=c") + END,
    "a name in two forms": part("name=a; filename=b; filename*=UTF-8''c") + END,
    "an open quote": part('name="a') + END,
    "an attachment": NAME.replace(b"form-data", b"attachment") + END,
    "two dispositions": part("name=a", b"", "content-disposition: form-data; name=b") + END,
    "a folded line": part("name=a;\r\n filename=b") + END,
    "a blank before the colon": part("name=a", b"", "Content-Type : a/b") + END,
    "NUL in a name": part('name="a\0"') + END,
    "CR in a file name": part('name="a"; filename="b\rc"') + END,
    "a name that is not UTF-8": NAME.replace(b'"name"', b'"\xff"') + END,
    "a field that is not UTF-8": part("name=a", b"\xff") + END,
    "NUL in a field": part("name=a", b"\0") + END,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed(body: bytes) -> None:
    assert status_of(body) == 400


def test_a_part_that_is_coded_is_refused() -> None:
    for coding in ("base64", "Quoted-Printable", "x"):
        assert status_of(part("name=a", b"eA==", f"Content-Transfer-Encoding: {coding}") + END) == 415
    for coding in ("7bit", "8BIT", "binary"):
        assert read(part("name=a", b"eA==", f"Content-Transfer-Encoding: {coding}")).fields == {"a": ["eA=="]}


HOSTILE = [
    *("../../etc/passwd", "/etc/passwd", "C:\\\\Windows\\\\x.exe", "a;b=c", "a%00.png", "%0d%0aSet-Cookie: a=b"),
    *("CON", ".htaccess", "<script>", "é\u202egnp.exe", "'; drop table", "a" * 3000, "--xyz--", "${HOME}", " "),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_data(name: str) -> None:
    ((upload,),) = read(part(f'name="f"; filename="{name}"', b"x")).files.values()
    assert upload.filename == name.replace("\\\\", "\\")
    assert upload.body == b"x"


def test_quotes_in_names_as_browsers_and_as_curl_write_them() -> None:
    for written in ('name="a%22b"; filename="c%22d"', 'name="a\\"b"; filename="c\\"d"'):
        ((name, (upload,)),) = read(part(written, b"x")).files.items()
        assert (name, upload.filename) == ('a"b', 'c"d')


def test_what_a_file_holds_is_in_no_repr() -> None:
    assert repr(Upload("a", "b/c", b"secret")) == "Upload(filename='a', content_type='b/c', body=<6 bytes>)"


# ---- limits ---------------------------------------------------------------------------------


def heavy(size: int) -> bytes:
    """A part whose head has so many bytes."""
    bare = len(part('name="a"; filename="b"', b"")) - len(b"--xyz\r\n\r\n\r\n")
    return part(f'name="a"; filename="b{"x" * (size - bare)}"', b"c")


LIMITS = {
    "parts": (lambda over: part("name=a") * (MAX_PARTS + over), 413),
    "a field": (lambda over: part("name=a", b"x" * (MAX_FIELD + over)), 413),
    "the head of a part": (lambda over: heavy(MAX_PART_HEAD + over), 431),
    "fields of a head": (
        lambda over: part("name=a", b"", *[f"X{i}: y" for i in range(MAX_PART_FIELDS - 1 + over)]),
        431,
    ),
}


@pytest.mark.parametrize(("make", "status"), LIMITS.values(), ids=LIMITS)
def test_limits_hold_exactly(make, status: int) -> None:  # type: ignore[no-untyped-def]  # rows of a table
    assert read(make(0)) != Parts()
    assert status_of(make(1) + END) == status


def test_a_head_that_never_ends_is_over_its_limit() -> None:
    assert status_of(b"--xyz\r\nX: " + b"y" * 10_000 + b"\r\n" + END) == 431


# ---- as a step sees it ----------------------------------------------------------------------


@step
def both(
    name: Annotated[str, Form()],
    photo: Annotated[Upload | None, Form()] = None,
    more: Annotated[list[Upload] | None, Form()] = None,
    age: Annotated[int, Form()] = 0,
) -> Done:
    files = [photo] if photo is not None else []
    return Done(json([name, age, [[file.filename, len(file.body)] for file in files + (more or [])]]))


@step
def only(photo: Annotated[Upload, Form()]) -> Done:
    return Done(json(photo.filename))


def make_app() -> App:
    app = App()
    app.route("POST", "/both", Flow("both", [both]))
    app.route("POST", "/only", Flow("only", [only]))
    return app


async def test_steps_read_fields_and_files(autojump_clock: MockClock) -> None:
    headers = {"content-type": TYPE}
    more = part('name="more"; filename="1"', b"1") + part('name="more"; filename="2"', b"22")
    age = part('name="age"', b"7")
    percent = part('name="name"', b"a%41+b")  # no escapes here
    async with client(make_app()) as http:
        answer = await http.request("POST", "/both", headers=headers, body=NAME + FILE + more + age + END)
        assert answer.json(list) == ["Zoë", 7, [["a.png", 15], ["1", 1], ["2", 2]]]
        answer = await http.request("POST", "/both", headers=headers, body=percent + END)
        assert answer.json(list) == ["a%41+b", 0, []]
        plain = {"content-type": "application/x-www-form-urlencoded"}
        assert (await http.request("POST", "/both", headers=plain, body=b"name=a%41+b")).status == 415  # it has files
        for body, status in (
            (FILE + END, 200),
            (FILE + FILE + END, 422),
            (NAME + END, 422),
            (NAME, 400),
        ):
            assert (await http.request("POST", "/only", headers=headers, body=body)).status == status
        assert (await http.request("POST", "/only", headers=plain, body=b"photo=x")).status == 415
        assert (await http.request("POST", "/only")).status == 422
        coded = {**headers, "content-encoding": "gzip"}
        assert (await http.request("POST", "/only", headers=coded, body=FILE + END)).status == 415


async def test_the_answer_is_the_same_byte_by_byte(autojump_clock: MockClock) -> None:
    listener = MemoryListener()
    bodies = [NAME + FILE + END, *MALFORMED.values(), *(make(1) + END for make, _ in list(LIMITS.values())[2:])]
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, make_app(), listeners=[listener]))
        for body in bodies:
            lines = (f"Content-Type: {TYPE}", f"Content-Length: {len(body)}", "Connection: close")
            data = head(*lines, first="POST /both HTTP/1.1") + body
            answers = [parse_answers(await talk(listener.connect(), cut))[0] for cut in ([data], bytewise(data))]
            whole, dribbled = (loads(answer.body) for answer in answers)
            assert answers[0].status == answers[1].status
            assert whole == dribbled or whole["title"] == dribbled["title"]  # a problem names its run
        nursery.cancel_scope.cancel()


# ---- anything at all ------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        b"--xyz",
        b"\r\n",
        b"--",
        NAME,
        FILE,
        END,
        b"\n",
        b"Content-Disposition: form-data",
        b'; name="a"',
        b"\0",
        b"\r\n\r\n",
    ]
)


@given(st.lists(PIECES | st.binary(max_size=5), max_size=10).map(b"".join))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        parts = read_multipart(TYPE, body)
    except ProtocolViolation:
        return
    assert body.startswith(b"--xyz")
    assert sum(map(len, [*parts.fields.values(), *parts.files.values()])) <= body.count(b"--xyz")


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)


@given(st.lists(st.tuples(NAMES, NAMES, st.binary(max_size=50).filter(lambda data: b"--xyz" not in data)), max_size=5))
def test_what_is_written_is_read(files: list[tuple[str, str, bytes]]) -> None:
    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace("%22", "").replace('"', "%22")

    body = b"".join(part(f'name="{quoted(name)}"; filename="{quoted("f" + file)}"', data) for name, file, data in files)
    if not files:
        return
    expected: dict[str, list[Upload]] = {}
    for name, file, data in files:
        upload = Upload("f" + file.replace("%22", ""), "application/octet-stream", data)
        expected.setdefault(name.replace("%22", ""), []).append(upload)
    assert read(body).files == expected
