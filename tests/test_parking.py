"""Parking (`park_after`): an idle connection without a greenlet, of which nobody but the memory is to notice anything.

Belongs here: what a parked connection does and how it ends. Does not belong here: what it costs (benchmarks).
"""

from __future__ import annotations

import gc
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent import socket
from greenlet import GreenletExit, getcurrent, greenlet

from gws_gevent import (
    Client,
    ClientOptions,
    CloseCode,
    CloseInfo,
    Connection,
    ConnectionClosed,
    EventHandler,
    Message,
    Opcode,
    PreparedMessage,
    Server,
    ServerOptions,
    TlsFiles,
    TransportError,
    Upgrader,
    connect,
)
from gws_gevent.transports import registry
from gws_gevent.transports.base import ListenSettings
from gws_gevent.transports.tcp import TcpListener
from gws_gevent.transports.tls_contexts import client_context
from tests.pairs import EchoHandler, paired, url_of
from tests.raw import Frame, RawClient, frame, shrink_send_buffer
from tests.support import wait_until

#: Seconds. The wheel looks ten times a second.
SOON = 0.02
TRANSPORTS = pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])


class Parkable(EventHandler):
    """Echoes, and remembers the greenlet that each connection was last seen in.

    Attributes:
        opened: connections, in order of on_open.
        infos: what on_close was called with, in order.
        seen: the greenlets of each connection, in order.
    """

    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.infos: list[CloseInfo] = []
        self.seen: dict[int, list[greenlet]] = {}
        self.messages: list[Any] = []

    def on_open(self, conn: Connection) -> None:
        self.opened.append(conn)
        self.seen[conn.id] = [getcurrent()]

    def on_message(self, conn: Connection, message: Message) -> None:
        self.note(conn)
        self.messages.append(message.data)
        conn.write_message(message.opcode, message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.infos.append(info)

    def note(self, conn: Connection) -> None:
        if self.seen[conn.id][-1] is not getcurrent():
            self.seen[conn.id].append(getcurrent())

    def is_parked(self, conn: Connection) -> bool:
        return self.seen[conn.id][-1].dead and not conn.closed

    def wait_parked(self, count: int = 1) -> Connection:
        """Wait until so many connections are parked; return the last of them."""
        parked = lambda: len(self.opened) >= count and all(self.is_parked(conn) for conn in self.opened)  # noqa: E731
        wait_until(parked, what="the connections to be parked")
        return self.opened[-1]

    def the_end(self) -> CloseInfo:
        wait_until(lambda: self.infos, what="on_close")
        for _ in range(5):
            gevent.sleep(0)
        assert len(self.infos) == 1
        return self.infos[0]


def options(**more: Any) -> ServerOptions:
    return ServerOptions(**{"park_after": SOON, **more})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, TlsFiles]:
    folder = tmp_path_factory.mktemp("parking")
    signs = trustme.CA()
    issued = signs.issue_cert("localhost")
    signs.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    return str(folder / "ca.pem"), TlsFiles(str(folder / "both.pem"))


@pytest.fixture
def serve(authority: tuple[str, TlsFiles], tmp_path: Path) -> Callable[..., Any]:
    """Return `serve(transport, handler, options)`: a context manager that gives the server, and a function that connects to it."""
    endpoints = {"tcp": "tcp://127.0.0.1:0", "tls": "tls://127.0.0.1:0", "unix": f"unix:{tmp_path}/socket"}

    @contextmanager
    def serving(transport: str, handler: Any, given: ServerOptions) -> Iterator[tuple[Server, Callable[..., Connection]]]:
        server = Server(handler, given)
        server.start(endpoints[transport], settings=ListenSettings(tls=authority[1]))
        tls: Any = {"ssl_context": client_context(authority[0]), "server_name": "localhost"} if transport == "tls" else {}
        try:
            yield server, lambda *args, **more: connect(url_of(server), *args, **tls, **more)
        finally:
            server.stop(1.0)
        assert not server.connections

    return serving


