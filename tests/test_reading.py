"""Reading in the caller's own greenlet: receive and iteration, in a function that serves and in a client."""

from __future__ import annotations

import os
import time
from typing import Any

import gevent
import pytest
from gevent.event import Event
from greenlet import getcurrent

from gws_gevent import (
    Close,
    ConnectionClosed,
    GwsError,
    Message,
    Opcode,
    ProtocolError,
    ServerOptions,
    TransportError,
    connect,
)
from gws_gevent.frames import frame_header
from tests.pairs import EchoHandler, Recorder, paired, serving, url_of
from tests.support import wait_until


def echo(conn: Any) -> None:
    for message in conn:
        conn.send(message)


def text_frame(data: bytes, first_byte: int = 0x81) -> bytes:
    """Return a frame as a client sends it, masked with zeros."""
    return frame_header(first_byte, len(data), bytes(4)) + data


def test_a_function_echoes_what_it_iterates_over() -> None:
    with serving(echo) as server, connect(url_of(server)) as conn:
        sent: list[str | bytes] = ["text ✓", b"\x00\xff", "", b"", "x" * 200_000, os.urandom(300_000)]
        for data in sent:
            conn.send(data)
            received = conn.receive(timeout=5)
            assert received == data
            assert type(received) is type(data)


def test_a_function_that_returns_closes_with_1000() -> None:
    def say_two(conn: Any) -> None:
        conn.send("one")
        conn.send(b"two")

    with paired(say_two) as pair:
        assert list(pair.client) == ["one", b"two"]
        assert pair.client.close_info is not None
        assert pair.client.close_info.received == Close(1000, "")
        assert pair.client.close_info.clean


def test_iteration_ends_at_the_close_and_close_info_says_how() -> None:
    infos: list[Any] = []

    def collect(conn: Any) -> None:
        infos.append(list(conn))
        infos.append(conn.close_info)

    with paired(collect) as pair:
        pair.client.send("a")
        pair.client.send("b")
        pair.client.close(4000, "over")
        pair.greenlet.join(5)
    assert infos[0] == ["a", "b"]
    assert infos[1].received == Close(4000, "over")
    assert infos[1].clean


def test_messages_in_front_of_a_close_frame_are_handled_and_answered() -> None:
    # All three frames come with one read.
    for handler in (echo, EchoHandler()):
        with paired(handler) as pair:
            pair.client.stream.send_all(text_frame(b"1") + text_frame(b"2") + text_frame(b"\x0f\xa0", 0x88))
            assert list(pair.client) == ["1", "2"]
            assert pair.client.close_info is not None
            assert pair.client.close_info.received == Close(4000, "")


def test_a_message_of_ours_may_still_be_read_while_the_close_frame_waits_behind_it() -> None:
    states = []

    def two(conn: Any) -> None:
        assert conn.receive() == "1"
        states.append(conn.state.name)
        conn.close(4001)

    with paired(two) as pair:
        pair.client.stream.send_all(text_frame(b"1") + text_frame(b"2") + text_frame(b"\x0f\xa0", 0x88))
        assert list(pair.client) == []
        assert pair.client.close_info is not None
        assert pair.client.close_info.received == Close(4001, "")
    assert states == ["OPEN"]


def test_messages_in_front_of_a_bad_frame_are_handled_and_answered() -> None:
    for handler in (echo, EchoHandler()):
        with paired(handler) as pair:
            pair.client.stream.send_all(text_frame(b"1") + text_frame(b"2", 0x83))
            assert list(pair.client) == ["1"]
            assert pair.client.close_info is not None
            assert pair.client.close_info.received is not None
            assert pair.client.close_info.received.code == 1002
            pair.greenlet.join(5)
            assert pair.server.close_info is not None
            assert isinstance(pair.server.close_info.error, ProtocolError)


@pytest.mark.parametrize("timeout", [0, 0.005])
def test_a_receive_that_timed_out_leaves_the_connection_usable(timeout: float) -> None:
    with paired(echo) as pair:
        for number in range(3):
            with pytest.raises(TimeoutError, match="no message within"):
                pair.client.receive(timeout=timeout)
            pair.client.send(str(number))
            assert pair.client.receive(timeout=5) == str(number)


def test_timeouts_lose_nothing_of_a_message_that_comes_in_pieces() -> None:
    received: list[Any] = []
    waiting = []

    def patient(conn: Any) -> None:
        while len(received) < 2:
            try:
                received.append(conn.receive(timeout=0.001))
            except TimeoutError:
                waiting.append(1)

    frame = text_frame(b"in pieces") + text_frame(b"next")
    with paired(patient) as pair:
        for at in range(len(frame)):
            before = len(waiting)
            pair.client.stream.send_all(frame[at : at + 1])
            wait_until(lambda before=before: len(waiting) > before + 1 or len(received) == 2)
        wait_until(lambda: len(received) == 2)
    assert received == ["in pieces", "next"]


def test_a_timeout_of_the_callers_own_goes_through() -> None:
    with paired(echo) as pair:
        with pytest.raises(gevent.Timeout) as raised, gevent.Timeout(0.005) as own:
            pair.client.receive(timeout=5)
        assert raised.value is own
        pair.client.send("still usable")
        assert pair.client.receive(timeout=5) == "still usable"


def test_receive_answers_pings_on_the_way() -> None:
    client = Recorder()
    with paired(echo, client_handler=client) as pair:
        pair.client.write_ping(b"1")
        pair.client.write_text("hello")
        wait_until(lambda: client.messages)
    assert client.events == [("open",), ("pong", b"1"), ("message", "hello"), *client.events[3:]]


