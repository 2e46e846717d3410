"""Both ends of the wire understand each other and h11, and no bytes give anything but our own error."""

import json
from contextlib import suppress

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerver.errors import ProtocolViolation
from zerver.http.client_wire import ClientWire
from zerver.http.gate import HeadLimits
from zerver.http.messages import Headers, RequestHead, ResponseHead
from zerver.http.parsers import H11Parser, HeadParser, HttptoolsParser
from zerver.http.prewritten import Prewritten
from zerver.http.reading import EndOfMessage, Mark
from zerver.http.response import problem
from zerver.http.wire import ServerWire

HOST = Headers.of({"host": "a"})


def feed(wire: ServerWire | ClientWire, data: bytes, step: int = 1_000_000) -> list[object]:
    """All events of one message, body pieces joined, up to the mark that ends it."""
    events: list[object] = []
    for at in range(0, max(len(data), 1), step):
        wire.receive(data[at : at + step]) if data else None
        while True:
            event = wire.next_event()
            if isinstance(event, Mark):
                break
            if isinstance(event, bytes) and events and isinstance(events[-1], bytes):
                events[-1] += event
            else:
                events.append(event)
    return [*events, event]


POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: 1\r\n\r\n"


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_requests_are_read(step: int) -> None:
    sized = RequestHead("POST", "/x", Headers.of([("host", "a"), ("content-length", "5")]))
    assert feed(ServerWire(), POST, step) == [sized, b"hello", EndOfMessage(), Mark.PAUSED]
    _, body, end, _ = feed(ServerWire(), CHUNKED, step)
    assert (body, end) == (b"hello", EndOfMessage(Headers.of({"x": "1"})))
    bare = feed(ServerWire(), b"GET / HTTP/1.0\r\n\r\n", step)
    assert bare == [RequestHead("GET", "/", http_version="1.0"), EndOfMessage(), Mark.PAUSED]


def test_a_body_is_taken_at_once_only_if_all_of_it_is_here() -> None:
    wire = ServerWire()
    wire.receive(POST[:-1])
    assert wire.next_event() == RequestHead("POST", "/x", Headers.of([("host", "a"), ("content-length", "5")]))
    assert wire.take_body(5) is None
    wire.receive(b"oGET")
    assert wire.take_body(4) is None
    assert wire.take_body(5) == b"hello"
    assert wire.request_complete
    assert wire.take_rest() == b"GET"
    assert (wire.take_body(5), wire.next_event()) == (None, Mark.PAUSED)
    for other, body in ((CHUNKED, None), (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"")):
        wire = ServerWire()
        wire.receive(other)
        wire.next_event()
        assert wire.take_body(5) == body


@pytest.mark.parametrize("step", [1, 1000])
def test_pipelined_requests_wait_their_turn(step: int) -> None:
    wire = ServerWire()
    feed(wire, POST + CHUNKED + b"GET", step)
    assert wire.has_rest
    wire.send_head(200, Headers(), 0)
    wire.send_end()
    wire.next_cycle()
    assert feed(wire, b"")[1] == b"hello"
    wire.send_head(200, Headers(), 0)
    wire.send_end()
    wire.next_cycle()
    assert wire.next_event() is Mark.NEED_DATA
    assert wire.take_rest() == b"GET"


@pytest.mark.parametrize("whole", [POST, CHUNKED])
def test_a_peer_that_closes(whole: bytes) -> None:
    for cut in range(len(whole) + 1):
        wire = ServerWire()
        feed(wire, whole[:cut])
        wire.receive(b"")
        expected = Mark.PEER_CLOSED if cut == 0 else Mark.PAUSED if cut == len(whole) else Mark.PEER_CUT
        assert wire.next_event() is expected


def test_a_violation_is_final() -> None:
    wire = ServerWire()
    wire.receive(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match="Host") as refused:
            wire.next_event()
        assert refused.value.status == 400
    assert b"connection: close" in wire.send_head(400, Headers(), 0)
    wire.send_end()
    assert not wire.reusable
    with pytest.raises(RuntimeError):
        wire.next_cycle()