@contextmanager
def one_parked(handler: Parkable | None = None, **more: Any) -> Iterator[tuple[Parkable, Connection, RawClient]]:
    """A server over TCP, one connection of it that is parked, and its peer."""
    handler = handler or Parkable()
    server = Server(handler, options(**more))
    server.start("127.0.0.1:0")
    try:
        with RawClient(int(server.address.rpartition(":")[2])) as client:
            client.upgrade()
            yield handler, handler.wait_parked(), client
    finally:
        server.stop(0.2)
    assert not server.connections


def raw_greenlets() -> int:
    """The greenlets below the hub that are no Greenlet of gevent's and have not ended: those of connections are."""
    gc.collect()
    hub = gevent.get_hub()
    return sum(type(one) is greenlet and not one.dead and one.parent is hub for one in gc.get_objects())


# --- Idle, and awake again


@pytest.mark.slow
@TRANSPORTS
def test_parked_connections_have_no_greenlet_and_answer_in_order(transport: str, serve: Callable[..., Any]) -> None:
    handler = Parkable()
    before = raw_greenlets()
    with serve(transport, handler, options()) as (_, dial):
        clients = [dial() for _ in range(10)]
        for number, client in enumerate(clients):
            client.send(f"first {number}")
            assert client.receive(timeout=5) == f"first {number}"
        for turn in range(3):
            handler.wait_parked(10)
            assert raw_greenlets() == before
            for at in range(20):
                for client in clients:
                    client.send(f"{turn} {client.id} {at}" * (at + 1))
            for client in clients:
                for at in range(20):
                    assert client.receive(timeout=5) == f"{turn} {client.id} {at}" * (at + 1)
        for client in clients:
            client.close()
        wait_until(lambda: len(handler.infos) == 10, what="on_close of all")
    # One greenlet for each time that it was awake; on a busy machine one parks between two messages as well.
    assert len(handler.seen) == 10
    assert all(len(greenlets) >= 4 for greenlets in handler.seen.values()), handler.seen
    assert [(info.code, info.clean) for info in handler.infos] == [(1000, True)] * 10


@pytest.mark.slow
@TRANSPORTS
def test_parking_and_waking_at_random_loses_and_doubles_nothing(transport: str, serve: Callable[..., Any]) -> None:
    handler = Parkable()
    rounds = 15

    def talk(dial: Callable[..., Connection], seed: int) -> int:
        chance = random.Random(seed)
        with dial(options=ClientOptions(ping_interval=None)) as client:
            for at in range(rounds):
                sizes = [chance.choice((0, 1, 100, 70_000)) for _ in range(chance.randrange(1, 5))]
                data = [b"%d %d " % (seed, at) + chance.randbytes(size) for size in sizes]
                for piece in data:
                    client.send(piece)
                assert [client.receive(timeout=5) for _ in data] == data
                # Around the moment at which it would be parked: before, in the middle of it, and after.
                gevent.sleep(chance.uniform(0, 0.25))
        return seed

    with serve(transport, handler, options()) as (_, dial):
        talks = [gevent.spawn(talk, dial, seed) for seed in range(12)]
        gevent.joinall(talks, timeout=30, raise_error=True)
        assert [one.value for one in talks] == list(range(12))
        wait_until(lambda: len(handler.infos) == 12, what="on_close of all")
    assert all(len(greenlets) > 2 for greenlets in handler.seen.values())


@pytest.mark.slow
def test_input_that_comes_in_the_very_moment_of_parking() -> None:
    handler = Parkable()
    with one_parked(handler) as (_, conn, client):
        for number in range(4):
            client.echo(b"awake")
            asleep = handler.seen[conn.id][-1]
            while not asleep.dead:
                gevent.sleep(0)
            client.echo(b"%d" % number)
            handler.wait_parked()
    assert handler.messages == ["awake", "0", "awake", "1", "awake", "2", "awake", "3"]


@pytest.mark.slow
def test_what_follows_a_message_half_received_keeps_it_awake() -> None:
    handler = Parkable()
    with one_parked(handler) as (_, conn, client):
        whole = frame(1, b"first")
        second = frame(2, b"x" * 5000)
        client.send(whole + second[:100])
        assert client.read_frame() == Frame(1, b"first")
        awake = handler.seen[conn.id][-1]
        gevent.sleep(0.35)
        assert not awake.dead
        client.send(second[100:])
        assert client.read_frame() == Frame(2, b"x" * 5000)
        assert handler.seen[conn.id][-1] is awake
        handler.wait_parked()


