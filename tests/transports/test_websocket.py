"""Echo, close, limits and deadlines of WebSocket on transports of every kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from gws_gevent import (
    Client,
    ClientOptions,
    CloseCode,
    Connection,
    ConnectionClosed,
    HandshakeRefused,
    PermessageDeflate,
    Server,
    ServerOptions,
    connect,
)
from tests.pairs import EchoHandler, Recorder, serving
from tests.support import wait_until

TRANSPORTS = ["tcp", "kcp", "kcp-messages", "kcp-stock", "kcp-key"]


class Place:
    """Where a server listens, and how a client gets there."""

    def __init__(self, name: str, folder: Path) -> None:
        self.scheme, _, kind = name.partition("-")
        self.params: dict[str, Any] = {}
        if kind == "key":
            (folder / "key").write_text(os.urandom(32).hex())
        if kind:
            name, value = {"messages": ("stream", 0), "stock": ("cookie", 0), "key": ("key-file", f"{folder}/key")}[kind]
            self.params[name] = value

    @contextmanager
    def serving(self, handler: Any, options: ServerOptions | None = None) -> Iterator[Server]:
        query = "&".join(f"{name}={value}" for name, value in self.params.items())
        with serving(handler, options, f"{self.scheme}://127.0.0.1:0?{query}") as server:
            yield server

    def url(self, server: Server) -> str:
        return ("ws" if self.scheme == "tcp" else f"ws+{self.scheme}") + server.address[len(self.scheme) :] + "/"

    def connect(self, server: Server, handler: Any = None, **options: Any) -> Connection:
        return connect(self.url(server), handler, ClientOptions(transport_params=self.params, **options))


@pytest.fixture(params=TRANSPORTS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


def closed(conn: Connection, wait: float = 5.0) -> Any:
    """Read to the end and return how it ended."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            conn.receive(timeout=wait)
    return caught.value.info


@pytest.mark.parametrize("deflate", [None, PermessageDeflate()], ids=["plain", "compressed"])
def test_echo(place: Place, deflate: PermessageDeflate | None) -> None:
    texts = ["", "grüße", "x" * 126, "y" * 70_000]
    with place.serving(EchoHandler(), ServerOptions(permessage_deflate=deflate)) as server:
        with place.connect(server, permessage_deflate=deflate) as conn:
            for text in texts:
                conn.write_text(text)
                assert conn.receive(timeout=5) == text
            for text in texts:
                conn.write_binary(text.encode() * 3)
            for text in texts:
                assert conn.receive(timeout=5) == text.encode() * 3


def test_many_at_once(place: Place) -> None:
    def talk(server: Server, number: int) -> bool:
        with place.connect(server) as conn:
            for size in (1, 100, 5000):
                conn.write_binary(bytes([number]) * size)
                if conn.receive(timeout=10) != bytes([number]) * size:
                    return False
        return True

    with place.serving(EchoHandler()) as server:
        talks = [gevent.spawn(talk, server, number) for number in range(30)]
        gevent.joinall(talks, timeout=20)
        assert all(one.value for one in talks)
        wait_until(lambda: not server.connections)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_close_is_seen_by_both_sides(place: Place, who: str) -> None:
    handler = Recorder()
    with place.serving(handler) as server:
        conn = place.connect(server)
        theirs = handler.open.get(timeout=5)
        if who == "client":
            conn.write_close(CloseCode.GOING_AWAY, "enough")
            info = closed(conn)
        else:
            theirs.write_close(CloseCode.GOING_AWAY, "enough")
            info = closed(conn)
        seen = handler.wait_closed()
        assert (info.code, seen.code) == (1001, 1001)
        assert info.clean
        assert seen.clean


def test_a_client_that_aborts_is_an_end_without_a_close(place: Place) -> None:
    handler = Recorder()
    with place.serving(handler) as server:
        conn = place.connect(server)
        handler.open.get(timeout=5)
        conn.abort()
        assert handler.wait_closed().code == 1006


def test_stopping_says_goodbye(place: Place) -> None:
    with place.serving(EchoHandler()) as server:
        conn = place.connect(server)
        stopping = gevent.spawn(server.stop, 5)
        assert closed(conn).code == 1001
        stopping.get(timeout=5)


def test_a_message_above_the_limit_is_1009(place: Place) -> None:
    with place.serving(EchoHandler(), ServerOptions(read_max_payload_size=1000)) as server:
        conn = place.connect(server)
        conn.write_binary(bytes(1000))
        assert conn.receive(timeout=5) == bytes(1000)
        conn.write_binary(bytes(1001))
        assert closed(conn).code == 1009


def test_one_connection_too_many_is_refused(place: Place) -> None:
    with place.serving(EchoHandler(), ServerOptions(max_connections=1)) as server:
        with place.connect(server):
            with pytest.raises(HandshakeRefused) as caught:
                place.connect(server)
            assert caught.value.status == 503


def test_a_request_that_does_not_come_is_cut(place: Place) -> None:
    from gws_gevent.transports import registry

    query = "&".join(f"{name}={value}" for name, value in place.params.items())
    with place.serving(EchoHandler(), ServerOptions(handshake_timeout=0.3)) as server:
        stream = registry.dialer(f"{server.address}?{query}").dial()
        try:
            stream.send_all(b"GET / HTTP/1.1\r\n")  # and no more
            buffer, got = bytearray(1000), b""
            with gevent.Timeout(5):
                while count := stream.recv_into(buffer):
                    got += buffer[:count]
            # A stock peer that has sent so little, and acknowledged nothing, gets no more than three times as much.
            assert got.startswith(b"HTTP/1.1 408 ") or (got == b"" and place.params.get("cookie") == 0)
        finally:
            stream.close()
        wait_until(lambda: not server.connections)


def test_a_peer_that_answers_no_ping_is_dropped(place: Place) -> None:
    handler = Recorder()
    with place.serving(handler, ServerOptions(ping_interval=0.2, ping_timeout=0.3)) as server:
        conn = place.connect(server)  # nobody reads, so nobody answers
        handler.open.get(timeout=5)
        assert handler.wait_closed().code == 1006
        conn.abort()


def test_a_peer_that_does_not_read_meets_the_write_deadline(place: Place) -> None:
    failed: list[BaseException] = []

    class Flood(Recorder):
        def on_open(self, conn: Connection) -> None:
            super().on_open(conn)
            try:
                while True:
                    conn.write_binary(bytes(100_000))
            except Exception as error:
                failed.append(error)

    handler = Flood()
    with place.serving(handler, ServerOptions(write_timeout=0.5)) as server:
        conn = place.connect(server)
        assert handler.wait_closed(10).code == 1006
        assert isinstance(failed[0], ConnectionClosed)
        conn.abort()


def test_a_client_on_a_stream(place: Place) -> None:
    from gws_gevent.transports import registry

    query = "&".join(f"{name}={value}" for name, value in place.params.items())
    with place.serving(EchoHandler()) as server:
        stream = registry.dialer(f"{server.address}?{query}").dial()
        with Client.from_stream(stream) as conn:
            conn.write_text("over any stream")
            assert conn.receive(timeout=5) == "over any stream"


def test_parking_is_no_obstacle(place: Place) -> None:
    with place.serving(EchoHandler(), ServerOptions(park_after=0.1)) as server:
        with place.connect(server) as conn:
            for _ in range(2):
                gevent.sleep(0.3)
                conn.write_text("awake?")
                assert conn.receive(timeout=5) == "awake?"


