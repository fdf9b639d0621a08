"""No way from what can be read in two ways to an upgrade; and deadlines and limits around an app."""

from __future__ import annotations

import gc
import io
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from struct import pack
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event
from gevent.pywsgi import WSGIServer

from gws_gevent import ServerOptions, Upgrader, WsgiSettings, connect
from gws_gevent.integrations.pywsgi import WSGIHandler
from gws_gevent.integrations.pywsgi_body import Body
from tests.pairs import EchoHandler, serving, url_of
from tests.support import wait_until

QUIET = WsgiSettings(log=None, error_log=None)
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
PAGE = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"


def upgrade(more: bytes = b"", host: bytes = b"Host: x\r\n") -> bytes:
    return b"GET /ws HTTP/1.1\r\n" + host + b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + KEY + more + b"\r\n"


class Site:
    """An app that upgrades /ws, and remembers which paths it was asked for. `forgives`: it answers 200 to a body that fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.handler = EchoHandler()
        self.upgrader = Upgrader(self.handler)
        self.go_on = Event()
        self.environ: dict[str, Any] = {}
        self.forgives = False

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        self.asked.append(path)
        self.environ = {key: value for key, value in environ.items() if isinstance(value, str)}
        if path == "/ws":
            return self.upgrader.upgrade(environ, start_response)
        if path == "/wait":
            self.go_on.wait()
        if path == "/body":
            try:
                self.bodies.append(environ["wsgi.input"].read())
            except OSError as error:
                self.bodies.append(error)
                if not self.forgives:
                    raise
        size = int(path[len("/big/") :]) if path.startswith("/big/") else 0
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"served " + path.encode() + bytes(size)]


def port_of(server: Any) -> int:
    return int(server.address.rpartition(":")[2])


@contextmanager
def talking(port: int, *, receive_buffer: int = 0) -> Iterator[Any]:
    with gevent.socket.socket() as sock:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        yield sock


def rest_of(sock: Any) -> bytes:
    """Everything until the server closes."""
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def ask(port: int, request: bytes) -> bytes:
    with talking(port) as sock:
        sock.sendall(request)
        return rest_of(sock)


def until(sock: Any, text: bytes) -> bytes:
    found = b""
    while text not in found:
        piece = sock.recv(65536)
        assert piece, found
        found += piece
    return found


@contextmanager
def each_server(kind: str, site: Site) -> Iterator[int]:
    """The port of a server on the way of that name: through the app, past it, or of gevent's own."""
    if kind == "stock":
        server = WSGIServer(("127.0.0.1", 0), site, log=None, error_log=None, handler_class=WSGIHandler)
        server.start()
        yield server.server_port
        server.stop(1)
    else:
        with serving(site.handler if kind == "direct" else None, wsgi=site, wsgi_settings=QUIET) as own:
            yield port_of(own)


EACH_SERVER = pytest.mark.parametrize("kind", ["app", "direct", "stock"])