HELLO = frame(1, b"hello")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "rest"),
    [*((HELLO[:cut], HELLO[cut:]) for cut in (1, 3, 10)), (frame(1, b"hel", fin=False), frame(0, b"lo"))],
    ids=["1 byte", "3 bytes", "all but 1", "a fragment"],
)
def test_a_connection_with_a_message_half_received_is_not_parked(begun: bytes, rest: bytes) -> None:
    with one_parked() as (handler, conn, client):
        asleep = handler.seen[conn.id][-1]
        client.send(begun)
        gevent.sleep(0.35)
        # Its greenlet is not the handler's to see before there is a message.
        alive = raw_greenlets()
        client.send(rest)
        assert client.read_frame() == Frame(1, b"hello")
        assert handler.seen[conn.id][-1] is not asleep
        handler.wait_parked()
        assert raw_greenlets() == alive - 1


@pytest.mark.slow
def test_a_connection_with_unsent_output_is_not_parked() -> None:
    with one_parked() as (handler, conn, client):
        client.echo()
        awake = handler.seen[conn.id][-1]
        data = random.Random(1).randbytes(8_000_000)
        conn.write_async(Opcode.BINARY, data)
        assert conn.buffered_amount
        gevent.sleep(0.35)
        assert not awake.dead
        assert client.read_frame() == Frame(2, data)
        handler.wait_parked()
        client.echo(b"still there")


@pytest.mark.slow
def test_a_handler_that_blocks_is_not_parked() -> None:
    class Slow(Parkable):
        def on_message(self, conn: Connection, message: Message) -> None:
            gevent.sleep(0.35)
            super().on_message(conn, message)

    with one_parked(Slow()) as (handler, conn, client):
        client.send(frame(1, b"one"), frame(1, b"two"))
        assert [client.read_frame().payload for _ in range(2)] == [b"one", b"two"]
        # Both in one greenlet, the second that this connection has had.
        assert len(handler.seen[conn.id]) == 2
        handler.wait_parked()


@pytest.mark.slow
def test_what_belongs_to_a_connection_stays_with_it() -> None:
    class Keeper(Parkable):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.session["count"] = conn.session.get("count", 0) + 1
            self.note(conn)
            assert conn.request is not None
            conn.write_text(f"{conn.session['count']} {conn.request.target}")

    with one_parked(Keeper(), keep_request=True) as (handler, conn, client):
        for count in range(1, 4):
            client.send(frame(1, b"count"))
            assert client.read_frame().payload == b"%d /" % count
            assert handler.wait_parked() is conn
            assert conn.session["count"] == count


# --- Keepalive, and writing to a parked connection


@pytest.mark.slow
@TRANSPORTS
def test_keepalive_goes_on(transport: str, serve: Callable[..., Any]) -> None:
    handler = Parkable()
    with serve(transport, handler, options(ping_interval=0.4, ping_timeout=0.5)) as (_, dial):
        client = dial(EchoHandler(), ClientOptions(ping_interval=None))
        conn = handler.wait_parked()
        for _ in range(3):
            handler.wait_parked()
            before = conn.latency
            wait_until(lambda before=before: conn.latency != before, what="a pong")
        # Longer than ping_timeout by now, and more than once.
        assert handler.infos == []
        client.close()
        assert handler.the_end().clean


@pytest.mark.slow
def test_a_peer_that_answers_no_ping_is_cut_off() -> None:
    with one_parked(ping_interval=0.3, ping_timeout=0.3) as (handler, _, client):
        assert client.read_frame().opcode == 9
        info = handler.the_end()
    assert str(info.error) == "a ping was not answered within 0.3 seconds"
    assert (info.code, info.sent) == (1006, None)


@pytest.mark.slow
def test_pings_of_the_peer_are_answered() -> None:
    with one_parked() as (handler, _, client):
        for payload in (b"", b"payload"):
            client.send(frame(9, payload))
            assert client.read_frame() == Frame(10, payload)
            handler.wait_parked()


