"""gevent-websocket's API, as its successor answers for it. Unpatched, in this process, with raw clients."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import PROTOCOL_TLS_CLIENT, PROTOCOL_TLS_SERVER
from typing import Any

import gevent
import pytest
import trustme
from gevent import pywsgi
from gevent.event import Event
from gevent.ssl import SSLContext

from gws_gevent import Refusal, Server, ServerOptions, State, WsgiSettings
from gws_gevent.integrations.geventwebsocket import Resource, WebSocketApplication, WebSocketError, WebSocketServer, get_version
from gws_gevent.integrations.geventwebsocket.clients import Client, Clients
from gws_gevent.integrations.geventwebsocket.exceptions import FrameTooLargeException, ProtocolError
from gws_gevent.integrations.geventwebsocket.handler import WebSocketHandler
from gws_gevent.integrations.geventwebsocket.logging import create_logger
from gws_gevent.integrations.geventwebsocket.protocols.base import BaseProtocol
from gws_gevent.integrations.geventwebsocket.utf8validator import Utf8Validator
from gws_gevent.integrations.geventwebsocket.websocket import MSG_ALREADY_CLOSED, WebSocket
from tests.legacy.client import page, websocket
from tests.raw import Frame, RawClient, RawTlsClient, frame, request
from tests.support import wait_until

CLOSE = frame(8, b"\x03\xe8")
App = Callable[..., Any]


@contextmanager
def serving(app: Any, **settings: Any) -> Iterator[Any]:
    """A WebSocketServer on a free port; afterwards nobody may be left."""
    settings.setdefault("log", None)
    server = WebSocketServer(("127.0.0.1", 0), app, **settings)
    server.start()
    try:
        yield server
        wait_until(lambda: not server.clients, what="the end of all WebSockets")
        upgraders = vars(server).get("websocket_upgraders", {}).values()
        wait_until(lambda: not any(upgrader.connections for _, upgrader in upgraders), what="the end of all connections")
    finally:
        server.stop(timeout=1)


def using(function: Callable[[WebSocket], Any]) -> App:
    """A WSGI application that hands its WebSocket to a function."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        function(environ["wsgi.websocket"])
        return []

    return application


def echo(ws: WebSocket) -> None:
    while (message := ws.receive()) is not None:
        ws.send(message)


def port_of(server: Any) -> int:
    port: int = server.server_port
    return port


def status_of(server: Any, head: bytes) -> int:
    with RawClient(port_of(server)) as client:
        client.send(head)
        return client.read_answer().status


# Servers


def test_a_server_of_gevents_own_takes_the_handler_class() -> None:
    server = pywsgi.WSGIServer(("127.0.0.1", 0), using(echo), handler_class=WebSocketHandler, log=None)
    server.start()
    with websocket(server.server_port, "/") as client:
        client.echo()
        assert len(server.clients) == 1
        client.send(CLOSE)
        assert client.read_close() == (1000, b"")
        client.read_end()
    server.stop(timeout=1)
    assert not server.clients


def test_a_server_that_stops_says_goodbye() -> None:
    server = WebSocketServer(("127.0.0.1", 0), using(echo), log=None)
    server.start()
    with websocket(server.server_port, "/") as client:
        client.echo()
        stopping = gevent.spawn(server.stop, 5)
        assert client.read_close() == (1001, b"")
        client.send(frame(8, b"\x03\xe9"))
        client.read_end()
    stopping.get(timeout=5)


def test_a_websocket_that_opens_while_the_server_stops_is_told_at_once() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.set()
        closed.wait()
        echo(environ["wsgi.websocket"])
        return []

    asked, closed = Event(), Event()
    with serving(app) as server, RawClient(port_of(server)) as client:
        client.send(request())
        asked.wait()
        server.close()
        closed.set()
        assert client.read_answer().status == 101
        assert client.read_close() == (1001, b"")


