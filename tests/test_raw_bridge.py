"""The raw bridge: binary messages to bytes and back, as websockify does it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket as plain_socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest
import trustme
from gevent.event import Event

from gws_gevent import (
    BridgeOptions,
    ClientOptions,
    CloseCode,
    Connection,
    ConnectionClosed,
    HandshakeRefused,
    ListenSettings,
    RawBridge,
    TlsFiles,
    client_context,
    connect,
)
from tests.support import free_port, require_module, wait_until
from tests.test_bridge import read_all, target

#: As noVNC asks.
NOVNC = ClientOptions(subprotocols=["binary"], headers={"Origin": "http://vnc.example"})


@contextmanager
def raw(target: str, options: BridgeOptions | None = None) -> Iterator[RawBridge]:
    bridge = RawBridge(target, options)
    with bridge:
        bridge.start("127.0.0.1:0")
        yield bridge
    assert not bridge.connections
    assert not bridge._dialled


def opened(bridge: RawBridge, options: ClientOptions = NOVNC) -> Connection:
    return connect(bridge.address.replace("tcp:", "ws:"), options=options)


def echo(sock: Any) -> None:
    while piece := sock.recv(100_000):
        sock.sendall(piece)


def received(conn: Connection, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        found += conn.receive(timeout=10)
    return bytes(found)


def closing(conn: Connection) -> tuple[int | None, str]:
    """Code and reason of the close frame that comes."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            conn.receive(timeout=10)
    close = caught.value.info.received
    assert close is not None
    return close.code, close.reason


def test_bytes_go_to_a_tcp_server_and_back() -> None:
    data = os.urandom(3_000_000)
    with target(echo) as place, raw(place) as bridge, opened(bridge) as conn:
        assert conn.subprotocol == "binary"
        conn.send(b"a")
        assert conn.receive(timeout=5) == b"a"
        conn.send(b"")
        writer = gevent.spawn(lambda: [conn.send(data[at : at + 100_000]) for at in range(0, len(data), 100_000)])
        assert hashlib.sha256(received(conn, len(data))).digest() == hashlib.sha256(data).digest()
        writer.get()


def test_a_client_without_the_subprotocol_is_let_in_as_well() -> None:
    with target(echo) as place, raw(place) as bridge, opened(bridge, ClientOptions(subprotocols=["base64"])) as conn:
        assert conn.subprotocol is None
        conn.send(b"abc")
        assert conn.receive(timeout=5) == b"abc"


