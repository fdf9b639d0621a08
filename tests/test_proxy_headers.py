"""Who is trusted, what X-Forwarded-For and Forwarded say, and the PROXY protocol."""

from __future__ import annotations

from ipaddress import ip_address
from struct import pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent.exceptions import GwsError, Refusal
from gws_gevent.http_head import Headers
from gws_gevent.proxy_headers import (
    MAX_HOPS,
    MAX_V1_HEADER,
    MAX_V2_HEADER,
    ProxyHeader,
    ProxyHeaderError,
    TrustedProxies,
    client_address,
    looks_like_proxy_header,
    parse_proxy_header,
)

PROXY = ("10.0.0.1", 1234)
TRUSTED = TrustedProxies(["10.0.0.0/8", "2001:db8::/32", "unix"])


@pytest.mark.parametrize(
    ("networks", "peer", "trusted"),
    [
        (["10.0.0.0/8"], ("10.255.0.1", 5), True),
        (["10.0.0.0/8"], ("11.0.0.1", 5), False),
        (["10.0.0.0/8"], ("::ffff:10.0.0.1", 5, 0, 0), True),
        (["10.0.0.0/8"], ("::ffff:11.0.0.1", 5, 0, 0), False),
        (["::ffff:10.0.0.0/104"], ("10.0.0.1", 5), True),
        (["::ffff:10.0.0.0/104"], ("::ffff:10.0.0.1", 5, 0, 0), True),
        (["::ffff:10.0.0.0/104"], ("11.0.0.1", 5), False),
        (["::1"], ("::1", 5, 0, 0), True),
        (["::1"], ("127.0.0.1", 5), False),
        (["fe80::/10"], ("fe80::1%eth0", 5, 0, 2), True),
        (["0.0.0.0/0"], ("1.2.3.4", 5), True),
        (["0.0.0.0/0"], ("::1", 5, 0, 0), False),
        (["::/0"], ("::1", 5, 0, 0), True),
        (["192.0.2.7"], ("192.0.2.7", 5), True),
        (["unix"], "", True),
        (["unix"], b"", True),
        (["unix"], "/run/x.sock", True),
        (["unix"], b"\0name", True),
        (["unix"], ("127.0.0.1", 5), False),
        (["0.0.0.0/0", "::/0"], "", False),
        (["0.0.0.0/0"], ("host", 5), False),
        (["0.0.0.0/0"], None, False),
        (["0.0.0.0/0"], (), False),
        ([], ("127.0.0.1", 5), False),
        ([], "", False),
    ],
)
def test_trust(networks: list[str], peer: Any, trusted: bool) -> None:
    proxies = TrustedProxies(networks)
    assert proxies.trusts(peer) is trusted
    assert bool(proxies) is bool(networks)


