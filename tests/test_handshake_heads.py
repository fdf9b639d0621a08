"""HTTP/1.1 heads: the same bytes in every split, what is refused and how early, and what a parsed head says."""

from __future__ import annotations

import re
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent import http_head
from gws_gevent.exceptions import HandshakeError, Refusal
from gws_gevent.http_head import (
    MAX_METHOD,
    Headers,
    HeadReader,
    Request,
    ResponseHeadReader,
    check_header,
    is_authority,
    parse_request,
    parse_response,
)

HEAD = b"GET /chat?x=1 HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\n\r\n"
#: Pieces that make heads, whole and broken, likelier than single bytes do.
PIECES = st.sampled_from([
    b"GET ", b"/ ", b"HTTP/1.1", b"\r\n", b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"Host: a", b"A: b", b":", b" ", b"\t", b"\0",
    b"\x7f", b"\xe9", b"x" * 40, b"HTTP/1.1 101 OK", b"HTTP/1.0 404", b"Transfer-Encoding: chunked", b"Content-Length: 5",
    b"Upgrade: websocket",
    b"Connection: upgrade", b"PRI * HTTP/2.0", HEAD,
])  # fmt: skip
BYTES = st.lists(PIECES | st.binary(max_size=4), max_size=12).map(b"".join)


def read(reader: HeadReader, chunks: list[bytes]) -> tuple[object, ...]:
    """What a reader makes of chunks: the head and all that follows it, the error, or how much is pending."""
    for index, chunk in enumerate(chunks):
        try:
            complete = reader.feed(chunk)
        except Refusal as refusal:
            return ("refused", refusal.status, refusal.body)
        except HandshakeError as error:
            return ("failed", str(error))
        if complete:
            return ("complete", reader.head, reader.rest + b"".join(chunks[index + 1 :]))
    return ("more", reader.pending)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def refused_at(data: bytes, limit: int = 16384, max_lines: int = 100) -> tuple[int, int]:
    """Feed byte by byte; the status of the refusal, and how many bytes had been fed."""
    reader = HeadReader(limit, max_lines)
    for count in range(len(data)):
        try:
            assert not reader.feed(data[count : count + 1]), "complete"
        except Refusal as refusal:
            return refusal.status, count + 1
    pytest.fail("not refused")


@pytest.mark.slow
@settings(deadline=None)
@given(BYTES, st.lists(st.integers(0, 500), max_size=8), st.sampled_from([8, 64, 300]), st.integers(0, 4))
def test_every_split_of_a_request_gives_the_same(data: bytes, cuts: list[int], limit: int, max_lines: int) -> None:
    whole = read(HeadReader(limit, max_lines), [data])
    assert read(HeadReader(limit, max_lines), split(data, cuts)) == whole
    assert read(HeadReader(limit, max_lines), [data[i : i + 1] for i in range(len(data))]) == whole


@pytest.mark.slow
@settings(deadline=None)
@given(BYTES, st.lists(st.integers(0, 500), max_size=8), st.sampled_from([8, 64, 300]), st.integers(0, 4))
def test_every_split_of_a_response_gives_the_same(data: bytes, cuts: list[int], limit: int, max_lines: int) -> None:
    data = b"HTTP/1.1 " + data
    whole = read(ResponseHeadReader(limit, max_lines), [data])
    assert read(ResponseHeadReader(limit, max_lines), split(data, cuts)) == whole
    assert read(ResponseHeadReader(limit, max_lines), [data[i : i + 1] for i in range(len(data))]) == whole


@settings(deadline=None)
@given(BYTES)
def test_arbitrary_bytes_raise_nothing_but_refusals(data: bytes) -> None:
    for head in (data, b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n"):
        try:
            request = parse_request(head)
        except Refusal as refusal:
            status = refusal.status
        else:
            status = 0
            assert head.startswith(f"{request.method} {request.target} HTTP/{request.version}\r\n".encode())
            assert head.count(b"\r\n") == len(request.headers) + 2
        assert status in (0, 400, 405, 505)


@settings(deadline=None)
@given(BYTES)
def test_arbitrary_answers_raise_nothing_but_handshake_errors(data: bytes) -> None:
    for head in (data, b"HTTP/1.1 101 OK\r\n" + data + b"\r\n\r\n"):
        try:
            response = parse_response(head)
        except HandshakeError:
            continue
        else:
            assert head.startswith(b"HTTP/1.")
            assert int(head[9:12]) == response.status


TOKEN = st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=12)
VALUE = st.text(st.sampled_from('\t !"(,:;=@AZaz~\x80\xe9\xff'), max_size=20).map(lambda value: value.strip(" \t"))


