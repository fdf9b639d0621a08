"""What a bridge makes of the heads it passes on; no I/O."""

from __future__ import annotations

import pytest

from gws_gevent.exceptions import Refusal
from gws_gevent.forwarding import check_may_pass, closing_head, forwarded_head
from gws_gevent.http_head import parse_request, parse_response
from gws_gevent.options import BridgeOptions
from gws_gevent.proxy_headers import TrustedProxies
from tests.raw import request

NOBODY = TrustedProxies()
PEER = ("::ffff:192.0.2.7", 40000, 0, 0)
FORGED = (
    "X-Forwarded-For: 10.0.0.1", "X_Forwarded_For: 10.0.0.1", "X-Forwarded-Host: bank", "Forwarded: for=10.0.0.1",
    "X-Real-IP: 1.1.1.1",
)  # fmt: skip


def lines(head: bytes) -> list[str]:
    assert head.endswith(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n")[1:-2]


def test_all_else_is_passed_on_as_it_came() -> None:
    head = request("/a?b=c", "sEC-wEBSOCKET-pROTOCOL:  a,  b ", "Cookie: x=y", "Cookie: z=\xe4")
    assert forwarded_head(head, PEER, False, NOBODY, False) == head
    assert forwarded_head(head, None, True, NOBODY, False) == head


def test_what_the_client_says_of_itself_never_passes() -> None:
    for tell in (False, True):
        head = forwarded_head(request("/", *FORGED, "Cookie: kept"), PEER, True, NOBODY, tell)
        left = [line for line in lines(head) if line not in lines(request("/"))]
        told = ["X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https"] if tell else []
        assert left == ["Cookie: kept", *told]
        parse_request(head)


def test_a_trusted_proxy_is_believed_and_added_to() -> None:
    trusted = TrustedProxies(["192.0.2.0/24"])
    came = request("/", "X-Forwarded-For: 10.0.0.1", "x-forwarded-for: 10.0.0.2", "X-Forwarded-Proto: https", "X-Real-IP: 10.0.0.1")
    head = parse_request(forwarded_head(came, PEER, False, trusted, True)).headers
    assert head.get_all("x-forwarded-for") == ["10.0.0.1, 10.0.0.2, 192.0.2.7"]
    assert head.get_all("x-forwarded-proto") == ["https"]
    assert head.get("x-real-ip") == "10.0.0.1"
    plain = parse_request(forwarded_head(request("/"), PEER, False, trusted, True)).headers
    assert (plain.get("x-forwarded-for"), plain.get("x-forwarded-proto")) == ("192.0.2.7", "http")
    assert forwarded_head(came, PEER, False, trusted, False) == came


def test_a_peer_without_an_address_gets_no_line() -> None:
    for peer in ("", None, "@name"):
        head = forwarded_head(request("/", *FORGED), peer, False, NOBODY, True)
        assert "x-forwarded-for" not in parse_request(head).headers


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request(method="POST"), 405),
        (request(without="upgrade"), 426),
        (request(connection="close"), 426),
        (request(version="HTTP/1.0"), 426),
        (request("/", "Content-Length: 5"), 400),
        (request("/", "Transfer-Encoding: chunked"), 400),
        (request("/", "Origin: https://evil.example"), 403),
        (request("/"), 403),
    ],
)
def test_what_does_not_pass(head: bytes, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        check_may_pass(parse_request(head), BridgeOptions(origins=["https://good.example"]))
    assert caught.value.status == status


def test_what_passes() -> None:
    check_may_pass(parse_request(request("/", "Origin: https://good.example")), BridgeOptions(origins=["https://good.example"]))
    # Versions and keys are the target's to judge.
    odd = request("/", "Content-Length: 0", sec_websocket_version="8", without="sec-websocket-key")
    check_may_pass(parse_request(odd), BridgeOptions())


def test_the_head_of_an_answer_that_closes() -> None:
    answer = b"HTTP/1.1 426 No\r\nUpgrade: websocket\r\nconnection: keep-alive, Upgrade\r\nKeep-Alive: timeout=5\r\nA: b\r\n\r\n"
    headers = parse_response(closing_head(answer)).headers
    assert list(headers) == [("upgrade", "websocket"), ("a", "b"), ("connection", "close, Upgrade")]
    assert parse_response(closing_head(b"HTTP/1.1 404 Not Found\r\n\r\n")).headers.get_all("connection") == ["close"]