@pytest.mark.parametrize("spawn", ["default", 10], ids=["no pool", "pool"])
def test_a_server_that_stops_and_a_client_that_does_not_answer(spawn: Any) -> None:
    seen = []

    def wait(ws: WebSocket) -> None:
        try:
            ws.receive()
        finally:
            seen.append(ws.closed)

    server = WebSocketServer(("127.0.0.1", 0), using(wait), log=None, spawn=spawn)
    server.start()
    with websocket(server.server_port, "/") as client:
        wait_until(lambda: server.clients)
        stopping = gevent.spawn(server.stop, 0.05)
        assert client.read_close() == (1001, b"")
        stopping.get(timeout=5)
        client.read_to_the_end()
    wait_until(lambda: not server.clients)
    assert seen == [True]


def test_options_of_a_server() -> None:
    with serving(using(echo), options=ServerOptions(read_max_payload_size=4, origins=["https://here.example"])) as server:
        assert status_of(server, request()) == 403
        with websocket(port_of(server), "/", "Origin: https://here.example") as client:
            client.send(frame(1, b"12345"))
            assert client.read_close()[0] == 1009
    with pytest.raises(TypeError, match="options"):
        WebSocketServer(("127.0.0.1", 0), options={"origins": None})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="park_after"):
        WebSocketServer(("127.0.0.1", 0), options=ServerOptions(park_after=1))


def test_authorize_decides_whatever_the_application_makes_of_it() -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        try:
            echo(ws)
        except WebSocketError as error:
            seen.append((type(error.__cause__), ws.closed))
        start_response("200 OK", [])
        return [b"let in"]

    options = ServerOptions(authorize=lambda request, session: request.query == "sesame")
    with serving(app, options=options) as server:
        assert status_of(server, request("/?rice")) == 401
        with websocket(port_of(server), "/?sesame") as client:
            client.echo()
    assert seen == [(Refusal, True)]


def test_a_full_server_refuses() -> None:
    with serving(using(echo), options=ServerOptions(max_connections=1)) as server:
        with websocket(port_of(server), "/") as client:
            client.echo()
            assert status_of(server, request()) == 503
            client.echo()


def test_a_client_that_leaves_before_the_101(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.set()
        gone.wait()
        try:
            # A few bytes may still be taken by the kernel before the reset has come; so many are not.
            monkeypatch.setattr("gws_gevent.takeover.accept_response", lambda *args: b"x" * (16 << 20))
            environ["wsgi.websocket"].accept()
        except WebSocketError as error:
            seen.append(str(error))
        return []

    asked, gone = Event(), Event()
    with serving(app) as server:
        with RawClient(port_of(server)) as client:
            client.send(request())
            asked.wait()
            client.reset()
        gone.set()
        wait_until(lambda: seen)
    assert seen == ["Socket is dead"]


def test_plain_requests_are_plain() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str("wsgi.websocket" in environ).encode()]

    with serving(app) as server:
        assert page(port_of(server), "/").body == b"False"
        with RawClient(port_of(server)) as client:
            client.send(request(upgrade="h2c"), request(method="POST"))
            assert client.read_answer().body == b"False"
            assert client.read_answer().body == b"False"


def test_tls() -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    context, server_context = SSLContext(PROTOCOL_TLS_CLIENT), SSLContext(PROTOCOL_TLS_SERVER)
    authority.configure_trust(context)
    authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA).configure_cert(server_context)
    with serving(using(echo), ssl_context=server_context) as server:
        with RawTlsClient(port_of(server), context) as client:
            client.upgrade()
            client.echo(b"x" * 100_000)
            client.send(CLOSE)
            assert client.read_close() == (1000, b"")
            client.read_end()