@settings(deadline=None)
@given(
    st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "DELETE"]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=30),
    st.lists(st.tuples(TOKEN, VALUE), max_size=8),
)
def test_generated_requests_round_trip(method: str, target: str, lines: list[tuple[str, str]]) -> None:
    lines = [("Host", "example.com:3001"), *lines]
    text = f"{method} /{target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
    reader = HeadReader(16384)
    assert reader.feed(text.encode("latin-1") + b"glued")
    assert reader.rest == b"glued"
    request = parse_request(reader.head)
    assert request == Request(method, "/" + target, Headers(lines), "1.1")
    assert list(request.headers) == [(name.lower(), value) for name, value in lines]
    assert f"{request.path}?{request.query}".rstrip("?") == request.target.rstrip("?")


def test_what_follows_the_head_is_handed_on_whatever_it_is() -> None:
    reader = HeadReader(len(HEAD))
    assert reader.feed(HEAD + b"\0\r\r\n" * 10_000)
    assert reader.head == HEAD
    assert reader.rest == b"\0\r\r\n" * 10_000
    assert reader.pending == 0


@pytest.mark.parametrize(
    ("data", "status", "at"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, 1),  # TLS ClientHello
        (b"\x05\x01\x00", 400, 1),  # SOCKS5
        (b"\0\0\0\0", 400, 1),
        (b"\x81\x85abcd", 400, 1),  # a WebSocket frame
        (b" GET / HTTP/1.1", 400, 1),
        (b"\r\nGET / HTTP/1.1", 400, 2),
        (b"\nGET / HTTP/1.1", 400, 1),
        (b"GET\t/ HTTP/1.1", 400, 4),
        (b"GET\r\n\r\n", 400, 5),
        (b"M" * 64, 400, MAX_METHOD + 1),
        (b"GET / HTTP/1.1\r\nA: b\0", 400, 21),
        (b"GET / HTTP/1.1\r\nA: b\x7f", 400, 21),
        (b"GET / HTTP/1.1\r\nA: b\x1b", 400, 21),
        (b"GET / HTTP/1.1\r\nA: b\rc", 400, 22),
        (b"GET / HTTP/1.1\r\r", 400, 16),
        (b"GET / HTTP/1.1\n", 400, 15),
        (b"GET / HTTP/1.1\r\nA: b\nC: d", 400, 21),
    ],
)
def test_bytes_that_cannot_be_http_are_refused_at_the_first_of_them(data: bytes, status: int, at: int) -> None:
    assert refused_at(data) == (status, at)


@pytest.mark.parametrize("surplus", [0, 1])
def test_limit_of_the_head_includes_its_blank_line(surplus: int) -> None:
    outcome = read(HeadReader(len(HEAD) - surplus), [HEAD])
    assert outcome[:2] == (("refused", 431) if surplus else ("complete", HEAD))


def test_long_request_line_is_414_and_long_headers_are_431() -> None:
    assert refused_at(b"GET /" + b"a" * 200, limit=100) == (414, 100)
    assert refused_at(b"GET / HTTP/1.1\r\nA: " + b"a" * 200, limit=100) == (431, 100)
    line = b"GET /" + b"a" * 84 + b" HTTP/1.1\r\n"
    assert len(line) == 100
    # Of 101 bytes the line itself fits, and no header does.
    assert refused_at(line + b"A: b\r\n", limit=101) == (431, 101)


@pytest.mark.parametrize(("lines", "accepted"), [(0, True), (100, True), (101, False)])
def test_header_lines_are_counted(lines: int, accepted: bool) -> None:
    start = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * lines
    if accepted:
        assert HeadReader(16384).feed(start + b"\r\n")
    else:
        assert refused_at(start + b"\r\n") == (431, len(start))
        assert read(HeadReader(16384), [start + b"\r\n"])[:2] == ("refused", 431)


