"""Hostile peers over real sockets: declared sizes, floods, silence, resets. Memory stays bounded, others are served."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gws_gevent import Connection, ConnectionClosed, Message, Opcode, Server, TransportError
from tests.raw import (
    Frame,
    RawClient,
    Recorder,
    frame,
    open_client,
    request,
    running,
    server_side,
    shrink_send_buffer,
    spawn_drip,
    still_echoes,
)  # fmt: skip
from tests.support import wait_until

KIB = 1024
MIB = 1024 * 1024


@contextmanager
def allocating_at_most(limit: int) -> Iterator[None]:
    """Fail if Python's memory grows by more than `limit` bytes at any time in the block."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < limit
    finally:
        tracemalloc.stop()


# Declared sizes


@pytest.mark.parametrize(
    ("length", "code"),
    [(1 << 62, 1009), ((1 << 63) - 1, 1009), (1 << 63, 1002), ((1 << 64) - 1, 1002), (16 * MIB + 1, 1009), (1 << 32, 1009)],
)
def test_a_huge_declared_length_allocates_nothing(length: int, code: int) -> None:
    with running() as (_, port):
        still_echoes(port)
        with open_client(port) as client, allocating_at_most(256 * KIB):
            client.send(frame(2, bytes(10), length=length))
            assert client.read_close()[0] == code
            client.read_end()
        still_echoes(port)


def test_a_length_within_the_limit_allocates_only_what_arrives() -> None:
    with running() as (server, port):
        with open_client(port) as client:
            conn = server_side(server, client)
            with allocating_at_most(256 * KIB):
                client.send(frame(2, bytes(10 * KIB), length=16 * MIB))
                wait_until(lambda: conn.held >= 10 * KIB)
            assert conn.held < 11 * KIB
        still_echoes(port)


def test_many_declared_lengths_allocate_only_what_arrives() -> None:
    with running() as (server, port):
        clients = [RawClient(port) for _ in range(50)]
        try:
            for client in clients:
                client.upgrade()
            with allocating_at_most(MIB):
                for client in clients:
                    client.send(frame(2, b"a", length=16 * MIB))
                wait_until(lambda: sum(conn.held for conn in server.connections) == 50)
        finally:
            for client in clients:
                client.close()
        still_echoes(port)


def test_empty_fragments_cost_no_memory() -> None:
    with running() as (server, port):
        with open_client(port) as client:
            conn = server_side(server, client)
            with allocating_at_most(2 * MIB):
                client.send(frame(2, b"a", fin=False), frame(0, b"", fin=False) * 50_000)
                client.send(frame(9, b"are you there"))
                assert client.read_frame() == Frame(10, b"are you there")
            assert conn.held == 1
            client.send(frame(0, b"b"))
            assert client.read_frame() == Frame(2, b"ab")
        still_echoes(port)


# Peers that never read