def test_continue_is_expected_until_body_comes_or_it_is_sent() -> None:
    request = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    wire = ServerWire()
    feed(wire, request)
    assert wire.expects_continue
    assert wire.send_informational(103) == b"HTTP/1.1 103 Early Hints\r\n\r\n"
    assert wire.expects_continue
    assert wire.send_informational(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not wire.expects_continue
    eager = ServerWire()
    eager.receive(request + b"ok")
    eager.next_event()
    assert not eager.expects_continue


def answer(
    request: bytes, status: int = 200, headers: Headers = HOST, length: int | None = 2, body: bytes = b"ok"
) -> bytes:
    wire = ServerWire()
    feed(wire, request)
    return wire.send_head(status, headers, length) + wire.send_data(body) + wire.send_end()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"


def test_responses_are_framed() -> None:
    assert answer(GET) == b"HTTP/1.1 200 OK\r\nhost: a\r\ncontent-length: 2\r\n\r\nok"
    assert answer(GET, length=None) == (
        b"HTTP/1.1 200 OK\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    )
    assert answer(OLD) == b"HTTP/1.1 200 OK\r\nhost: a\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    assert answer(OLD, length=None) == b"HTTP/1.1 200 OK\r\nhost: a\r\nconnection: close\r\n\r\nok"
    assert answer(HEAD) == b"HTTP/1.1 200 OK\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
    assert answer(GET, 204) == b"HTTP/1.1 204 No Content\r\nhost: a\r\n\r\n"
    assert answer(GET, 304, length=None) == b"HTTP/1.1 304 Not Modified\r\nhost: a\r\n\r\n"
    assert answer(GET, 799).startswith(b"HTTP/1.1 799 \r\n")


def test_the_wire_owns_the_framing_fields() -> None:
    given_headers = Headers.of(
        [("content-length", "99"), ("transfer-encoding", "gzip"), ("connection", "keep-alive"), ("x", "y")]
    )
    assert answer(GET, headers=given_headers) == b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\nok"
    assert b"\r\nconnection: close\r\n" in answer(GET, headers=Headers.of({"connection": "Close"}))


def test_what_cannot_be_sent_is_refused_before_anything_is() -> None:
    wire = ServerWire()
    feed(wire, GET)
    for status, headers, length in [
        (99, Headers(), 0),
        (100, Headers(), 0),
        (1000, Headers(), 0),
        (200, Headers(), -1),
        (200, Headers.of({"a": "b\r\nc: d"}), 0),
        (200, Headers.of({"a b": "c"}), 0),
    ]:
        with pytest.raises(ValueError, match=r"."):
            wire.send_head(status, headers, length)
    assert wire.send_head(200, Headers(), 0).startswith(b"HTTP/1.1 200 OK")
    with pytest.raises(RuntimeError):
        wire.send_head(200, Headers(), 0)
    with pytest.raises(RuntimeError):
        wire.send_informational(100)


@pytest.mark.parametrize(
    ("request_", "status", "length", "reusable"),
    [
        (GET, 200, 2, True),
        (GET, 200, None, True),
        (GET, 204, None, True),
        (HEAD, 200, 2, True),
        (OLD, 200, 2, False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200, 2, False),
        (POST, 200, 2, True),
        (POST[:-1], 200, 2, False),
    ],
)
def test_when_a_connection_is_reusable(request_: bytes, status: int, length: int | None, *, reusable: bool) -> None:
    wire = ServerWire()
    feed(wire, request_)
    wire.send_head(status, Headers(), length)
    wire.send_data(b"ok")
    wire.send_end()
    assert wire.reusable is reusable


# ---- the client ---------------------------------------------------------------------------------


def client(method: str = "GET", length: int | None = 0, **headers: str) -> ClientWire:
    wire = ClientWire()
    wire.send_head(RequestHead(method, "/", Headers.of({"host": "a", **headers})), length)
    if length == 0:
        wire.send_end()
    return wire


def test_requests_are_framed() -> None:
    def sent(method: str, length: int | None, **headers: str) -> bytes:
        return ClientWire().send_head(RequestHead(method, "/x", Headers.of({"host": "a", **headers})), length)

    assert sent("GET", 0) == b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"
    assert sent("POST", 0) == b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"
    assert sent("GET", 3) == b"GET /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n"
    assert sent("PUT", None) == b"PUT /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    assert sent("GET", 0, connection="close") == b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        RequestHead("GET", "/"),
        RequestHead("GET", "/", Headers.of([("host", "a"), ("host", "a")])),
        RequestHead("G T", "/", HOST),
        RequestHead("GET", "/ HTTP/1.1\r\nx: y", HOST),
        RequestHead("GET", "/é", HOST),
        RequestHead("GET", "x", HOST),
        RequestHead("GET", "/", Headers.of({"host": "a", "x": "y\r\nz: 1"})),
        RequestHead("GET", "/", Headers.of({"host": "a", "x y": "z"})),
    ],
)
def test_requests_that_would_read_differently_cannot_be_sent(head: RequestHead) -> None:
    with pytest.raises(ValueError, match=r"."):
        ClientWire().send_head(head)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize("step", [1, 1000])
