"""The opening handshake of HTTP/3 in the words of HTTP/1.1; no I/O."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gws_gevent.exceptions import HandshakeError, Refusal
from gws_gevent.extended_connect import ClientTranslator, Fields, ServerTranslator
from gws_gevent.handshake import (
    Response,
    accept_response,
    http_response,
    judge_response,
    judge_upgrade,
    make_key,
    refusal_response,
    request_head,
)
from gws_gevent.http_head import HeadReader, parse_request, parse_response
from gws_gevent.options import ServerOptions

#: What aioquic's example client sends.
CONNECT: Fields = [
    (b":method", b"CONNECT"),
    (b":scheme", b"https"),
    (b":authority", b"example.org:4433"),
    (b":path", b"/chat?room=1"),
    (b":protocol", b"websocket"),
    (b"user-agent", b"aioquic/1.0"),
    (b"sec-websocket-version", b"13"),
]


CONNECT_HOST = (b"host", b"example.org:4433")


def changed(*more: tuple[bytes, bytes], without: bytes = b"", **others: bytes) -> Fields:
    """CONNECT with other pseudo-headers, without one, and with more lines."""
    values = {b":" + name.encode(): value for name, value in others.items()}
    return [(name, values.get(name, value)) for name, value in CONNECT if name != without] + list(more)


def asked(fields: Fields, ended: bool) -> tuple[ServerTranslator, bytes]:
    translator = ServerTranslator()
    return translator, translator.request(fields, ended)


def test_an_extended_connect_is_an_upgrade_request() -> None:
    lines = (b"cookie", b"a=b"), (b"te", b"trailers"), (b"sec-websocket-key", b"x"), (b"cookie", b"c=d"), CONNECT_HOST
    request = parse_request(ServerTranslator().request(changed(*lines), False))
    assert (request.method, request.target, request.version) == ("GET", "/chat?room=1", "1.1")
    assert request.host == "example.org:4433"
    assert request.headers.get_all("cookie") == ["a=b; c=d"]
    assert "te" not in request.headers
    assert len(request.headers.get_all("sec-websocket-key")) == 1
    judge_upgrade(request, ServerOptions())


def test_101_is_200_and_what_follows_is_the_websockets() -> None:
    options = ServerOptions(subprotocols=["chat"])
    translator = ServerTranslator()
    head = translator.request(changed((b"sec-websocket-protocol", b"chat")), False)
    acceptance = judge_upgrade(parse_request(head), options)
    response = accept_response(acceptance, {"X-More": "yes"})
    fields, rest, ended = translator.answer(response + b"\x81\x00")
    assert fields == [(b":status", b"200"), (b"sec-websocket-protocol", b"chat"), (b"x-more", b"yes")]
    assert (rest, ended, translator.is_open) == (b"\x81\x00", False, True)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_refusal_arrives_with_its_body_however_it_is_split(step: int) -> None:
    translator, _ = asked(CONNECT, False)
    whole = refusal_response(Refusal(403, "no " * 50, {"X-Why": "because"}))
    found: list[Fields] = []
    body, ends = b"", []
    for at in range(0, len(whole), step):
        fields, piece, ended = translator.answer(whole[at : at + step])
        found += [fields] if fields else []
        body += piece
        ends.append(ended)
    (fields,) = found
    assert fields[:2] == [(b":status", b"403"), (b"x-why", b"because")]
    assert (b"content-length", b"150") in fields
    assert not {name for name, _ in fields} & {b"connection", b"upgrade"}
    assert body == b"no " * 50
    assert ends == [False] * (len(ends) - 1) + [True]
    assert not translator.is_open


def test_a_page_does_not_open_a_websocket() -> None:
    for answer in (
        http_response(Response(200, "a page"), method="GET"),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
    ):
        translator, _ = asked(CONNECT, False)
        fields, _, _ = translator.answer(answer)
        assert fields is not None
        assert fields[0] == (b":status", b"400")
        assert not translator.is_open


def test_chunks_are_taken_apart() -> None:
    translator, _ = asked(CONNECT, False)
    answer = b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    assert translator.answer(answer) == ([(b":status", b"404")], b"abcdefg", True)


def test_a_plain_request_and_its_answer() -> None:
    get: Fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/"), (b"accept", b"*/*")]
    translator, head = asked(get, True)
    assert head == b"GET / HTTP/1.1\r\nHost: a\r\naccept: */*\r\n\r\n"
    fields, body, ended = translator.answer(http_response(Response(200, "hello"), method="GET"))
    assert fields == [(b":status", b"200"), (b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"5")]
    assert (body, ended, translator.is_open) == (b"hello", True, False)
    translator, _ = asked([(b":method", b"HEAD"), *get[1:]], True)
    fields, body, ended = translator.answer(http_response(Response(200, "hello"), method="HEAD"))
    assert fields is not None
    assert (fields[-1], body, ended) == ((b"content-length", b"5"), b"", True)


def test_a_body_of_unknown_length_is_chunked_and_one_of_known_length_is_not() -> None:
    post: Fields = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")]
    chunked, head = asked(post, False)
    assert b"\r\nTransfer-Encoding: chunked\r\n" in head
    assert chunked.chunk(b"x" * 26, False) + chunked.chunk(b"", True) == b"1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"
    known, head = asked([*post, (b"content-length", b"3")], False)
    assert known.chunk(b"abc", True) == b"abc"
    assert b"Transfer-Encoding" not in head


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed(without=b":protocol"), 405),
        (changed(protocol=b"webtransport"), 501),
        (changed(without=b":path"), 400),
        (changed(without=b":scheme"), 400),
        (changed(path=b"chat"), 400),
        (changed(path=b""), 400),
        (changed(path=b"/a b"), 400),
        (changed(path=b"/a#b"), 400),
        (changed(authority=b"a b"), 400),
        (changed(authority=b"u@a"), 400),
        (changed(without=b":authority"), 400),
        (changed((b"host", b"other.example")), 400),
        ([(b":method", b"G T"), *CONNECT[1:4]], 400),
    ],
)
def test_what_is_refused_before_anybody_is_asked(fields: Fields, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        ServerTranslator().request(fields, False)
    assert caught.value.status == status


TEXT = st.binary(max_size=12)
NAMES = st.sampled_from(
    [b":path", b":authority", b":method", b"host", b"x", b"content-length", b"transfer-encoding", b"x y", b"a:b"]
)


@given(st.lists(st.tuples(NAMES, TEXT), max_size=6))
def test_no_field_makes_a_second_request_of_one(lines: list[tuple[bytes, bytes]]) -> None:
    """As aioquic lets them through: without CR, LF and NUL."""
    own = [(name, bytes(byte for byte in value if byte not in b"\r\n\0").strip()) for name, value in lines]
    replaced = {name for name, _ in own if name.startswith(b":")}
    fields = [line for line in CONNECT if line[0] not in replaced] + own
    try:
        head = ServerTranslator().request(fields, False)
    except Refusal:
        return
    reader = HeadReader(1 << 20)
    try:
        assert reader.feed(head)
        assert reader.rest == b""
        parse_request(head)
    except Refusal:
        pass  # what stands in a head of HTTP/1.1 is judged there


# The client's side


def shaken(fields: Fields, **offer: Any) -> tuple[Fields | None, Any]:
    """Our client's request over HTTP/3, and its judgement of an answer."""
    translator, key = ClientTranslator(), make_key()
    sent = translator.request(request_head("/chat?a=b", "example.org", key, {"Cookie": "a=b"}, **offer))
    response = parse_response(translator.answer(fields))
    return sent, lambda: judge_response(response, key, **offer)