def test_a_server_of_ours_takes_the_handler_class() -> None:
    server = Server(wsgi=Resource([("/", WebSocketApplication)]), wsgi_settings=WsgiSettings(handler_class=WebSocketHandler))
    server.start("127.0.0.1:0")
    with websocket(int(server.address.rpartition(":")[2]), "/") as client:
        client.echo()
        stopping = gevent.spawn(server.stop, 5)
        assert client.read_close() == (1001, b"")
        client.send(frame(8, b"\x03\xe9"))
        client.read_end()
    stopping.get(timeout=5)


# The handshake that comes late


def test_what_the_request_says_before_the_101() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        assert environ["wsgi.websocket_version"] == ws.version == "13"
        assert (ws.path, ws.origin, ws.protocol) == ("/a b", "https://here.example", "one, two")
        assert not ws.closed
        assert not ws.is_open
        assert not ws.handler.server.clients
        assert ws.handler.active_client.ws is ws
        start_response("418 I'm a teapot", [("Content-Length", "5")])
        with pytest.raises(WebSocketError, match="start_response"):
            ws.receive()
        assert ws.closed
        ws.close()
        return [b"short"]

    with serving(app) as server, RawClient(port_of(server)) as client:
        client.send(request("/a%20b", "Origin: https://here.example", "Sec-WebSocket-Protocol: one, two"))
        answer = client.read_answer()
        assert (answer.status, answer.body) == (418, b"short")


@pytest.mark.parametrize(
    "use",
    [
        WebSocket.accept,
        WebSocket.close,
        lambda ws: ws.send(""),
        lambda ws: ws.send_frame("", ws.OPCODE_PONG),
        lambda ws: ws.connection,
    ],
    ids=["accept", "close", "send", "send_frame", "connection"],
)
def test_the_first_use_opens_it(use: Callable[[WebSocket], Any]) -> None:
    state: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws = environ["wsgi.websocket"]
        state.append(ws.is_open)
        use(ws)
        state.append(ws.is_open)
        # As frameworks do once a view has returned.
        start_response("200 OK", [("Content-Length", "4")])(b"lost")
        return [b"lost"]

    with serving(app) as server, websocket(port_of(server), "/") as client:
        said = next(read for read in iter(client.read_frame, None) if read.opcode == 8)
        assert said == Frame(8, b"\x03\xe8")
        client.send(CLOSE)
        client.read_end()
        assert state == [False, True]


def test_an_application_that_does_nothing() -> None:
    with serving(using(lambda ws: None)) as server, websocket(port_of(server), "/") as client:
        assert client.read_close() == (1000, b"")
        client.send(CLOSE)
        client.read_end()


