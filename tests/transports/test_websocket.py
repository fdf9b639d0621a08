"""WebSocket on every transport that has an address: echo, close, limits and deadlines, by the public API.

A raw peer, which obeys no rules, is a stream of the transport's own dialer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gws_gevent import (
    ClientOptions,
    Connection,
    ConnectionClosed,
    EventHandler,
    HandshakeRefused,
    Opcode,
    PermessageDeflate,
    Server,
    ServerOptions,
    connect,
)
from gws_gevent.exceptions import TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import Endpoint, Stream
from tests.pairs import EchoHandler, Recorder, failing_with
from tests.raw import frame, request
from tests.support import wait_until

TRANSPORTS = ["tcp", "tls", "unix", "quic", "h3", "kcp", "kcp-messages", "kcp-stock", "kcp-key"]
SIZES = [0, 1, 125, 126, 65535, 65536, 300_000]


class Place:
    """A server on one transport, and ways to reach it."""

    def __init__(self, server: Server, setting: Any) -> None:
        self.server = server
        self.setting = setting
        endpoint = Endpoint.parse(server.address)
        scheme = {"tcp": "ws", "tls": "wss"}.get(endpoint.scheme, f"ws+{endpoint.scheme}")
        self.url = f"{scheme}:{endpoint.path}:/" if endpoint.path else f"{scheme}://{endpoint.host}:{endpoint.port}/"

    def connect(self, handler: Any = None, **options: Any) -> Connection:
        settings = self.setting.dial_settings
        tls: dict[str, Any] = {}
        if self.url.startswith(("wss", "ws+quic", "ws+h3")):
            tls = {"ssl_context": settings.ssl_context, "server_name": settings.server_name}
        return connect(self.url, handler, ClientOptions(transport_params=self.setting.params, **options), **tls)

    def raw(self) -> Stream:
        return registry.dialer(self.setting.with_params(self.server.address), self.setting.dial_settings).dial()


@pytest.fixture(params=TRANSPORTS)
def serve(request: pytest.FixtureRequest, set_up: Callable[[str], Any]) -> Any:
    """Return `serve(handler, **options)`: a context manager that gives a Place."""
    setting = set_up(request.param)

    @contextmanager
    def serving(handler: Any, stop_timeout: float = 1.0, **options: Any) -> Iterator[Place]:
        server = Server(handler, ServerOptions(**options))
        server.start(setting.with_params(setting.endpoint), settings=setting.listen_settings)
        try:
            yield Place(server, setting)
        finally:
            server.stop(stop_timeout)
        assert not server.connections

    return serving


def read_until(stream: Stream, wanted: bytes, seconds: float = 5.0) -> bytes:
    """Read until `wanted` has come or the stream ends."""
    received, buffer = b"", bytearray(4096)
    with gevent.Timeout(seconds, AssertionError(f"no {wanted!r} came")):
        while wanted not in received and (got := stream.recv_into(buffer)):
            received += buffer[:got]
    return received


def ends(stream: Stream, seconds: float = 5.0) -> bool:
    """Read to the end, of whatever kind."""
    buffer = bytearray(65536)
    with gevent.Timeout(seconds, AssertionError("the stream does not end")):
        try:
            while stream.recv_into(buffer):
                pass
        except TransportError:
            pass
    return True


def open_raw(place: Place) -> Stream:
    stream = place.raw()
    stream.send_all(request())
    assert b"101 Switching Protocols" in read_until(stream, b"\r\n\r\n")
    return stream


# --- Echo -----------------------------------------------------------------------------------------------------------------------


def test_messages_of_every_size_come_back(serve: Any) -> None:
    with serve(EchoHandler()) as place, place.connect() as conn:
        for size in SIZES:
            conn.send("x" * size)
            assert conn.receive(timeout=5) == "x" * size
            conn.send(bytes(size))
            assert conn.receive(timeout=5) == bytes(size)


def test_many_messages_keep_their_order(serve: Any) -> None:
    with serve(EchoHandler()) as place, place.connect() as conn:
        for number in range(500):
            conn.send(str(number))
        assert [conn.receive(timeout=5) for _ in range(500)] == [str(number) for number in range(500)]


def test_many_connections_at_once(serve: Any) -> None:
    def talk(number: int) -> Any:
        with place.connect() as conn:
            conn.send(f"I am {number}")
            return conn.receive(timeout=5)

    with serve(EchoHandler()) as place:
        talking = [gevent.spawn(talk, number) for number in range(30)]
        gevent.joinall(talking, timeout=10)
        assert [one.value for one in talking] == [f"I am {number}" for number in range(30)]


def test_compressed_and_fragmented_messages(serve: Any) -> None:
    with serve(EchoHandler(), permessage_deflate=PermessageDeflate()) as place:
        with place.connect(permessage_deflate=PermessageDeflate()) as conn:
            conn.send("compress me " * 10_000)
            assert conn.receive(timeout=5) == "compress me " * 10_000
            conn.write_stream(Opcode.BINARY, [b"a" * 1000, b"b" * 1000, b"c"])
            assert conn.receive(timeout=5) == b"a" * 1000 + b"b" * 1000 + b"c"


def test_ping_and_pong(serve: Any) -> None:
    handler = EchoHandler()
    with serve(handler) as place, place.connect() as conn:
        conn.write_ping(b"are you there")
        conn.send("x")
        assert conn.receive(timeout=5) == "x"
        assert ("ping", b"are you there") in handler.events


# --- Close ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_a_close_of_the_client_reaches_the_server(code: int, serve: Any) -> None:
    handler = EchoHandler()
    with serve(handler) as place:
        place.connect().close(code, "goodbye")
        info = handler.wait_closed()
    assert (info.code, info.reason, info.clean) == (code, "goodbye", True)


def test_a_close_of_the_server_reaches_the_client(serve: Any) -> None:
    class Closing(EventHandler):
        def on_open(self, conn: Connection) -> None:
            conn.close(4001, "not today")

    with serve(Closing()) as place, place.connect() as conn:
        with pytest.raises(ConnectionClosed, match="4001"):
            conn.receive(timeout=5)


def test_a_handler_that_fails_ends_its_own_connection(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serve(failing_with(RuntimeError("broken"))) as place, place.connect() as conn, place.connect() as other:
        conn.send("x")
        with pytest.raises(ConnectionClosed, match="1011"):
            conn.receive(timeout=5)
        other.write_ping(b"")
        gevent.sleep(0.01)
        assert not other.closed
    assert "handler failed" in caplog.text


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_abort_is_1006_at_the_other_end(side: str, serve: Any) -> None:
    handler, other = EchoHandler(), Recorder()
    with serve(handler) as place:
        conn = place.connect(other)
        theirs = handler.open.get(timeout=5)
        (conn if side == "client" else theirs).abort()
        info = (handler if side == "client" else other).wait_closed()
    assert info.code == 1006
    assert not info.clean


def test_stop_says_going_away(serve: Any) -> None:
    handler, other = EchoHandler(), Recorder()
    with serve(handler) as place:
        for _ in range(3):
            place.connect(other)
        wait_until(lambda: len(place.server.connections) == 3)
        place.server.stop()
        wait_until(lambda: len(other.infos) == 3)
    assert [info.code for info in other.infos] == [1001] * 3
    assert all(info.clean for info in handler.infos)


# --- Limits ---------------------------------------------------------------------------------------------------------------------


def test_a_message_that_is_too_large_is_refused_with_1009(serve: Any) -> None:
    with serve(EchoHandler(), read_max_payload_size=1000) as place, place.connect() as conn:
        conn.send(bytes(1000))
        assert conn.receive(timeout=5) == bytes(1000)
        conn.send(bytes(1001))
        with pytest.raises(ConnectionClosed, match="1009"):
            conn.receive(timeout=5)


@pytest.mark.parametrize(
    ("bad", "code"),
    [(frame(Opcode.TEXT, b"\xff\xff"), 1007), (frame(3, b""), 1002), (frame(Opcode.TEXT, b"x", masked=False), 1002)],
    ids=["utf-8", "opcode", "unmasked"],
)
def test_bad_frames_get_the_right_code_and_touch_nobody_else(bad: bytes, code: int, serve: Any) -> None:
    with serve(EchoHandler()) as place, place.connect() as other:
        stream = open_raw(place)
        stream.send_all(bad)
        assert read_until(stream, code.to_bytes(2, "big"))[2:4] == code.to_bytes(2, "big")
        stream.close()
        other.send("still here")
        assert other.receive(timeout=5) == "still here"


def test_a_request_head_that_is_too_large_is_refused_with_431(serve: Any) -> None:
    with serve(EchoHandler(), max_request_head=1000) as place:
        with pytest.raises(HandshakeRefused) as refused:
            place.connect(headers={"X-Large": "x" * 2000})
    assert refused.value.status == 431


def test_more_connections_than_allowed_are_refused_with_503(serve: Any) -> None:
    with serve(EchoHandler(), max_connections=1) as place, place.connect():
        with pytest.raises(HandshakeRefused) as refused:
            place.connect()
    assert refused.value.status == 503


def test_a_slow_peer_holds_up_its_own_writer_alone(serve: Any) -> None:
    with serve(EchoHandler()) as place, place.connect() as other:
        stream = open_raw(place)
        stuck = gevent.spawn(stream.send_all, frame(Opcode.BINARY, bytes(60_000)) * 300)
        stuck.join(timeout=0.3)
        for _ in range(5):
            other.send("still quick")
            assert other.receive(timeout=5) == "still quick"
        stuck.kill()
        stream.abort()


# --- Deadlines ------------------------------------------------------------------------------------------------------------------


def test_a_client_that_says_nothing_is_given_up(serve: Any) -> None:
    with serve(EchoHandler(), handshake_timeout=0.1) as place:
        stream = place.raw()
        wait_until(lambda: not place.server.connections)
        stream.close()


def test_half_a_request_is_given_up(serve: Any) -> None:
    with serve(EchoHandler(), handshake_timeout=0.3) as place:
        stream = place.raw()
        stream.send_all(request()[:40])
        assert re.match(rb"HTTP/1.1 408 |$", read_until(stream, b"\r\n\r\n"))
        assert ends(stream)
        stream.close()


def test_a_peer_that_does_not_answer_pings_is_given_up(serve: Any) -> None:
    handler = Recorder()
    with serve(handler, ping_interval=0.1, ping_timeout=0.1) as place:
        stream = open_raw(place)
        info = handler.wait_closed()
        assert ends(stream)
        stream.close()
    assert not info.clean


def test_a_peer_that_sends_no_frame_is_given_up(serve: Any) -> None:
    handler = Recorder()
    with serve(handler, read_timeout=0.1, ping_interval=None) as place:
        stream = open_raw(place)
        handler.wait_closed()
        assert ends(stream)
        stream.close()


def test_a_peer_that_takes_nothing_is_given_up(serve: Any) -> None:
    class Flooding(Recorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            while True:
                conn.send(bytes(60_000))

    handler = Flooding()
    with serve(handler, write_timeout=0.2, ping_interval=None) as place:
        stream = open_raw(place)
        info = handler.wait_closed()
        stream.abort()
    assert not info.clean


def test_a_peer_that_does_not_answer_a_close_is_given_up(serve: Any) -> None:
    handler = Recorder()
    with serve(handler, close_timeout=0.1) as place:
        stream = open_raw(place)
        conn = handler.open.get(timeout=5)
        conn.close(1000)
        handler.wait_closed()
        assert ends(stream)
        stream.close()


def test_a_client_does_not_wait_for_ever_for_an_answer(serve: Any) -> None:
    with serve(EchoHandler()) as place:
        quiet = registry.listen(place.setting.endpoint.replace("/socket", "/other"), place.setting.listen_settings)
        streams: list[Stream] = []

        def keep(stream: Stream) -> None:
            stream.handshake()
            streams.append(stream)

        quiet.start(keep)
        try:
            nobody = Place(place.server, place.setting)
            here, there = Endpoint.parse(place.server.address), Endpoint.parse(quiet.address)
            old, new = (here.path, there.path) if here.path else (str(here.port), str(there.port))
            nobody.url = place.url.replace(old, new)
            with pytest.raises(TimeoutError, match=r"no opening handshake within 0\.2 seconds"):
                nobody.connect(handshake_timeout=0.2)
        finally:
            quiet.close()
            for stream in streams:
                stream.close()