def from_another_greenlet(write: Callable[[], object]) -> None:
    gevent.spawn(write).get(timeout=5)


def from_the_hub(write: Callable[[], object]) -> None:
    gevent.get_hub().loop.run_callback(write)


def from_a_thread(write: Callable[[], object]) -> None:
    gevent.get_hub().threadpool.apply(write)


FROM = pytest.mark.parametrize("where", [from_another_greenlet, from_the_hub, from_a_thread])


@pytest.mark.slow
@TRANSPORTS
@FROM
def test_writing_to_a_parked_connection_does_not_wake_it(
    where: Callable[..., None], transport: str, serve: Callable[..., Any]
) -> None:
    handler = Parkable()
    with serve(transport, handler, options(ping_interval=None)) as (_, dial):
        client = dial(options=ClientOptions(ping_interval=None))
        conn = handler.wait_parked()
        before = raw_greenlets()
        where(lambda: conn.write_text("text"))
        assert client.receive(timeout=5) == "text"
        where(lambda: conn.write_prepared(PreparedMessage(Opcode.TEXT, "prepared")))
        assert client.receive(timeout=5) == "prepared"
        where(lambda: conn.write_async(Opcode.BINARY, b"x" * 20_000))
        assert client.receive(timeout=5) == b"x" * 20_000
        assert raw_greenlets() == before
        client.send("awake")
        assert client.receive(timeout=5) == "awake"
        client.close()
        handler.the_end()


@pytest.mark.slow
def test_a_large_write_to_a_parked_connection_and_a_slow_reader() -> None:
    data = random.Random(2).randbytes(4_000_000)
    with one_parked() as (handler, conn, client):
        shrink_send_buffer(conn)
        writer = gevent.spawn(conn.write_binary, data)
        gevent.sleep(0)
        assert conn.buffered_amount
        assert not writer.dead
        client.send(frame(1, b"meanwhile"))  # the answer goes behind
        assert client.read_frame() == Frame(2, data)
        assert client.read_frame() == Frame(1, b"meanwhile")
        writer.get(timeout=5)
        handler.wait_parked()


# --- The end of a parked connection


def by_close(conn: Connection, client: RawClient) -> None:
    closing = gevent.spawn(conn.close, 3000, "ours")
    assert client.read_close() == (3000, b"ours")
    client.send(frame(8, struct.pack("!H", 3000) + b"ours"))
    client.read_end()
    closing.get(timeout=5)
    assert conn.closed


def by_write_close_in_the_hub(conn: Connection, client: RawClient) -> None:
    from_the_hub(lambda: conn.write_close(3001))
    assert client.read_close() == (3001, b"")
    client.send(frame(8, struct.pack("!H", 3001)))
    client.read_end()


def by_write_close_in_a_thread(conn: Connection, client: RawClient) -> None:
    from_a_thread(lambda: conn.write_close(3002))
    assert client.read_close() == (3002, b"")
    client.send(frame(8, struct.pack("!H", 3002)))
    client.read_end()


def by_the_peers_close(conn: Connection, client: RawClient) -> None:
    client.send(frame(8, struct.pack("!H", 3003) + b"theirs"))
    assert client.read_close() == (3003, b"")
    client.read_end()


def by_abort(conn: Connection, client: RawClient) -> None:
    conn.abort()
    conn.abort()
    assert client.read_to_the_end() == b""


def by_abort_in_the_hub(conn: Connection, client: RawClient) -> None:
    from_the_hub(conn.abort)
    assert client.read_to_the_end() == b""


def by_kill(conn: Connection, client: RawClient) -> None:
    conn.kill()
    conn.kill()
    assert client.read_to_the_end() == b""


def by_fin(conn: Connection, client: RawClient) -> None:
    client.sock.shutdown(socket.SHUT_WR)
    client.read_end()


def by_fin_behind_a_message(conn: Connection, client: RawClient) -> None:
    client.send(frame(1, b"last"))
    client.sock.shutdown(socket.SHUT_WR)
    assert client.read_frame() == Frame(1, b"last")
    client.read_end()