def test_responses_are_read(step: int) -> None:
    head = ResponseHead(200, Headers.of({"content-length": "2"}))
    assert feed(client(), OK, step) == [head, b"ok", EndOfMessage(), Mark.PAUSED]
    assert feed(client("HEAD"), OK[:-2], step) == [head, EndOfMessage(), Mark.PAUSED]
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert feed(client(), interim + OK, step) == [head, b"ok", EndOfMessage(), Mark.PAUSED]


def test_a_response_may_end_with_the_connection() -> None:
    wire = client()
    assert feed(wire, b"HTTP/1.1 200 OK\r\n\r\nabc", 1)[1:] == [b"abc", Mark.NEED_DATA]
    wire.receive(b"")
    assert [wire.next_event(), wire.next_event()] == [EndOfMessage(), Mark.PAUSED]
    assert not wire.reusable


def test_a_server_that_closes() -> None:
    for cut in range(len(OK)):
        wire = client()
        feed(wire, OK[:cut])
        wire.receive(b"")
        assert wire.next_event() is (Mark.PEER_CUT if cut else Mark.PEER_CLOSED)
        assert not wire.reusable


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"\r\n" + OK,
        b"not http\r\n\r\n",
    ],
)
def test_what_a_client_refuses(data: bytes) -> None:
    wire = client()
    with pytest.raises(ProtocolViolation):
        feed(wire, data)
    assert not wire.reusable


def test_an_answer_to_no_question_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="no request"):
        feed(ClientWire(), OK)