@pytest.mark.parametrize("network", ["10.0.0.1/8", "x", "", "1.2.3.4/33"])
def test_malformed_networks(network: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        TrustedProxies([network])


def forwarded_for(*lines: str) -> Headers:
    return Headers([("X-Forwarded-For", line) for line in lines])


def forwarded(*lines: str) -> Headers:
    return Headers([("Forwarded", line) for line in lines])


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["192.0.2.1"], ("192.0.2.1", 0)),
        (["192.0.2.1:8080"], ("192.0.2.1", 8080)),
        (["2001:4860::1"], ("2001:4860::1", 0)),
        (["[2001:4860::1]"], ("2001:4860::1", 0)),
        (["[2001:4860::1]:8080"], ("2001:4860::1", 8080)),
        (["::ffff:192.0.2.1"], ("192.0.2.1", 0)),
        # From the right, over trusted proxies, over all lines.
        (["192.0.2.9, 192.0.2.1"], ("192.0.2.1", 0)),
        (["192.0.2.9,192.0.2.1 ,\t10.0.0.7"], ("192.0.2.1", 0)),
        (["192.0.2.9, 192.0.2.1", "10.0.0.7, 10.0.0.8"], ("192.0.2.1", 0)),
        (["192.0.2.9", "192.0.2.1"], ("192.0.2.1", 0)),
        (["192.0.2.1, ::ffff:10.0.0.7"], ("192.0.2.1", 0)),
        (["192.0.2.1, 2001:db8::7"], ("192.0.2.1", 0)),
        # All are proxies: the farthest.
        (["10.0.0.9, 10.0.0.8"], ("10.0.0.9", 0)),
        # What is no address ends the walk.
        (["192.0.2.1, garbage, 10.0.0.8"], ("10.0.0.8", 0)),
        (["192.0.2.1, , 10.0.0.8"], ("10.0.0.8", 0)),
        (["192.0.2.1, unknown"], PROXY),
        (["192.0.2.1,"], PROXY),
        ([""], PROXY),
        (["192.0.2.256"], PROXY),
        (["192.0.2.01"], PROXY),
        (["192.0.2.1:65536"], PROXY),
        (["192.0.2.1:"], PROXY),
        (["[192.0.2.1"], PROXY),
        (["fe80::1%eth0"], PROXY),
        (["3232235777"], PROXY),
        (["_hidden"], PROXY),
    ],
)
def test_x_forwarded_for(lines: list[str], client: Any) -> None:
    assert client_address(forwarded_for(*lines), PROXY, TRUSTED) == client


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        (["for=192.0.2.1"], ("192.0.2.1", 0)),
        (['For="192.0.2.1:8080";proto=https;by=10.0.0.1'], ("192.0.2.1", 8080)),
        (['proto=http ; for="[2001:4860::1]:4711" '], ("2001:4860::1", 4711)),
        (['for="[2001:4860::1]"'], ("2001:4860::1", 0)),
        (['for="192.0.2\\.1"'], ("192.0.2.1", 0)),
        (['for=192.0.2.9, for=192.0.2.1, for="10.0.0.2:5"'], ("192.0.2.1", 0)),
        (["for=192.0.2.9", "for=192.0.2.1", "for=10.0.0.2"], ("192.0.2.1", 0)),
        (['for=192.0.2.1;x="a,b;for=192.0.2.9"'], ("192.0.2.1", 0)),
        (["for=192.0.2.1,"], ("192.0.2.1", 0)),
        # Hidden or missing: the last good address.
        (["for=192.0.2.1, for=unknown"], PROXY),
        (["for=192.0.2.1, for=_x, for=10.0.0.2"], ("10.0.0.2", 0)),
        (["for=192.0.2.1, proto=https, for=10.0.0.2"], ("10.0.0.2", 0)),
        (['for="_x:_y"'], PROXY),
        (['for="192.0.2.1:_y"'], PROXY),
        # Malformed lines.
        (["for=192.0.2.1:80"], PROXY),
        (["for=[::1]"], PROXY),
        (["for = 192.0.2.1"], PROXY),
        (["192.0.2.1"], PROXY),
        (["for"], PROXY),
        (["for="], PROXY),
        ([""], PROXY),
        (['for="192.0.2.1'], PROXY),
        (["for=192.0.2.1;"], PROXY),
        (["for=192.0.2.1;;proto=http"], PROXY),
        (["for=192.0.2.1;for=192.0.2.2"], PROXY),
        (["for=192.0.2.1;FOR=192.0.2.2"], PROXY),
        (["for=192.0.2.1 proto=http"], PROXY),
        (["for=192.0.2.1", 'for="', "for=10.0.0.2"], ("10.0.0.2", 0)),
    ],
)
def test_forwarded(lines: list[str], client: Any) -> None:
    assert client_address(forwarded(*lines), PROXY, TRUSTED) == client


@pytest.mark.parametrize("sent", ['for="', 'for=1.1.1.1;x="', 'for="\\', 'for=1.1.1.1, x="', "for=1.1.1.1;", "for=1.1.1.1;for="])
@pytest.mark.parametrize("appended", ['for="[2001:4860::1]:80"', "for=192.0.2.1", 'for=192.0.2.1;by="_proxy"'])
def test_a_client_cannot_hide_what_the_proxy_appends_behind_its_own(sent: str, appended: str) -> None:
    honest = client_address(forwarded(appended), PROXY, TRUSTED)
    assert client_address(forwarded(f"{sent}, {appended}"), PROXY, TRUSTED) in (honest, PROXY)


@pytest.mark.parametrize("headers", [forwarded_for("192.0.2.1"), forwarded("for=192.0.2.1"), Headers([("X-Real-IP", "192.0.2.1")])])
def test_strangers_are_not_believed(headers: Headers) -> None:
    stranger = ("198.51.100.1", 99)
    assert client_address(headers, stranger, TRUSTED) is stranger
    assert client_address(headers, PROXY, TrustedProxies()) is PROXY
    both = Headers([*forwarded_for("192.0.2.1"), *forwarded("for=192.0.2.2")])
    assert client_address(both, stranger, TRUSTED) is stranger


