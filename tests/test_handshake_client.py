"""A client's request and its judgement of the answer."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent.exceptions import HandshakeError, HandshakeRefused
from gws_gevent.handshake import (
    Acceptance,
    Headers,
    ResponseHead,
    accept_key,
    accept_response,
    judge_response,
    judge_upgrade,
    make_key,
    parse_request,
    parse_response,
    request_head,
)
from gws_gevent.options import PROTECTED_HEADERS, ServerOptions

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
NEEDED = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept_key(KEY))]


def answer(*more: tuple[str, str], without: str = "", status: int = 101) -> ResponseHead:
    return ResponseHead(status, Headers([line for line in NEEDED if line[0] != without] + list(more)))


def test_keys_are_16_random_bytes() -> None:
    keys = {make_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(b64decode(key, validate=True)) for key in keys} == {16}


def test_request_as_it_is_sent() -> None:
    assert request_head("/chat?x", "example.com:81", KEY, {"Origin": "http://é"}, ["a", "b"], "permessage-deflate") == (
        "GET /chat?x HTTP/1.1\r\nHost: example.com:81\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, b\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate\r\nOrigin: http://é\r\n\r\n"
    ).encode("latin-1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": ""}, {"target": "x"}, {"target": "/a b"}, {"target": "/a\r\nX: y"}, {"target": "/é"}, {"target": "/#x"},
        {"target": "http://x/"}, {"target": "/\n"}, {"host": ""}, {"host": "a\r\nX: y"}, {"host": "a/b"}, {"host": "u@a"},
        {"host": "a\n"},
        {"key": ""}, {"key": "x"}, {"key": KEY + "\r\n"}, {"headers": {"A": "b\r\nC: d"}}, {"headers": {"A\r\nB": "c"}},
        {"headers": {"A": "\0"}}, {"subprotocols": ["a b"]}, {"subprotocols": ["a", "a"]}, {"subprotocols": ["a\r\nX: y"]},
        {"subprotocols": [""]}, {"extensions": "a\r\nX: y"},
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_a_value_error(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"target": "/", "host": "a", "key": KEY}
    request_head(**arguments)
    with pytest.raises(ValueError, match=r"not a|must be an HTTP token"):
        request_head(**(arguments | wrong))


@pytest.mark.parametrize("name", sorted(PROTECTED_HEADERS))
def test_the_handshakes_own_headers_are_not_overridden(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be overridden"):
        request_head("/", "a", KEY, {name.upper(): "x"})


NASTY = st.text(st.sampled_from("\r\n\0 :\t\x0b\x7f\u0100é-ab/,"), max_size=6)


@settings(deadline=None)
@given(NASTY, NASTY, NASTY, NASTY, NASTY)
def test_no_header_can_be_injected(target: str, host: str, name: str, value: str, subprotocol: str) -> None:
    try:
        head = request_head("/" + target, "h" + host, KEY, {name: value}, [subprotocol])
    except ValueError:
        return
    request = parse_request(head)
    assert (request.target, request.host) == ("/" + target, "h" + host)
    assert request.headers.get_all(name) == [value.strip(" \t")]
    assert len(request.headers) == 7


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), unique=True), st.lists(st.sampled_from("abcd"), unique=True))
def test_both_sides_agree(offered: list[str], supported: list[str]) -> None:
    key = make_key()
    request = parse_request(request_head("/", "[::1]:8080", key, subprotocols=offered))
    acceptance = judge_upgrade(request, ServerOptions(subprotocols=supported))
    response = parse_response(accept_response(acceptance, {"Server": "x"}))
    assert judge_response(response, key, offered) == acceptance
    assert acceptance.subprotocol == next((name for name in supported if name in offered), None)


def test_an_answer_that_is_right() -> None:
    assert judge_response(answer(), KEY) == Acceptance(accept_key(KEY), None, "")
    extensions = [("Sec-WebSocket-Extensions", "x; y"), ("Sec-WebSocket-Extensions", "z")]
    found = judge_response(answer(("Sec-WebSocket-Protocol", "b"), *extensions), KEY, ["a", "b"], "x; y, z, w")
    assert found == Acceptance(accept_key(KEY), "b", "x; y, z")


@pytest.mark.parametrize(
    "lines",
    [
        [("Upgrade", "WebSocket")],
        [("Connection", "keep-alive, upgrade")],
        [("Connection", "keep-alive"), ("Connection", "UPGRADE")],
    ],
)
def test_case_and_lists_do_not_matter(lines: list[tuple[str, str]]) -> None:
    assert judge_response(answer(*lines, without=lines[0][0]), KEY).accept == accept_key(KEY)


@pytest.mark.parametrize("status", [200, 301, 400, 401, 426, 503, 100, 999])
def test_another_status_is_a_refusal_with_its_facts(status: int) -> None:
    with pytest.raises(HandshakeRefused) as caught:
        judge_response(answer(("Location", "/x"), status=status), KEY)
    assert isinstance(caught.value, HandshakeError)
    assert caught.value.status == status
    assert caught.value.headers.get("LOCATION") == "/x"
    assert caught.value.body == b""
    page = " (there is a page at this path, not a WebSocket endpoint)" if status == 200 else ""
    assert str(caught.value) == f"the server answered {status} instead of 101{page}"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"Who are you?\n", ": Who are you?"),
        (b"\r\n  Who\tare  you?\r\nsecond line\n", ": Who are you?"),
        ("Grüße\n".encode(), ": Grüße"),
        (b"caf\xe9", ": caf\ufffd"),
        (b"x" * 4096, ": " + "x" * 200),
        (b"", ""),
        (b" \n ", ""),
        (b"<!DOCTYPE html>\n<p>Who are you?", ""),
        (b"\x1b[31mred", ""),
        (b"bell \x07", ""),
        ("\u202eright to left".encode(), ""),
    ],
)
def test_the_text_of_a_refusal_shows_what_can_be_read_of_its_body(body: bytes, shown: str) -> None:
    assert str(HandshakeRefused(401, Headers(), body)) == f"the server answered 401 instead of 101{shown}"


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (answer(without="Upgrade"), "no Upgrade: websocket"),
        (answer(("Upgrade", "h2c"), without="Upgrade"), "no Upgrade: websocket"),
        (answer(("Upgrade", "h2c")), "no Upgrade: websocket"),
        (answer(("Upgrade", "websocket")), "no Upgrade: websocket"),
        (answer(without="Connection"), "no Connection: Upgrade"),
        (answer(("Connection", "close"), without="Connection"), "no Connection: Upgrade"),
        (answer(without="Sec-WebSocket-Accept"), "not the Sec-WebSocket-Accept"),
        (answer(("Sec-WebSocket-Accept", accept_key(KEY))), "not the Sec-WebSocket-Accept"),
        (answer(("Sec-WebSocket-Accept", accept_key(KEY).lower()), without="Sec-WebSocket-Accept"), "not the Sec-WebSocket-Accept"),
        (answer(("Sec-WebSocket-Protocol", "c")), "subprotocol that was not offered: 'c'"),
        (answer(("Sec-WebSocket-Protocol", "A")), "subprotocol that was not offered: 'A'"),
        (answer(("Sec-WebSocket-Protocol", "a, b")), "subprotocol that was not offered: 'a, b'"),
        (answer(("Sec-WebSocket-Protocol", "")), "subprotocol that was not offered: ''"),
        (answer(("Sec-WebSocket-Protocol", "a"), ("Sec-WebSocket-Protocol", "a")), "more than one Sec-WebSocket-Protocol"),
        (answer(("Sec-WebSocket-Extensions", "x, y")), "extension that was not offered: 'y'"),
        (answer(("Sec-WebSocket-Extensions", "x; =")), "malformed Sec-WebSocket-Extensions"),
    ],
)
def test_answers_that_break_the_rfc(response: ResponseHead, message: str) -> None:
    with pytest.raises(HandshakeError, match=message) as caught:
        judge_response(response, KEY, ["a", "b"], "x")
    assert type(caught.value) is HandshakeError
    assert "\n" not in str(caught.value)


def test_nothing_offered_means_nothing_accepted() -> None:
    with pytest.raises(HandshakeError, match="subprotocol that was not offered"):
        judge_response(answer(("Sec-WebSocket-Protocol", "a")), KEY)
    with pytest.raises(HandshakeError, match="extension that was not offered"):
        judge_response(answer(("Sec-WebSocket-Extensions", "permessage-deflate")), KEY)


def test_a_101_without_upgrade_is_parsed_and_then_refused() -> None:
    response = parse_response(b"HTTP/1.1 101 Switching Protocols\r\nServer: x\r\n\r\n")
    with pytest.raises(HandshakeError, match="no Upgrade: websocket"):
        judge_response(response, KEY)
