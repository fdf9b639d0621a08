"""Handshake refusals over real sockets: each gets its status and a readable body, and the next connection is served."""

from __future__ import annotations

import re
import reprlib
import ssl
from typing import Any

import gevent
import pytest

from gws_gevent import EventHandler, Refusal, Request, Response
from tests.raw import KEY, Answer, RawClient, Recorder, frame, open_client, request, running, server_side, spawn_drip, still_echoes
from tests.support import wait_until

SECRET = "the password of the database"


def ask(port: int, data: bytes) -> Answer:
    """Send a request that is to be refused: a complete answer with a body to read, then an orderly end of the stream."""
    with RawClient(port) as client:
        client.send(data)
        answer = client.read_answer()
        assert answer.status >= 400
        assert answer.body.strip(), "a refusal has a body"
        assert answer.headers["connection"].split(", ")[0] == "close"
        assert answer.headers["content-type"].startswith("text/plain")
        assert SECRET.encode() not in answer.body
        client.read_end()
        return answer


def long_line(size: int) -> bytes:
    return b"GET /" + b"a" * size


MALFORMED = {
    "no Host": request(without="Host"),
    "two Hosts": request("/", "Host: localhost"),
    "two different Hosts": request("/", "Host: example.org"),
    "empty Host": request(host=""),
    "Host with a list": request(host="a, b"),
    "Host with a path": request(host="a/b"),
    "NUL in the target": request("/a\x00b"),
    "NUL in a value": request("/", "X-A: a\x00b"),
    "NUL in a name": request("/", "X\x00A: a"),
    "control character in a value": request("/", "X-A: a\x07b"),
    "DEL in a value": request("/", "X-A: a\x7fb"),
    "bare CR in a value": request("/", "X-A: a\rb"),
    "bare CR for a line end": request().replace(b"\r\nupgrade", b"\rupgrade"),
    "bare LF for a line end": request().replace(b"\r\nupgrade", b"\nupgrade"),
    "obs-fold with a space": request("/", "X-A: a", " b"),
    "obs-fold with a tab": request("/", "X-A: a", "\tb"),
    "space before the colon": request("/", "X-A : a"),
    "no colon": request("/", "X-A"),
    "illegal header name": request("/", "X(A): a"),
    "two keys": request("/", f"Sec-WebSocket-Key: {KEY}"),
    "no key": request(without="Sec-WebSocket-Key"),
    "key of 15 bytes": request(sec_websocket_key="AAAAAAAAAAAAAAAAAAAA"),
    "key that is no base64": request(sec_websocket_key="!" * 24),
    "a body": request("/", "Content-Length: 5") + b"hello",
    "chunked": request("/", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunked and Content-Length": request("/", "Transfer-Encoding: chunked", "Content-Length: 4") + b"0\r\n\r\n",
    "two Content-Lengths": request("/", "Content-Length: 0", "Content-Length: 1"),
    "negative Content-Length": request("/", "Content-Length: -1"),
    "empty target": request(""),
    "space in the target": request("/a b"),
    "fragment in the target": request("/a#b"),
    "target without a slash": request("a"),
    "byte above 127 in the target": request("/\xe9"),
    "no version": request(version=""),
    "no HTTP": b"\x05\x01\x00\r\n\r\n",
    "blank line first": b"\r\n" + request(),
    "subprotocol that is no token": request("/", "Sec-WebSocket-Protocol: a b"),
    "the same subprotocol twice": request("/", "Sec-WebSocket-Protocol: a, a"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_answered_400(name: str) -> None:
    with running() as (_, port):
        assert ask(port, MALFORMED[name]).status == 400
        still_echoes(port)


OTHERS = {
    "version 8": (request(sec_websocket_version="8"), 426),
    "version 12": (request(sec_websocket_version="12"), 426),
    "version 14": (request(sec_websocket_version="14"), 426),
    "version that is no number": (request(sec_websocket_version="x"), 426),
    "two versions": (request("/", "Sec-WebSocket-Version: 8"), 426),
    "no version header": (request(without="Sec-WebSocket-Version"), 426),
    "plain GET": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 426),
    "plain GET of HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", 426),
    "upgrade to h2c": (request(upgrade="h2c", connection="Upgrade, HTTP2-Settings"), 426),
    "Upgrade without Connection": (request(without="Connection"), 426),
    "Connection without Upgrade": (request(without="Upgrade"), 426),
    "POST": (request(method="POST"), 405),
    "PUT": (request(method="PUT"), 405),
    "unknown method": (request(method="BREW"), 405),
    "lower-case method": (request(method="get"), 405),
    "HTTP/2.0": (request(version="HTTP/2.0"), 505),
    "HTTP/1.2": (request(version="HTTP/1.2"), 505),
    "HTTP/0.9": (request(version="HTTP/0.9"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "long request line": (long_line(20_000), 414),
    "long request line, whole": (request("/" + "a" * 20_000), 414),
    "long header": (request("/", "X-A: " + "a" * 20_000), 431),
    "101 header lines": (request("/", *[f"X-{n}: a" for n in range(96)]), 431),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_requests_are_refused_with_their_own_status(name: str) -> None:
    data, status = OTHERS[name]
    with running() as (_, port):
        answer = ask(port, data)
        assert answer.status == status
        if status == 426:
            assert answer.headers["sec-websocket-version"] == "13"
            assert answer.headers["upgrade"].lower() == "websocket"
        if status == 405:
            assert answer.headers["allow"] == "GET"
        still_echoes(port)


def test_100_header_lines_are_accepted() -> None:
    with running() as (_, port), RawClient(port) as client:
        client.upgrade(*[f"X-{n}: a" for n in range(95)])
        client.echo()


def test_a_list_of_protocols_with_websocket_in_it_is_accepted() -> None:
    with running() as (_, port), RawClient(port) as client:
        client.send(request(upgrade="h2c, WebSocket", connection="keep-alive, upgrade"))
        assert client.read_answer().status == 101
        client.echo()


def test_bytes_glued_to_the_request_are_the_first_frames() -> None:
    with running() as (_, port), RawClient(port) as client:
        client.send(request(), bytes.fromhex("8185 00000000") + b"hello")
        assert client.read_answer().status == 101
        assert client.read_frame().payload == b"hello"


def test_an_answer_to_head_has_no_body() -> None:
    with running() as (_, port):
        with RawClient(port) as client:
            client.send(request(method="HEAD"))
            head, _, body = client.read_to_the_end().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        assert body == b""
        still_echoes(port)


def test_a_tls_client_hello_on_a_plain_port_is_answered_400_on_its_first_bytes() -> None:
    with running() as (_, port):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        assert ask(port, outgoing.read()).status == 400
        assert ask(port, b"\x16").status == 400
        still_echoes(port)


def test_a_refusal_is_not_lost_to_a_reset_because_the_client_goes_on_sending() -> None:
    with running() as (_, port):
        with RawClient(port) as client:
            client.send(request("/", "Content-Length: 200000", method="POST"))
            assert client.read_answer().status == 405
            for _ in range(2):
                client.send(bytes(100_000))
                gevent.idle()
            client.read_end()
        still_echoes(port)


def test_a_head_that_breaks_off_is_answered_400() -> None:
    with running() as (_, port):
        with RawClient(port) as client:
            client.send(b"GET / HT")
            client.sock.shutdown(1)
            assert client.read_answer().status == 400
            client.read_end()
        still_echoes(port)


def test_a_client_that_leaves_before_its_first_byte_is_told_nothing() -> None:
    with running() as (server, port):
        with RawClient(port) as client:
            server_side(server, client)
            client.sock.shutdown(1)
            assert client.read_to_the_end() == b""
        still_echoes(port)


# Routing and permission


def route(found: Request) -> Any:
    handlers: dict[str, Any] = {
        "/": Recorder(),
        "/page": Response(200, "hello\n", {"Content-Type": "text/plain"}),
        "/gone": Refusal(410, "It was here once.\n"),
    }
    if found.path == "/raises":
        raise Refusal(403, "Not you.\n", {"X-Reason": "you"})
    if found.path == "/fails":
        raise RuntimeError(SECRET)
    if found.path == "/wrong":
        return SECRET
    return handlers.get(found.path)


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/nothing", 404, b""),
        ("/gone", 410, b"It was here once.\n"),
        ("/raises", 403, b"Not you.\n"),
        ("/fails", 500, b""),
        ("/wrong", 500, b""),
    ],
)
def test_what_on_request_says_is_answered(path: str, status: int, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with running(on_request=route) as (_, port):
        answer = ask(port, request(path))
        assert answer.status == status
        assert answer.body == body or not body
        if path == "/raises":
            assert answer.headers["x-reason"] == "you"
        assert (status == 500) == any(record.levelname == "ERROR" and record.exc_info for record in caplog.records)
        assert ask(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 426
        still_echoes(port)


def test_on_request_answers_a_plain_request() -> None:
    with running(on_request=route) as (_, port):
        with RawClient(port) as client:
            client.send(b"GET /page?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = client.read_answer()
            assert (answer.status, answer.body) == (200, b"hello\n")
            client.read_end()
        still_echoes(port)


def refuse(answer: Any) -> Any:
    """An authorize that refuses /no in some way, and lets everything else in."""

    def authorize(found: Request, session: Any) -> Any:
        if found.path != "/no":
            return True
        if isinstance(answer, Exception) and not isinstance(answer, Refusal):
            raise answer
        return answer

    return authorize


def raise_refusal(found: Request, session: Any) -> bool:
    if found.path == "/no":
        raise Refusal(402, "Pay first.\n", {"X-Price": "3"})
    return True


@pytest.mark.parametrize(
    ("authorize", "status", "headers"),
    [
        (refuse(False), 401, {}),
        (refuse(None), 401, {}),
        (refuse(Refusal(403, headers={"X-Why": "because"})), 403, {"x-why": "because"}),
        (raise_refusal, 402, {"x-price": "3"}),
        (refuse(RuntimeError(SECRET)), 500, {}),
        (refuse(Refusal(999)), 500, {}),
        (refuse(Refusal(403, headers={"X-A": "a\r\nX-B: b"})), 500, {}),
    ],
    ids=["False", "None", "returned refusal", "raised refusal", "exception", "impossible status", "header injection"],
)
def test_authorize_refuses(authorize: Any, status: int, headers: dict[str, str]) -> None:
    with running(authorize=authorize) as (_, port):
        answer = ask(port, request("/no"))
        assert answer.status == status
        assert headers.items() <= answer.headers.items()
        assert "x-b" not in answer.headers
        still_echoes(port)


@pytest.mark.parametrize("answer", [0, 1, "", "no", "Ada", [], object(), Response(200)], ids=lambda answer: type(answer).__name__)
def test_authorize_lets_nobody_in_with_anything_but_true(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with running(authorize=refuse(answer)) as (_, port):
        assert ask(port, request("/no")).status == 500
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert record.getMessage().endswith(f"authorize returns True, False or a Refusal, not {reprlib.repr(answer)}")
        still_echoes(port)


def test_a_long_answer_of_authorize_is_logged_in_part(caplog: pytest.LogCaptureFixture) -> None:
    with running(authorize=refuse("x" * 100_000)) as (_, port):
        assert ask(port, request("/no")).status == 500
        assert len(caplog.records[0].getMessage()) < 200
        still_echoes(port)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (["Origin: https://good.example"], 101),
        (["Origin: https://a.other.example"], 101),
        (["Origin: https://good.example.evil.example"], 403),
        (["Origin: https://evil.example/https://good.example"], 403),
        (["Origin: null"], 403),
        (["Origin: https://good.example", "Origin: https://good.example"], 403),
        ([], 403),
    ],
)
def test_origins(origin: list[str], status: int) -> None:
    allowed = ["https://good.example", re.compile(r"https://[a-z]+\.other\.example")]
    with running(origins=allowed) as (_, port):
        if status == 403:
            assert ask(port, request("/", *origin)).status == 403
        with RawClient(port) as client:
            client.upgrade(*(origin if status == 101 else ["Origin: https://good.example"]))
            client.echo()


def test_a_required_subprotocol_that_is_not_offered_is_answered_400() -> None:
    with running(subprotocols=["chat", "news"], require_subprotocol=True) as (_, port):
        assert ask(port, request()).status == 400
        assert ask(port, request("/", "Sec-WebSocket-Protocol: mail")).status == 400
        with RawClient(port) as client:
            assert client.upgrade("Sec-WebSocket-Protocol: mail, news, chat").headers["sec-websocket-protocol"] == "chat"
            client.echo()


def test_without_overlap_an_optional_subprotocol_is_left_out() -> None:
    with running(subprotocols=["chat"]) as (_, port), RawClient(port) as client:
        assert "sec-websocket-protocol" not in client.upgrade("Sec-WebSocket-Protocol: mail").headers


def test_an_extension_offer_that_makes_no_sense_is_declined() -> None:
    with running() as (_, port), RawClient(port) as client:
        answer = client.upgrade("Sec-WebSocket-Extensions: ;;=, permessage-deflate; server_max_window_bits=99, x-\"")
        assert "sec-websocket-extensions" not in answer.headers
        client.echo()


# Too slow


@pytest.mark.slow
@pytest.mark.parametrize("head", [request(), b""], ids=["a byte at a time", "nothing at all"])
def test_a_head_that_takes_too_long_is_answered_408(head: bytes) -> None:
    with running(handshake_timeout=0.4) as (server, port):
        with RawClient(port) as client:
            drip = spawn_drip(client, head, 0.01)
            server_side(server, client)
            with gevent.Timeout(3.0):
                answer = client.read_answer()
            assert answer.status == 408
            assert answer.body.strip()
            drip.kill()
            wait_until(lambda: not server.connections)
        still_echoes(port)


@pytest.mark.slow
def test_a_client_that_does_not_close_after_its_refusal_is_dropped_at_handshake_timeout() -> None:
    with running(handshake_timeout=0.3) as (server, port):
        with RawClient(port) as client:
            client.send(request(method="POST"))
            assert client.read_answer().status == 405
            wait_until(lambda: not server.connections, 3.0)
        still_echoes(port)


@pytest.mark.slow
def test_the_program_may_take_longer_than_handshake_timeout_to_decide() -> None:
    def ponder(found: Request, session: Any) -> bool:
        gevent.sleep(0.7)
        return found.path != "/no"

    with running(authorize=ponder, handshake_timeout=0.3) as (_, port):
        with open_client(port) as client:
            client.echo()
            gevent.sleep(0.5)
            client.echo()
        assert ask(port, request("/no")).status == 401


PAGE = b"x" * 3_000_000


@pytest.mark.slow
def test_a_large_page_may_take_longer_than_handshake_timeout() -> None:
    with running(on_request=lambda found: Response(200, PAGE), handshake_timeout=0.3) as (_, port):
        with RawClient(port, receive_buffer=4096) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            gevent.sleep(0.7)
            assert client.read_answer().body == PAGE
            client.read_end()


@pytest.mark.slow
def test_a_peer_that_never_reads_a_large_page_is_dropped_at_write_timeout() -> None:
    with running(on_request=lambda found: Response(200, PAGE), write_timeout=0.4) as (server, port):
        with RawClient(port, receive_buffer=4096) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server_side(server, client)
            wait_until(lambda: not server.connections, 3.0)


# Full, stopping


def test_above_max_connections_requests_are_answered_503_and_accepting_goes_on() -> None:
    with running(max_connections=2) as (server, port):
        with open_client(port) as first, open_client(port) as second:
            for _ in range(3):
                assert ask(port, request()).status == 503
            first.echo()
            second.echo()
        wait_until(lambda: not server.connections)
        still_echoes(port)


def test_of_a_crowd_that_comes_at_once_as_many_get_in_as_there_are_places() -> None:
    with running(max_connections=2) as (server, port):
        crowd = [RawClient(port) for _ in range(5)]
        try:
            wait_until(lambda: len(server.connections) == 5)
            for client in crowd:
                client.send(request())
            assert sorted(client.read_answer().status for client in crowd) == [101, 101, 503, 503, 503]
        finally:
            for client in crowd:
                client.close()
        wait_until(lambda: not server.connections)
        still_echoes(port)


def test_who_is_refused_takes_no_place() -> None:
    with running(max_connections=1, origins=["https://here.example"]) as (server, port):
        with RawClient(port) as refused:
            refused.send(request("/", "Origin: https://elsewhere.example"))
            assert refused.read_answer().status == 403
            # It has not left yet.
            with RawClient(port) as client:
                client.send(request("/", "Origin: https://here.example"))
                assert client.read_answer().status == 101
        wait_until(lambda: not server.connections)


def test_a_crowd_that_waits_for_its_503_is_bounded() -> None:
    handler = Recorder()
    with running(handler, max_connections=1) as (server, port):
        crowd = [RawClient(port) for _ in range(102)]
        try:
            wait_until(lambda: len(server.connections) == 102)
            with RawClient(port) as client:
                assert client.read_to_the_end() == b""
            assert len(server.connections) == 102
            crowd[0].upgrade()
            crowd[1].send(request())
            assert crowd[1].read_answer().status == 503
            crowd[0].echo()
        finally:
            for client in crowd:
                client.close()
        wait_until(lambda: not server.connections)
        still_echoes(port)


def test_a_request_that_ends_while_the_server_stops_is_answered_503() -> None:
    with running() as (server, port), RawClient(port) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        server_side(server, client)
        stopping = gevent.spawn(server.stop, 5.0)
        gevent.idle()
        client.send(request().partition(b"\r\n")[2])
        assert client.read_answer().status == 503
        client.read_end()
        client.close()
        stopping.get(timeout=2.0)


class Failing(EventHandler):
    """Refuses to begin."""

    def on_open(self, conn: Any) -> None:
        raise RuntimeError(SECRET)


def test_a_failure_behind_the_101_is_no_refusal() -> None:
    with running(Failing()) as (_, port), open_client(port) as client:
        assert client.read_close() == (1011, b"")
        client.send(frame(8, b"\x03\xf3"))
        client.read_end()