class Watching(Recorder):
    """Keeps the largest `buffered_amount` it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def on_ping(self, conn: Connection, payload: bytes) -> None:
        super().on_ping(conn, payload)
        self.largest = max(self.largest, conn.buffered_amount)


def flood(client: RawClient, data: bytes) -> gevent.Greenlet:
    """Send `data` over and over until the server has had enough."""

    def send() -> None:
        try:
            while True:
                client.send(data)
        except OSError:
            return

    return gevent.spawn(send)


def check_cut(server: Server, client: RawClient, handler: Recorder, least: float, port: int, what: str) -> None:
    """The one connection is ended by the clock, not before `least` seconds; meanwhile others are served."""
    begun = time.monotonic()
    with open_client(port) as other:
        while not handler.closed:
            other.echo()
            gevent.sleep(0.01)
            assert time.monotonic() - begun < least + 3.0, "it should have been cut"
        other.echo()
    assert time.monotonic() - begun >= least - 0.2
    info = handler.info()
    assert not info.clean
    assert isinstance(info.error, TransportError)
    assert what in str(info.error)


@pytest.mark.slow
def test_a_ping_flood_of_a_peer_that_never_reads_is_bounded_and_cut_at_write_timeout() -> None:
    handler = Watching()
    with running(handler, write_timeout=0.5) as (server, port):
        with open_client(port, receive_buffer=4096) as client:
            shrink_send_buffer(server_side(server, client))
            with allocating_at_most(4 * MIB):
                flooding = flood(client, frame(9, bytes(125)) * 200)
                check_cut(server, client, handler, 0.5, port, "took no bytes")
            flooding.get(timeout=2.0)
        # The high-water mark, and what one read brings on top of it.
        assert 0 < handler.largest <= 64 * KIB + 256 * KIB
        still_echoes(port)


@pytest.mark.slow
def test_a_message_flood_of_a_peer_that_never_reads_is_bounded_and_cut_at_write_timeout() -> None:
    handler = Recorder()
    with running(handler, write_timeout=0.5) as (server, port):
        with open_client(port, receive_buffer=4096) as client:
            conn = server_side(server, client)
            shrink_send_buffer(conn)
            with allocating_at_most(6 * MIB):
                flooding = flood(client, frame(2, bytes(10_000)) * 10)
                check_cut(server, client, handler, 0.5, port, "took no bytes")
            flooding.get(timeout=2.0)
        still_echoes(port)


class Sender(Recorder):
    """Writes without end once told to.

    Attributes:
        raised: what ended that.
    """

    def __init__(self, write: Callable[[Connection], object]) -> None:
        super().__init__()
        self.write = write
        self.raised: Exception | None = None

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.data != "begin":
            super().on_message(conn, message)
            return
        shrink_send_buffer(conn)
        try:
            while True:
                self.write(conn)
        except ConnectionClosed as error:
            self.raised = error


@pytest.mark.slow
@pytest.mark.parametrize(
    "write",
    [
        lambda conn: conn.write_binary(bytes(MIB)),
        lambda conn: conn.write_stream(Opcode.BINARY, iter([bytes(10_000)] * 1000)),
        lambda conn: conn.writev(Opcode.TEXT, "a" * 1000, b"b" * 1000),
        lambda conn: conn.write_async(Opcode.BINARY, bytes(100 * KIB)),
    ],
    ids=["messages", "a stream", "small parts", "asynchronous, policy block"],
)
def test_a_peer_that_never_reads_a_big_sender_is_cut_at_write_timeout(write: Callable[[Connection], object]) -> None:
    handler = Sender(write)
    with running(handler, write_timeout=0.4, slow_consumer="block") as (server, port):
        with open_client(port, receive_buffer=4096) as client, allocating_at_most(8 * MIB):
            client.send(frame(1, b"begin"))
            check_cut(server, client, handler, 0.4, port, "took no bytes")
        assert handler.raised is not None
        still_echoes(port)


@pytest.mark.slow
def test_a_slow_reader_that_takes_some_bytes_now_and_then_is_not_cut() -> None:
    handler = Sender(lambda conn: conn.write_binary(bytes(400 * KIB)))
    with running(handler, write_timeout=0.5) as (_, port):
        with open_client(port, receive_buffer=4096) as client:
            client.send(frame(1, b"begin"))
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                assert client.sock.recv(40 * KIB)
                gevent.sleep(0.05)
            assert not handler.closed
        wait_until(lambda: handler.closed)
        still_echoes(port)


@pytest.mark.slow
def test_a_peer_that_never_reads_does_not_outlive_a_stop() -> None:
    handler = Sender(lambda conn: conn.write_binary(bytes(MIB)))
    with running(handler) as (server, port):
        with open_client(port, receive_buffer=4096) as client:
            client.send(frame(1, b"begin"))
            wait_until(lambda: handler.opened and handler.opened[0].buffered_amount)
            begun = time.monotonic()
            server.stop(timeout=0.3)
            assert time.monotonic() - begun < 2.0
            assert not server.connections
        assert isinstance(handler.raised, ConnectionClosed)


# Peers that are slow or silent


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        frame(1, b"a" * 1000)[:-1],
        frame(1, b"", fin=False) + b"\x80",
        frame(1, b"abc", fin=False),
        frame(2, bytes(1000))[:3],
        frame(9, bytes(100))[:-1],
        b"\x81",
    ],
    ids=["payload", "empty fragment", "fragments", "header", "ping", "first byte"],
)
def test_a_message_that_is_not_finished_is_cut_at_message_timeout(data: bytes) -> None:
    handler = Recorder()
    with running(handler, message_timeout=0.4) as (server, port):
        with open_client(port) as client:
            client.send(data)
            check_cut(server, client, handler, 0.4, port, "a message took more than")
        still_echoes(port)


@pytest.mark.slow
def test_a_message_of_a_byte_now_and_then_is_cut_at_message_timeout() -> None:
    handler = Recorder()
    with running(handler, message_timeout=0.5) as (server, port):
        with open_client(port) as client:
            drip = spawn_drip(client, frame(1, b"a" * 1000), 0.02)
            check_cut(server, client, handler, 0.5, port, "a message took more than")
            drip.get(timeout=2.0)
        still_echoes(port)


@pytest.mark.slow
def test_pings_in_between_do_not_prolong_message_timeout() -> None:
    handler = Recorder()
    with running(handler, message_timeout=0.5) as (server, port):
        with open_client(port) as client:
            client.send(frame(1, b"a", fin=False))

            def ping() -> None:
                try:
                    while True:
                        client.send(frame(9, b""), frame(0, b"a", fin=False))
                        gevent.sleep(0.02)
                except OSError:
                    return

            pinging = gevent.spawn(ping)
            check_cut(server, client, handler, 0.5, port, "a message took more than")
            pinging.get(timeout=2.0)
        still_echoes(port)


@pytest.mark.slow
def test_whole_messages_at_any_pace_never_meet_message_timeout() -> None:
    with running(message_timeout=0.3) as (_, port), open_client(port) as client:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            data = frame(1, b"hello")
            client.send(data[:5])
            gevent.sleep(0.05)
            client.send(data[5:])
            assert client.read_frame() == Frame(1, b"hello")


@pytest.mark.slow
def test_silence_is_cut_at_read_timeout_and_a_frame_now_and_then_is_not() -> None:
    handler = Recorder()
    with running(handler, read_timeout=0.4, ping_interval=None) as (server, port):
        with open_client(port) as client:
            for _ in range(5):
                gevent.sleep(0.15)
                client.send(frame(10))
            assert not handler.closed
            client.echo()
            check_cut(server, client, handler, 0.4, port, "nothing was received")
        still_echoes(port)


@pytest.mark.slow
def test_a_peer_that_answers_no_ping_is_cut_at_ping_timeout() -> None:
    handler = Recorder()
    with running(handler, ping_interval=0.2, ping_timeout=0.3) as (_, port):
        with open_client(port) as client:
            found = client.read_frame()
            assert found.opcode == 9
            with gevent.Timeout(3.0):
                client.read_to_the_end()
        info = handler.info()
        assert not info.clean
        assert "a ping was not answered" in str(info.error)
        still_echoes(port)


@pytest.mark.slow
def test_a_peer_that_answers_pings_stays() -> None:
    handler = Recorder()
    with running(handler, ping_interval=0.1, ping_timeout=0.3) as (server, port):
        with open_client(port) as client:
            conn = server_side(server, client)
            for _ in range(5):
                found = client.read_frame()
                assert found.opcode == 9
                client.send(frame(10, found.payload))
            wait_until(lambda: conn.latency is not None)
            assert conn.latency is not None
            assert 0 < conn.latency < 1.0
            client.echo()
            assert not handler.closed


@pytest.mark.slow
def test_a_handler_that_blocks_longer_than_ping_timeout_loses_no_healthy_peer() -> None:
    class Blocking(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            gevent.sleep(0.9)
            super().on_message(conn, message)

    with running(Blocking(), ping_interval=0.2, ping_timeout=0.2, read_timeout=0.5, message_timeout=0.3) as (_, port):
        with open_client(port) as client:
            client.send(frame(1, b"hello"), frame(1, b"good", fin=False))
            while (found := client.read_frame()).opcode == 9:
                client.send(frame(10, found.payload))
            assert found == Frame(1, b"hello")
            client.send(frame(0, b"bye"))
            while (found := client.read_frame()).opcode == 9:
                client.send(frame(10, found.payload))
            assert found == Frame(1, b"goodbye")


# Resets in every state


class Parked(Recorder):
    """Waits in on_message until released, with something to write afterwards; writes without end if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Event()
        self.release = Event()
        self.errors: list[Exception] = []

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.data == "park":
            self.inside.set()
            self.release.wait()
        elif message.data == "write":
            shrink_send_buffer(conn)
            self.inside.set()
        else:
            super().on_message(conn, message)
            return
        try:
            while True:
                conn.write_binary(bytes(100 * KIB))
        except ConnectionClosed as error:
            self.errors.append(error)
            raise