def by_rst(conn: Connection, client: RawClient) -> None:
    client.reset()


def by_nonsense(conn: Connection, client: RawClient) -> None:
    client.send(b"\x81\x00")
    assert client.read_close()[0] == 1002
    client.close()


def by_a_peer_that_does_not_answer_our_close(conn: Connection, client: RawClient) -> None:
    conn.write_close(3004)
    assert client.read_close() == (3004, b"")
    assert client.read_to_the_end() == b""


def by_a_read_deadline(conn: Connection, client: RawClient) -> None:
    conn.set_read_deadline(0.05)
    assert client.read_to_the_end() == b""


def by_shedding(conn: Connection, client: RawClient) -> None:
    conn.shed(CloseCode.TRY_AGAIN_LATER, "too much")
    assert client.read_close() == (1013, b"too much")
    client.send(frame(8, struct.pack("!H", 1013)))


Ending = Callable[[Connection, RawClient], None]
#: What on_close must say: the code, and whether the end was clean.
ENDINGS: dict[Ending, tuple[int, bool]] = {
    by_close: (3000, True),
    by_write_close_in_the_hub: (3001, True),
    by_write_close_in_a_thread: (3002, True),
    by_the_peers_close: (3003, True),
    by_abort: (1006, False),
    by_abort_in_the_hub: (1006, False),
    by_kill: (1006, False),
    by_fin: (1006, False),
    by_fin_behind_a_message: (1006, False),
    by_rst: (1006, False),
    by_nonsense: (1006, False),
    by_a_peer_that_does_not_answer_our_close: (1006, False),
    by_a_read_deadline: (1006, False),
    by_shedding: (1006, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
def test_a_parked_connection_ends_like_any_other(end: Ending) -> None:
    before = raw_greenlets()
    with one_parked(close_timeout=0.3) as (handler, conn, client):
        end(conn, client)
        ours = handler.the_end()
    assert raw_greenlets() == before
    # The same without parking is what it has to look like.
    with one_parked_not(close_timeout=0.3) as (other, conn, client):
        end(conn, client)
        theirs = other.the_end()
    assert shown(ours) == shown(theirs)
    assert (ours.code, ours.clean) == ENDINGS[end]


@contextmanager
def one_parked_not(**more: Any) -> Iterator[tuple[Parkable, Connection, RawClient]]:
    """As `one_parked`, on a server that parks nobody."""
    handler = Parkable()
    server = Server(handler, ServerOptions(**more))
    server.start("127.0.0.1:0")
    try:
        with RawClient(int(server.address.rpartition(":")[2])) as client:
            client.upgrade()
            wait_until(lambda: handler.opened, what="on_open")
            yield handler, handler.opened[0], client
    finally:
        server.stop(0.2)


def shown(info: CloseInfo) -> tuple[Any, ...]:
    return info.code, info.reason, info.clean, info.sent, info.received, repr(info.error)


@pytest.mark.slow
@TRANSPORTS
def test_stop_ends_parked_connections(transport: str, serve: Callable[..., Any]) -> None:
    handler = Parkable()
    with serve(transport, handler, options()) as (server, dial):
        clients = [EchoHandler() for _ in range(5)]
        for client in clients:
            dial(client)
        handler.wait_parked(5)
        server.stop(5)
        assert [(info.code, info.clean) for info in handler.infos] == [(1001, True)] * 5
        for client in clients:
            assert client.wait_closed().code == 1001


@pytest.mark.slow
def test_stop_aborts_a_parked_connection_whose_peer_does_not_answer() -> None:
    handler = Parkable()
    server = Server(handler, options())
    server.start("127.0.0.1:0")
    with RawClient(int(server.address.rpartition(":")[2])) as client:
        client.upgrade()
        handler.wait_parked()
        server.stop(0.1)
        assert len(handler.infos) == 1
        assert (handler.infos[0].code, handler.infos[0].sent.code) == (1006, 1001)  # type: ignore[union-attr]
        assert client.read_close() == (1001, b"")
    assert not server.connections


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "abort", "close"])
def test_what_ends_a_connection_whose_greenlet_is_about_to_start(how: str) -> None:
    """Two wake up in the same moment, and the first one ends the second before that has come to run."""

    class Deadly(Parkable):
        def on_message(self, conn: Connection, message: Message) -> None:
            for other in self.opened:
                if other is not conn and not self.done:
                    self.done = True
                    getattr(other, how)()
            super().on_message(conn, message)

        done = False

    handler = Deadly()
    server = Server(handler, options(close_timeout=0.3))
    server.start("127.0.0.1:0")
    try:
        port = int(server.address.rpartition(":")[2])
        with RawClient(port) as one, RawClient(port) as two:
            one.upgrade()
            two.upgrade()
            handler.wait_parked(2)
            one.sock.send(frame(1, b"hello"))
            two.sock.send(frame(1, b"hello"))
            info = handler.the_end()
            assert (info.code, info.sent.code if info.sent else None) == (1006, 1000 if how == "close" else None)
            (survivor,) = [conn for conn in handler.opened if not conn.closed]
            client = one if survivor.remote_address[1] == one.local_port() else two
            assert client.read_frame() == Frame(1, b"hello")
    finally:
        server.stop(0.2)