@pytest.mark.parametrize("peer", [PROXY, ("::ffff:10.0.0.1", 5, 0, 0), "", b"", "/run/x.sock"])
def test_without_a_header_the_peer_counts(peer: Any) -> None:
    assert client_address(Headers([("Host", "a")]), peer, TRUSTED) is peer
    assert client_address(forwarded_for("192.0.2.1"), peer, TRUSTED) == ("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("one", "other", "client"),
    [
        ("192.0.2.1", "for=192.0.2.1", ("192.0.2.1", 0)),
        ("192.0.2.1:5", "for=192.0.2.1", ("192.0.2.1", 5)),
        ("192.0.2.1", 'for="192.0.2.1:5"', ("192.0.2.1", 5)),
        ("192.0.2.9, 192.0.2.1", "for=192.0.2.1", ("192.0.2.1", 0)),
        ("::ffff:192.0.2.1", "for=192.0.2.1", ("192.0.2.1", 0)),
        ("2001:4860:0::1", 'for="[2001:4860::1]"', ("2001:4860::1", 0)),
        ("unknown", "for=unknown", PROXY),
        ("192.0.2.1", "for=192.0.2.2", None),
        ("192.0.2.1:5", 'for="192.0.2.1:6"', None),
        ("192.0.2.1", "for=unknown", None),
        ("garbage", "for=192.0.2.1", None),
        ("192.0.2.1", "garbage", None),
    ],
)
def test_both_headers_have_to_agree(one: str, other: str, client: Any) -> None:
    headers = Headers([("X-Forwarded-For", one), ("Forwarded", other)])
    if client is not None:
        assert client_address(headers, PROXY, TRUSTED) == client
    else:
        with pytest.raises(Refusal) as caught:
            client_address(headers, PROXY, TRUSTED)
        assert caught.value.status == 400


def test_a_chain_is_followed_so_far_and_no_farther() -> None:
    for count, client in ((MAX_HOPS - 1, "192.0.2.1"), (MAX_HOPS, "10.0.0.2")):
        assert client_address(forwarded_for("192.0.2.1" + ", 10.0.0.2" * count), PROXY, TRUSTED) == (client, 0)
        assert client_address(forwarded("for=192.0.2.1" + ", for=10.0.0.2" * count), PROXY, TRUSTED) == (client, 0)


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from('for=1.0,;:[]"\\ _%x'), max_size=30), max_size=3))
def test_any_header_gives_an_address_or_the_peer(lines: list[str]) -> None:
    for headers in (forwarded(*lines), forwarded_for(*lines)):
        found = client_address(headers, PROXY, TRUSTED)
        assert found == PROXY or str(ip_address(found[0])) == found[0]


V2 = b"\r\n\r\n\0\r\nQUIT\n"
TCP4 = b"\xc0\x00\x02\x01\x0a\x00\x00\x01" + pack("!HH", 56324, 443)
TCP6 = bytes(15) + b"\x01" + bytes(15) + b"\x02" + pack("!HH", 56324, 443)
UNIX = b"/run/a.sock".ljust(108, b"\0") + b"\0name".ljust(108, b"\0")