def test_an_upgrade_request_is_an_extended_connect_and_200_is_101() -> None:
    answer = [(b":status", b"200"), (b"sec-websocket-protocol", b"chat"), (b"content-length", b"0")]
    sent, judge = shaken(answer, subprotocols=["chat"])
    assert sent == [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"https"),
        (b":authority", b"example.org"),
        (b":path", b"/chat?a=b"),
        (b"sec-websocket-version", b"13"),
        (b"sec-websocket-protocol", b"chat"),
        (b"cookie", b"a=b"),
    ]
    assert judge().subprotocol == "chat"


def test_another_status_is_what_it_is() -> None:
    translator = ClientTranslator()
    translator.request(request_head("/", "a", make_key()))
    assert translator.answer([(b":status", b"103"), (b"link", b"</x>")]) == b"HTTP/1.1 103 \r\nlink: </x>\r\n\r\n"
    head = translator.answer([(b":status", b"404"), (b"content-length", b"2")])
    assert head == b"HTTP/1.1 404 \r\nConnection: close\r\ncontent-length: 2\r\n\r\n"
    assert not translator.is_open
    parse_response(head)


def test_what_is_no_handshake_does_not_leave() -> None:
    for head in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", request_head("/", "a", make_key()) + b"x"):
        with pytest.raises(HandshakeError):
            ClientTranslator().request(head)
    translator = ClientTranslator()
    head = request_head("/", "a", make_key())
    assert translator.request(head[:20]) is None
    assert translator.request(head[20:])
    with pytest.raises(HandshakeError, match="not answered yet"):
        translator.request(b"x")


def test_both_translators_understand_each_other() -> None:
    client, key = ClientTranslator(), make_key()
    fields = client.request(request_head("/", "a", key))
    assert fields is not None
    server, head = asked(fields, False)
    response, _, _ = server.answer(accept_response(judge_upgrade(parse_request(head), ServerOptions())))
    assert response is not None
    judge_response(parse_response(client.answer(response)), key)
    assert client.is_open
    assert server.is_open