def test_over_http_3(tmp_path: Path) -> None:
    require_module("aioquic")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert"))
    with target(echo) as place, RawBridge(place) as bridge:
        bridge.start("h3://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(str(tmp_path / "cert"))))
        context = client_context(str(tmp_path / "ca"))
        with connect(bridge.address.replace("h3:", "wss+h3:"), options=NOVNC, ssl_context=context) as conn:
            assert conn.subprotocol == "binary"
            conn.send(bytes(100_000))
            assert received(conn, 100_000) == bytes(100_000)


def test_a_unix_server(tmp_path: Path) -> None:
    with gevent.socket.socket(plain_socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        with raw(f"unix:{tmp_path}/s") as bridge, opened(bridge) as conn:
            sock, _ = listening.accept()
            with sock:
                sock.sendall(b"220 ready\r\n")
                assert conn.receive(timeout=5) == b"220 ready\r\n"


def test_the_end_of_either_side_is_the_end_of_the_other() -> None:
    heard = []
    with target(lambda sock: sock.sendall(b"bye")) as place, raw(place) as bridge, opened(bridge) as conn:
        assert conn.receive(timeout=5) == b"bye"
        assert closing(conn) == (CloseCode.NORMAL, "")
    with target(lambda sock: heard.append(read_all(sock))) as place, raw(place) as bridge:
        conn = opened(bridge)
        conn.send(b"last words")
        conn.close()
        assert conn.close_info is not None
        assert conn.close_info.clean
        wait_until(lambda: heard == [b"last words"])


def test_what_a_client_sent_before_it_closed_arrives_though_the_target_talks() -> None:
    heard, may_read = [], Event()

    def serve(sock: Any) -> None:
        sock.sendall(b"welcome")
        may_read.wait(10)
        sock.sendall(b"thanks")
        heard.append(len(read_all(sock)))

    with target(serve) as place, raw(place) as bridge:
        conn = opened(bridge)
        conn.send(bytes(500_000))
        conn.close()
        assert conn.close_info is not None
        assert conn.close_info.clean
        may_read.set()
        wait_until(lambda: heard == [500_000])
        wait_until(lambda: not bridge.connections)


@pytest.mark.parametrize("says", [b"", b"x" * 100_000], ids=["silent", "talks for ever"])
def test_when_the_client_has_closed_the_target_has_close_timeout(says: bytes) -> None:
    ended = Event()

    def serve(sock: Any) -> None:
        with contextlib.suppress(OSError):
            while says:
                sock.sendall(says)
        ended.wait(10)

    with target(serve) as place, raw(place, BridgeOptions(close_timeout=0.1)) as bridge:
        opened(bridge).close()
        wait_until(lambda: not bridge.connections)
        ended.set()


def test_a_target_that_fails_later_is_a_1014() -> None:
    def serve(sock: Any) -> None:
        assert sock.recv(1) == b"!"
        sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with target(serve) as place, raw(place) as bridge, opened(bridge) as conn:
        conn.send(b"!")
        assert closing(conn) == (CloseCode.BAD_GATEWAY, "the server behind this bridge failed")


def test_text_is_refused() -> None:
    with target(echo) as place, raw(place) as bridge, opened(bridge) as conn:
        conn.send("text")
        assert closing(conn) == (CloseCode.UNSUPPORTED_DATA, "only binary messages are carried")


def test_a_target_that_is_down_is_a_502_and_a_page_of_another_origin_does_not_reach_it() -> None:
    with raw(f"tcp://127.0.0.1:{free_port()}") as bridge, pytest.raises(HandshakeRefused) as caught:
        opened(bridge)
    assert caught.value.status == 502
    reached: list[Any] = []
    options = BridgeOptions(origins=["https://good.example"])
    with target(reached.append) as place, raw(place, options) as bridge, pytest.raises(HandshakeRefused) as caught:
        opened(bridge)
    assert caught.value.status == 403
    assert reached == []


def test_a_target_that_hangs_is_a_504() -> None:
    with gevent.socket.socket() as full:
        # Listening with a full queue: the kernel answers nobody.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        for _ in range(3):
            filler = plain_socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        try:
            options = BridgeOptions(target_timeout=0.2)
            with raw(f"tcp://127.0.0.1:{full.getsockname()[1]}", options) as bridge, pytest.raises(HandshakeRefused) as caught:
                opened(bridge)
            assert caught.value.status == 504
        finally:
            for filler in fillers:
                filler.close()


def test_stop_says_1001_and_does_not_wait_for_the_target() -> None:
    ended = []

    def serve(sock: Any) -> None:
        ended.append(read_all(sock))
        gevent.sleep(20)

    with target(serve) as place, raw(place) as bridge:
        conn = opened(bridge)
        stopping = gevent.spawn(bridge.stop, 20)
        assert closing(conn)[0] == CloseCode.GOING_AWAY
        stopping.get(timeout=5)
        wait_until(lambda: ended)


@pytest.mark.slow
def test_idle_connections_are_closed_whatever_pings_they_exchange() -> None:
    with target(echo) as place, raw(place, BridgeOptions(idle_timeout=0.3)) as bridge, opened(bridge) as conn:
        for _ in range(4):
            gevent.sleep(0.1)
            conn.send(b"x")
            assert conn.receive(timeout=5) == b"x"
        assert closing(conn) == (CloseCode.GOING_AWAY, "idle")


@pytest.mark.slow
def test_a_target_that_reads_nothing_holds_the_client_back_and_is_dropped_at_write_timeout() -> None:
    def serve(sock: Any) -> None:
        sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_RCVBUF, 4096)
        gevent.sleep(20)

    def write(conn: Connection) -> None:
        try:
            while True:
                conn.send(bytes(100_000))
                sent[0] += 100_000
        except ConnectionClosed:
            pass

    sent = [0]
    with target(serve) as place, raw(place, BridgeOptions(write_timeout=0.5)) as bridge, opened(bridge) as conn:
        writer = gevent.spawn(write, conn)
        gevent.sleep(0.4)
        assert 0 < sent[0] < 20_000_000  # what the kernel's buffers hold, on both hops
        assert closing(conn) == (CloseCode.BAD_GATEWAY, "the server behind this bridge failed")
        writer.get()


@pytest.mark.slow
def test_a_client_that_reads_nothing_holds_the_target_back() -> None:
    sent = [0]

    def serve(sock: Any) -> None:
        try:
            while True:
                sent[0] += sock.send(bytes(100_000))
        except OSError:
            pass

    with target(serve) as place, raw(place, BridgeOptions(write_timeout=0.5)) as bridge:
        conn = opened(bridge)
        wait_until(lambda: not bridge.connections)  # write_timeout, too
        assert sent[0] < 20_000_000
        conn.abort()