def v2(command: int, family: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return V2 + pack("!BBH", command, family, len(payload) if length is None else length) + payload


LONGEST = "ffff:" * 7 + "ffff"
VALID: list[tuple[bytes, Any, Any]] = [
    (b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n", ("192.0.2.1", 56324), ("10.0.0.1", 443)),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", ("0.0.0.0", 0), ("0.0.0.0", 0)),
    (b"PROXY TCP6 2001:DB8::1 ::1 1 2\r\n", ("2001:db8::1", 1), ("::1", 2)),
    (f"PROXY TCP6 {LONGEST} {LONGEST} 65535 65535\r\n".encode(), (LONGEST, 65535), (LONGEST, 65535)),
    (b"PROXY UNKNOWN\r\n", None, None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None, None),
    (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None, None),
    (v2(0x21, 0x11, TCP4), ("192.0.2.1", 56324), ("10.0.0.1", 443)),
    (v2(0x21, 0x11, TCP4 + b"\x04\x00\x02ab"), ("192.0.2.1", 56324), ("10.0.0.1", 443)),
    (v2(0x21, 0x21, TCP6), ("::1", 56324), ("::2", 443)),
    (v2(0x21, 0x31, UNIX), "/run/a.sock", "@name"),
    (v2(0x21, 0x31, bytes(216)), "", ""),
    (v2(0x21, 0x31, b"a" * 216), "a" * 108, "a" * 108),
    (v2(0x21, 0x00), None, None),
    (v2(0x21, 0x00, b"anything"), None, None),
    (v2(0x21, 0x01, b""), None, None),
    (v2(0x21, 0x12, TCP4), None, None),
    (v2(0x21, 0x22, TCP6), None, None),
    (v2(0x21, 0x32, UNIX), None, None),
    (v2(0x20, 0x00), None, None),
    (v2(0x20, 0x11, TCP4), None, None),
    (v2(0x20, 0xFF, b"anything"), None, None),
    (v2(0x21, 0x11, TCP4.ljust(MAX_V2_HEADER - 16, b"\0")), ("192.0.2.1", 56324), ("10.0.0.1", 443)),
]  # fmt: skip


@pytest.mark.parametrize(("header", "source", "destination"), VALID)
def test_valid_proxy_headers_in_every_length(header: bytes, source: Any, destination: Any) -> None:
    for glued in (b"", b"GET / HTTP/1.1\r\n", b"\0", header):
        assert parse_proxy_header(header + glued) == ProxyHeader(source, destination, len(header))
    for length in range(len(header)):
        assert parse_proxy_header(header[:length]) is None
        assert looks_like_proxy_header(header[:length]) in (None, True)
    assert looks_like_proxy_header(header) is True


V1_MALFORMED = [
    "TCP4 192.0.2.1 10.0.0.1 56324", "TCP4 192.0.2.1 10.0.0.1 1 2 3", "TCP4  192.0.2.1 10.0.0.1 1 2",
    "TCP4 192.0.2.1 10.0.0.1 1 2 ", "TCP4\t192.0.2.1 10.0.0.1 1 2", "TCP4 192.0.2.1 10.0.0.1 1 2\n",
    "TCP4 192.0.2.1 10.0.0.1 01 2", "TCP4 192.0.2.1 10.0.0.1 65536 2", "TCP4 192.0.2.1 10.0.0.1 1 65536",
    "TCP4 192.0.2.1 10.0.0.1 +1 2", "TCP4 192.0.2.1 10.0.0.1 123456 2", "TCP4 192.0.2.256 10.0.0.1 1 2",
    "TCP4 192.0.2.01 10.0.0.1 1 2", "TCP4 ::1 ::1 1 2", "TCP6 192.0.2.1 10.0.0.1 1 2", "TCP6 ::1 fe80::1%eth0 1 2",
    "TCP4 a b 1 2", "UDP4 192.0.2.1 10.0.0.1 1 2", "UNKNOWNx", "UNKNOWN\nGET / HTTP/1.1", "", " ", "UNKNOWN " + "x" * 92,
    "x" * MAX_V1_HEADER,
]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        *[f"PROXY {line}\r\n".encode() for line in V1_MALFORMED],
        b"GET / HTTP/1.1\r\n", b"PROXx", b"proxy TCP4", b"\r\n\r\nGET", b"\0", b"PUT /",
        v2(0x11, 0x11, TCP4), v2(0x31, 0x11, TCP4), v2(0x22, 0x11, TCP4), v2(0x00, 0x11, TCP4), v2(0x2F, 0x11, TCP4),
        v2(0x21, 0x41, TCP4), v2(0x21, 0xF1, TCP4), v2(0x21, 0x13, TCP4), v2(0x21, 0x03),
        v2(0x21, 0x11, TCP4[:-1]), v2(0x21, 0x21, TCP6[:-1]), v2(0x21, 0x31, UNIX[:-1]), v2(0x21, 0x12, TCP4[:-1]),
        v2(0x21, 0x11, length=MAX_V2_HEADER - 15), v2(0x21, 0x11, length=65535), v2(0x20, 0x00, length=65535),
        V2[:-1] + b"x", V2 + b"x",
    ],
)  # fmt: skip
def test_malformed_proxy_headers(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError) as caught:
        parse_proxy_header(data)
    assert isinstance(caught.value, GwsError)


@pytest.mark.parametrize("length", range(20))
def test_a_request_is_told_from_a_header_on_its_first_byte(length: int) -> None:
    assert looks_like_proxy_header(b"GET /chat HTTP/1.1\r\n"[:length]) is (None if length == 0 else False)
    assert looks_like_proxy_header(b"PROXY TCP4 192.0.2.1"[:length]) is (None if length < 6 else True)
    assert looks_like_proxy_header(v2(0x21, 0x11, TCP4)[:length]) is (None if length < 12 else True)


MUTATIONS = st.tuples(st.integers(0, 60), st.binary(max_size=3))


@settings(deadline=None)
@given(st.sampled_from([header for header, _, _ in VALID]), MUTATIONS, st.integers(0, 300))
def test_a_header_is_decided_once(header: bytes, mutation: tuple[int, bytes], length: int) -> None:
    at, replacement = mutation
    data = header[:at] + replacement + header[at + len(replacement) :]

    def judge(data: bytes) -> ProxyHeader | str | None:
        try:
            return parse_proxy_header(data)
        except ProxyHeaderError as error:
            return str(error)

    early = judge(data[:length])
    if early is not None:
        assert judge(data) == early
    if isinstance(early, ProxyHeader):
        assert early.consumed <= length