def test_which_fault_comes_first_decides() -> None:
    lines = b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 3
    assert read(HeadReader(999, 2), [lines + b"\0"])[:2] == ("refused", 431)
    assert read(HeadReader(999, 2), [lines.replace(b"b\r\nA", b"\0\r\nA", 1)])[:2] == ("refused", 400)


def test_one_byte_at_a_time_looks_at_no_byte_again() -> None:
    held = 1 << 24
    reader = HeadReader(2 * held)
    reader.feed(b"GET / HTTP/1.1\r\nA: " + b"a" * held)
    start = process_time()
    for _ in range(2000):
        assert not reader.feed(b"a")
    # Some milliseconds. To search what is held again for each byte would be to search 32 GiB.
    assert process_time() - start < 0.5


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"SSH-2.0-x\r\n", "is not HTTP/1.1"),
        (b"HTTP/2 101\r\n", "is not HTTP/1.1"),
        (b"HTTP/1.1 101 OK\r\nA: \0", "is not HTTP/1.1"),
        (b"HTTP/1.1 101 " + b"a" * 100, "status line of the server's answer is longer than 64 bytes"),
        (b"HTTP/1.1 101 OK\r\n" + b"A: b\r\n" * 20, "headers of the server's answer pass 64 bytes or 100 lines"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(data: bytes, message: str) -> None:
    with pytest.raises(HandshakeError, match=re.escape(message)) as caught:
        ResponseHeadReader(64).feed(data)
    assert not isinstance(caught.value, Refusal)


def test_response_head_and_what_follows() -> None:
    reader = ResponseHeadReader(1024)
    assert not reader.feed(b"HT")
    assert reader.feed(b"TP/1.1 101 OK\r\nA: b\r\n\r\n\x81\x00")
    assert reader.rest == b"\x81\x00"
    response = parse_response(reader.head)
    assert (response.status, list(response.headers), response.is_interim) == (101, [("a", "b")], False)


@pytest.mark.parametrize("head", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_interim_answers_are_told_apart(head: bytes) -> None:
    assert parse_response(head).is_interim


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 020 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 101 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 101 OK\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"",
    ],
)
def test_malformed_answers(head: bytes) -> None:
    with pytest.raises(HandshakeError, match="the server's answer is"):
        parse_response(head)


