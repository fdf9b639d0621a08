"""One port for WebSocket and a WSGI app: which request goes where, and what is left of it."""

from __future__ import annotations

import gc
import io
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import AsyncResult
from gevent.pywsgi import WSGIServer
from greenlet import GreenletExit

from gws_gevent import (
    ClientOptions,
    Close,
    CloseCode,
    Connection,
    ConnectionClosed,
    EventHandler,
    GwsError,
    HandshakeRefused,
    Opcode,
    PermessageDeflate,
    Refusal,
    Server,
    ServerOptions,
    Upgrader,
    WsgiSettings,
    connect,
)
from gws_gevent.http_head import Request
from gws_gevent.integrations.pywsgi import WSGIHandler
from gws_gevent.stream_socket import TakenSocket
from gws_gevent.takeover import Takeover
from tests.pairs import EchoHandler, serving, url_of
from tests.raw import request as upgrade_request
from tests.support import require_module, wait_until

QUIET = WsgiSettings(log=None)


def hello(environ: Any, start_response: Any) -> list[bytes]:
    """A page that reads the whole of the body and tells what it has seen."""
    body = environ["wsgi.input"].read() if "HTTP_UPGRADE" not in environ else b""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {len(body)}".encode()]


def upgrading(upgrader: Upgrader) -> Callable[..., Any]:
    """An app that upgrades /ws and has pages everywhere else."""

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/ws":
            return upgrader.upgrade(environ, start_response)
        return hello(environ, start_response)

    return app


def port_of(server: Any) -> int:
    return int(server.address.rpartition(":")[2])


def ask(server: Any, request: bytes) -> bytes:
    """Send bytes and return everything that is answered."""
    with gevent.socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        found = b""
        while piece := sock.recv(65536):
            found += piece
        return found


@contextmanager
def stock_server(app: Any, handler_class: Any = WSGIHandler, **more: Any) -> Iterator[WSGIServer]:
    """A server of gevent's own."""
    server = WSGIServer(("127.0.0.1", 0), app, handler_class=handler_class, log=None, **more)
    server.start()
    try:
        yield server
    finally:
        server.stop(timeout=1)


def stock_url(server: WSGIServer, target: str = "/ws") -> str:
    return f"ws://127.0.0.1:{server.server_port}{target}"


@contextmanager
def port_serving(app: Any, stock: bool) -> Iterator[int]:
    """The port of a server of gevent's own, or of ours, with nothing but this app."""
    if stock:
        with stock_server(app) as theirs:
            yield theirs.server_port
    else:
        with serving(None, wsgi=app, wsgi_settings=QUIET) as ours:
            yield port_of(ours)


# Which request goes where


