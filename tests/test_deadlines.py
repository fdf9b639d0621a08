"""Deadlines of an open connection: keepalive, timeouts, and clocks that stand still while nobody reads. A tick is 0.1 s."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from gws_gevent import (
    Client,
    ClientOptions,
    ConnectionClosed,
    EventHandler,
    Message,
    Opcode,
    ServerOptions,
    TransportError,
    Upgrader,
)
from gws_gevent.frames import frame_header
from gws_gevent.transports.memory import MemoryStream, memory_pair
from tests.pairs import EchoHandler, Recorder, failing_with, paired
from tests.support import wait_until

#: Off, so that a test sees the one clock it is about.
QUIET = ClientOptions(ping_interval=None)


def ended_by(handler: Recorder, *words: str) -> None:
    """Wait for on_close and check that a deadline with these words ended the connection."""
    info = handler.wait_closed()
    assert isinstance(info.error, TransportError)
    assert all(word in str(info.error) for word in words)
    assert (info.received, info.clean) == (None, False)
    assert len(handler.infos) == 1


def test_keepalive_pings_and_measures_the_round_trip() -> None:
    class Watching(Recorder):
        pings: list[float]

        def on_ping(self, conn: Any, payload: bytes) -> None:
            super().on_ping(conn, payload)
            gevent.sleep(0.005)

    handler, client = Recorder(), Watching()
    with paired(handler, ServerOptions(ping_interval=0.1), client_handler=client, client_options=QUIET) as pair:
        wait_until(lambda: pair.server.latency is not None)
        assert pair.server.latency is not None
        assert 0 < pair.server.latency < 1
        # A handler is not told of the answers to keepalive pings.
        assert handler.events == [("open",)]
        assert [event[0] for event in client.events] == ["open", "ping"]


def test_the_client_pings_too() -> None:
    handler = Recorder()
    with paired(
        handler, ServerOptions(ping_interval=None), client_handler=Recorder(), client_options=ClientOptions(ping_interval=0.1)
    ) as pair:
        wait_until(lambda: pair.client.latency is not None)
    assert [event[0] for event in handler.events][:2] == ["open", "ping"]


@pytest.mark.slow
def test_no_keepalive_when_it_is_off() -> None:
    client = Recorder()
    with paired(Recorder(), ServerOptions(ping_interval=None), client_handler=client, client_options=QUIET):
        gevent.sleep(0.35)
    assert [event[0] for event in client.events] == ["open", "close"]


@pytest.mark.slow
def test_a_peer_that_answers_no_ping_is_dropped() -> None:
    class Mute(EventHandler):
        def on_ping(self, conn: Any, payload: bytes) -> None:
            pass

    handler = Recorder()
    with paired(handler, ServerOptions(ping_interval=0.1, ping_timeout=0.1), client_handler=Mute(), client_options=QUIET):
        ended_by(handler, "ping", "0.1 seconds")


@pytest.mark.slow
def test_a_ping_may_stay_unanswered_for_ever() -> None:
    pings = []

    class Mute(EventHandler):
        def on_ping(self, conn: Any, payload: bytes) -> None:
            pings.append(payload)

    handler = EchoHandler()
    options = ServerOptions(ping_interval=0.1, ping_timeout=None)
    with paired(handler, options, client_handler=Mute(), client_options=QUIET) as pair:
        wait_until(lambda: pings)
        gevent.sleep(0.3)
        assert not pair.server.closed


@pytest.mark.slow
def test_any_frame_counts_as_a_sign_of_life() -> None:
    class Mute(Recorder):
        def on_ping(self, conn: Any, payload: bytes) -> None:
            conn.write_text("not a pong")

    handler = Recorder()
    with paired(handler, ServerOptions(ping_interval=0.1, ping_timeout=0.2), client_handler=Mute(), client_options=QUIET) as pair:
        wait_until(lambda: len(handler.messages) >= 4)
        assert not pair.server.closed


BLOCKED = ServerOptions(ping_interval=0.1, ping_timeout=0.1, read_timeout=0.15, message_timeout=0.1)


@pytest.mark.slow
def test_the_clocks_of_reading_stand_still_while_a_handler_blocks() -> None:
    class Slow(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            gevent.sleep(0.6)
            conn.write_text("done")

    handler, client = Slow(), Recorder()
    with paired(handler, BLOCKED, client_handler=client, client_options=QUIET) as pair:
        pair.client.write_text("work")
        # A message has begun behind the one that is being handled.
        pair.client.stream.send_all(frame_header(0x81, 10, bytes(4)) + b"12345")
        wait_until(lambda: client.messages == ["done"])
        pair.client.stream.send_all(b"67890")
        wait_until(lambda: client.messages == ["done", "done"])
        assert handler.infos == []


@pytest.mark.slow
def test_a_loop_that_was_held_up_kills_no_healthy_peer() -> None:
    class Busy(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            time.sleep(0.5)
            conn.write_text("done")

    handler, client = Busy(), Recorder()
    options = ServerOptions(ping_interval=None, read_timeout=0.2)
    with paired(handler, options, client_handler=client, client_options=QUIET) as pair:
        for number in range(2):
            pair.client.write_text("work")
            wait_until(lambda number=number: len(client.messages) == number + 1)
        assert handler.infos == []


@pytest.mark.slow
def test_read_timeout() -> None:
    handler = EchoHandler()
    with paired(handler, ServerOptions(read_timeout=0.2, ping_interval=None), client_options=QUIET) as pair:
        began = time.monotonic()
        for _ in range(3):
            gevent.sleep(0.1)
            pair.client.write_text("still here")
            pair.client.receive(timeout=5)
        assert not pair.server.closed
        ended_by(handler, "nothing was received for 0.2 seconds")
        assert time.monotonic() - began >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([frame_header(0x81, 1000, bytes(4)), *[b"x"] * 100], id="a frame byte by byte"),
        pytest.param([frame_header(0x02, 1, bytes(4)) + b"x", *[frame_header(0x00, 1, bytes(4)) + b"x"] * 100], id="fragments"),
        pytest.param(
            [frame_header(0x02, 1, bytes(4)) + b"x", *[frame_header(0x89, 1, bytes(4)) + b"p"] * 100], id="pings in the middle"
        ),
    ],
)
def test_message_timeout(pieces: list[bytes]) -> None:
    handler = Recorder()
    with paired(handler, ServerOptions(message_timeout=0.2), client_options=QUIET) as pair:

        def trickle() -> None:
            for piece in pieces:
                pair.client.stream.send_all(piece)
                gevent.sleep(0.02)

        peer = gevent.spawn(trickle)
        ended_by(handler, "a message took more than 0.2 seconds")
        with pytest.raises(TransportError):
            peer.get(timeout=5)
    assert handler.messages == []


def test_message_timeout_leaves_whole_messages_and_idle_connections_alone() -> None:
    with paired(EchoHandler(), ServerOptions(message_timeout=0.05), client_options=QUIET) as pair:
        for number in range(3):
            pair.client.write_text(str(number))
            assert pair.client.receive(timeout=5) == str(number)
            gevent.sleep(0.07)


def test_the_clock_of_a_message_starts_with_it_although_the_wheel_stood_still() -> None:
    # No keepalive and no other deadline: nothing turns the wheel while the connection is idle.
    with paired(EchoHandler(), ServerOptions(message_timeout=0.4, ping_interval=None), client_options=QUIET) as pair:
        pair.client.write_text("first")
        assert pair.client.receive(timeout=5) == "first"
        gevent.sleep(0.6)
        pair.client.stream.send_all(b"\x01\x81" + bytes(4) + b"a")
        gevent.sleep(0.2)
        pair.client.stream.send_all(b"\x80\x81" + bytes(4) + b"b")
        assert pair.client.receive(timeout=5) == "ab"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a writer that waits", "asynchronous", "a ping", "a close frame"])
def test_write_timeout(how: str) -> None:
    handler = Recorder()
    options = ServerOptions(write_timeout=0.1, write_high_water=100, close_timeout=60, ping_interval=None)
    raised: list[BaseException] = []
    writes: dict[str, Callable[[Any], object]] = {
        "a writer that waits": lambda conn: conn.send(b"x" * 10_000),
        "asynchronous": lambda conn: conn.write_async(Opcode.BINARY, b"x" * 10_000, lambda error: raised.append(error)),
        "a ping": lambda conn: [conn.write_ping(b"x" * 100) for _ in range(100)],
        "a close frame": lambda conn: [conn.write_async(Opcode.BINARY, b"x" * 2000), conn.write_close()],
    }
    with paired(handler, options, client_options=QUIET, capacity=1000) as pair:

        def write() -> None:
            try:
                writes[how](pair.server)
            except ConnectionClosed as error:
                raised.append(error)

        gevent.spawn(write)
        ended_by(handler, "took no bytes for 0.1 seconds")
        assert pair.server.buffered_amount == 0
        if how != "a close frame":
            wait_until(lambda: raised)
            assert isinstance(raised[0], ConnectionClosed)


@pytest.mark.slow
def test_a_slow_peer_that_takes_some_bytes_is_not_dropped() -> None:
    with paired(Recorder(), ServerOptions(write_timeout=0.2, ping_interval=None), client_options=QUIET, capacity=1000) as pair:
        writer = gevent.spawn(pair.server.send, b"x" * 8000)
        buffer = bytearray(1000)
        received = 0
        while received < 8000:
            gevent.sleep(0.06)
            received += pair.client.stream.recv_into(buffer)
        writer.get(timeout=5)
        assert not pair.server.closed


@pytest.mark.slow
@pytest.mark.parametrize("how", ["write_close", "close", "an exception"])
def test_close_timeout(how: str, caplog: pytest.LogCaptureFixture) -> None:
    handler = failing_with(RuntimeError("x")) if how == "an exception" else Recorder()
    # The client does not read, so it never answers.
    with paired(handler, ServerOptions(close_timeout=0.1, ping_interval=None), client_options=QUIET) as pair:
        if how == "write_close":
            pair.server.write_close()
        elif how == "close":
            began = time.monotonic()
            pair.server.close()
            assert pair.server.closed
            assert 0.1 <= time.monotonic() - began < 2
        else:
            pair.client.write_text("go")
        info = handler.wait_closed()
    assert info.sent is not None
    assert (info.received, info.clean) == (None, False)
    assert info.error is not None


@pytest.mark.slow
def test_close_timeout_of_a_peer_that_goes_on_sending() -> None:
    ours, theirs = memory_pair()
    handler = Recorder()
    serving = gevent.spawn(lambda: Upgrader(handler, ServerOptions(close_timeout=0.1)).upgrade_stream(ours).read_loop())
    client = Client.from_stream(theirs, options=QUIET)
    handler.open.get(timeout=5).write_close()
    with pytest.raises(TransportError):
        while True:
            client.stream.send_all(frame_header(0x82, 1, bytes(4)) + b"x")
            gevent.sleep(0.01)
    ended_by(handler, "closing handshake took too long")
    serving.join(5)
    client.abort()
    assert handler.messages == []


@pytest.mark.slow
@pytest.mark.parametrize("which", ["set_deadline", "set_read_deadline"])
def test_a_deadline_ends_a_connection_that_reads(which: str) -> None:
    handler = Recorder()
    with paired(handler, client_options=QUIET) as pair:
        getattr(pair.server, which)(0.1)
        ended_by(handler, "read deadline")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["set_deadline", "set_write_deadline"])
def test_a_deadline_ends_a_connection_with_unsent_output(which: str) -> None:
    handler = Recorder()
    with paired(handler, client_options=QUIET, capacity=1000) as pair:
        pair.server.write_async(Opcode.BINARY, b"x" * 10_000)
        getattr(pair.server, which)(0.1)
        ended_by(handler, "deadline")


@pytest.mark.slow
def test_a_write_deadline_leaves_a_connection_without_output_alone_and_none_takes_deadlines_back() -> None:
    with paired(EchoHandler(), client_options=QUIET) as pair:
        pair.server.set_write_deadline(0.05)
        gevent.sleep(0.2)
        pair.server.set_deadline(0.1)
        pair.server.set_deadline(None)
        gevent.sleep(0.3)
        pair.client.send("still here")
        assert pair.client.receive(timeout=5) == "still here"


@pytest.mark.slow
def test_a_deadline_throws_nothing_into_user_code() -> None:
    seen: list[Any] = []

    class Working(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            conn.set_deadline(0.05)
            conn.write_async(Opcode.BINARY, b"x" * 10_000)
            gevent.sleep(0.3)
            seen.append((conn.closed, self.infos))
            with pytest.raises(ConnectionClosed):
                conn.write_text("too late")
            seen.append("returned")

    handler = Working()
    with paired(handler, client_options=QUIET, capacity=1000) as pair:
        pair.client.write_text("work")
        ended_by(handler, "deadline")
    assert seen == [(True, []), "returned"]


class Resettable(MemoryStream):
    """A peer that is gone, which no read has noticed yet."""

    __slots__ = ("gone",)

    def __init__(self, name: str, capacity: int) -> None:
        super().__init__(name, capacity)
        self.gone = False

    def try_send(self, data: Any) -> int:
        if self.gone:
            raise TransportError(errno.ECONNRESET, "send: the peer is gone")
        return super().try_send(data)


def test_a_keepalive_ping_that_meets_a_reset_ends_that_connection_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, traceback: errors.append(value))
    handler = Recorder()
    with paired(handler, ServerOptions(ping_interval=0.1), make=Resettable) as pair:
        handler.open.get(timeout=5)
        pair.stream.gone = True
        info = handler.wait_closed()
    assert isinstance(info.error, TransportError)
    # It was raised in the wheel's tick, out of which it took the deadlines of other connections with it.
    assert errors == []