def request(lines: bytes = b"", first: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a\r\n") -> Request:
    return parse_request(first + b"\r\n" + host + lines + b"\r\n")


@pytest.mark.parametrize(
    "lines",
    [
        b"A: b\0\r\n", b"A: b\x01\r\n", b"A: b\x7f\r\n", b"A: b\rc\r\n", b"A: b\nC: d\r\n", b"A: b\r\n c\r\n", b"A: b\r\n\tc\r\n",
        b"A:\r\n b\r\n", b"A : b\r\n", b"A\t: b\r\n", b": b\r\n", b"A\r\n", b"A(: b\r\n", b"A\xe9: b\r\n", b" A: b\r\n",
        b"\r\nB: c\r\n",
        b"Host: a\r\n", b"Host: b\r\n",
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n", b"Content-Length: 3, 4\r\n", b"Content-Length: -1\r\n",
        b"Content-Length: +1\r\n",
        b"Content-Length: 0x1\r\n", b"Content-Length: \r\n", b"Content-Length: 18446744073709551616\r\n",
        b"Transfer-Encoding: foo\r\n", b"Transfer-Encoding: chunked, foo\r\n",
    ],
)  # fmt: skip
def test_malformed_headers_are_400(lines: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        request(lines)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "host",
    [
        b"", b"Host:\r\n", b"Host: \r\n", b"Host: a b\r\n", b"Host: a, b\r\n", b"Host: a,b\r\n", b"Host: a/b\r\n", b"Host: u@a\r\n",
        b"Host: a:b\r\n", b"Host: a:65536\r\n", b"Host: a:123456\r\n", b"Host: ::1\r\n", b"Host: [::1\r\n", b"Host: [zz]\r\n",
        b"Host: [:::]\r\n", b"Host: [::1]x\r\n", b"Host: http://a\r\n", b"Host: a%2\r\n", b"Host: \xe9\r\n", b"Host: a?b\r\n",
        b"Host: a#b\r\n", b"Host: a\\b\r\n", b"Host: :80\r\n",
    ],
)  # fmt: skip
def test_host_is_one_valid_authority(host: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        request(host=host)
    assert caught.value.status == 400


@pytest.mark.parametrize("host", ["a", "a.b-c_d.example:65535", "1.2.3.4:", "[::1]", "[2001:db8::1]:80", "localhost:0", "xn--tda"])
def test_valid_hosts(host: str) -> None:
    assert request(host=f"Host: {host}\r\n".encode()).host == host
    assert is_authority(host)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1 ", 400), (b"GET  / HTTP/1.1", 400), (b" GET / HTTP/1.1", 400), (b"GET /", 400), (b"GET / ", 400),
        (b"GET /a b HTTP/1.1", 400), (b"GET /\xe9 HTTP/1.1", 400), (b"GET /\x01 HTTP/1.1", 400), (b"GET / http/1.1", 400),
        (b"GET / HTTP/1.11", 400), (b"GET / HTTP/11", 400), (b"GET / RTSP/1.0", 400), (b"GET / ICE/1.0", 400),
        (b"GE(T / HTTP/1.1", 400),
        (b"GET a HTTP/1.1", 400), (b"GET * HTTP/1.1", 400), (b"GET /#x HTTP/1.1", 400), (b"GET a:1 HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400), (b"GET http://u@h/x HTTP/1.1", 400), (b"GET http://h/#x HTTP/1.1", 400), (b"", 400),
        (b"CONNECT / HTTP/1.1", 400), (b"CONNECT u@a:1 HTTP/1.1", 400),
        (b"FOO / HTTP/1.1", 405), (b"get / HTTP/1.1", 405),
        (b"GET / HTTP/2.0", 505), (b"GET / HTTP/1.2", 505), (b"GET / HTTP/0.9", 505), (b"GET / HTTP/3.0", 505),
        (b"PRI * HTTP/2.0", 505),
    ],
)  # fmt: skip
def test_request_lines_that_are_refused(line: bytes, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        request(first=line)
    assert caught.value.status == status
    assert (caught.value.headers == {"Allow": "GET"}) == (status == 405)


def test_a_parser_that_stops_early_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        def __init__(self, protocol: object) -> None: ...
        def feed_data(self, data: bytes) -> None: ...

    monkeypatch.setattr(http_head, "HttpRequestParser", Idle)
    monkeypatch.setattr(http_head, "HttpResponseParser", Idle)
    with pytest.raises(Refusal):
        parse_request(HEAD.replace(b"Accept: */*", b"Content-Length: 0"))
    with pytest.raises(HandshakeError):
        parse_response(b"HTTP/1.1 101 OK\r\n\r\n")


#: Lines of a GET that a shorter parser could take for others than httptools does.
LINES = st.tuples(
    st.sampled_from(["Host", "Upgrade", "Connection", "X", "Expect", " X", "X ", "X Y", "", "x\ty", "\xe9"]),
    st.sampled_from([":", ": ", ":\t ", " :", ""]),
    st.sampled_from(["", "Upgrade", "close", "a b", " \t", "a:b", "\xff", "a\tb", "a,", "\x7f", "\0", "\r", "\n"]),
    st.sampled_from(["", " ", " \t", "\r\n fold", "\r\n"]),
).map("".join)  # fmt: skip


@settings(max_examples=400)
@given(st.text("/?#*%:;@[]{}|^`\"'<>\\~ aZ0\xe9", max_size=6), st.lists(LINES, max_size=4))
def test_a_plain_get_is_what_httptools_makes_of_it(target: str, lines: list[str]) -> None:
    head = "\r\n".join([f"GET /{target} HTTP/1.1", *lines, "", ""]).encode("latin-1")
    plain = http_head._parse_plain_get(head)
    if plain is not None:
        assert plain == http_head._parse_any_request(head)


@pytest.mark.parametrize(
    "extra", [b"", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"A: b\r\n c\r\n", b"A b: c\r\n"]
)
def test_only_what_is_unremarkable_is_a_plain_get(extra: bytes) -> None:
    head = HEAD[:-2] + extra + b"\r\n"
    assert (http_head._parse_plain_get(head) is None) == bool(extra)
    assert http_head._parse_plain_get(head + b"X: y\r\n\r\n") is None
    assert http_head._parse_plain_get(head[:-1]) is None


def test_http2_preface_as_it_is_sent() -> None:
    reader = HeadReader(16384)
    assert reader.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    with pytest.raises(Refusal) as caught:
        parse_request(reader.head)
    assert caught.value.status == 505


@pytest.mark.parametrize("head", [HEAD[:-2], HEAD[:-1], HEAD + b"x", HEAD + b"A: b\r\n\r\n", HEAD + HEAD, b""])
def test_a_head_is_one_head(head: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        parse_request(head)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("first", "host", "path", "query"),
    [
        (b"GET /a/b%20c?x=1?y HTTP/1.1", "a", "/a/b%20c", "x=1?y"),
        (b"GET / HTTP/1.1", "a", "/", ""),
        (b"GET //evil/x HTTP/1.1", "a", "//evil/x", ""),
        (b"GET /x?u=http://b/y HTTP/1.1", "a", "/x", "u=http://b/y"),
        (b"GET http://b:80/x?y HTTP/1.1", "b:80", "/x", "y"),
        (b"GET ws://b HTTP/1.1", "b", "/", ""),
        (b"GET http://b?q HTTP/1.1", "b", "/", "q"),
        (b"OPTIONS * HTTP/1.1", "a", "*", ""),
        (b"CONNECT b:1 HTTP/1.1", "a", "b:1", ""),
        (b"POST /x HTTP/1.0", "a", "/x", ""),
    ],
)
def test_targets(first: bytes, host: str, path: str, query: str) -> None:
    found = request(first=first)
    assert (found.host, found.path, found.query) == (host, path, query)


def test_http_1_0_may_leave_the_host_out() -> None:
    found = parse_request(b"GET / HTTP/1.0\r\n\r\n")
    assert (found.version, found.host, len(found.headers)) == ("1.0", "", 0)


def test_bodies_are_judged_elsewhere() -> None:
    assert request(b"Content-Length: 3\r\n", b"POST / HTTP/1.1").headers["content-length"] == "3"
    assert request(b"Transfer-Encoding: chunked\r\n", b"POST / HTTP/1.1").headers["transfer-encoding"] == "chunked"


def test_values_keep_what_stands_inside() -> None:
    headers = request(b"A:  b \t c\t \r\nB:\r\nC: \xe9\r\n").headers
    assert [headers[name] for name in "ABC"] == ["b \t c", "", "é"]


def test_headers_are_a_multimap_without_case() -> None:
    headers = Headers([("A", "1"), ("b", "2, , 3,"), ("a", "4")])
    assert headers.get("a") == headers.get("A") == headers["A"] == "1"
    assert headers.get("c") is None
    assert headers.get("c", "x") == "x"
    assert headers.get_all("A") == ["1", "4"]
    assert headers.get_all("B") == ["2, , 3,"]
    assert headers.get_all("c") == []
    assert headers.elements("B") == ["2", "3"]
    assert headers.elements("a") == ["1", "4"]
    assert "B" in headers
    assert "c" not in headers
    assert 1 not in headers
    assert list(headers) == [("a", "1"), ("b", "2, , 3,"), ("a", "4")]
    assert len(headers) == 3
    assert headers == Headers(headers)
    assert hash(headers) == hash(Headers(headers))
    assert headers != Headers()
    assert repr(Headers([("A", "1")])) == "Headers([('a', '1')])"
    assert headers != [("a", "1")]
    with pytest.raises(KeyError):
        headers["c"]


def test_a_request_in_a_log_shows_no_secret() -> None:
    found = request(b"Authorization: Basic c2VjcmV0\r\nCookie: session=1\r\n")
    assert repr(found) == "Request(method='GET', target='/', version='1.1')"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "x"),
        ("a b", "x"),
        ("a:", "x"),
        ("é", "x"),
        ("a\r\nb", "x"),
        ("a", "b\r\nc: d"),
        ("a", "b\n"),
        ("a", "\0"),
        ("a", "\u0100"),
    ],
)
def test_headers_that_may_not_be_sent(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="not a header"):
        check_header(name, value)


def test_headers_that_may_be_sent() -> None:
    check_header("X-A", "b\tc é")
    check_header("X-A", "")