def test_with_a_handler_upgrades_are_its_own_and_pages_the_apps() -> None:
    with serving(EchoHandler(), wsgi=hello, wsgi_settings=QUIET) as server:
        with connect(url_of(server, "/anywhere")) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
        answer = ask(server, b"POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"POST /page 5")


def test_without_a_handler_the_app_upgrades() -> None:
    with serving(None, wsgi=upgrading(Upgrader(EchoHandler())), wsgi_settings=QUIET) as server:
        with connect(url_of(server, "/ws")) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
            assert len(server.connections) == 1
        with pytest.raises(HandshakeRefused) as refused:
            connect(url_of(server, "/page"))
        assert refused.value.status == 200


def test_on_request_may_leave_an_upgrade_to_the_app() -> None:
    direct = EchoHandler()
    through_app = EchoHandler()

    def on_request(request: Any) -> Any:
        return direct if request.path == "/direct" else None

    app = upgrading(Upgrader(through_app))
    with serving(None, on_request=on_request, wsgi=app, wsgi_settings=QUIET) as server:
        for path, handler in (("/direct", direct), ("/ws", through_app)):
            with connect(url_of(server, path)) as conn:
                conn.send(path)
                assert conn.receive(timeout=5) == path
            assert handler.messages == [path]
        assert b"GET /direct 0" in ask(server, b"GET /direct HTTP/1.1\r\nHost: x\r\n\r\n")


def test_an_upgrade_on_a_connection_that_was_kept_alive() -> None:
    handler = EchoHandler()
    with serving(None, wsgi=upgrading(Upgrader(handler)), wsgi_settings=QUIET) as server:
        sock = gevent.socket.create_connection(("127.0.0.1", port_of(server)), timeout=5)
        page = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(2):
            sock.sendall(page)
            assert b"GET /page 0" in sock.recv(65536)
        sock.sendall(page + UPGRADE)
        found = b""
        while b"101 Switching" not in found:
            found += sock.recv(65536)
        sock.close()
        handler.wait_closed()


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


# The Upgrader


def test_nothing_of_the_request_is_alive_while_the_connection_is() -> None:
    alive: list[Any] = []

    class Marked(dict[str, Any]):
        """Can be referred to weakly."""

    def app(environ: Any, start_response: Any) -> Any:
        mark = Marked()
        environ["mark"] = mark
        alive.append(weakref.ref(mark))
        return upgrader.upgrade(environ, start_response)

    upgrader = Upgrader(EchoHandler())
    gc.collect()
    gc.disable()
    try:
        with serving(None, wsgi=app, wsgi_settings=QUIET) as server, connect(url_of(server)) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
            assert alive[0]() is None
        with stock_server(app) as stock, connect(stock_url(stock)) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
            assert alive[1]() is None
    finally:
        gc.enable()


def test_a_hijacked_connection_has_no_more_objects_than_a_direct_one() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        return upgrader.upgrade(environ, start_response)

    def objects(handler: EchoHandler | None) -> int:
        with serving(handler, wsgi=app, wsgi_settings=QUIET) as server, ExitStack() as stack:

            def crowd(count: int) -> int:
                for _ in range(count):
                    sock = stack.enter_context(gevent.socket.create_connection(("127.0.0.1", port_of(server)), timeout=5))
                    sock.sendall(upgrade_request("/ws") + b"\x81\x82\0\0\0\0hi")
                    while b"hi" not in sock.recv(1000):
                        pass
                gc.collect()
                return len(gc.get_objects())

            before = crowd(10)
            return crowd(50) - before

    upgrader = Upgrader(EchoHandler())
    assert objects(None) <= objects(EchoHandler())


def test_refusals_are_the_apps_answer() -> None:
    upgrader = Upgrader(EchoHandler(), ServerOptions(origins=["https://here.example"], authorize=lambda request, session: True))

    def without_start_response(environ: Any, start_response: Any) -> Any:
        return upgrader.upgrade(environ)(environ, start_response)

    for app in (upgrading(upgrader), without_start_response):
        with serving(None, wsgi=app, wsgi_settings=QUIET) as server, pytest.raises(HandshakeRefused) as refused:
            connect(url_of(server, "/ws"), options=ClientOptions(headers={"Origin": "https://elsewhere.example"}))
        assert refused.value.status == 403
        assert refused.value.body == b"This origin is not allowed.\n"


def test_what_the_app_answers_after_an_upgrade_goes_nowhere() -> None:
    upgrader = Upgrader(EchoHandler())

    def answers(environ: Any, start_response: Any) -> Any:
        upgrader.upgrade(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])(b"written")
        return [b"a page"]

    def fails(environ: Any, start_response: Any) -> Any:
        upgrader.upgrade(environ)
        raise RuntimeError("after the upgrade")

    def yields(environ: Any, start_response: Any) -> Any:
        upgrader.upgrade(environ, start_response)
        yield b"a page"

    for app in (answers, fails, yields):
        with serving(None, wsgi=app, wsgi_settings=QUIET) as server, connect(url_of(server)) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("reading", ["upgrade", "with", "bare"])
def test_what_the_app_raises_after_an_upgrade_is_logged(reading: str, stock: bool, capfd: pytest.CaptureFixture[str]) -> None:
    upgrader = Upgrader(EchoHandler())

    def app(environ: Any, start_response: Any) -> Any:
        if reading == "upgrade":
            upgrader.upgrade(environ)
            raise RuntimeError("a mistake")
        if reading == "bare":
            upgrader.accept(environ).receive()
            raise RuntimeError("a mistake")
        with upgrader.accept(environ) as conn:
            conn.receive()
            raise RuntimeError("a mistake")

    with port_serving(app, stock) as port:
        with connect(f"ws://127.0.0.1:{port}/ws") as conn:
            conn.send("hi")
            if reading == "upgrade":
                assert conn.receive(timeout=5) == "hi"
            else:
                assert list(conn) == []
                assert conn.close_info is not None
                assert conn.close_info.code == CloseCode.INTERNAL_ERROR
        assert capfd.readouterr().err.count("RuntimeError: a mistake") == 1