def test_an_application_that_fails_before_the_101(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(using(lambda ws: 1 / 0)) as server:
        assert status_of(server, request()) == 500
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_an_application_that_fails_after_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(ws: WebSocket) -> None:
        ws.send("hello")
        raise ZeroDivisionError("nobody's business")

    with serving(using(fail)) as server, websocket(port_of(server), "/") as client:
        assert client.read_frame() == Frame(1, b"hello")
        assert client.read_close() == (1011, b"")
        client.send(frame(8, b"\x03\xf3"))
        client.read_end()
    assert "nobody's business" in capfd.readouterr().err


def test_what_comes_glued_to_the_request() -> None:
    with serving(using(echo)) as server, RawClient(port_of(server)) as client:
        client.send(request(), frame(1, b"glued"))
        assert client.read_answer().status == 101
        assert client.read_frame() == Frame(1, b"glued")


def test_two_greenlets_use_it_first() -> None:
    def app(ws: WebSocket) -> None:
        gevent.joinall([gevent.spawn(ws.send, text) for text in ("one", "two", "three")], raise_error=True)

    with serving(using(app)) as server, websocket(port_of(server), "/") as client:
        assert [client.read_frame().payload for _ in range(4)] == [b"one", b"two", b"three", b"\x03\xe8"]


def test_an_application_that_waits_before_it_sends() -> None:
    class Soon(WebSocketHandler):
        open_after = 0.01

    class Never(WebSocketHandler):
        open_after = None

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        news.wait()
        start_response("401 Unauthorized", [])
        return []

    news = Event()
    with serving(app, handler_class=Soon) as server, websocket(port_of(server), "/") as client:
        assert len(server.clients) == 1
        news.set()
        assert client.read_close() == (1000, b"")  # too late for an answer
    news.clear()
    with serving(app, handler_class=Never) as server, RawClient(port_of(server)) as client:
        client.send(request())
        with gevent.Timeout(0.05, False):
            client.read_answer()
        news.set()
        assert client.read_answer().status == 401


@pytest.mark.parametrize("thrown", [gevent.Timeout(1), gevent.GreenletExit()], ids=["timeout", "kill"])
def test_what_is_no_exception_comes_out_of_it(thrown: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    def throw(ws: WebSocket) -> None:
        ws.send("hello")
        raise thrown

    with serving(using(throw)) as server, websocket(port_of(server), "/") as client:
        assert client.read_frame() == Frame(1, b"hello")
        if isinstance(thrown, gevent.GreenletExit):
            assert client.read_to_the_end() == b""
        else:
            assert client.read_close() == (1011, b"")
            client.send(CLOSE)
            client.read_end()


def test_an_application_that_returns_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> None:
        environ["wsgi.websocket"].send("hello")

    with serving(app) as server, websocket(port_of(server), "/") as client:
        assert client.read_frame() == Frame(1, b"hello")
        assert client.read_close() == (1000, b"")
    assert capfd.readouterr().err == ""


def test_a_connection_that_another_library_takes_is_left_alone() -> None:
    errors: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        ws, sock = environ["wsgi.websocket"], environ["gunicorn.socket"]
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        with pytest.raises(WebSocketError) as failed:
            ws.receive()
        errors.append(str(failed.value))
        assert ws.closed
        sock.sendall(b"mine")
        raise StopIteration

    with serving(app) as server, RawClient(port_of(server)) as client:
        client.send(request())
        assert client.read_to_the_end() == b"HTTP/1.1 101 Switching Protocols\r\n\r\nmine"
    assert "gunicorn.socket" in errors[0]


def test_an_application_that_is_a_generator() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        ws = environ["wsgi.websocket"]
        for message in iter(ws.receive, None):
            ws.send(message)
            yield b""

    with serving(app) as server, websocket(port_of(server), "/") as client:
        client.echo(b"one")
        client.echo(b"two")
        client.send(CLOSE)
        assert client.read_close() == (1000, b"")


def test_the_websocket_is_over_with_its_request() -> None:
    kept: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        kept.append((environ, environ["wsgi.websocket"]))
        environ["wsgi.websocket"].accept()
        return []

    with serving(app) as server, websocket(port_of(server), "/x") as client:
        client.send(CLOSE)
        client.read_to_the_end()
    environ, ws = kept[0]
    assert environ["wsgi.websocket"] is None
    assert ws.closed
    assert ws.path == "/x"
    with pytest.raises(WebSocketError):
        ws.send("late")


# Hooks


def test_pre_start_hook_makes_it_a_plain_request() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"plain" if "wsgi.websocket" not in environ else b"not plain"]

    hooked: list[Any] = []

    def hook(handler: WebSocketHandler) -> bool:
        hooked.append(handler.environ["PATH_INFO"])
        return bool(handler.environ["PATH_INFO"] == "/plain")

    with serving(app, pre_start_hook=hook) as server:
        for path, expected in (("/plain", b"plain"), ("/other", b"not plain")):
            with RawClient(port_of(server)) as client:
                client.send(request(path))
                assert client.read_answer().body == expected
    assert hooked == ["/plain", "/other"]


def test_a_handler_that_refuses_by_itself() -> None:
    class Guarding(WebSocketHandler):
        def upgrade_connection(self) -> Any:
            if self.environ["QUERY_STRING"] != "key=sesame":
                self.start_response("403 Forbidden", [])
                return [b"no"]
            self.environ["guarded"] = True
            return super().upgrade_connection()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.websocket"].send(str(environ["guarded"]))
        return []

    with serving(app, handler_class=Guarding) as server:
        assert status_of(server, request("/?key=rice")) == 403
        with websocket(port_of(server), "/?key=sesame") as client:
            assert client.read_frame() == Frame(1, b"True")


def test_prevent_wsgi_call_leaves_the_websocket_to_the_handler() -> None:
    class Talking(WebSocketHandler):
        prevent_wsgi_call = True

        def handle_one_response(self) -> None:
            super().handle_one_response()
            assert self.websocket is not None
            if not self.websocket.closed:
                echo(self.websocket)

    options = ServerOptions(authorize=lambda request, session: request.query != "rice")
    with serving(using(echo), handler_class=Talking, options=options) as server:
        with websocket(port_of(server), "/") as client:
            client.echo()
            client.send(CLOSE)
            assert client.read_close() == (1000, b"")
            client.read_end()
        assert status_of(server, request("/?rice")) == 401


def test_hidden_headers() -> None:
    class Hiding(WebSocketHandler):
        hide_upgrade_headers = True

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.websocket"].send(" ".join(sorted(key for key in environ if key.startswith("HTTP_"))))
        return []

    with serving(app, handler_class=Hiding) as server, websocket(port_of(server), "/") as client:
        assert client.read_frame().payload == b"HTTP_HOST HTTP_SEC_WEBSOCKET_KEY HTTP_SEC_WEBSOCKET_VERSION"


# Receiving and sending


def test_messages_have_the_types_they_had() -> None:
    def types(ws: WebSocket) -> None:
        for message in iter(ws.receive, None):
            ws.send(type(message).__name__)
        with pytest.raises(WebSocketError, match=MSG_ALREADY_CLOSED):
            ws.receive()

    with serving(using(types)) as server, websocket(port_of(server), "/") as client:
        client.send(frame(1, b""), frame(2, b"\x00"), CLOSE)
        assert [client.read_frame().payload for _ in range(2)] == [b"str", b"bytearray"]
        assert client.read_close() == (1000, b"")


def test_what_may_be_sent() -> None:
    def send(ws: WebSocket) -> None:
        ws.send("\u20ac")
        ws.send(b"\xff")
        ws.send(bytearray(b"\xfe"))
        ws.send(memoryview(b"\xfd"))
        ws.send("text", binary=True)
        ws.send(b"bytes", binary=False)
        ws.send_frame("ping", ws.OPCODE_PING)
        ws.send_frame(b"pong", ws.OPCODE_PONG)
        for wrong in (None, 5, [1, 2]):
            with pytest.raises(TypeError):
                ws.send(wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                ws.send_frame(wrong, ws.OPCODE_PING)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="utf-8"):
            ws.send(b"\xff", binary=False)
        with pytest.raises(ValueError, match="opcode"):
            ws.send_frame(b"", 3)
        with pytest.raises(ValueError, match="125"):
            ws.send_frame(b"x" * 126, ws.OPCODE_PING)
        with pytest.raises(FrameTooLargeException) as too_large:
            ws.send("x" * 101)
        assert isinstance(too_large.value, ProtocolError | WebSocketError | OSError)
        ws.send_frame(b"\x0f\xa1why", ws.OPCODE_CLOSE)

    with serving(using(send), options=ServerOptions(write_max_payload_size=100)) as server:
        with websocket(port_of(server), "/") as client:
            frames = [client.read_frame() for _ in range(9)]
    assert [(one.opcode, one.payload) for one in frames] == [
        (1, "\u20ac".encode()),
        (2, b"\xff"),
        (2, b"\xfe"),
        (2, b"\xfd"),
        (2, b"text"),
        (1, b"bytes"),
        (9, b"ping"),
        (10, b"pong"),
        (8, b"\x0f\xa1why"),
    ]


def test_another_thread_may_send() -> None:
    def send(ws: WebSocket) -> None:
        ws.send("one")
        gevent.get_hub().threadpool.apply(ws.send, ("from a thread",))
        ws.send("two")

    with serving(using(send)) as server, websocket(port_of(server), "/") as client:
        assert {client.read_frame().payload for _ in range(3)} == {b"one", b"from a thread", b"two"}


def test_a_wrong_close_is_refused_and_a_second_one_is_nothing() -> None:
    def close(ws: WebSocket) -> None:
        ws.accept()
        for code, reason in ((1006, ""), (99, ""), (1000, "x" * 124)):
            with pytest.raises(ValueError, match="close"):
                ws.close(code, reason)
        ws.close(4000, "done")
        ws.close(4001, "again")
        assert ws.closed
        assert ws.close_info is not None
        assert ws.close_info.sent == (4000, "done")

    with serving(using(close)) as server, websocket(port_of(server), "/") as client:
        assert client.read_close() == (4000, b"done")
        client.send(frame(8, b"\x0f\xa0"))
        client.read_end()


def test_close_of_another_greenlet_ends_a_receive() -> None:
    ended: list[Any] = []
    opened: list[WebSocket] = []

    def wait(ws: WebSocket) -> None:
        ws.accept()
        opened.append(ws)
        ended.append(ws.receive())

    with serving(using(wait)) as server, websocket(port_of(server), "/") as client:
        wait_until(lambda: opened)
        opened[0].close(4000)
        assert client.read_close() == (4000, b"")
        client.send(frame(8, b"\x0f\xa0"))
        client.read_end()
        wait_until(lambda: ended)
    assert ended == [None]


def test_a_timeout_loses_nothing() -> None:
    def wait(ws: WebSocket) -> None:
        ws.send("go")
        with gevent.Timeout(0.02, False):
            ws.receive()
        ws.send("timed out")
        ws.send(ws.receive() or "nothing")

    with serving(using(wait)) as server, websocket(port_of(server), "/") as client:
        assert client.read_frame() == Frame(1, b"go")
        whole = frame(1, b"whole")
        client.send(whole[:-2])
        assert client.read_frame() == Frame(1, b"timed out")
        client.send(whole[-2:])
        assert client.read_frame() == Frame(1, b"whole")


def test_a_client_that_is_gone() -> None:
    errors: list[Any] = []

    def talk(ws: WebSocket) -> None:
        ws.accept()
        assert ws.receive() is None
        with pytest.raises(WebSocketError) as failed:
            ws.send("hello")
        errors.append(str(failed.value))
        ws.close()

    with serving(using(talk)) as server:
        with websocket(port_of(server), "/") as client:
            client.reset()
        wait_until(lambda: errors)
    assert errors == ["Socket is dead"]


@pytest.mark.parametrize(
    ("options", "use"),
    [
        (ServerOptions(write_timeout=0.1), lambda ws: ws.send(bytes(16 << 20))),
        (ServerOptions(ping_interval=0.05, ping_timeout=0.05), WebSocket.receive),
        (ServerOptions(read_timeout=0.1), WebSocket.receive),
        (ServerOptions(message_timeout=0.1), WebSocket.receive),
    ],
    ids=["takes nothing", "does not answer pings", "is silent", "does not end its message"],
)
def test_a_client_that_does_nothing_more_is_dropped(options: ServerOptions, use: Callable[[WebSocket], Any]) -> None:
    seen: list[Any] = []

    def app(ws: WebSocket) -> None:
        try:
            seen.append(use(ws))
        except WebSocketError as error:
            seen.append(str(error))

    with serving(using(app), options=options) as server, RawClient(port_of(server), receive_buffer=4096) as client:
        client.send(request(), frame(1, b"begun")[:-1])
        wait_until(lambda: seen)
    assert seen in ([None], ["Socket is dead"])


def test_the_connection_below() -> None:
    def look(ws: WebSocket) -> None:
        assert ws.connection.state is State.OPEN
        ws.connection.send(ws.connection.receive())

    with serving(using(look)) as server, websocket(port_of(server), "/") as client:
        client.echo()


# Resource and WebSocketApplication


class Recording(WebSocketApplication):
    """Remembers its calls in the server's list `calls`."""

    def note(self, *call: Any) -> None:
        self.ws.handler.server.calls.append(call)

    def on_open(self) -> None:
        self.note("open", self.ws.is_open, len(self.ws.handler.server.clients))

    def on_message(self, message: Any) -> None:
        self.note("message", message)
        if message == "fail":
            raise ZeroDivisionError
        if message == "leave":
            self.ws.close(4000)
        if message == "misunderstood":
            raise ProtocolError("what?")
        if message == "others":
            raise WebSocketError("somebody else's is dead")

    def on_close(self, reason: Any) -> None:
        self.note("close", reason)


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (frame(8, b"\x03\xe8bye"), 1000, "bye"),
        (frame(8), None, None),
        (frame(1, b"fail"), 1011, None),
        (frame(1, b"leave"), 4000, None),
        (frame(1, b"misunderstood"), 1002, None),
        (frame(1, b"others") + frame(8), None, None),
    ],
    ids=["client", "client, empty", "fails", "leaves", "misunderstands", "others"],
)
def test_an_application_ends_once(sent: bytes, code: int | None, reason: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(Resource([("/", Recording)])) as server:
        server.calls = []
        with websocket(port_of(server), "/") as client:
            client.send(frame(1, b"x"), sent)
            assert client.read_close()[0] == code
            client.send(CLOSE)
            client.read_end()
        wait_until(lambda: server.calls[-1][0] == "close")
        assert server.calls[:2] == [("open", True, 1), ("message", "x")]
        assert [call for call in server.calls if call[0] == "close"] == [("close", reason)]


def test_a_constructor_that_fails_is_answered_with_http(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(WebSocketApplication):
        def __init__(self, ws: Any) -> None:
            raise ZeroDivisionError

    with serving(Resource([("/", Broken)])) as server:
        assert status_of(server, request()) == 500
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [list, dict, OrderedDict])
def test_a_resource_takes_the_first_of_the_right_kind(kind: Any) -> None:
    def named(name: str) -> type[WebSocketApplication]:
        return type(name, (WebSocketApplication,), {"on_open": lambda self: self.ws.send(name)})

    def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"plain"]

    apps = kind([("/chat", named("chat")), ("^/data$", named("data")), ("^/chat", plain), ("/(a|b)", named("group"))])
    with serving(Resource(apps)) as server:
        for path, name in (("/chat", "chat"), ("/chatter", "chat"), ("/data", "data"), ("/b/c", "group")):
            with websocket(port_of(server), path) as client:
                assert client.read_frame() == Frame(1, name.encode())
                client.send(CLOSE)
                client.read_to_the_end()
        assert page(port_of(server), "/chat").body == b"plain"
        assert page(port_of(server), "/data").status == 404
        for path in ("/data/", "/", "/c"):
            assert status_of(server, request(path)) == 404