@pytest.mark.slow
def test_a_handler_that_fails_after_parking() -> None:
    class Failing(Parkable):
        def on_message(self, conn: Connection, message: Message) -> None:
            raise ValueError("no")

    with one_parked(Failing()) as (handler, _, client):
        client.send(frame(1, b"hello"))
        assert client.read_close() == (1011, b"")
        client.send(frame(8, struct.pack("!H", 1011)))
        info = handler.the_end()
    assert (info.code, info.clean) == (1011, True)


@pytest.mark.slow
def test_a_handler_that_closes_after_parking() -> None:
    class Closing(Parkable):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.close(3000, "enough")
            self.messages.append(conn.closed)

    with one_parked(Closing()) as (handler, _, client):
        client.send(frame(1, b"hello"))
        assert client.read_close() == (3000, b"enough")
        client.send(frame(8, struct.pack("!H", 3000)))
        assert handler.the_end().clean
    assert handler.messages == [True]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "abort"])
def test_what_ends_a_connection_that_is_about_to_park(how: str) -> None:
    """The wheel has told its greenlet to park, and before that has come to run somebody ends the connection."""
    handler = Parkable()
    server = Server(handler, options(park_after=60, ping_interval=None))
    server.start("127.0.0.1:0")
    try:
        with RawClient(int(server.address.rpartition(":")[2])) as client:
            client.upgrade()
            client.send(frame(1, b"hello"))
            assert client.read_frame() == Frame(1, b"hello")
            (conn,) = handler.opened

            def park_and_end() -> None:
                conn.on_deadline(time.monotonic() + 61)
                getattr(conn, how)()

            gevent.get_hub().loop.run_callback(park_and_end)
            info = handler.the_end()
            assert (info.code, info.sent) == (1006, None)
            assert client.read_to_the_end() == b""
    finally:
        server.stop(0.2)


@pytest.mark.slow
def test_killing_the_greenlet_of_a_connection_that_was_parked() -> None:
    class Blocking(Parkable):
        def on_message(self, conn: Connection, message: Message) -> None:
            self.note(conn)
            try:
                gevent.sleep(60)
            except GreenletExit:
                self.messages.append("killed")
                raise

    with one_parked(Blocking()) as (handler, conn, client):
        client.send(frame(1, b"hello"))
        wait_until(lambda: len(handler.seen[conn.id]) == 2, what="the message")
        conn.kill()
        info = handler.the_end()
        assert client.read_to_the_end() == b""
    assert handler.messages == ["killed"]
    assert (info.code, info.sent) == (1006, None)
    assert isinstance(info.error, GreenletExit)


@pytest.mark.slow
def test_writing_to_a_connection_that_ended_while_it_was_parked() -> None:
    with one_parked() as (handler, conn, client):
        client.reset()
        handler.the_end()
        with pytest.raises(ConnectionClosed):
            conn.write_text("too late")