def test_an_upgrade_that_was_asked_for_hands_over_the_rest() -> None:
    wire = client(connection="Upgrade", upgrade="websocket")
    events = feed(wire, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x00")
    assert [type(event) for event in events] == [ResponseHead, EndOfMessage, Mark]
    assert wire.take_rest() == b"\x81\x00"
    assert not wire.reusable


def test_a_client_reuses_only_a_clean_connection() -> None:
    wire = client()
    assert not wire.reusable
    feed(wire, OK)
    assert wire.reusable
    wire.next_cycle()
    wire.send_head(RequestHead("GET", "/", HOST))
    wire.send_end()
    feed(wire, OK + b"unasked")
    assert not wire.reusable
    early = client("POST", length=3)
    feed(early, OK)
    assert not early.reusable  # answered before it had sent its body
    closing = client(connection="close")
    feed(closing, OK)
    assert not closing.reusable


def test_a_body_is_taken_whole_once_all_of_it_has_come() -> None:
    wire = client()
    wire.receive(OK[:-1])
    assert isinstance(wire.next_event(), ResponseHead)
    assert (wire.body_length, wire.take_body(), wire.reusable) == (2, None, False)
    wire.receive(OK[-1:])
    assert (wire.take_body(), wire.take_body(), wire.reusable) == (b"ok", None, True)
    assert wire.next_event() is Mark.PAUSED
    head_only = client("HEAD")
    head_only.receive(OK[:-2])
    assert isinstance(head_only.next_event(), ResponseHead)
    assert (head_only.body_length, head_only.take_body(), head_only.reusable) == (0, b"", True)
    chunked = client()
    chunked.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert isinstance(chunked.next_event(), ResponseHead)
    assert (chunked.body_length, chunked.take_body()) == (None, None)


ANSWERS = [
    OK,
    OK[:-1],
    OK + b"unasked",
    OK.replace(b"ok", b"no"),
    OK.replace(b"200", b"304"),
    OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"),
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nok",
    b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["GET", "HEAD", "POST"]), st.sampled_from(ANSWERS)), max_size=6),
    st.integers(1, 60),
)
def test_what_was_read_before_changes_nothing_of_what_an_answer_means(
    exchanges: list[tuple[str, bytes]], step: int
) -> None:
    def read(wire: ClientWire, method: str, answer: bytes) -> object:
        wire.send_whole(RequestHead(method, "/", HOST), b"")
        try:
            return feed(wire, answer, step), wire.body_length, wire.reusable
        except ProtocolViolation as violation:
            return str(violation)

    wire = ClientWire()
    for method, answer in exchanges:
        assert read(wire, method, answer) == read(ClientWire(), method, answer)
        if wire.reusable:
            wire.next_cycle()
        else:
            wire = ClientWire()


# ---- both ends, and h11 ---------------------------------------------------------------------------

BODIES = st.lists(st.binary(max_size=30), max_size=5)


@settings(deadline=None)
@given(BODIES, st.booleans(), BODIES, st.booleans(), st.integers(1, 60))
def test_both_ends_understand_each_other(
    asked: list[bytes], ask_chunked: bool, answered: list[bytes], answer_chunked: bool, step: int
) -> None:
    client_wire, server_wire = ClientWire(), ServerWire()
    for _ in range(2):
        size = sum(map(len, asked))
        out = client_wire.send_head(RequestHead("POST", "/", HOST), None if ask_chunked else size)
        out += b"".join(map(client_wire.send_data, asked)) + client_wire.send_end()
        head, *body, end, mark = feed(server_wire, out, step)
        assert (b"".join(body), end, mark) == (b"".join(asked), EndOfMessage(), Mark.PAUSED)
        size = sum(map(len, answered))
        out = server_wire.send_head(201, Headers.of({"x": "y"}), None if answer_chunked else size)
        out += b"".join(map(server_wire.send_data, answered)) + server_wire.send_end()
        head, *body, end, mark = feed(client_wire, out, step)
        assert isinstance(head, ResponseHead)
        assert (head.status, head.headers.get("x")) == (201, "y")
        assert (b"".join(body), end, mark) == (b"".join(answered), EndOfMessage(), Mark.PAUSED)
        server_wire.next_cycle()
        client_wire.next_cycle()


@settings(deadline=None)
@given(BODIES, st.booleans())
def test_h11_reads_what_we_write(pieces: list[bytes], chunked: bool) -> None:
    peer = h11.Connection(h11.CLIENT)
    asked = peer.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    asked += peer.send(h11.EndOfMessage())
    wire = ServerWire()
    feed(wire, asked)
    size = sum(map(len, pieces))
    answered = wire.send_head(200, HOST, None if chunked else size)
    peer.receive_data(answered + b"".join(map(wire.send_data, pieces)) + wire.send_end())
    head, body = peer.next_event(), b""
    while isinstance(event := peer.next_event(), h11.Data):
        body += event.data
    assert isinstance(head, h11.Response)
    assert isinstance(event, h11.EndOfMessage)
    assert (head.status_code, body) == (200, b"".join(pieces))


FRAGMENTS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([GET, POST, CHUNKED, OK, b"HTTP/1.1", b"\r\n", b"\n", b": ", b"Host: a", b"5\r\n", b"0\r\n\r\n"]),
)