def test_a_subprotocol_is_answered_if_it_is_offered() -> None:
    class Wamp(BaseProtocol):
        PROTOCOL_NAME = "wamp"

    class Application(WebSocketApplication):
        protocol_class = Wamp

        def on_open(self) -> None:
            assert isinstance(self.protocol, Wamp)
            assert self.protocol.app is self
            assert self.protocol.server is self.ws.handler.server
            self.ws.send(str(self.ws.connection.subprotocol))

    with serving(Resource([("/", Application)])) as server:
        for offered, chosen in (("wamp", "wamp"), ("soap, wamp", "wamp"), ("wamp.2.json", None)):
            with RawClient(port_of(server)) as client:
                answer = client.upgrade(f"Sec-WebSocket-Protocol: {offered}")
                assert answer.headers.get("sec-websocket-protocol") == chosen
                assert client.read_frame() == Frame(1, str(chosen).encode())


def test_active_client_and_clients() -> None:
    class Chat(WebSocketApplication):
        def on_open(self) -> None:
            client = self.ws.handler.active_client
            assert self.ws.handler.server.clients[client.address] is client
            assert self.ws.handler.server.clients[self.ws.handler.client_address].ws is self.ws
            client.nickname = self.ws.path

        def on_message(self, message: Any) -> None:
            self.ws.send(" ".join(sorted(client.nickname for client in self.ws.handler.server.clients.values())))

    with serving(Resource([("/", Chat)])) as server:
        with websocket(port_of(server), "/ann") as ann, websocket(port_of(server), "/bo") as bo:
            bo.send(frame(1, b"who?"))
            assert bo.read_frame() == Frame(1, b"/ann /bo")
            ann.send(CLOSE)
            ann.read_to_the_end()
            wait_until(lambda: len(server.clients) == 1)
            bo.send(frame(1, b"who?"))
            assert bo.read_frame() == Frame(1, b"/bo")


