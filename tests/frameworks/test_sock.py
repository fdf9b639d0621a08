"""Our Sock, in detail; what it has in common with flask-sock is in test_flask_sock.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult, Event

from gws_gevent import ClientOptions, Connection, HandshakeRefused, PermessageDeflate, connect
from tests.pairs import serving, url_of
from tests.support import require_module, wait_until

flask = pytest.importorskip("flask")

from gws_gevent.integrations.flask_sock import ConnectionClosed, Sock, WebSocket  # noqa: E402

QUIET = ClientOptions(ping_interval=None)


@contextmanager
def route(function: Any, target: str = "/", options: ClientOptions = QUIET, **config: Any) -> Iterator[Connection]:
    """Connect to a route of an app that has no other one."""
    app = flask.Flask("app")
    app.config.update(config)
    Sock(app).route("/")(function)
    with serving(None, wsgi=app) as server, connect(url_of(server, target), options=options) as conn:
        yield conn


def end_of(function: Any, *args: Any) -> ConnectionClosed:
    with pytest.raises(ConnectionClosed) as closed:
        function(*args)
    return closed.value


def test_blueprints_and_routes_before_the_app() -> None:
    sock, blueprint = Sock(), flask.Blueprint("rooms", __name__, url_prefix="/rooms")

    @sock.route("/early/<name>", defaults={"number": 7})
    def early(ws: WebSocket, name: str, number: int) -> None:
        ws.send(f"early {name} {number}")

    @sock.route("/<int:number>", bp=blueprint)
    def in_blueprint(ws: WebSocket, number: int) -> None:
        ws.send(f"{flask.request.blueprint} {number}")

    app = flask.Flask("app")
    sock.init_app(app)
    app.register_blueprint(blueprint)

    @sock.route("/late")
    def late(ws: WebSocket) -> None:
        ws.send("late")

    assert sock.bp is not None
    with serving(None, wsgi=app) as server:
        for target, said in (("/early/ann", "early ann 7"), ("/rooms/3", "rooms 3"), ("/late", "late")):
            with connect(url_of(server, target), options=QUIET) as conn:
                assert list(conn) == [said]
                assert conn.close_info is not None
                assert conn.close_info.code == 1000


def test_receive_with_a_timeout() -> None:
    waits: list[Any] = []

    def function(ws: WebSocket) -> None:
        waits.extend([ws.receive(timeout=0), ws.receive(timeout=0.01)])
        ws.send("now")
        waits.append(ws.receive(timeout=5))

    with route(function) as conn:
        assert conn.receive(timeout=5) == "now"
        conn.send(b"here")
        assert list(conn) == []
    assert waits == [None, None, b"here"]


def test_anything_is_sent_as_text() -> None:
    def function(ws: WebSocket) -> None:
        for data in ("a", 1, b"b", bytearray(b"c"), None):
            ws.send(data)

    with route(function) as conn:
        assert list(conn) == ["a", "1", b"b", b"c", "None"]


def test_the_client_s_close_reaches_the_route() -> None:
    seen = AsyncResult()

    def function(ws: WebSocket) -> None:
        assert (ws.connected, ws.close_reason, ws.close_message) == (True, 1005, None)
        try:
            ws.receive()
        except ConnectionClosed as closed:
            again = [end_of(ws.send, "x").reason, end_of(ws.close).reason]
            seen.set((closed, ws.connected, ws.close_reason, ws.close_message, again))
            raise

    with route(function) as conn:
        conn.close(4001, "enough")
        closed, *rest = seen.get(timeout=5)
    assert (closed.reason, closed.message, str(closed)) == (4001, "enough", "Connection closed: 4001 enough")
    assert rest == [False, 4001, "enough", [4001, 4001]]
    assert isinstance(closed, require_module("simple_websocket").ConnectionClosed)


def test_a_client_that_goes_away_without_a_word() -> None:
    seen = AsyncResult()

    def function(ws: WebSocket) -> None:
        ws.send("here")
        seen.set(end_of(ws.receive))

    with route(function) as conn:
        conn.receive(timeout=5)
        conn.abort()
        assert (seen.get(timeout=5).reason, seen.get().message) == (1006, None)


def test_a_route_that_only_sends_notices_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gws_gevent.integrations.flask_sock.LOOK_EVERY", 0.01)
    ended, kept = Event(), []

    def function(ws: WebSocket) -> None:
        try:
            while True:
                ws.send("tick")
                gevent.sleep(0.005)
        finally:
            kept.extend([ws.receive(), ws.receive()])
            ended.set()

    with route(function) as conn:
        assert conn.receive(timeout=5) == "tick"
        conn.send("one")
        conn.send("two")
        conn.write_ping(b"are you there?")
        conn.close(4001, "enough")
        assert conn.close_info is not None
        assert conn.close_info.clean
    assert ended.wait(5)
    assert kept == ["one", "two"]


def test_several_greenlets_send_while_one_receives() -> None:
    def function(ws: WebSocket) -> None:
        senders = [gevent.spawn(ws.send, str(number)) for number in range(10)]
        ws.receive()
        gevent.joinall(senders, raise_error=True)

    with route(function) as conn:
        assert sorted(conn.receive(timeout=5) for _ in range(10)) == [str(number) for number in range(10)]
        conn.send("done")
        assert list(conn) == []


def test_close_by_the_route() -> None:
    def function(ws: WebSocket) -> None:
        with pytest.raises(ValueError, match="1006"):
            ws.close(1006)
        ws.close(4000, "over")
        with pytest.raises(ConnectionClosed):
            ws.receive()

    with route(function) as conn:
        assert list(conn) == []
        assert conn.close_info is not None
        assert (conn.close_info.code, conn.close_info.reason, conn.close_info.clean) == (4000, "over", True)


def test_options() -> None:
    seen = []

    def function(ws: WebSocket) -> None:
        seen.append((ws.subprotocol, ws.connection.extensions, ws.mode, ws.environ["PATH_INFO"]))
        ws.receive()

    options = {
        "subprotocols": "chat", "max_message_size": 100, "receive_bytes": 9, "ping_interval": None, "thread_class": None,
        "permessage_deflate": PermessageDeflate(),
    }  # fmt: skip
    offer = ClientOptions(ping_interval=None, subprotocols=["chat"], permessage_deflate=PermessageDeflate())
    with route(function, options=offer, SOCK_SERVER_OPTIONS=options) as conn:
        assert conn.subprotocol == "chat"
        conn.send("x" * 101)
        assert list(conn) == []
        assert conn.close_info is not None
        assert conn.close_info.code == 1009
    ((subprotocol, extensions, mode, path),) = seen
    assert (subprotocol, mode, path) == ("chat", "gws_gevent", "/")
    assert extensions.startswith("permessage-deflate")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"ping": 1}, "no such option: ping"), ({"ping_interval": -1}, "ping_interval: must be"), ({"max_message_size": 0}, "size")],
)
def test_wrong_options_are_named(wrong: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HandshakeRefused) as refused, route(print, SOCK_SERVER_OPTIONS=wrong):
        pass
    assert refused.value.status == 500
    assert f"SOCK_SERVER_OPTIONS: {said}" in caplog.text or said in caplog.text


def test_a_refused_handshake_is_answered_and_the_route_not_called() -> None:
    called: list[Any] = []
    options = {"origins": ["https://example.org"]}
    with pytest.raises(HandshakeRefused) as refused, route(called.append, SOCK_SERVER_OPTIONS=options):
        pass
    assert (refused.value.status, called) == (403, [])


def test_an_exception_closes_with_1011_and_is_flask_s_to_log(caplog: pytest.LogCaptureFixture) -> None:
    def function(ws: WebSocket) -> None:
        raise ZeroDivisionError

    with route(function) as conn:
        assert list(conn) == []
        assert conn.close_info is not None
        assert (conn.close_info.code, conn.close_info.reason) == (1011, "")
    wait_until(lambda: "ZeroDivisionError" in caplog.text)