@pytest.mark.slow
def test_a_reset_that_a_write_meets_first() -> None:
    with one_parked() as (handler, conn, client):
        client.reset()
        # The loop has not run since: the write is the first to know.
        with pytest.raises(ConnectionClosed):
            for _ in range(3):
                conn.write_text("too late")
        info = handler.the_end()
    assert info.code == 1006
    assert isinstance(info.error, TransportError)


# --- Who parks, and who does not


class Silent(Parkable):
    """Answers nothing."""

    def on_message(self, conn: Connection, message: Message) -> None:
        self.messages.append(message.data)


@pytest.mark.slow
@TRANSPORTS
def test_a_client_with_a_handler_parks_too(transport: str, serve: Callable[..., Any]) -> None:
    server_handler, handler = Silent(), Parkable()
    with serve(transport, server_handler, ServerOptions()) as (_, dial):
        client = dial(handler, ClientOptions(park_after=SOON))
        (conn,) = server_handler.opened
        for number in range(3):
            assert handler.wait_parked() is client
            conn.write_text(f"{number}")
            wait_until(lambda number=number: server_handler.messages == handler.messages == [str(number)], what="its echo")
            handler.messages.clear()
            server_handler.messages.clear()
        client.close()
        assert handler.the_end().clean


def function(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def test_a_server_with_a_function_refuses_park_after() -> None:
    with pytest.raises(ValueError, match="park_after"):
        Server(function, ServerOptions(park_after=1))


def test_an_upgrader_with_a_function_refuses_park_after() -> None:
    with pytest.raises(ValueError, match="park_after"):
        Upgrader(function, ServerOptions(park_after=1))


@pytest.mark.parametrize("handler", [None, function])
def test_a_client_without_an_event_handler_refuses_park_after(handler: Any) -> None:
    with pytest.raises(ValueError, match="park_after"):
        # Refused before anything is dialled: nobody listens there.
        connect("ws://127.0.0.1:1/", handler, ClientOptions(park_after=1))


@pytest.mark.slow
def test_read_loop_never_parks() -> None:
    handler = Parkable()
    upgrader = Upgrader(handler, options())
    ended: list[bool] = []

    def on_stream(stream: Any) -> None:
        upgrader.upgrade_stream(stream).read_loop()
        ended.append(True)

    listener = TcpListener("127.0.0.1:0")
    listener.start(on_stream)
    try:
        with RawClient(int(listener.address.rpartition(":")[2])) as client:
            client.upgrade()
            client.echo()
            gevent.sleep(0.35)
            (conn,) = handler.opened
            assert not handler.is_parked(conn)
            client.echo()
            assert len(handler.seen[conn.id]) == 1
            assert ended == []
        handler.the_end()
        assert ended == [True]
    finally:
        listener.close()


@pytest.mark.slow
def test_a_stream_without_a_descriptor_never_parks() -> None:
    handler = Parkable()
    server = Server(handler, options())
    server.start("memory:parking")
    try:
        client = Client.from_stream(registry.dialer("memory:parking").dial())
        client.send("one")
        assert client.receive(timeout=5) == "one"
        gevent.sleep(0.35)
        (conn,) = handler.opened
        assert not handler.is_parked(conn)
        client.send("two")
        assert client.receive(timeout=5) == "two"
        client.close()
        assert handler.the_end().clean
        assert len(handler.seen[conn.id]) == 1
    finally:
        server.stop(0.2)


def test_without_the_option_nothing_is_parked() -> None:
    assert ServerOptions().park_after is None
    with paired(EchoHandler()) as pair:
        pair.client.send("hello")
        assert pair.client.receive(timeout=5) == "hello"


def test_a_kill_right_after_connect() -> None:
    """The greenlet of a client's handler has not begun by then."""
    handler = Parkable()
    server_handler = Parkable()
    server = Server(server_handler)
    server.start("127.0.0.1:0")
    try:
        client = connect(url_of(server), handler)
        client.kill()
        wait_until(lambda: client.closed, timeout=1, what="the end of the client")
        wait_until(lambda: server_handler.infos, what="the end of the server's connection")
        assert len(handler.infos) == len(handler.opened)
    finally:
        server.stop(0.2)