AMBIGUOUS = {
    "a length and chunks": upgrade(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    "two lengths": upgrade(b"Content-Length: 0\r\nContent-Length: 3\r\n") + b"abc",
    "a body": upgrade(b"Content-Length: 5\r\n") + b"hello",
    "chunks": upgrade(b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
    "another coding": upgrade(b"Transfer-Encoding: gzip, chunked\r\n"),
    "a folded line": upgrade(b"X-One: a\r\n b\r\n"),
    "a folded Upgrade": b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade:\r\n websocket\r\n" + KEY + b"\r\n",
    "a bare CR": upgrade(b"X-One: a\rb\r\n"),
    "Upgrade behind a bare CR": upgrade(b"X: a\rUpgrade: websocket\r\n").replace(b"\r\nUpgrade: websocket", b"", 1),
    "bare line feeds": upgrade().replace(b"\r\n", b"\n"),
    "NUL": upgrade(b"X-One: a\0b\r\n"),
    "two hosts": upgrade(b"Host: y\r\n"),
    "no host": upgrade(host=b""),
    "two keys": upgrade(KEY.partition(b"\r\n")[0] + b"\r\n"),
}


@EACH_SERVER
@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_once(kind: str, name: str) -> None:
    site = Site()
    with each_server(kind, site) as port:
        answer = ask(port, AMBIGUOUS[name] + PAGE)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert site.asked == ([] if name != "two keys" or kind == "direct" else ["/ws"])
    assert site.handler.events == []


@EACH_SERVER
def test_a_second_request_behind_an_upgrade_is_no_request(kind: str) -> None:
    site = Site()
    with each_server(kind, site) as port:
        answer = ask(port, upgrade() + PAGE)
        wait_until(lambda: site.handler.infos)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.partition(b"\r\n\r\n")[2][2:4] == (1002).to_bytes(2, "big")
    assert "/page" not in site.asked


CHUNKS = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
BEHIND = {
    "a length and chunks": b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "another coding": b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "two codings": b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /body HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "a line feed in a chunk's extension": CHUNKS + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "NUL in the extension of a chunk that is not read": CHUNKS.replace(b"/body", b"/page") + b"3;a\0b\r\nabc\r\n0\r\n\r\n",
    "line feeds in a trailer": CHUNKS + b"0\r\nX: y\n\nGET /page HTTP/1.1\r\n\r\n",
    "bare line feeds": b"GET /page HTTP/1.1\nHost: x\n\n",
    "two hosts": b"GET /page HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
}


@EACH_SERVER
@pytest.mark.parametrize("name", BEHIND)
def test_an_upgrade_does_not_follow_what_can_be_read_in_two_ways(kind: str, name: str) -> None:
    site = Site()
    with each_server(kind, site) as port:
        answer = ask(port, BEHIND[name] + upgrade())
    assert b"HTTP/1.1 101 " not in answer
    assert answer.count(b"HTTP/1.1 400 ") == 1
    assert "/ws" not in site.asked
    assert site.handler.events == []


@EACH_SERVER
def test_an_upgrade_follows_a_body_in_chunks(kind: str) -> None:
    site = Site()
    large = bytes(range(256)) * 3000
    body = b"3;a=\"\xe9\t b\"\r\nabc\r\n%x\r\n%b\r\n1\r\n\n\r\n0\r\nX-T: y\r\n\r\n" % (len(large), large)
    with each_server(kind, site) as port, talking(port) as sock:
        sock.sendall(CHUNKS + body + upgrade() + bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
        until(sock, b"\x81\x02hi")
    assert site.bodies == [b"abc" + large + b"\n"]


@pytest.mark.parametrize("framed", ["length", "chunked"])
def test_a_large_body_in_one_read_and_in_lines(framed: str) -> None:
    found: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        file = environ["wsgi.input"]
        found.append(list(file) if environ["PATH_INFO"] == "/lines" else [file.read(700_000), file.read()])
        start_response("200 OK", [])
        return [b"read"]

    body = b"a" * 600_000 + b"\n" + b"b" * 300_000
    how = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    if framed == "chunked":
        how = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with serving(None, wsgi=app, wsgi_settings=QUIET) as server, talking(port_of(server)) as sock:
        for path in (b"/", b"/lines"):
            sock.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\n%b" % (path, how))
            until(sock, b"read")
    assert found == [[body[:700_000], body[700_000:]], [body[:600_001], body[600_001:]]]


@EACH_SERVER
@pytest.mark.parametrize("framed", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"])
def test_a_body_is_over_with_its_request(kind: str, framed: bytes) -> None:
    kept: list[Any] = []

    class Keeping(Site):
        def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
            if environ["REQUEST_METHOD"] == "POST":
                kept.append(environ["wsgi.input"])
            return super().__call__(environ, start_response)

    with each_server(kind, Keeping()) as port, talking(port) as sock:
        sock.sendall(b"POST /page HTTP/1.1\r\nHost: x\r\n" + framed)
        until(sock, b"served /page")
        (body,) = kept
        wait_until(lambda: isinstance(body.rfile, io.BytesIO))
        reading = gevent.spawn(body.read)
        sock.sendall(PAGE)
        until(sock, b"served /page")
        assert reading.get(timeout=5) == b""
        body.position, body.chunk_length = 0, -1
        with pytest.raises(OSError, match=r"EOF|end of file"):
            body.read()


@EACH_SERVER
def test_no_body_waits_for_the_garbage_collector(kind: str) -> None:
    site = Site()
    with each_server(kind, site) as port, talking(port) as sock:
        gc.collect()
        gc.disable()
        try:
            sock.sendall(CHUNKS + b"3\r\nabc\r\n0\r\n\r\n")
            until(sock, b"served /body")
            sock.sendall(PAGE)
            until(sock, b"served /page")
            wait_until(lambda: not any(isinstance(found, Body) for found in gc.get_objects()))
        finally:
            gc.enable()


class Counting(Site):
    """Counts how often another greenlet has had its turn while a body was read, once all of that has come."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.go_on.wait()
        self.turns = 0
        taker = gevent.spawn(self.take)
        answer = super().__call__(environ, start_response)
        taker.kill()
        return answer

    def take(self) -> None:
        while True:
            self.turns += 1
            gevent.sleep(0)


@pytest.mark.parametrize("kind", ["app", "stock"])
def test_a_body_of_tiny_chunks_leaves_others_their_turns(kind: str) -> None:
    site = Counting()
    body = b"1\r\na\r\n" * 4000 + b"0\r\n" + b"X: y\r\n" * 1000 + b"\r\n"
    with each_server(kind, site) as port, talking(port) as sock:
        sock.sendall(CHUNKS + body)
        site.go_on.set()
        until(sock, b"served /body")
    assert site.turns > len(body) / 400


@EACH_SERVER
def test_a_body_that_is_cut_off_is_no_error_if_nobody_reads_it(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    site = Site()
    with each_server(kind, site) as port, talking(port) as sock:
        sock.sendall(b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nhello")
        sock.shutdown(socket.SHUT_WR)
        answer = rest_of(sock)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert "Traceback" not in capfd.readouterr().err


@EACH_SERVER
@pytest.mark.parametrize("begin", [b"Z\r\n", b"\r\n", b"3\r\nabcdef\r\n"])
def test_nothing_is_served_behind_a_body_whose_end_is_not_known(kind: str, begin: bytes) -> None:
    site = Site()
    site.forgives = True
    with each_server(kind, site) as port:
        answer = ask(port, CHUNKS + begin + PAGE + upgrade())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert site.asked == ["/body"]


@EACH_SERVER
@pytest.mark.parametrize(
    "head", [b"GET /page HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200, b"GET /page HTTP/1\r\n"], ids=["many headers", "no point"]
)
def test_what_gevent_stumbles_over_is_no_error_of_ours(kind: str, head: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with each_server(kind, Site()) as port:
        answer = ask(port, head + b"\r\n")
    assert answer[9:12] == (b"431" if kind != "stock" and len(head) > 100 else b"400")
    assert "Traceback" not in capfd.readouterr().err


@EACH_SERVER
def test_an_upgrade_to_another_protocol_is_ignored(kind: str) -> None:
    site = Site()
    request = b"POST /body HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nhello"
    with each_server(kind, site) as port, talking(port) as sock:
        sock.sendall(request + PAGE)
        assert b"200 OK" in until(sock, b"served /page")
    assert site.bodies == [b"hello"]


def test_a_body_that_is_declared_too_long_is_refused() -> None:
    site = Site()
    with serving(None, ServerOptions(max_request_body=10), wsgi=site, wsgi_settings=QUIET) as server:
        answer = ask(port_of(server), b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello")
        assert answer.startswith(b"HTTP/1.1 413 ")
        with talking(port_of(server)) as sock:
            sock.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n0123456789")
            until(sock, b"served /body")
    assert site.bodies == [b"0123456789"]


@pytest.mark.parametrize("path", ["/body", "/page"], ids=["read by the app", "not read"])
def test_a_body_without_end_is_cut(path: str) -> None:
    site = Site()
    with serving(None, ServerOptions(max_request_body=100_000), wsgi=site, wsgi_settings=QUIET) as server:
        with talking(port_of(server)) as sock:
            sent = 0
            try:
                sock.sendall(b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                while sent < 100_000_000:
                    sock.sendall(b"2000\r\n" + bytes(0x2000) + b"\r\n")
                    sent += 0x2000
            except OSError:
                pass
            assert sent < 100_000_000
        wait_until(lambda: not server.connections)


def test_a_body_that_does_not_come_is_cut() -> None:
    site = Site()
    with serving(None, ServerOptions(body_timeout=0.1), wsgi=site, wsgi_settings=QUIET) as server:
        answer = ask(port_of(server), b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello")
        assert answer == b""
        wait_until(lambda: not server.connections)
    assert isinstance(site.bodies[0], OSError)


@pytest.mark.parametrize("begin", [b"", PAGE, b"GET / HTTP/1.1\nHost: x\n"], ids=["first", "second", "with line feeds"])
def test_a_head_that_does_not_come_is_answered_408(begin: bytes) -> None:
    site = Site()
    with serving(None, ServerOptions(handshake_timeout=0.2), wsgi=site, wsgi_settings=QUIET) as server:
        answer = ask(port_of(server), begin + b"GET /never HT")
        assert b"HTTP/1.1 408 " in answer
        assert answer.count(b"served") == begin.startswith(PAGE)
    assert "/never" not in site.asked


def test_a_head_that_is_given_up_is_awaited_no_more() -> None:
    with serving(None, wsgi=Site(), wsgi_settings=QUIET) as server:
        for request in (b"GET\r\n\r\n", b"GET / HTTP/1.1\nHost: x\nX: " + b"y" * 70_000, b"GET / HTTP/1.1\nHost"):
            ask(port_of(server), request + b"\n" * 3)
            wait_until(lambda: not server.connections)
        assert server._service is not None
        assert server._service._awaited == set()
        assert server._service._idle == {}


def test_a_head_without_end_is_refused() -> None:
    site = Site()
    with serving(None, ServerOptions(max_request_head=1000), wsgi=site, wsgi_settings=QUIET) as server:
        answer = ask(port_of(server), b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 500)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert site.asked == []


def test_a_pause_between_requests_ends_the_connection() -> None:
    with serving(None, ServerOptions(keep_alive_timeout=0.1), wsgi=Site(), wsgi_settings=QUIET) as server:
        answer = ask(port_of(server), PAGE)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"served /page")


@pytest.mark.slow
def test_a_client_that_does_not_read_is_given_up() -> None:
    site = Site()
    with serving(None, ServerOptions(write_timeout=0.2), wsgi=site, wsgi_settings=QUIET) as server:
        with talking(port_of(server), receive_buffer=4096) as sock:
            sock.sendall(b"GET /big/50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: site.asked)
            wait_until(lambda: not server.connections)


def test_places_are_for_requests_under_way_and_for_websockets() -> None:
    site = Site()
    with serving(None, ServerOptions(max_connections=1), wsgi=site, wsgi_settings=QUIET) as server:
        port = port_of(server)
        with talking(port) as kept:
            kept.sendall(PAGE)
            until(kept, b"served /page")
            with connect(url_of(server, "/ws")) as conn:
                assert ask(port, PAGE).startswith(b"HTTP/1.1 503 ")
                kept.sendall(PAGE)
                assert until(kept, b"\r\n\r\n").startswith(b"HTTP/1.1 503 ")
                conn.send("hi")
                assert conn.receive(timeout=5) == "hi"
        wait_until(lambda: not server.connections)
        with talking(port) as sock:
            sock.sendall(PAGE)
            until(sock, b"served /page")


def test_stop_lets_requests_finish_and_closes_what_is_idle() -> None:
    site = Site()
    with serving(None, wsgi=site, wsgi_settings=QUIET, stop_timeout=5) as server:
        with talking(port_of(server)) as idle, talking(port_of(server)) as head, talking(port_of(server)) as busy:
            idle.sendall(PAGE)
            until(idle, b"served /page")
            head.sendall(b"GET /never HT")
            busy.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: "/wait" in site.asked)
            stopping = gevent.spawn(server.stop, 5)
            assert rest_of(idle) == b""
            assert rest_of(head).startswith(b"HTTP/1.1 503 ")
            assert not stopping.ready()
            site.go_on.set()
            assert rest_of(busy).endswith(b"served /wait")
            stopping.get(timeout=5)


@pytest.mark.slow
def test_a_request_that_does_not_finish_in_time_is_cut() -> None:
    site = Site()
    with serving(None, wsgi=site, wsgi_settings=QUIET) as server:
        with talking(port_of(server)) as busy:
            busy.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: "/wait" in site.asked)
            server.stop(0.1)
            assert rest_of(busy) == b""


def test_what_trusted_proxies_say_stands_in_the_environ() -> None:
    site = Site()
    said = b"GET /%d HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %s\r\nX-Forwarded-Proto: https\r\n\r\n"
    for options, first, second, scheme in (
        (ServerOptions(trusted_proxies=["127.0.0.1"]), "1.2.3.4", "5.6.7.8", "https"),
        (ServerOptions(), "127.0.0.1", "127.0.0.1", "http"),
    ):
        with serving(None, options, wsgi=site, wsgi_settings=QUIET) as server, talking(port_of(server)) as sock:
            for number, client, expected in ((1, b"1.2.3.4", first), (2, b"5.6.7.8", second)):
                sock.sendall(said % (number, client))
                until(sock, b"served /%d" % number)
                assert site.environ["REMOTE_ADDR"] == expected
                assert site.environ["wsgi.url_scheme"] == scheme
    with serving(None, ServerOptions(trusted_proxies=["127.0.0.1"]), wsgi=site, wsgi_settings=QUIET) as server:
        with talking(port_of(server)) as sock:
            sock.sendall(b"PROXY TCP4 9.8.7.6 127.0.0.1 1234 80\r\n" + PAGE)
            until(sock, b"served /page")
            assert (site.environ["REMOTE_ADDR"], site.environ["REMOTE_PORT"]) == ("9.8.7.6", "1234")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            until(sock, b"served /")
            assert site.environ["REMOTE_ADDR"] == "9.8.7.6"


def test_a_failing_app_is_answered_500_and_the_server_goes_on() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise RuntimeError("the app fails")

    with serving(EchoHandler(), wsgi=app, wsgi_settings=QUIET) as server:
        for _ in range(2):
            assert ask(port_of(server), PAGE).startswith(b"HTTP/1.1 500 ")
        with connect(url_of(server)) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"


def test_connections_between_two_requests_make_room() -> None:
    site = Site()
    with serving(None, ServerOptions(max_connections=1), wsgi=site, wsgi_settings=QUIET) as server, ExitStack() as stack:
        kept = []
        for _ in range(105):
            sock = stack.enter_context(talking(port_of(server)))
            sock.sendall(PAGE)
            until(sock, b"served /page")
            kept.append(sock)
        assert rest_of(kept[0]) == b""
        assert len(server.connections) <= 103
        kept[-1].sendall(PAGE)
        until(kept[-1], b"served /page")


def test_an_app_may_speak_another_protocol_by_itself() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("101 Switching Protocols", [("Upgrade", "echo"), ("Connection", "Upgrade")])
        write(b"")
        while line := environ["wsgi.input"].readline():
            write(line)
        return []

    request = upgrade().replace(b"Upgrade: websocket", b"Upgrade: websocket, echo")
    with serving(None, ServerOptions(body_timeout=0.1), wsgi=app, wsgi_settings=QUIET) as server:
        with talking(port_of(server)) as sock:
            sock.sendall(request + b"one\n")
            assert until(sock, b"one\n").startswith(b"HTTP/1.1 101 ")
            gevent.sleep(0.3)
            sock.sendall(b"two\n")
            until(sock, b"two\n")
            sock.shutdown(socket.SHUT_WR)
            assert rest_of(sock) == b""


@pytest.mark.parametrize("reset", [True, False])
def test_who_does_not_wait_for_the_answer_is_no_error(reset: bool, capfd: pytest.CaptureFixture[str]) -> None:
    requests = [b"GET\r\n\r\n", upgrade(), upgrade(b"X: \0\r\n"), b"GET /big/3000000 HTTP/1.1\r\nHost: x\r\n\r\n"]
    for kind in ("app", "stock"):
        site = Site()
        with each_server(kind, site) as port:
            for request in requests:
                with talking(port) as sock:
                    if reset:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
                    sock.sendall(request)
            wait_until(lambda: len(site.asked) == 2)  # noqa: B023  # called within this round
            gevent.sleep(0.05)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["app", "stock"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_nothing_is_served_behind_an_upgrade_that_the_app_answers_over_http(kind: str, method: bytes) -> None:
    site = Site()
    with each_server(kind, site) as port:
        answer = ask(port, upgrade().replace(b"GET /ws", method + b" /page") + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert site.asked == ["/page"]


@pytest.mark.parametrize("kind", ["app", "stock"])
def test_a_refusal_of_a_head_request_has_no_body(kind: str) -> None:
    with each_server(kind, Site()) as port:
        answer = ask(port, upgrade().replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.partition(b"\r\n\r\n")[2] == b""


def test_requests_that_come_all_at_once_let_others_have_their_turn() -> None:
    site = Site()
    with serving(None, wsgi=site, wsgi_settings=QUIET) as server, talking(port_of(server)) as greedy:
        with talking(port_of(server)) as other:
            greedy.sendall(PAGE * 3000)
            wait_until(lambda: site.asked)
            other.sendall(b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n")
            until(other, b"served /other")
            assert site.asked.index("/other") < 2000
            found = b""
            while found.count(b"served /page") < 3000:
                found += greedy.recv(65536)