def upgraded(client: RawClient, server: Server, handler: Parked) -> None:
    client.upgrade()
    wait_until(lambda: handler.opened)


def reset_while_idle(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)


def reset_mid_head(client: RawClient, server: Server, handler: Parked) -> None:
    client.send(request()[:40])
    server_side(server, client)
    gevent.idle()


def reset_behind_the_request(client: RawClient, server: Server, handler: Parked) -> None:
    server_side(server, client)
    client.send(request())


def reset_mid_frame(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    client.send(frame(2, bytes(1000))[:500])
    wait_until(lambda: handler.opened[0].held)


def reset_mid_header(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    client.send(frame(2, bytes(1000))[:3])
    wait_until(lambda: handler.opened[0].held)


def reset_while_the_handler_works(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    client.send(frame(1, b"park"))
    handler.inside.wait()


def reset_while_the_server_writes(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    client.send(frame(1, b"write"))
    handler.inside.wait()
    wait_until(lambda: handler.opened[0].buffered_amount)


def reset_while_the_server_closes(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    handler.opened[0].write_close(4000)
    assert client.read_close() == (4000, b"")


def reset_behind_a_protocol_error(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    client.send(frame(3))
    assert client.read_close()[0] == 1002


def reset_behind_our_close_frame(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    client.send(frame(8, struct.pack("!H", 1000)))


def reset_behind_a_refusal(client: RawClient, server: Server, handler: Parked) -> None:
    client.send(request(method="POST"))
    assert client.read_answer().status == 405


def reset_before_a_refusal(client: RawClient, server: Server, handler: Parked) -> None:
    server_side(server, client)
    client.send(request(method="POST"))


def reset_while_it_closes_with_output(client: RawClient, server: Server, handler: Parked) -> None:
    upgraded(client, server, handler)
    conn = handler.opened[0]
    shrink_send_buffer(conn)
    conn.write_async(Opcode.BINARY, bytes(MIB))
    conn.write_close(1000)
    assert conn.buffered_amount


def reset_at_once(client: RawClient, server: Server, handler: Parked) -> None:
    return


def reset_before_the_head(client: RawClient, server: Server, handler: Parked) -> None:
    server_side(server, client)


RESETS = [
    reset_at_once,
    reset_before_the_head,
    reset_mid_head,
    reset_behind_the_request,
    reset_while_idle,
    reset_mid_header,
    reset_mid_frame,
    reset_while_the_handler_works,
    reset_while_the_server_writes,
    reset_while_the_server_closes,
    reset_while_it_closes_with_output,
    reset_behind_a_protocol_error,
    reset_behind_our_close_frame,
    reset_before_a_refusal,
    reset_behind_a_refusal,
]


@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close], ids=["RST", "FIN"])
@pytest.mark.parametrize("reach", RESETS, ids=lambda reach: reach.__name__)
def test_a_peer_that_leaves_in_any_state_leaks_nothing(
    reach: Callable[[RawClient, Server, Parked], None], leave: Callable[[RawClient], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The rest is checked by the fixtures: no greenlet, no descriptor; and by `running`: no connection, one on_close an on_open."""
    handler = Parked()
    with running(handler) as (server, port):
        with RawClient(port, receive_buffer=4096) as client:
            reach(client, server, handler)
            leave(client)
        gevent.idle()
        handler.release.set()
        wait_until(lambda: not server.connections)
        handler.check_all_closed_once()
        assert len(handler.opened) <= 1
        if handler.inside.is_set():
            assert len(handler.errors) == 1
        assert not caplog.records, "nobody's fault here"
        still_echoes(port)


def test_a_crowd_that_leaves_in_every_state_at_once_leaks_nothing() -> None:
    handler = Recorder()
    with running(handler) as (server, port):
        for _ in range(3):
            clients = [RawClient(port) for _ in range(60)]
            for at, client in enumerate(clients):
                stage: Any = at % 6
                if stage == 1:
                    client.send(request()[:30])
                elif stage == 2:
                    client.send(request())
                elif stage == 3:
                    client.upgrade()
                elif stage == 4:
                    client.send(request(), frame(2, bytes(1000))[:100])
                elif stage == 5:
                    client.send(request(), frame(2, bytes(100_000)), frame(8))
            for at, client in enumerate(clients):
                if at % 2:
                    client.reset()
                else:
                    client.close()
            wait_until(lambda: not server.connections)
        handler.check_all_closed_once()
        still_echoes(port)