@settings(deadline=None)
@given(st.lists(FRAGMENTS, max_size=8).map(b"".join), st.integers(1, 40))
def test_garbage_gives_our_own_error_and_no_other(data: bytes, step: int) -> None:
    for wire in (ServerWire(HeadLimits(64, 64, 200, 5)), client()):
        with suppress(ProtocolViolation):
            feed(wire, data, step)


def test_the_parser_behind_the_gate_can_be_exchanged() -> None:
    class Loud(H11Parser):
        def request(self, raw: bytes) -> RequestHead:
            return RequestHead("LOUD", super().request(raw).target)

    assert feed(ServerWire(parser=Loud()), GET)[0] == RequestHead("LOUD", "/")


def test_a_parser_that_objects_is_heard() -> None:
    with pytest.raises(ProtocolViolation):
        H11Parser().request(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ProtocolViolation):
        H11Parser().response(b"HTTP/1.1 200 O\0K\r\n\r\n")


# ---- fields written beforehand ----------------------------------------------------------------


def test_prewritten_fields_are_written_as_others_are() -> None:
    plain = Headers.of([("A", "1"), ("b", "2")])
    ready = Prewritten.of({"A": "1"}).extended(b"b", b"2")
    assert ready.raw == plain.raw
    assert ServerWire().send_head(429, ready, 3, date=b"date: x\r\n") == ServerWire().send_head(
        429, plain, 3, date=b"date: x\r\n"
    )


@pytest.mark.parametrize(
    "field", [(b"a", b"1\r\nb: 2"), (b"a b", b"1"), (b"content-length", b"1"), (b"connection", b"x"), (b"date", b"x")]
)
def test_what_cannot_be_prewritten_is_refused(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r"header|beforehand"):
        Prewritten().extended(*field)
    with pytest.raises(ValueError, match=r"header|beforehand"):
        Prewritten.of([(field[0].decode(), field[1].decode())])


@pytest.mark.parametrize("status", [413, 414, 416, 422])
def test_the_status_line_and_the_title_say_the_same(status: int) -> None:
    title = json.loads(problem(status).body)["title"]  # type: ignore[arg-type]  # bytes, of a problem
    assert ServerWire().send_head(status, Headers(), 0).startswith(f"HTTP/1.1 {status} {title}\r\n".encode())