def test_clients_without_an_address_and_loops_over_them() -> None:
    clients = Clients()
    one, two, three = (Client(address, None) for address in ("", "", ("127.0.0.1", 5)))  # type: ignore[arg-type]
    for client in (one, two, three):
        clients.add(client)
    assert len(clients) == 3
    assert list(clients.values()) == [one, two, three]
    for looped in (iter(clients), iter(clients.keys()), iter(clients.values()), iter(clients.items())):
        next(looped)
        clients.discard(two)
        assert len(list(looped)) == 2
        clients.add(two)
    clients.discard(one)
    clients.discard(one)
    assert set(clients) == {two.address, ("127.0.0.1", 5)}


# The rest


def test_the_version_of_the_api() -> None:
    assert get_version() == "0.10.1"
    assert get_version((1, 0, 0, "final", 0)) == "1.0"
    assert get_version((1, 2, 0, "beta", 3)) == "1.2b3"
    with pytest.raises(ValueError, match="alpha, beta, rc or final"):
        get_version((1, 2, 0, "gamma", 3))


def test_create_logger_leaves_what_is_there(capfd: pytest.CaptureFixture[str]) -> None:
    kept = logging.NullHandler()
    logging.getLogger("legacy.test").addHandler(kept)
    assert create_logger("legacy.test").handlers == [kept]
    for _ in range(2):
        create_logger("legacy.test", True, "<%(message)s>").debug("once")
    assert capfd.readouterr().err == "<once>\n<once>\n"
    logging.getLogger("legacy.test").handlers.clear()


def test_http_answers_are_logged_and_websockets_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gws_gevent.integrations.geventwebsocket.server")
    with serving(Resource([("/echo", WebSocketApplication)])) as server:
        assert page(port_of(server), "/nowhere").status == 404
        with websocket(port_of(server), "/echo") as client:
            client.send(CLOSE)
            client.read_to_the_end()
    assert [record.message.split('"')[1] for record in caplog.records] == ["GET /nowhere HTTP/1.1"]


@pytest.mark.parametrize(
    ("pieces", "last"),
    [
        ([b"abc"], (True, True, 3, 3)),
        ([b"\xe2\x82", b"\xac"], (True, True, 1, 3)),
        ([b"a\xe2\x82"], (True, False, 3, 3)),
        ([b"ab", b"c\xff"], (False, False, 1, 3)),
        ([b"\xff", b"a"], (False, False, 0, 0)),
    ],
)
def test_utf8_validator(pieces: list[bytes], last: tuple[bool, bool, int, int]) -> None:
    validator = Utf8Validator()
    assert [validator.validate(piece) for piece in pieces][-1] == last
    validator.reset()
    assert validator.validate(b"") == (True, True, 0, 0)
