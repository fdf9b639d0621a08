"""KCP over real sockets: listening and dialling, bad lines, floods, what is left behind."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.pool import Pool

from gws_gevent import connect
from gws_gevent.exceptions import TransportError
from gws_gevent.transports import checks, registry
from gws_gevent.transports.base import Dialer, DialSettings, Listener, ListenSettings, Stream
from gws_gevent.transports.datagram import UdpPort
from gws_gevent.transports.stream_checks import receive
from tests.pairs import EchoHandler, serving
from tests.support import run_program, wait_until

STOCK = "cookie=0&linger=0.5"
# siokcp has wheels up to 3.13, and nothing to build from.
SIOKCP = pytest.mark.skipif(sys.version_info >= (3, 14), reason="no siokcp for this Python")
KINDS = ["stream=0", STOCK, "key", pytest.param("core=siokcp", marks=SIOKCP)]


@pytest.fixture
def query(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KCP_TEST_KEY", "ab" * 32)
    asked: str = request.param
    return "key-env=KCP_TEST_KEY" if asked == "key" else asked


def makers(query: str) -> tuple[Callable[[str], Listener], Callable[[str], Dialer]]:
    """What the conformance kit wants, with the same parameters at both sides."""

    def listen(endpoint: str) -> Listener:
        return registry.listen(f"{endpoint.partition('?')[0]}?{query}")

    def dialer(endpoint: str) -> Dialer:
        return registry.dialer(f"{endpoint}?{query}")

    return listen, dialer


@pytest.mark.parametrize("query", KINDS, indirect=True)
@pytest.mark.parametrize("role", ["dialled", "accepted"])
@pytest.mark.parametrize("check", checks.STREAM_CHECKS, ids=lambda check: check.__name__)
def test_the_promises_of_streams_of_every_kind(check: Callable[..., None], role: str, query: str) -> None:
    make_pair = with_a_first_byte(query) if query == STOCK else checks.pair_factory(*makers(query), "kcp://127.0.0.1:0")
    checks.run_check(check, make_pair if role == "dialled" else checks.swapped(make_pair))


def with_a_first_byte(query: str) -> checks.MakePair:
    """A server of stock peers hears of one by what it sends, and sends much itself when the peer has acknowledged something."""
    listen, dialer = makers(query)

    @contextmanager
    def make() -> Iterator[tuple[Stream, Stream]]:
        listener, accepted = listen("kcp://127.0.0.1:0"), AsyncResult()
        try:
            listener.start(accepted.set)
            ours = dialer(listener.address).dial()
            try:
                ours.send_all(bytes(200))
                theirs = accepted.get(timeout=5)
                try:
                    assert len(receive(theirs, 200)) == 200
                    theirs.send_all(b"!")
                    assert receive(ours, 1) == b"!"
                    wait_until(lambda: theirs._session._unproven is None)
                    yield ours, theirs
                finally:
                    theirs.close()
            finally:
                ours.close()
        finally:
            listener.close()

    return make


# --- Listening and dialling


@contextmanager
def listening(on_stream: Any, query: str = "", **settings: Any) -> Iterator[Any]:
    listener = registry.listen(f"kcp://127.0.0.1:0?{query}", ListenSettings(**settings))
    listener.start(on_stream)
    try:
        yield listener
    finally:
        listener.close()


def echo(stream: Stream) -> None:
    buffer = bytearray(65536)
    try:
        while count := stream.recv_into(buffer):
            stream.send_all(buffer[:count])
    except TransportError:
        pass
    finally:
        stream.close()


def dial(listener: Listener, query: str = "") -> Any:
    return registry.dialer(f"{listener.address}?{query}", DialSettings()).dial()


def test_nobody_there_is_told_at_once() -> None:
    with listening(echo) as listener:
        address = listener.address
    with pytest.raises(TransportError, match=rf"connect to {address}: Connection refused") as caught:
        registry.dialer(address).dial()
    assert caught.value.errno == errno.ECONNREFUSED


def test_a_stock_peer_that_is_not_there_is_seen_when_something_is_sent() -> None:
    with listening(echo) as listener:
        address = listener.address
    stream = registry.dialer(f"{address}?cookie=0").dial()
    stream.send_all(b"anybody?")
    with pytest.raises(TransportError, match="Connection refused"), gevent.Timeout(5):
        stream.recv_into(bytearray(10))
    stream.close()


def test_a_dial_that_is_given_up_leaves_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        dialer = registry.dialer(f"kcp://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
            dialer.dial()


def test_ipv6_and_names() -> None:
    for endpoint in ("kcp://[::1]:0", "kcp://localhost:0"):
        listener = registry.listen(endpoint)
        listener.start(echo)
        stream = dial(listener)
        stream.send_all(b"x")
        assert receive(stream, 1) == b"x"
        assert stream.info("peername")[1] == int(listener.address.rpartition(":")[2])
        assert stream.info("scheme") == "kcp"
        stream.close()
        listener.close()


def test_sessions_outlive_their_listener() -> None:
    with listening(echo) as listener:
        stream = dial(listener)
        stream.send_all(b"before")
        assert receive(stream, 6) == b"before"
    stream.send_all(b"after")
    assert receive(stream, 5) == b"after"
    again = registry.listen(listener.address)
    again.start(echo)  # the address is free for another one all the same
    again.close()
    stream.close()


def test_a_server_without_a_key_warns_unless_it_is_for_this_machine_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KCP_TEST_KEY", "ab" * 32)
    with caplog.at_level(logging.WARNING, "gws_gevent.transports"):
        for endpoint in ("kcp://127.0.0.1:0", "kcp://[::1]:0", "kcp://0.0.0.0:0?key-env=KCP_TEST_KEY"):
            listener = registry.listen(endpoint)
            listener.start(echo)
            listener.close()
        assert not caplog.messages
        listener = registry.listen("kcp://0.0.0.0:0")
        listener.start(echo)
        listener.close()
    assert caplog.messages == [f"{listener.address}: KCP without a key: everybody on the way can read and change what is sent"]


def test_a_pool_bounds_the_sessions() -> None:
    with listening(echo, spawn=Pool(1)) as listener:
        first = dial(listener)
        first.send_all(b"x")
        assert receive(first, 1) == b"x"
        second = dial(listener)
        with pytest.raises(TransportError, match="the peer aborted"), gevent.Timeout(5):
            second.recv_into(bytearray(1))
        second.close()
        first.close()


# --- Bad lines and floods


@pytest.mark.slow
@pytest.mark.parametrize("query", ["mode=fast3", "mode=fast&stream=0", "key"], indirect=True)
def test_every_byte_in_order_over_real_sockets_on_a_bad_line(query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random, send = Random(len(query)), UdpPort.send

    def badly(self: UdpPort, data: bytes, address: Any) -> None:
        for _ in range(1 + (random.random() < 0.05)):
            if random.random() < 0.2:
                continue
            if random.random() < 0.02:
                at = random.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
            timer = gevent.get_hub().loop.timer(random.random() * 0.05)
            timer.start(lambda data=data, timer=timer: (send(self, data, address), timer.close()))

    monkeypatch.setattr(UdpPort, "send", badly)
    data = random.randbytes(15_000)
    with listening(echo, query) as listener:
        stream = dial(listener, query)
        sender = gevent.spawn(lambda: (stream.send_all(data), stream.shutdown_write()))
        received, buffer = bytearray(), bytearray(10_000)
        while count := stream.recv_into(buffer):
            received += buffer[:count]
        assert received == data
        sender.get(timeout=1)
        stream.close()
        wait_until(lambda: not listener.server.sessions, 20)
    gevent.sleep(0.1)  # the last datagrams of the line


def test_twenty_thousand_datagrams_of_garbage_stop_nobody() -> None:
    random = Random(1)
    with serving(EchoHandler(), None, "kcp://127.0.0.1:0") as server, connect(f"ws+{server.address}/") as conn:
        conn.write_text("before")
        assert conn.receive(timeout=5) == "before"
        port = int(server.address.rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            flood.connect(("127.0.0.1", port))
            for number in range(20_000):
                flood.send(random.randbytes(random.choice((1, 24, 44, 68, 500))))
                if not number % 500:
                    conn.write_text(str(number))
                    assert conn.receive(timeout=5) == str(number)
        assert len(server._listeners[0].server.sessions) == 1  # type: ignore[attr-defined]


def test_a_socket_that_is_full_loses_datagrams_and_no_bytes() -> None:
    with listening(echo, "mtu=9000&sndwnd=1000&rcvwnd=1000&nc=1") as listener:
        stream = dial(listener, "mtu=9000&sndwnd=1000&rcvwnd=1000&nc=1")
        data = os.urandom(1 << 20) * 8
        sender = gevent.spawn(stream.send_all, data)
        with gevent.Timeout(25):
            assert receive(stream, len(data)) == data
        sender.get()
        stream.close()


# --- What is left behind


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_sessions_that_come_and_go_leave_no_memory() -> None:
    def come_and_go(count: int) -> None:
        for _ in range(count // 20):
            streams = [dial(listener) for _ in range(20)]
            for number, stream in enumerate(streams):
                stream.send_all(bytes(3000))
                if number % 3:
                    stream.close()
                else:
                    stream.abort()
        wait_until(lambda: not listener.server.sessions, 10)
        listener.server._ended.clear()  # what it remembers for a quarter of a minute
        listener.server._ended_at.clear()
        gc.collect()

    with listening(echo) as listener:
        come_and_go(1000)
        before = _resident()
        come_and_go(2000)
        assert _resident() - before < 1_000_000  # 0.5 kB of each; a core is 4.3 kB


@pytest.mark.slow
@pytest.mark.parametrize("query", ["", "key"], indirect=True)
def test_an_idle_session_is_small(query: str) -> None:
    command = [sys.executable, "-m", "benchmarks.datagrams", "idle", "kcp", "--sessions", "1000", "--seconds", "0.1"]
    finished = run_program([*command, "--params", query], timeout=60)
    assert finished.status == 0, finished.errors
    figures = dict(line.split(": ") for line in finished.output.splitlines())
    assert int(figures["bytes per idle session, server"]) <= 16_000  # with its greenlet and all
    assert int(figures["bytes per idle session, client"]) <= 16_000