# ---- short cuts -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 304, 503])
@pytest.mark.parametrize("fields", [Headers.of({"a": "b"}), Prewritten.of({"a": "b"})])
@pytest.mark.parametrize("close", [False, True])
def test_a_whole_answer_is_what_its_parts_are(method: str, status: int, fields: Headers, close: bool) -> None:
    seen = []
    for whole in (True, False):
        wire = ServerWire()
        wire.receive(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wire.next_event()
        assert wire.pass_empty_body() or not whole
        if whole:
            seen.append(wire.send_whole(status, fields, b"hello", 5, close=close, date=b"date: now\r\n"))
        else:
            head = wire.send_head(status, fields, 5, close=close, date=b"date: now\r\n")
            seen.append(head + wire.send_data(b"hello") + (b"" if method == "HEAD" else wire.send_end()))
        assert wire.closing is close
        assert not wire.sends_body or not whole
        if whole:
            assert wire.reusable is not close
    assert seen[0] == seen[1]


def test_a_whole_answer_of_another_length_than_is_told_is_refused_and_nothing_has_begun() -> None:
    wire = ServerWire()
    with pytest.raises(ValueError, match="cannot be sent as one of 4"):
        wire.send_whole(200, Headers(), b"hello", 4)
    wire.send_whole(200, Headers(), b"hello", 5)
    with pytest.raises(RuntimeError):
        wire.send_whole(200, Headers(), b"hello", 5)


LINES = (
    b"GET / HTTP/1.1", b"GET /other?x=%20 HTTP/1.1", b"PATCH /x HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET * HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1", b"GET http://a/x HTTP/1.1", b"GET http://b/x HTTP/1.1", b"GET /x HTTP/1.0",
    b"GET /x HTTP/2.0", b"GET  /x HTTP/1.1", b"GET /x HTTP/1.1 ", b"G@T /x HTTP/1.1", b"GET x HTTP/1.1",
    b"GET /\xff HTTP/1.1", b"GET /x\rHTTP/1.1",
    b"GET /x HTTP/1.1\r\nHost: a", b"GET /" + b"x" * 9000 + b" HTTP/1.1", b"HEAD /x HTTP/1.1", b"get /x http/1.1",
)  # fmt: skip
FIELDS = (
    b"Host: a", b"Host: a\r\nX-Y: z", b"Host: a\r\nContent-Length: 3", b"Host: a\r\nTransfer-Encoding: chunked",
    b"Host: a\r\nConnection: close", b"Host: a\r\nExpect: 100-continue\r\nContent-Length: 3", b"Host: b", b"X: y",
    b"Host: a\r\nCookie: " + b"c" * 3000,
)  # fmt: skip


def verdict(wire: ServerWire, raw: bytes, step: int = 1_000_000) -> object:
    """What a wire says to a head, and what it then holds of the connection."""
    try:
        event = feed(wire, raw, step)
    except ProtocolViolation as violation:
        return violation.status, str(violation)
    return event, wire.body_length, wire.may_keep_alive, wire.expects_continue


def goes_on(wire: ServerWire) -> bool:
    """Answer, and begin the next cycle; whether there is one."""
    if wire.request_complete:
        wire.send_whole(200, Headers(), b"", 0)
    if wire.reusable:
        wire.next_cycle()
        return True
    return False


@pytest.mark.parametrize("parser", [H11Parser(), HttptoolsParser()], ids=["h11", "httptools"])
@pytest.mark.parametrize("before", FIELDS)
@pytest.mark.parametrize("fields", FIELDS)
def test_what_a_client_said_before_changes_no_verdict(parser: HeadParser, before: bytes, fields: bytes) -> None:
    known: list[bytes] = []
    for line in LINES:
        raw = line + b"\r\n" + fields + b"\r\n\r\n"
        used = ServerWire(parser=parser)
        told = verdict(
            used, b"GET /first HTTP/1.1\r\n" + before + b"\r\n\r\n" + (b"abc" if b"-Length" in before else b"")
        )
        assert told
        if goes_on(used):
            known.append(before)
            fresh = verdict(ServerWire(parser=parser), raw)
            assert verdict(used, raw) == fresh
            for step in (1_000_000, 7):  # and the very same once more, whole and in pieces
                if not goes_on(used):
                    break
                assert verdict(used, raw, step) == fresh
    assert known or any(word in before for word in (b"chunked", b"close", b"X: y"))


@pytest.mark.parametrize("limits", [HeadLimits(start_line=24), HeadLimits(head=60), HeadLimits(field=20)])
def test_what_a_client_said_before_lifts_no_limit(limits: HeadLimits) -> None:
    for length in range(1, 60):
        raw = b"GET /%b HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n" % (b"x" * length)
        used = ServerWire(limits)
        feed(used, b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n")
        assert goes_on(used)
        assert verdict(used, raw) == verdict(ServerWire(limits), raw)


def test_pipelined_requests_that_are_alike_are_told_apart() -> None:
    wire = ServerWire()
    wire.receive(GET * 3 + HEAD + GET + b"POST /x HTTP/1.1\r\nContent-Length: 27\r\nHost: a\r\n\r\n" + GET)
    methods = []
    while isinstance(head := wire.next_event(), RequestHead):
        methods.append(head.method)
        if head.method == "POST":
            break
        assert wire.pass_empty_body()
        assert goes_on(wire)
    assert methods == ["GET"] * 3 + ["HEAD", "GET", "POST"]
    assert wire.next_event() == GET  # a body that looks like a head is a body
    assert wire.next_event() == EndOfMessage()


def test_a_body_that_is_announced_is_not_passed() -> None:
    for raw in (POST, CHUNKED):
        wire = ServerWire()
        wire.receive(raw)
        wire.next_event()
        assert not wire.pass_empty_body()
        assert not wire.request_complete
    assert not ServerWire().pass_empty_body()