def test_two_readers_are_an_error_and_the_first_goes_on() -> None:
    with paired(echo) as pair:
        first = gevent.spawn(pair.client.receive)
        gevent.sleep(0)
        for second in (pair.client.receive, lambda: next(pair.client), lambda: pair.client.receive(timeout=1)):
            with pytest.raises(GwsError, match="another greenlet is reading"):
                second()
        pair.client.send("for the first")
        assert first.get(timeout=5) == "for the first"


def test_a_connection_that_has_a_handler_is_read_by_it_alone() -> None:
    handler = Recorder()
    with paired(handler) as pair:
        handler.open.get(timeout=5)
        gevent.sleep(0)
        with pytest.raises(GwsError, match="another greenlet is reading"):
            pair.server.receive()
        pair.client.send("for the handler")
        wait_until(lambda: handler.messages == ["for the handler"])


def test_receive_after_the_end_raises_each_time() -> None:
    with paired(lambda conn: conn.close(4000, "bye")) as pair:
        for _ in range(2):
            with pytest.raises(ConnectionClosed) as closed:
                pair.client.receive()
            assert closed.value.info.received == Close(4000, "bye")
            assert "4000 'bye'" in str(closed.value)
        assert list(pair.client) == []


def test_receive_when_the_peer_resets() -> None:
    with paired(EchoHandler()) as pair:
        pair.server.abort()
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
    assert closed.value.info.code == 1006
    assert isinstance(closed.value.info.error, TransportError)
    assert not closed.value.info.clean


def test_abort_wakes_a_waiting_receive() -> None:
    with paired(echo) as pair:
        waiting = gevent.spawn(pair.client.receive)
        gevent.sleep(0)
        pair.client.abort()
        with pytest.raises(ConnectionClosed):
            waiting.get(timeout=5)


def test_a_close_by_another_greenlet_ends_a_waiting_receive() -> None:
    with paired(echo) as pair:
        waiting = gevent.spawn(list, pair.client)
        gevent.sleep(0)
        pair.client.close(4000)
        assert waiting.get(timeout=5) == []
        assert pair.client.closed
        assert pair.client.close_info is not None
        assert pair.client.close_info.clean


def test_thousands_of_small_messages_in_one_read() -> None:
    count = 5000
    with serving(echo) as server, connect(url_of(server)) as conn:
        conn.stream.send_all(b"".join(text_frame(str(number).encode()) for number in range(count)))
        assert [conn.receive(timeout=5) for _ in range(count)] == [str(number) for number in range(count)]


def test_an_exception_thrown_in_while_others_are_let_run_loses_nothing() -> None:
    class Interrupted(Exception):
        pass

    received: list[str] = []
    interrupted: list[int] = []

    def slow(conn: Any) -> None:
        here = getcurrent()
        while len(received) < 200:
            # More than a connection's turn: it gives way to the others at its next look at the clock.
            strike = len(received) % 32 == 31 and len(received) not in interrupted
            until = time.monotonic() + (0.006 if strike else 0)
            while time.monotonic() < until:
                pass
            throw = gevent.get_hub().loop.run_callback(here.throw if strike else int, *([Interrupted] if strike else []))
            try:
                received.append(conn.receive())
            except Interrupted:
                interrupted.append(len(received))
            finally:
                throw.stop()

    with paired(slow) as pair:
        pair.client.stream.send_all(b"".join(text_frame(str(number).encode()) for number in range(200)))
        wait_until(lambda: len(received) == 200)
    assert received == [str(number) for number in range(200)]
    assert len(interrupted) > 2


def test_a_message_in_many_fragments_with_control_frames_between() -> None:
    client = Recorder()
    with paired(echo, client_handler=client) as pair:
        frames = [text_frame(b"a", 0x01), text_frame(b"between", 0x89)]
        frames += [text_frame(b"b", 0x00)] * 1000
        pair.client.stream.send_all(b"".join([*frames, text_frame(b"c", 0x80)]))
        wait_until(lambda: client.messages)
    assert client.events[1:3] == [("pong", b"between"), ("message", "a" + "b" * 1000 + "c")]


def test_the_message_object() -> None:
    seen: list[Message] = []

    class Looking(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            seen.append(message)

    with paired(Looking()) as pair:
        pair.client.send("x" * 500)
        pair.client.send(b"\x01")
        wait_until(lambda: len(seen) == 2)
    assert [message.opcode for message in seen] == [Opcode.TEXT, Opcode.BINARY]
    assert repr(seen[1]) == r"Message(BINARY, b'\x01')"
    assert len(repr(seen[0])) < 120


def test_a_handler_that_blocks_stops_reading_and_the_peers_writer_waits() -> None:
    working, go_on = Event(), Event()

    class Slow(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            working.set()
            go_on.wait(5)
            super().on_message(conn, message)

    handler = Slow()
    with paired(handler, capacity=4096) as pair:
        pair.client.send("first")
        working.wait(5)
        writer = gevent.spawn(lambda: [pair.client.send(b"x" * 10_000) for _ in range(20)])
        wait_until(lambda: pair.client.buffered_amount > 64 * 1024)
        assert not writer.dead
        go_on.set()
        writer.get(timeout=5)
        wait_until(lambda: len(handler.messages) == 21)


@pytest.mark.slow
def test_a_busy_connection_does_not_starve_the_others() -> None:
    with serving(EchoHandler(), ServerOptions()) as server, connect(url_of(server)) as busy, connect(url_of(server)) as other:
        flood = b"".join(text_frame(b"x" * 100) for _ in range(200))
        stop = Event()

        def push() -> None:
            while not stop.is_set():
                busy.stream.send_all(flood)

        drained = gevent.spawn(lambda: [None for _ in busy])
        pusher = gevent.spawn(push)
        for number in range(5):
            other.send(str(number))
            assert other.receive(timeout=1) == str(number)
        stop.set()
        pusher.join(5)
        busy.abort()
        drained.join(5)