@pytest.mark.parametrize("leaves", [False, True])
def test_the_end_of_the_connection_in_the_app_is_no_failure(leaves: bool, capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[ConnectionClosed] = []

    def app(environ: Any, start_response: Any) -> Any:
        conn = Upgrader().accept(environ)
        try:
            while True:
                conn.send(conn.receive())
        except ConnectionClosed as error:
            ended.append(error)
            raise

    with serving(None, wsgi=app, wsgi_settings=QUIET) as server:
        with connect(url_of(server)) as conn:
            if leaves:
                conn.abort()
        wait_until(lambda: ended and not server.connections)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stock", [False, True])
def test_what_is_read_of_wsgi_input_after_an_upgrade_is_not_taken_from_the_connection(stock: bool) -> None:
    upgrader = Upgrader(EchoHandler())
    seen: list[bytes] = []

    def app(environ: Any, start_response: Any) -> Any:
        answer = upgrader.upgrade(environ, start_response)
        seen.append(environ["wsgi.input"].read())  # as middleware does that leaves no body unread
        environ["wsgi.input"].close()
        return answer

    with port_serving(app, stock) as port:
        with gevent.socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(upgrade_request("/ws") + bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
            found = b""
            while not found.endswith(b"\x81\x02hi"):
                piece = sock.recv(1000)
                assert piece
                found += piece
    assert seen == [b""]


def test_the_session_begins_with_what_the_app_gives_it() -> None:
    class Greeter(EventHandler):
        def on_open(self, conn: Connection) -> None:
            conn.send(f"hello {conn.session['user']} of {conn.request.path if conn.request else None}")

    upgrader = Upgrader(Greeter())

    def app(environ: Any, start_response: Any) -> Any:
        return upgrader.upgrade(environ, start_response, session={"user": "me"})

    with serving(None, wsgi=app, wsgi_settings=QUIET) as server, connect(url_of(server, "/x?y")) as conn:
        assert conn.receive(timeout=5) == "hello me of /x"


@pytest.mark.parametrize("stock", [False, True], ids=["our server", "gevent's"])
def test_the_blocking_form(stock: bool) -> None:
    seen: list[Any] = []
    upgrader = Upgrader(options=ServerOptions(subprotocols=["a"]))

    def app(environ: Any, start_response: Any) -> Any:
        with upgrader.accept(environ, start_response) as conn:
            for message in conn:
                conn.send(message.upper())
            seen.append(conn.close_info)
        start_response("200 OK", [])
        return [b"nowhere"]

    with port_serving(app, stock) as port:
        with connect(f"ws://127.0.0.1:{port}/ws", options=ClientOptions(subprotocols=["a"])) as conn:
            assert conn.subprotocol == "a"
            conn.send("hi")
            assert conn.receive(timeout=5) == "HI"
        assert conn.close_info is not None
        assert conn.close_info.clean
        wait_until(lambda: seen)
    assert seen[0].clean
    assert not upgrader.connections


def test_a_connection_is_taken_once() -> None:
    errors: list[str] = []
    upgrader = Upgrader(EchoHandler())

    def app(environ: Any, start_response: Any) -> Any:
        def attempt(function: Callable[[], Any]) -> None:
            try:
                function()
            except GwsError as error:
                errors.append(str(error))

        if environ["PATH_INFO"] == "/answered":
            start_response("200 OK", [("Content-Type", "text/plain")])
            attempt(lambda: upgrader.upgrade(environ))
            return [b"answered"]
        upgrader.upgrade(environ)
        attempt(lambda: upgrader.accept(environ))
        attempt(lambda: environ["gunicorn.socket"].recv(1))
        return []

    with serving(None, wsgi=app, wsgi_settings=QUIET) as server:
        with connect(url_of(server)) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
        with pytest.raises(HandshakeRefused):
            connect(url_of(server, "/answered"))
    assert len(errors) == 3
    assert all("taken by Upgrader.upgrade" in error for error in errors[:2])
    assert "start_response has been called" in errors[2]


def test_a_library_may_take_the_socket() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        sock = environ["gunicorn.socket"]
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        environ["got"].append(sock.recv(100))
        sock.send(b"bye")
        raise StopIteration

    for make in ("ours", "stock"):
        got: list[bytes] = []
        settings = WsgiSettings(log=None, environ={"got": got})
        if make == "ours":
            with serving(None, wsgi=app, wsgi_settings=settings) as server:
                found = ask(server, upgrade_request("/ws") + b"ahead")
        else:
            with stock_server(app, environ={"got": got}) as stock:
                stock.address = f"tcp://127.0.0.1:{stock.server_port}"  # type: ignore[assignment]
                found = ask(stock, upgrade_request("/ws") + b"ahead")
        assert got == [b"ahead"]
        assert found == b"HTTP/1.1 101 Switching Protocols\r\n\r\nbye"


def test_flask() -> None:
    flask = require_module("flask")
    app: Any = flask.Flask("app")
    handler = EchoHandler()
    upgrader = Upgrader(handler)

    app.add_url_rule("/", "index", lambda: "a page")
    app.add_url_rule("/ws", "ws", lambda: upgrader.upgrade(flask.request.environ), websocket=True)

    with serving(None, wsgi=app, wsgi_settings=QUIET) as server:
        assert ask(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").endswith(b"a page")
        with connect(url_of(server, "/ws")) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
    for handler_class in (None, WSGIHandler):
        with stock_server(app, handler_class) as stock, connect(stock_url(stock)) as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"


@pytest.mark.parametrize("stock", [False, True])
def test_a_route_of_flask_that_is_not_for_websocket_is_hinted_at_once(stock: bool, caplog: pytest.LogCaptureFixture) -> None:
    flask = require_module("flask")
    app: Any = flask.Flask("app")
    upgrader = Upgrader(EchoHandler())
    app.add_url_rule("/ws", "ws", lambda: upgrader.upgrade(flask.request.environ))
    app.add_url_rule("/no", "no", lambda: flask.abort(400), websocket=True)

    with port_serving(app, stock) as port:
        for target in ("/no", "/ws", "/ws"):
            with pytest.raises(HandshakeRefused) as refused:
                connect(f"ws://127.0.0.1:{port}{target}")
            assert refused.value.status == 400
    said = "'/ws' asks for WebSocket, but its route was declared without websocket=True: Flask answers 400"
    assert [record.getMessage() for record in caplog.records if record.name == "gws_gevent"] == [said]


def test_the_server_stops_a_hijacked_connection_with_1001() -> None:
    handler = EchoHandler()
    with serving(None, wsgi=upgrading(Upgrader(handler)), wsgi_settings=QUIET) as server:
        conn = connect(url_of(server, "/ws"))
        conn.send("hi")
        assert conn.receive(timeout=5) == "hi"
        reading = gevent.spawn(list, conn)
        server.stop(5)
        reading.get(timeout=5)
        assert conn.close_info is not None
        assert conn.close_info.received is not None
        assert conn.close_info.received.code == CloseCode.GOING_AWAY
    assert handler.wait_closed().clean


def test_the_upgraders_options_hold_and_the_servers_limits_too() -> None:
    handler = EchoHandler()
    deflate = PermessageDeflate(threshold=0)
    own = {"read_max_payload_size": 100, "permessage_deflate": deflate, "keep_request": True, "write_queue_size": 100_000_000}
    upgrader = Upgrader(handler, ServerOptions(**own))  # type: ignore[arg-type]
    options = ServerOptions(max_buffered=2_000_000)
    with serving(None, options, wsgi=upgrading(upgrader), wsgi_settings=QUIET) as server:
        with connect(url_of(server, "/ws"), options=ClientOptions(permessage_deflate=deflate)) as conn:
            assert conn.extensions
            conn.send("a" * 90)
            assert conn.receive(timeout=5) == "a" * 90
            ours = handler.open.get(timeout=5)
            assert ours.request.target == "/ws"
            assert ours in server.connections
            conn.send("b" * 101)
            with pytest.raises(ConnectionClosed) as closed:
                conn.receive(timeout=5)
            assert closed.value.info.received is not None
            assert closed.value.info.received.code == CloseCode.MESSAGE_TOO_BIG
        wait_until(lambda: not server.connections)
        with gevent.socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as slow:
            handler.open = AsyncResult()
            slow.sendall(UPGRADE)
            ours = handler.open.get(timeout=5)
            ours.write_async(Opcode.BINARY, bytes(15_000_000))
            # What is unsent counts for the whole server.
            assert ours.close_info is not None
            assert ours.close_info.sent == Close(CloseCode.TRY_AGAIN_LATER, "too much is buffered")


def test_a_hijacked_connection_can_be_parked() -> None:
    upgrader = Upgrader(EchoHandler(), ServerOptions(park_after=0.05))
    with serving(None, wsgi=upgrading(upgrader), wsgi_settings=QUIET) as server, connect(url_of(server, "/ws")) as conn:
        for text in ("one", "two"):
            conn.send(text)
            assert conn.receive(timeout=5) == text
            gevent.sleep(0.1)


def test_the_upgraders_own_limit_holds_where_no_server_of_ours_is() -> None:
    upgrader = Upgrader(EchoHandler(), ServerOptions(max_connections=1))
    with stock_server(upgrading(upgrader)) as server:
        with connect(stock_url(server)) as conn:
            with pytest.raises(HandshakeRefused) as refused:
                connect(stock_url(server))
            assert refused.value.status == 503
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
        wait_until(lambda: not upgrader.connections)
        connect(stock_url(server)).close()


def test_an_app_that_is_killed_takes_its_connection_along() -> None:
    waiting: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        waiting.append(gevent.getcurrent())
        gevent.sleep(60)
        return []

    with serving(None, wsgi=app, wsgi_settings=QUIET) as server:
        with gevent.socket.create_connection(("127.0.0.1", port_of(server)), timeout=5) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            wait_until(lambda: waiting)
            for conn in server.connections:
                conn.kill()
            wait_until(lambda: not server.connections)
    assert len(waiting) == 1


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(TypeError, match="a server needs a handler, on_request, or a WSGI app"):
        Server()
    with pytest.raises(TypeError, match="a WSGI app is called with an environ"):
        Server(wsgi=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not both"):
        Server(EchoHandler(), on_request=lambda request: None, wsgi=hello)
    server = Server(wsgi=hello, wsgi_settings=WsgiSettings(handler_class=object))
    with pytest.raises(TypeError, match="handler_class is a subclass of"):
        server.start("127.0.0.1:0")
    with pytest.raises(TypeError, match="upgrade needs a handler"):
        Upgrader().upgrade({})
    with pytest.raises(ValueError, match="park_after"):
        Upgrader(options=ServerOptions(park_after=1)).accept({})


def test_the_server_stops_a_blocking_connection_with_1001() -> None:
    ended: list[Any] = []
    upgrader = Upgrader()

    def app(environ: Any, start_response: Any) -> Any:
        conn = upgrader.accept(environ)
        got = []
        for message in conn:
            got.append(message)
            conn.send(message)
        ended.append(got)
        return []

    with serving(None, wsgi=app, wsgi_settings=QUIET) as server:
        conn = connect(url_of(server))
        conn.send("hi")
        assert conn.receive(timeout=5) == "hi"
        reading = gevent.spawn(list, conn)
        server.stop(5)
        reading.get(timeout=5)
    assert conn.close_info is not None
    assert conn.close_info.received == Close(CloseCode.GOING_AWAY, "")
    assert ended == [["hi"]]


@pytest.mark.parametrize(
    ("answer", "status"), [(True, 101), (False, 401), (None, 401), (Refusal(402), 402), (ValueError("no"), 500), ("me", 500)]
)
def test_authorize_decides_in_the_app_too(answer: Any, status: int) -> None:
    seen: list[Any] = []

    def authorize(request: Any, session: Any) -> Any:
        seen.append((request.path, dict(session)))
        if isinstance(answer, Exception):
            raise answer
        return answer

    upgrader = Upgrader(EchoHandler(), ServerOptions(authorize=authorize))

    def app(environ: Any, start_response: Any) -> Any:
        return upgrader.upgrade(environ, session={"user": "me"})

    with serving(None, wsgi=app, wsgi_settings=QUIET) as server:
        head = ask(server, UPGRADE).partition(b"\r\n")[0]
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert seen == [("/ws", {"user": "me"})]


def test_requests_and_upgrades_are_logged() -> None:
    log = io.StringIO()
    settings = WsgiSettings(log=log, error_log=log, environ={"SERVER_NAME": "mine", "mine.key": 1})
    names: list[Any] = []

    def app(environ: Any, start_response: Any) -> Any:
        names.append((environ["SERVER_NAME"], environ["mine.key"], environ["wsgi.errors"] is log))
        return upgrading(Upgrader(EchoHandler()))(environ, start_response)

    with serving(None, wsgi=app, wsgi_settings=settings) as server:
        ask(server, b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        connect(url_of(server, "/ws")).close()
        ask(server, UPGRADE.replace(b"13\r\n", b"7\r\n"))
    statuses = [line.split('"')[2].split()[0] for line in log.getvalue().splitlines()]
    assert statuses == ["200", "101", "426"]
    assert names == [("mine", 1, True)] * 3


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("thrown", [gevent.Timeout(1), GreenletExit()], ids=["timeout", "kill"])
def test_what_is_no_exception_does_not_lead_back_to_http(stock: bool, blocking: bool, thrown: BaseException) -> None:
    """A connection that was upgraded is never read as HTTP again, and a kill ends it."""
    asked: list[str] = []
    handler = EchoHandler()
    upgrader = Upgrader(handler)

    def app(environ: Any, start_response: Any) -> Any:
        asked.append(environ["PATH_INFO"])
        (upgrader.accept if blocking else upgrader.upgrade)(environ, start_response)
        raise thrown

    with port_serving(app, stock) as port:
        with gevent.socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(upgrade_request("/ws") + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(200))
            answer = b""
            with suppress(ConnectionResetError):
                while piece := sock.recv(65536):
                    answer += piece
        wait_until(lambda: not upgrader.connections)
    assert asked == ["/ws"]
    assert answer.count(b"HTTP/1.1 ") == (1 if blocking or isinstance(thrown, gevent.Timeout) else 0)
    if isinstance(thrown, gevent.Timeout):
        # 1002: what followed are no frames. 1000: it was not read.
        assert answer.partition(b"\r\n\r\n")[2][:4] == b"\x88\x02\x03\xe8" if blocking else b"\x03\xea" in answer


@pytest.mark.parametrize("stock", [False, True])
def test_wsgi_input_is_over_once_the_connection_is_open(stock: bool) -> None:
    upgrader = Upgrader()
    seen: list[bytes] = []

    def app(environ: Any, start_response: Any) -> Any:
        with upgrader.accept(environ) as conn:
            seen.append(environ["wsgi.input"].read())
            conn.send(conn.receive(timeout=5))
        return []

    with port_serving(app, stock) as port:
        with connect(f"ws://127.0.0.1:{port}/ws") as conn:
            conn.send("hi")
            assert conn.receive(timeout=5) == "hi"
        wait_until(lambda: not upgrader.connections)
    assert seen == [b""]


@pytest.mark.parametrize("stock", [False, True])
def test_nothing_of_an_upgrade_waits_for_the_garbage_collector(stock: bool) -> None:
    upgrader = Upgrader(EchoHandler())
    app = upgrading(upgrader)
    kinds = (Request, Takeover, TakenSocket)

    def left() -> int:
        return sum(isinstance(found, kinds) for found in gc.get_objects())

    with ExitStack() as stack:
        if stock:
            url = stock_url(stack.enter_context(stock_server(app)))
        else:
            url = url_of(stack.enter_context(serving(None, wsgi=app, wsgi_settings=QUIET)), "/ws")
        gc.collect()
        gc.disable()
        try:
            before = left()
            for _ in range(3):
                with connect(url) as conn:
                    conn.send("hi")
                    assert conn.receive(timeout=5) == "hi"
                    assert left() == before
        finally:
            gc.enable()
        wait_until(lambda: not upgrader.connections)
