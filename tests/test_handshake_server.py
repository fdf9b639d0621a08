"""Accepting and refusing a request to upgrade, and the bytes of the answers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent.exceptions import Refusal
from gws_gevent.handshake import (
    Acceptance,
    Headers,
    Request,
    Response,
    accept_key,
    accept_response,
    http_response,
    judge_upgrade,
    parse_extensions,
    parse_request,
    parse_response,
    refusal_response,
    upgrade_required,
    wants_websocket,
)
from gws_gevent.options import PROTECTED_HEADERS, ServerOptions

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
NEEDED = [
    ("Host", "example.com"), ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
]  # fmt: skip


def upgrade(*more: tuple[str, str], without: str = "", method: str = "GET", version: str = "1.1") -> Request:
    return Request(method, "/", Headers([line for line in NEEDED if line[0] != without] + list(more)), version)


def refused(request: Request, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        judge_upgrade(request, ServerOptions(**options))
    return caught.value


def test_the_example_of_the_rfc() -> None:
    head = (
        b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n"
        b"Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    acceptance = judge_upgrade(parse_request(head), ServerOptions(subprotocols=["chat"]))
    assert acceptance == Acceptance(ACCEPT, "chat", "")
    assert accept_response(acceptance) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )


def test_accept_key() -> None:
    assert accept_key(KEY) == ACCEPT


@pytest.mark.parametrize(
    ("upgrade_lines", "connection_lines", "wanted"),
    [
        (["websocket"], ["Upgrade"], True),
        (["WebSocket"], ["keep-alive, UPGRADE"], True),
        (["h2c, websocket"], ["keep-alive", "upgrade"], True),
        (["h2c", "websocket"], ["upgrade,,"], True),
        (["h2c"], ["Upgrade"], False),
        (["websocket2"], ["Upgrade"], False),
        (["websocket"], ["keep-alive"], False),
        (["websocket"], [], False),
        ([], ["Upgrade"], False),
        ([""], [""], False),
    ],
)
def test_wanting_websocket(upgrade_lines: list[str], connection_lines: list[str], wanted: bool) -> None:
    lines = [("Upgrade", value) for value in upgrade_lines] + [("Connection", value) for value in connection_lines]
    assert wants_websocket(Request("GET", "/", Headers(lines))) is wanted


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "CONNECT"])
def test_405_for_another_method(method: str) -> None:
    refusal = refused(upgrade(method=method))
    assert (refusal.status, refusal.headers) == (405, {"Allow": "GET"})


def test_505_for_http_1_0() -> None:
    assert refused(upgrade(version="1.0")).status == 505


@pytest.mark.parametrize("without", ["Upgrade", "Connection", "Sec-WebSocket-Version"])
def test_426_for_no_upgrade_and_no_version(without: str) -> None:
    refusal = refused(upgrade(without=without))
    assert (refusal.status, refusal.headers) == (426, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})


@pytest.mark.parametrize("versions", [["8"], ["12"], ["14"], ["013"], ["13, 8"], ["13", "13"], [""], ["x"], ["1 3"]])
def test_426_for_another_version(versions: list[str]) -> None:
    lines = [("Sec-WebSocket-Version", version) for version in versions]
    refusal = refused(upgrade(*lines, without="Sec-WebSocket-Version"))
    assert (refusal.status, refusal.headers["Sec-WebSocket-Version"]) == (426, "13")


@pytest.mark.parametrize(
    "keys",
    [
        [], [KEY, KEY], [""], [KEY[:-1]], [KEY + "="], [KEY + " "], ["dGhlIHNhbXBsZSBub25jZQ"], ["dGhlIHNhbXBsZSBub25jZSE="],
        ["dGhlIHNhbXBsZSBub25j"], ["dGhl-HNhbXBsZSBub25jZQ=="], ["é" * 22 + "=="], [f"{KEY}, {KEY}"], [KEY + "\n"],
    ],
)  # fmt: skip
def test_400_for_a_bad_key(keys: list[str]) -> None:
    refusal = refused(upgrade(*[("Sec-WebSocket-Key", key) for key in keys], without="Sec-WebSocket-Key"))
    assert (refusal.status, refusal.body) == (400, "A WebSocket handshake has one Sec-WebSocket-Key: the base64 of 16 bytes.\n")


@pytest.mark.parametrize("line", [("Content-Length", "1"), ("Content-Length", "10"), ("Transfer-Encoding", "chunked")])
def test_400_for_a_body(line: tuple[str, str]) -> None:
    assert refused(upgrade(line)).status == 400


@pytest.mark.parametrize("length", ["0", "00"])
def test_an_empty_body_is_none(length: str) -> None:
    assert judge_upgrade(upgrade(("Content-Length", length)), ServerOptions()).accept == ACCEPT


ORIGINS = ("https://example.com", re.compile(r"https://[a-z]+\.example\.org"))


@pytest.mark.parametrize("origin", ["https://example.com", "https://a.example.org"])
def test_allowed_origins(origin: str) -> None:
    assert judge_upgrade(upgrade(("Origin", origin)), ServerOptions(origins=ORIGINS)).accept == ACCEPT


@pytest.mark.parametrize(
    "origins",
    [
        [], [""], ["null"], ["http://example.com"], ["https://example.com.evil.net"], ["https://example.com:443"],
        ["https://a.example.org.evil.net"], ["xhttps://a.example.org"], ["https://example.com", "https://example.com"],
        ["https://example.com, https://example.com"],
    ],
)  # fmt: skip
def test_403_for_other_origins(origins: list[str]) -> None:
    request = upgrade(*[("Origin", origin) for origin in origins])
    assert refused(request, origins=ORIGINS).status == 403
    assert judge_upgrade(request, ServerOptions()).accept == ACCEPT


@pytest.mark.parametrize(
    ("offers", "supported", "chosen"),
    [
        (["a, b"], ["b", "a"], "b"),
        (["a", "b"], ["b", "a"], "b"),
        (["a,,b ,"], ["c", "b"], "b"),
        (["a"], ["b"], None),
        (["A"], ["a"], None),
        (["a"], [], None),
        ([], ["a"], None),
    ],
)
def test_subprotocol_by_the_servers_preference(offers: list[str], supported: list[str], chosen: str | None) -> None:
    request = upgrade(*[("Sec-WebSocket-Protocol", offer) for offer in offers])
    assert judge_upgrade(request, ServerOptions(subprotocols=supported)).subprotocol == chosen
    if not supported:
        return
    if chosen is None:
        assert refused(request, subprotocols=supported, require_subprotocol=True).status == 400
    else:
        assert judge_upgrade(request, ServerOptions(subprotocols=supported, require_subprotocol=True)).subprotocol == chosen


@pytest.mark.parametrize("offers", [["a, a"], ["a", "a"], [""], [","], ["a b"], ["a/b"], ["é"], ['"a"']])
def test_400_for_a_bad_offer_of_subprotocols(offers: list[str]) -> None:
    assert refused(upgrade(*[("Sec-WebSocket-Protocol", offer) for offer in offers])).status == 400


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("permessage-deflate", [("permessage-deflate", [])]),
        (
            "permessage-deflate; client_max_window_bits; server_max_window_bits=10",
            [("permessage-deflate", [("client_max_window_bits", None), ("server_max_window_bits", "10")])],
        ),
        (' a ;b = "c" ,, d;e ', [("a", [("b", "c")]), ("d", [("e", None)])]),
        ('a; b="\\c"', [("a", [("b", "c")])]),
        ("a; b; b", [("a", [("b", None), ("b", None)])]),
        ("", []),
        (" , ,", []),
        # Elements that break the grammar are left out, those beside them stay.
        ("a;, b", [("b", [])]),
        ("a; =c, b", [("b", [])]),
        ("a; b=, c", [("c", [])]),
        ("a b, c", [("c", [])]),
        ("; a, b", [("b", [])]),
        ('a; b="", c', [("c", [])]),
        ('a; b="c d", e', [("e", [])]),
        ('a; b="c"d, e', [("e", [])]),
        ("a=b, c", [("c", [])]),
        ("é, b", [("b", [])]),
        # What stands in quotes is no offer.
        ('a; b="c, permessage-deflate, d", e', [("e", [])]),
        ('a; b="c\\", permessage-deflate, d", e', [("e", [])]),
        ('a, b="c, permessage-deflate, d', [("a", [])]),
    ],
)
def test_extensions(value: str, found: list[Any]) -> None:
    assert parse_extensions([value]) == found
    judge_upgrade(upgrade(("Sec-WebSocket-Extensions", value)), ServerOptions())


def test_extensions_of_several_lines_keep_their_order() -> None:
    assert parse_extensions(["b", "a; x", '"', "c"]) == [("b", []), ("a", [("x", None)]), ("c", [])]


@settings(deadline=None)
@given(st.text(st.sampled_from('ab;=," \t\\'), max_size=40))
def test_any_offer_of_extensions_is_read(value: str) -> None:
    for name, parameters in parse_extensions([value]):
        assert set(name) <= {"a", "b"}
        for key, setting in parameters:
            assert set(key) <= {"a", "b"}
            assert setting is None or set(setting) <= {"a", "b"}


@pytest.mark.parametrize(
    "value", ["a;" * 8000, '"' * 16000, 'a="' + "\\" * 16000, "a;b=" * 4000, " " * 16000 + '"', "a" * 16000 + '"']
)
def test_hostile_offers_take_no_time(value: str) -> None:
    # Backtracking would exceed the test's time limit by far.
    assert parse_extensions([value]) == []


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    response = parse_response(head + b"\r\n\r\n")
    assert len(dict(response.headers)) == len(response.headers), "a header stands twice"
    return response.status, dict(response.headers), body


def test_extra_headers_of_the_101() -> None:
    answer = accept_response(Acceptance(ACCEPT, None, "x; y"), {"Server": "é", "Set-Cookie": "a=b"})
    assert parts(answer) == (101, {
        "upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": ACCEPT, "sec-websocket-extensions": "x; y",
        "server": "é", "set-cookie": "a=b",
    }, b"")  # fmt: skip


@pytest.mark.parametrize("name", sorted(PROTECTED_HEADERS))
def test_the_101_is_not_overridden(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be overridden"):
        accept_response(Acceptance(ACCEPT), {name.title(): "x"})


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 414, 426, 431, 500, 503, 505, 418, 599])
def test_every_refusal_has_a_body_a_person_can_read(status: int) -> None:
    found, headers, body = parts(refusal_response(Refusal(status)))
    assert found == status
    assert headers == {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "connection": "close"}
    assert body.endswith(b"\n")
    assert len(body.strip()) >= 3
    assert parts(refusal_response(Refusal(status), head_only=True)) == (found, headers, b"")


@pytest.mark.parametrize(("body", "sent"), [("Nein, danke: ü", "Nein, danke: ü".encode()), (b"\0\xff", b"\0\xff")])
def test_a_users_body_passes_as_it_is(body: str | bytes, sent: bytes) -> None:
    answer = refusal_response(Refusal(403, body, {"Content-TYPE": "text/html", "X-A": "b"}))
    assert parts(answer) == (403, {
        "content-type": "text/html", "x-a": "b", "content-length": str(len(sent)), "connection": "close",
    }, sent)  # fmt: skip


def test_426_lists_upgrade_in_connection() -> None:
    status, headers, _ = parts(refusal_response(upgrade_required()))
    assert (status, headers["upgrade"], headers["connection"], headers["sec-websocket-version"]) == (
        426, "websocket", "close, Upgrade", "13",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["Connection", "content-length", "TRANSFER-ENCODING"])
def test_framing_headers_are_not_overridden(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be overridden"):
        refusal_response(Refusal(403, headers={name: "x"}))
    with pytest.raises(ValueError, match="cannot be overridden"):
        Response(200, headers={name: "x"})


@pytest.mark.parametrize("status", [0, 100, 101, 199, 600, 1000, True, "200", None])
def test_a_status_that_answers_nothing_is_refused(status: Any) -> None:
    with pytest.raises(ValueError, match="status: must be 200 to 599"):
        refusal_response(Refusal(status))
    with pytest.raises(ValueError, match="status: must be 200 to 599"):
        Response(status)


def test_plain_responses() -> None:
    assert parts(http_response(Response(200, "hä"), method="GET")) == (200, {
        "content-type": "text/plain; charset=utf-8", "content-length": "3", "connection": "close",
    }, b"h\xc3\xa4")  # fmt: skip
    assert parts(http_response(Response(404), method="GET", close=False)) == (404, {
        "content-type": "text/plain; charset=utf-8", "content-length": "0",
    }, b"")  # fmt: skip
    assert parts(http_response(Response(200, b"abc", {"Content-Type": "x/y"}), method="HEAD")) == (200, {
        "content-type": "x/y", "content-length": "3", "connection": "close",
    }, b"")  # fmt: skip
    assert parts(http_response(Response(302, headers={"Location": "/x"}), method="GET"))[1]["location"] == "/x"


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_have_none(status: int) -> None:
    assert parts(http_response(Response(status, b"ignored"), method="GET")) == (status, {"connection": "close"}, b"")


NASTY = st.text(st.sampled_from("\r\n\0 :\t\x0b\x7f\u0100é-ab"), max_size=6)


@settings(deadline=None)
@given(NASTY, NASTY)
def test_no_header_can_be_injected(name: str, value: str) -> None:
    try:
        answers = [
            accept_response(Acceptance(ACCEPT), {name: value}),
            refusal_response(Refusal(403, headers={name: value})),
            http_response(Response(200, headers={name: value}), method="GET"),
        ]
    except ValueError:
        return
    for answer in answers:
        assert parts(answer)[1][name.lower()] == value.strip(" \t")
