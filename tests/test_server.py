"""The server: endpoints, routing, authorisation, start and stop, draining, what it tells and what it keeps."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent.event import AsyncResult, Event

from gws_gevent import (
    ClientOptions,
    Close,
    ConnectionClosed,
    EndpointError,
    EventHandler,
    GwsError,
    HandshakeRefused,
    Message,
    Refusal,
    Request,
    Response,
    Server,
    ServerOptions,
    TransportError,
    connect,
    serve,
)
from gws_gevent.transports.base import Endpoint, ListenSettings, TlsFiles
from gws_gevent.transports.memory import MemoryListener
from tests.pairs import EchoHandler, Recorder, serving, url_of
from tests.support import free_port, wait_until


def echoes(url: str, **more: Any) -> bool:
    """Tell whether a fresh connection to `url` echoes."""
    with connect(url, **more) as conn:
        conn.send("hello")
        return bool(conn.receive(timeout=5) == "hello")


@pytest.fixture
def files(tmp_path: Path) -> tuple[trustme.CA, TlsFiles]:
    """A certificate for localhost and who signed it."""
    authority = trustme.CA()
    write_certificate(authority, tmp_path)
    return authority, TlsFiles(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


def write_certificate(authority: trustme.CA, folder: Path) -> None:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# Endpoints


def test_several_endpoints_at_once(tmp_path: Path) -> None:
    handler = EchoHandler()
    with serving(handler, None, "127.0.0.1:0", "tcp://[::1]:0", f"unix:{tmp_path}/a.sock") as server:
        assert server.address == server.addresses[0]
        assert [address.partition(":")[0] for address in server.addresses] == ["tcp", "tcp", "unix"]
        assert all(":0" not in address[-3:] for address in server.addresses)
        assert all(echoes(url_of(server, which=which)) for which in range(3))
    assert len(handler.infos) == 3
    assert server.addresses == []
    assert not (tmp_path / "a.sock").exists()
    with pytest.raises(GwsError, match="not listening"):
        _ = server.address


def test_start_may_be_called_again_with_more_endpoints() -> None:
    with serving(EchoHandler()) as server:
        server.start("127.0.0.1:0")
        assert len(server.addresses) == 2
        assert echoes(url_of(server, which=0))
        assert echoes(url_of(server, which=1))


def test_a_failed_start_closes_the_endpoints_before_it() -> None:
    with serving(EchoHandler()) as taken:
        first = f"127.0.0.1:{free_port()}"
        server = Server(EchoHandler())
        with pytest.raises(TransportError, match="listen on"):
            server.start(first, taken.address)
        assert server.addresses == []
        with pytest.raises(TransportError):
            connect(f"ws://{first}/")
        server.start(first)
        assert echoes(url_of(server))
        server.stop()


@pytest.mark.parametrize("endpoint", ["nonsense", "http://127.0.0.1:1", "tcp://127.0.0.1:99999", "unix:"])
def test_a_wrong_endpoint_is_an_error_that_names_it(endpoint: str) -> None:
    with pytest.raises(EndpointError, match=endpoint.partition(":")[0]):
        Server(EchoHandler()).start(endpoint)


def test_a_server_needs_somebody_who_serves() -> None:
    with pytest.raises(TypeError, match="needs a handler"):
        Server()
    with pytest.raises(TypeError, match="instance"):
        Server(EventHandler)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a handler is"):
        Server("echo")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["tcp", "unix"])
def test_run_listener_with_a_socket(family: int, tmp_path: Path) -> None:
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "s.sock"))
    listening.listen()
    server = Server(EchoHandler())
    running = gevent.spawn(server.run_listener, listening)
    wait_until(lambda: server.addresses)
    assert echoes(url_of(server))
    server.stop()
    running.get(timeout=5)


def test_run_listener_with_a_listener() -> None:
    server = Server(EchoHandler())
    listener = MemoryListener(Endpoint.parse("memory:run-listener"))
    running = gevent.spawn(server.run_listener, listener)
    wait_until(lambda: server.addresses == ["memory:run-listener"])
    server.stop()
    running.get(timeout=5)


def test_run_blocks_until_stop() -> None:
    server = Server(EchoHandler())
    running = gevent.spawn(server.run, "127.0.0.1:0")
    wait_until(lambda: server.addresses)
    assert echoes(url_of(server))
    assert not running.dead
    server.stop()
    running.get(timeout=5)


def test_serve_forever_before_start_says_so_and_does_not_wait_for_ever() -> None:
    with pytest.raises(GwsError, match=r"call start\(\) first"):
        Server(EventHandler()).serve_forever()


def test_an_exception_thrown_into_run_stops_the_server() -> None:
    handler = Recorder()
    server = Server(handler)
    running = gevent.spawn(server.run, "127.0.0.1:0")
    wait_until(lambda: server.addresses)
    conn = connect(url_of(server), Recorder())
    running.kill(KeyboardInterrupt, block=False)
    with pytest.raises(KeyboardInterrupt):
        running.get(timeout=5)
    assert handler.wait_closed().sent == Close(1001, "")
    assert server.addresses == []
    wait_until(lambda: conn.closed)


def test_serve_runs_a_function() -> None:
    def echo(conn: Any) -> None:
        for message in conn:
            conn.send(message)

    port = free_port()
    running = gevent.spawn(serve, echo, f"127.0.0.1:{port}", options=ServerOptions(subprotocols=["a"]))
    gevent.sleep(0)
    assert echoes(f"ws://127.0.0.1:{port}/")
    running.kill()
    with pytest.raises(TransportError):
        connect(f"ws://127.0.0.1:{port}/")


def test_a_block_of_with_stops_the_server() -> None:
    with Server(EchoHandler()) as server:
        server.start("127.0.0.1:0")
        url = url_of(server)
        assert echoes(url)
    with pytest.raises(TransportError):
        connect(url)


# TLS


@pytest.mark.slow
def test_run_tls_and_reload(files: tuple[trustme.CA, TlsFiles], tmp_path: Path) -> None:
    authority, paths = files
    server = Server(EchoHandler())
    running = gevent.spawn(server.run_tls, "127.0.0.1:0", paths.cert, paths.key)
    wait_until(lambda: server.addresses)
    assert server.address.startswith("tls://")
    old = connect(url_of(server), Recorder(), ssl_context=trusting(authority))
    assert echoes(url_of(server), ssl_context=trusting(authority))
    other = trustme.CA()
    write_certificate(other, tmp_path)
    server.reload()
    assert echoes(url_of(server), ssl_context=trusting(other))
    with pytest.raises(TransportError):
        connect(url_of(server), ssl_context=trusting(authority))
    assert not old.closed
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(TransportError):
        server.reload()
    assert echoes(url_of(server), ssl_context=trusting(other))
    server.stop()
    running.get(timeout=5)
    wait_until(lambda: old.closed)


def test_a_tls_server_beside_a_plain_one(files: tuple[trustme.CA, TlsFiles]) -> None:
    authority, paths = files
    server = Server(EchoHandler())
    server.start("127.0.0.1:0", "tls://127.0.0.1:0", settings=ListenSettings(tls=paths))
    assert echoes(url_of(server, which=0))
    assert echoes(url_of(server, which=1), ssl_context=trusting(authority), server_name="localhost")
    with pytest.raises(TransportError):
        connect(url_of(server, which=1))
    assert echoes(url_of(server, which=1), ssl_context=trusting(authority))
    server.stop()


# Routing and authorisation


def test_on_request_routes() -> None:
    other = EchoHandler()

    def route(request: Request) -> Any:
        if request.target == "/echo":
            return other
        if request.target == "/function":
            return lambda conn: conn.send("from a function")
        if request.target == "/refused":
            return Refusal(418, "a teapot", {"X-Pot": "tea"})
        if request.target == "/raised":
            raise Refusal(403, "not you")
        if request.target == "/page":
            return Response(200, "<p>", {"Content-Type": "text/html"})
        return None

    with serving(None, on_request=route) as server:
        assert echoes(url_of(server, "/echo"))
        with connect(url_of(server, "/function")) as conn:
            assert list(conn) == ["from a function"]
        for target, status, body in (
            ("/refused", 418, b"a teapot"),
            ("/raised", 403, b"not you"),
            ("/page", 200, b"<p>"),
            ("/else", 404, None),
        ):
            with pytest.raises(HandshakeRefused) as refused:
                connect(url_of(server, target))
            assert refused.value.status == status
            assert refused.value.body == body if body is not None else refused.value.body
        assert len(other.infos) == 1


def test_an_exception_in_on_request_answers_500_without_detail(caplog: pytest.LogCaptureFixture) -> None:
    def route(request: Request) -> Any:
        raise LookupError("a secret")

    with serving(None, on_request=route) as server:
        with pytest.raises(HandshakeRefused) as refused:
            connect(url_of(server))
    assert refused.value.status == 500
    assert b"secret" not in refused.value.body
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


@pytest.mark.parametrize("callback", ["on_request", "authorize"])
def test_a_timeout_that_escapes_a_callback_answers_500(
    callback: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[BaseException] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, traceback: errors.append(value))
    timeout = gevent.Timeout(3)

    def fail(*args: Any) -> Any:
        raise timeout

    handler = EchoHandler()
    options = ServerOptions(authorize=fail if callback == "authorize" else None)
    with serving(
        None if callback == "on_request" else handler, options, on_request=fail if callback == "on_request" else None
    ) as server:
        with pytest.raises(HandshakeRefused) as refused:
            connect(url_of(server))
        wait_until(lambda: not server.connections)
    assert refused.value.status == 500
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is timeout
    # As out of a handler: gevent itself is to know of what is no Exception.
    assert errors == [timeout]


def test_what_on_request_may_not_return_answers_500(caplog: pytest.LogCaptureFixture) -> None:
    with serving(None, on_request=lambda request: "a string") as server:  # type: ignore[arg-type,return-value]
        with pytest.raises(HandshakeRefused) as refused:
            connect(url_of(server))
    assert refused.value.status == 500
    assert len(caplog.records) == 1


def test_authorize_fills_the_session_that_the_handler_sees() -> None:
    asked: list[tuple[str, str | None]] = []

    def authorize(request: Request, session: Any) -> Any:
        asked.append((request.target, request.headers.get("authorization")))
        session["user"] = "anna"
        return request.target != "/no"

    sessions = AsyncResult()
    with serving(lambda conn: sessions.set(dict(conn.session)), ServerOptions(authorize=authorize)) as server:
        with connect(url_of(server, "/yes").replace("://", "://anna:secret@")) as conn:
            assert list(conn) == []
        assert sessions.get(timeout=5) == {"user": "anna"}
        with pytest.raises(HandshakeRefused) as refused:
            connect(url_of(server, "/no"))
    assert refused.value.status == 401
    assert asked == [("/yes", "Basic YW5uYTpzZWNyZXQ="), ("/no", None)]


def test_subprotocols_in_the_servers_order_of_preference() -> None:
    handler = Recorder()
    with serving(handler, ServerOptions(subprotocols=["a", "b"])) as server:
        for offered, chosen in ((["b", "a"], "a"), (["c", "b"], "b"), (["c"], None), ([], None)):
            with connect(url_of(server), options=ClientOptions(subprotocols=offered)) as conn:
                assert conn.subprotocol == chosen
                wait_until(lambda: server.connections)
                assert [one.subprotocol for one in server.connections] == [chosen]
            wait_until(lambda: not server.connections)


def test_response_headers_reach_the_client_of_a_refusal_or_not_at_all() -> None:
    options = ServerOptions(response_headers={"X-Server": "ours"})
    with serving(EchoHandler(), options) as server, socket.create_connection(_address(server)) as raw:
        raw.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        raw.setblocking(False)
        answer = wait_until(lambda: _received(raw))
    assert b"101 Switching Protocols" in answer
    assert b"X-Server: ours\r\n" in answer


def _address(server: Server) -> tuple[str, int]:
    host, _, port = server.address.removeprefix("tcp://").rpartition(":")
    return host, int(port)


def _received(raw: socket.socket) -> bytes:
    try:
        return raw.recv(65536)
    except BlockingIOError:
        return b""


# Stopping


def test_stop_closes_with_1001_and_waits_for_the_handlers() -> None:
    ended = []

    class Tidy(Recorder):
        def on_close(self, conn: Any, info: Any) -> None:
            gevent.sleep(0.02)
            ended.append(conn.id)
            super().on_close(conn, info)

    handler = Tidy()
    clients = [Recorder() for _ in range(5)]
    with serving(handler) as server:
        for client in clients:
            connect(url_of(server), client)
        wait_until(lambda: len(handler.events) == 5)
        server.stop(timeout=5)
        assert len(set(ended)) == 5
        assert not server.connections
        server.stop(timeout=5)
    assert all(client.wait_closed().received == Close(1001, "") for client in clients)
    assert all(info.clean for info in handler.infos)


def test_stop_sends_what_was_written_before() -> None:
    handler = Recorder()
    with serving(handler) as server:
        conn = connect(url_of(server))
        handler.open.get(timeout=5).write_async(2, b"x" * 3_000_000)
        stopping = gevent.spawn(server.stop, 5)
        assert len(conn.receive(timeout=5)) == 3_000_000
        with pytest.raises(ConnectionClosed) as closed:
            conn.receive(timeout=5)
        stopping.get(timeout=5)
    assert closed.value.info.received == Close(1001, "")


def test_stop_aborts_peers_that_do_not_answer() -> None:
    handler = Recorder()
    with serving(handler) as server:
        conn = connect(url_of(server))
        handler.open.get(timeout=5)
        began = time.monotonic()
        server.stop(timeout=0.05)
        assert time.monotonic() - began < 1
        assert handler.infos[0].sent == Close(1001, "")
        assert not handler.infos[0].clean
        conn.abort()


@pytest.mark.slow
def test_stop_kills_a_handler_that_blocks_for_ever() -> None:
    ended = []

    class Stuck(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            self.events.append(("message", message.data))
            try:
                Event().wait()
            finally:
                ended.append(message.data)

    handler = Stuck()
    with serving(handler) as server:
        client = Recorder()
        connect(url_of(server), client).send("work")
        wait_until(lambda: handler.messages)
        server.stop(timeout=0.05)
        assert ended == ["work"]
        assert len(handler.infos) == 1
        assert not server.connections
        client.wait_closed()


@pytest.mark.slow
def test_stop_kills_an_on_close_that_blocks_for_ever() -> None:
    class Stuck(Recorder):
        def on_close(self, conn: Any, info: Any) -> None:
            super().on_close(conn, info)
            Event().wait()

    handler = Stuck()
    with serving(handler) as server:
        connect(url_of(server)).close()
        handler.wait_closed()
        server.stop(timeout=0.05)
        assert not server.connections
    assert len(handler.infos) == 1


def test_stop_answers_503_where_no_request_has_come() -> None:
    with serving(EchoHandler()) as server, socket.create_connection(_address(server)) as raw:
        wait_until(lambda: server.connections)
        server.stop(timeout=0.05)
        assert raw.recv(100).startswith(b"HTTP/1.1 503 ")


def test_a_server_is_used_again_after_stop() -> None:
    handler = EchoHandler()
    server = Server(handler)
    for _ in range(2):
        server.start("127.0.0.1:0")
        assert echoes(url_of(server))
        running = gevent.spawn(server.serve_forever)
        gevent.sleep(0)
        assert not running.dead
        server.stop()
        running.get(timeout=5)
    assert len(handler.infos) == 2


def test_stop_before_start_is_a_no_op() -> None:
    server = Server(EchoHandler())
    server.stop()
    assert server.connections == frozenset()
    server.start("127.0.0.1:0")
    assert echoes(url_of(server))
    server.stop()


def test_stop_from_a_handler() -> None:
    class Stopping(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            gevent.spawn(server.stop, 2)

    server = Server(Stopping())
    running = gevent.spawn(server.run, "127.0.0.1:0")
    wait_until(lambda: server.addresses)
    client = Recorder()
    connect(url_of(server), client).send("stop")
    running.get(timeout=5)
    assert client.wait_closed().received == Close(1001, "")


@pytest.mark.parametrize("where", ["on_message", "on_open", "on_close", "parallel"])
def test_stop_in_a_connections_own_greenlet_does_not_wait_for_itself(where: str) -> None:
    class Stopping(Recorder):
        def on_open(self, conn: Any) -> None:
            super().on_open(conn)
            conn.session["stops"] = conn.request.path == "/stop"
            if where == "on_open":
                self.stop_in(conn)

        def on_message(self, conn: Any, message: Message) -> None:
            if where in ("on_message", "parallel"):
                self.stop_in(conn)

        def on_close(self, conn: Any, info: Any) -> None:
            super().on_close(conn, info)
            if where == "on_close":
                self.stop_in(conn)

        def stop_in(self, conn: Any) -> None:
            if conn.session["stops"]:
                server.stop(60)
                others.append(len(server.connections))

    others: list[int] = []
    handler, client, other = Stopping(), Recorder(), Recorder()
    server = Server(handler, ServerOptions(parallel=2 if where == "parallel" else 0))
    running = gevent.spawn(server.run, "127.0.0.1:0")
    wait_until(lambda: server.addresses)
    connect(url_of(server), other)
    conn = connect(url_of(server) + "stop", client)
    if where == "on_close":
        conn.close()
    elif where != "on_open":
        conn.send("stop")
    running.get(timeout=5)
    assert other.wait_closed().received == Close(1001, "")
    assert client.wait_closed().received == Close(1000 if where == "on_close" else 1001, "")
    wait_until(lambda: not server.connections)
    assert others == [1]
    assert len(handler.infos) == 2


def test_stop_in_a_function_that_goes_on() -> None:
    def stop_and_read(conn: Any) -> None:
        conn.receive()
        server.stop(60)
        rest.extend(conn)

    rest: list[Any] = []
    server = Server(stop_and_read)
    running = gevent.spawn(server.run, "127.0.0.1:0")
    wait_until(lambda: server.addresses)
    with connect(url_of(server)) as conn:
        conn.send("stop")
        assert list(conn) == []
        assert conn.close_info is not None
        assert conn.close_info.code == 1001
    running.get(timeout=5)
    wait_until(lambda: not server.connections)
    assert rest == []


def test_a_timeout_around_stop_leaves_no_server_behind() -> None:
    class Stuck(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            super().on_message(conn, message)
            Event().wait()

    handler = Stuck()
    server = Server(handler)
    running = gevent.spawn(server.run, "127.0.0.1:0")
    wait_until(lambda: server.addresses)
    client = Recorder()
    connect(url_of(server), client).send("work")
    wait_until(lambda: handler.messages)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        server.stop(60)
    running.get(timeout=5)
    handler.wait_closed()
    wait_until(lambda: not server.connections)
    assert len(handler.infos) == 1


def test_a_server_that_is_started_while_it_stops_goes_on() -> None:
    class Slow(EchoHandler):
        def on_close(self, conn: Any, info: Any) -> None:
            super().on_close(conn, info)
            going.wait()

    going = Event()
    handler = Slow()
    server = Server(handler)
    server.start("127.0.0.1:0")
    connect(url_of(server)).close()
    handler.wait_closed()
    stopping = gevent.spawn(server.stop)
    wait_until(lambda: not server.addresses)
    running = gevent.spawn(server.run, "127.0.0.1:0")
    wait_until(lambda: server.addresses)
    going.set()
    stopping.get(timeout=5)
    assert echoes(url_of(server))
    assert not running.dead
    server.stop()
    running.get(timeout=5)


# What it tells and keeps


def test_connections_is_a_copy_from_accept_to_close() -> None:
    handler = Recorder()
    with serving(handler) as server:
        assert len(server.connections) == 0
        with connect(url_of(server)):
            wait_until(lambda: handler.events)
            assert server.connections == {handler.open.get()}
        wait_until(lambda: not server.connections)


def test_max_connections_is_answered_with_503_and_accepting_goes_on() -> None:
    with serving(EchoHandler(), ServerOptions(max_connections=1)) as server:
        with connect(url_of(server)) as conn:
            with pytest.raises(HandshakeRefused) as refused:
                connect(url_of(server))
            assert refused.value.status == 503
            conn.send("the first goes on")
            assert conn.receive(timeout=5) == "the first goes on"
        wait_until(lambda: not server.connections)
        assert echoes(url_of(server))


def test_on_error_is_told_what_fails_before_a_connection_is_open(files: tuple[trustme.CA, TlsFiles]) -> None:
    errors: list[tuple[Any, Exception]] = []

    class Telling(Server):
        def on_error(self, stream: Any, error: Exception) -> None:
            errors.append((stream, error))

    server = Telling(EchoHandler())
    server.start("tls://127.0.0.1:0", settings=ListenSettings(tls=files[1]))
    with pytest.raises(TransportError):
        connect(url_of(server))  # it does not trust the certificate
    wait_until(lambda: errors)
    server.stop()
    stream, error = errors[0]
    assert stream is not None
    assert isinstance(error, TransportError)


def test_errors_are_logged_unless_on_error_is_overridden(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gws_gevent")
    server = Server(EchoHandler())
    server.on_error(None, TransportError("no more descriptors"))
    server.on_error(object(), TransportError("bad handshake"))  # type: ignore[arg-type]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "no more descriptors"),
        (logging.DEBUG, "bad handshake"),
    ]
