"""A request's own word on its origin counts only when a trusted proxy gives it, and only for the proxy's own hops."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerver.errors import DefinitionError, ProtocolViolation
from zerver.http.messages import Caller, Headers, RequestHead
from zerver.http.trust import MAX_HOPS, NO_TRUST, Trust, is_local

PROXY = "10.0.0.1"
TRUST = Trust(["10.0.0.0/8", "2001:db8:1::/48"])
RFC_7239 = Trust(["10.0.0.0/8"], form="forwarded")


def head(*fields: tuple[str, str]) -> RequestHead:
    return RequestHead("GET", "/", Headers.of([("host", "shop.example"), *fields]))


def refusal(trust: Trust, asked: RequestHead, peer: str = PROXY) -> int:
    with pytest.raises(ProtocolViolation) as caught:
        trust.judge(asked, peer)
    return caught.value.status


# ---- proxies --------------------------------------------------------------------------------

LIES = [
    ("x-forwarded-for", "1.2.3.4"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "evil.example"),
    ("forwarded", "for=1.2.3.4;proto=https;host=evil.example"),
]


@pytest.mark.parametrize("trust", [NO_TRUST, TRUST, RFC_7239, Trust(["unix"])])
@pytest.mark.parametrize("peer", ["192.0.2.9", "11.0.0.1", "2001:db8:2::1", ""])
def test_a_stranger_is_believed_nothing(trust: Trust, peer: str) -> None:
    assert trust.judge(head(*LIES), peer) == Caller(peer, peer, "http", "shop.example")
    assert trust.judge(head(*LIES), peer, "https").scheme == "https"


def test_a_proxy_is_believed() -> None:
    sent = head(("x-forwarded-for", "192.0.2.7"), ("x-forwarded-proto", "HTTPS"), ("x-forwarded-host", "a.example:444"))
    assert TRUST.judge(sent, PROXY) == Caller(PROXY, "192.0.2.7", "https", "a.example:444")
    sent = head(("forwarded", 'for="[2001:db8::7]:4711";Proto=https;host="a.example:444";by=_x'))
    assert RFC_7239.judge(sent, PROXY) == Caller(PROXY, "2001:db8::7", "https", "a.example:444")


def test_a_proxy_that_says_nothing_speaks_for_itself() -> None:
    assert TRUST.judge(head(), PROXY) == Caller(PROXY, PROXY, "http", "shop.example")
    assert RFC_7239.judge(head(), PROXY) == Caller(PROXY, PROXY, "http", "shop.example")


def test_only_one_form_is_read() -> None:
    assert TRUST.judge(head(LIES[3]), PROXY).client == PROXY
    assert RFC_7239.judge(head(*LIES[:3]), PROXY) == Caller(PROXY, PROXY, "http", "shop.example")


def test_unix_is_a_peer_of_its_own() -> None:
    sent = head(("x-forwarded-for", "192.0.2.7"))
    assert Trust(["unix"]).judge(sent, "unix").client == "192.0.2.7"
    assert TRUST.judge(sent, "unix").client == "unix"
    assert Trust(["unix"]).judge(sent, "").client == ""


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("1.1.1.1, 192.0.2.7", "192.0.2.7"),  # what the client put there itself is left of what the proxy saw
        ("1.1.1.1, 192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("10.0.0.9, 192.0.2.7,10.0.0.2 , 10.0.0.3", "192.0.2.7"),
        ("10.0.0.2, 10.0.0.3", "10.0.0.2"),  # nobody else: the first of ours
        ("192.0.2.7:5123, 10.0.0.2:80", "192.0.2.7"),
        ("[2001:db8::7]:80", "2001:db8::7"),
        ("2001:db8::7, 2001:db8:1::1", "2001:db8::7"),
        ("::ffff:192.0.2.7, ::ffff:10.0.0.2", "192.0.2.7"),
        ("1.1.1.1, unknown", ""),  # our proxy does not say
        ("1.1.1.1, nonsense, 10.0.0.2", ""),
        ("1.1.1.1,", ""),
        ("", ""),
        (", ".join(["192.0.2.7"] + ["10.0.0.2"] * MAX_HOPS), "10.0.0.2"),
    ],
)
def test_the_client_is_the_right_most_address_that_is_no_proxy(chain: str, client: str) -> None:
    assert TRUST.judge(head(("x-forwarded-for", chain)), PROXY).client == client
    assert TRUST.judge(head(("x-forwarded-for", chain)), "::ffff:10.0.0.1").client == client
    lines = [("x-forwarded-for", part) for part in chain.split(",")]
    assert TRUST.judge(head(*lines), PROXY).client == client


def test_the_last_scheme_and_host_count() -> None:
    sent = head(("x-forwarded-proto", "https, http"), ("x-forwarded-host", "evil.example, shop.example"))
    assert TRUST.judge(sent, PROXY) == Caller(PROXY, PROXY, "http", "shop.example")


def test_each_element_of_forwarded_is_one_hops_word() -> None:
    sent = "for=1.1.1.1;host=evil.example;proto=http, for=192.0.2.7;proto=https;host=a.example, for=10.0.0.2;proto=http"
    assert RFC_7239.judge(head(("forwarded", sent)), PROXY) == Caller(PROXY, "192.0.2.7", "https", "a.example")


@pytest.mark.parametrize("text", ["for=unknown", "for=_hidden", 'for="_hidden:1"', "proto=http"])
def test_a_hidden_client_is_nobody(text: str) -> None:
    assert RFC_7239.judge(head(("forwarded", text)), PROXY).client == ""


@pytest.mark.parametrize(
    "text",
    [
        'for="1.1.1.1, for=192.0.2.7',  # an open quote, which would swallow what the proxy adds
        "for=1.1.1.1;for=192.0.2.7",
        "for",
        "for=",
        "for=1.1.1.1,",
        ";for=1.1.1.1",
        "for=1.1.1.1 for=2.2.2.2",
        'for="1.1.1.1"x, for=2.2.2.2',
        "for=::1",
        "",
    ],
)
def test_a_forwarded_that_is_malformed_is_refused_and_an_empty_one_is_none(text: str) -> None:
    if text in ("", "for=::1"):
        RFC_7239.judge(head(("forwarded", text)), PROXY)
    else:
        assert refusal(RFC_7239, head(("forwarded", text))) == 400


@pytest.mark.parametrize(("name", "value"), [("proto", "ftp"), ("proto", ""), ("host", "a/b"), ("host", "")])
def test_nonsense_from_a_proxy_is_refused(name: str, value: str) -> None:
    assert refusal(TRUST, head((f"x-forwarded-{name}", value))) == 400
    assert refusal(RFC_7239, head(("forwarded", f'{name}="{value}"'))) == 400


@given(st.lists(st.ip_addresses().map(str), max_size=30), st.ip_addresses(network="192.0.2.0/24").map(str))
def test_no_client_can_choose_who_it_is(lies: list[str], client: str) -> None:
    chain = ", ".join([*lies, client])
    assert TRUST.judge(head(("x-forwarded-for", chain)), PROXY).client == client


ANY = st.text(string.ascii_letters + string.digits + ' ,;="\\[]:._%-\t', max_size=60)


@given(ANY, ANY, ANY)
def test_any_text_is_an_answer_or_a_refusal(first: str, second: str, third: str) -> None:
    fields = [("x-forwarded-for", first), ("x-forwarded-proto", second), ("x-forwarded-host", third)]
    for trust, sent in ((TRUST, head(*fields)), (RFC_7239, head(("forwarded", first)))):
        try:
            trust.judge(sent, PROXY)
        except ProtocolViolation as violation:
            status = violation.status
        else:
            continue
        assert status == 400


@pytest.mark.parametrize("bad", ["", "10.0.0.1/8", "10.0.0.0/33", "localhost", "*", "Unix"])
def test_a_proxy_that_cannot_be_is_a_definition_error(bad: str) -> None:
    with pytest.raises(DefinitionError, match="no proxy can be at"):
        Trust([bad])


# ---- hosts ----------------------------------------------------------------------------------

HOSTS = Trust(hosts=["Shop.example", "*.api.example", "[::1]", "127.0.0.1"])


@pytest.mark.parametrize(
    "host",
    [
        "shop.example",
        "SHOP.example:8000",
        "shop.example.",
        "a.api.example",
        "a.b.api.example:1",
        "[::1]:80",
        "127.0.0.1",
    ],
)
def test_a_host_on_the_list_is_served(host: str) -> None:
    assert HOSTS.judge(RequestHead("GET", "/", Headers.of({"host": host}))).host == host


@pytest.mark.parametrize("host", ["evil.example", "api.example", "xapi.example", "shop.example.evil", "::1", "example"])
def test_another_host_is_misdirected(host: str) -> None:
    status = 400 if host == "::1" else 421
    assert refusal(HOSTS, RequestHead("GET", "/", Headers.of({"host": host}))) == status


def test_no_host_at_all_is_a_bad_request_where_hosts_are_checked() -> None:
    old = RequestHead("GET", "/", http_version="1.0")
    assert refusal(HOSTS, old) == 400
    assert NO_TRUST.judge(old).host == ""
    assert Trust(hosts=["*"]).judge(old).host == ""


def test_the_host_that_is_believed_is_the_one_that_is_checked() -> None:
    trust = Trust([PROXY], ["shop.example"])
    sent = RequestHead("GET", "/", Headers.of({"host": "backend:8000", "x-forwarded-host": "shop.example"}))
    assert trust.judge(sent, PROXY).host == "shop.example"
    assert refusal(trust, sent, "192.0.2.1") == 421
    assert refusal(trust, head(("x-forwarded-host", "evil.example"))) == 421


@pytest.mark.parametrize("bad", ["", "shop.example:80", "a b", "*.*.example", "sho*", "http://shop.example", "*."])
def test_a_name_that_cannot_be_is_a_definition_error(bad: str) -> None:
    with pytest.raises(DefinitionError, match="is no name of a host"):
        Trust(hosts=[bad])


def test_what_is_local() -> None:
    assert all(map(is_local, ["localhost", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"]))
    assert not any(map(is_local, ["0.0.0.0", "::", "", "192.168.1.1", "shop.example", "localhost.evil.example"]))


@pytest.mark.parametrize("host", ["192.0.2.7", "192.0.2.7:8000", "[2001:db8::1]:8000", "localhost:8000"])
def test_addresses_are_served_beside_the_names_when_asked_for(host: str) -> None:
    trust = Trust(hosts=["localhost"], addresses=True)
    assert trust.judge(RequestHead("GET", "/", Headers.of({"Host": host}), "1.1")).host == host
    with pytest.raises(ProtocolViolation):
        trust.judge(RequestHead("GET", "/", Headers.of({"Host": "evil.example"}), "1.1"))


def test_a_name_longer_than_any_in_the_dns_is_below_no_other() -> None:
    """All of its suffixes would be looked up, at the square of its length."""
    trust = Trust(hosts=["*.example"])
    longest = "a" + ".a" * 122 + ".example"
    assert len(longest) == 253
    for host in (longest, longest + ".", longest + ".:80"):
        assert trust.judge(RequestHead("GET", "/", Headers.of([("host", host)]))).host == host
    assert refusal(trust, RequestHead("GET", "/", Headers.of([("host", "a" + longest)]))) == 421
