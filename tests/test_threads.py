"""Writes from other threads: queued without blocking, in order, bounded, and never a corrupt stream."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.monkey import get_original

from gws_gevent import ConnectionClosed, GwsError, Message, MessageTooLarge, Opcode, PreparedMessage, ServerOptions, WriteQueueFull
from gws_gevent.transports.memory import MemoryStream
from tests.pairs import Recorder, paired
from tests.support import wait_until

sleep = get_original("time", "sleep")
get_ident = get_original("threading", "get_ident")


def in_thread(function: Callable[[], Any]) -> Any:
    """Run `function` in a thread of the hub's pool while this thread's greenlets go on."""
    return gevent.get_hub().threadpool.spawn(function).get(timeout=10)


def hold_the_hub(function: Callable[[], Any]) -> Any:
    """Run `function` in a thread while the hub of this thread cannot run."""
    start_new_thread = get_original("_thread", "start_new_thread")
    result: list[Any] = []

    def run() -> None:
        try:
            result.append((function(), None))
        except Exception as error:
            result.append((None, error))

    start_new_thread(run, ())
    for _ in range(1000):
        if result:
            break
        sleep(0.005)
    value, error = result[0]
    if error is not None:
        raise error
    return value


WRITES: dict[str, tuple[Callable[[Any], object], tuple[str, Any]]] = {
    "write_text": (lambda conn: conn.write_text("é"), ("message", "é")),
    "send": (lambda conn: conn.send(b"x" * 100_000), ("message", b"x" * 100_000)),
    "writev": (lambda conn: conn.writev(Opcode.TEXT, "a", "b"), ("message", "ab")),
    "write_async": (lambda conn: conn.write_async(Opcode.BINARY, b"async"), ("message", b"async")),
    "write_prepared": (lambda conn: conn.write_prepared(PreparedMessage(Opcode.TEXT, "p")), ("message", "p")),
    "write_ping": (lambda conn: conn.write_ping(b"ping"), ("ping", b"ping")),
    "write_pong": (lambda conn: conn.write_pong(b"pong"), ("pong", b"pong")),
    "a bytearray that changes": (lambda conn: _send_and_change(conn), ("message", b"before")),
}


def _send_and_change(conn: Any) -> None:
    data = bytearray(b"before")
    conn.send(data)
    data[:] = b"after!"


@pytest.mark.parametrize("how", WRITES)
def test_each_write_arrives(how: str) -> None:
    write, expected = WRITES[how]
    client = Recorder()
    with paired(Recorder(), client_handler=client) as pair:
        hold_the_hub(lambda: write(pair.server))
        wait_until(lambda: len(client.events) == 2)
        in_thread(lambda: write(pair.server))
        wait_until(lambda: len(client.events) == 3)
    assert client.events[1:3] == [expected, expected]


def test_a_write_wakes_a_hub_that_waits() -> None:
    with paired(Recorder()) as pair:
        in_thread(lambda: pair.server.send("wake up"))
        assert pair.client.receive(timeout=5) == "wake up"


def test_one_threads_writes_keep_their_order_among_those_of_others() -> None:
    client = Recorder()
    with paired(Recorder(), client_handler=client) as pair:

        def write(name: int) -> None:
            for number in range(200):
                pair.server.send(bytes([name]) * (1 + number))

        pool = gevent.get_hub().threadpool
        threads = [pool.spawn(write, name) for name in range(3)]
        write(3)
        for thread in threads:
            thread.get(timeout=10)
        wait_until(lambda: len(client.messages) == 800)
    for name in range(4):
        own = [data for data in client.messages if data[0] == name]
        assert own == [bytes([name]) * (1 + number) for number in range(200)]


def test_callbacks_run_in_the_connections_thread() -> None:
    get_ident = get_original("_thread", "get_ident")
    told: list[Any] = []
    with paired(Recorder()) as pair:
        in_thread(lambda: pair.server.write_async(Opcode.TEXT, "a", lambda error: told.append((error, get_ident()))))
        in_thread(lambda: pair.server.submit(lambda: told.append(("submitted", get_ident()))))
        wait_until(lambda: len(told) == 2)
    assert told == [(None, get_ident()), ("submitted", get_ident())]


def test_what_is_on_its_way_has_a_bound() -> None:
    with paired(Recorder(), ServerOptions(write_queue_size=5000)) as pair:

        def write() -> int:
            for number in range(100):
                try:
                    pair.server.send(b"x" * 1000)
                except WriteQueueFull:
                    return number
            return 100

        # While the hub is held, nothing is taken off the queue.
        assert hold_the_hub(write) == 5
        assert [pair.client.receive(timeout=5) for _ in range(5)] == [b"x" * 1000] * 5
        in_thread(lambda: pair.server.send("room again"))
        assert pair.client.receive(timeout=5) == "room again"


def test_errors_are_raised_in_the_thread() -> None:
    with paired(Recorder(), ServerOptions(write_max_payload_size=100), client_handler=Recorder()) as pair:
        for write, error in (
            (lambda: pair.server.send(b"x" * 101), MessageTooLarge),
            (lambda: pair.server.write_message(Opcode.TEXT, b"\xff"), UnicodeDecodeError),
            (lambda: pair.server.write_ping(b"x" * 126), ValueError),
            (lambda: pair.server.write_close(1006), ValueError),
        ):
            with pytest.raises(error):
                in_thread(write)
        pair.server.close()
        with pytest.raises(ConnectionClosed):
            in_thread(lambda: pair.server.send("late"))


def test_a_write_that_finds_the_connection_closed_on_its_way_tells_its_callback() -> None:
    told: list[Any] = []
    with paired(Recorder(), client_handler=Recorder()) as pair:
        hold_the_hub(lambda: pair.server.write_async(Opcode.TEXT, "late", told.append))
        hold_the_hub(lambda: pair.server.submit(lambda: told.append("ran")))
        pair.server.abort()
        wait_until(lambda: told)
        gevent.sleep(0)
    assert [type(one) for one in told] == [ConnectionClosed]


def test_close_from_another_thread() -> None:
    handler = Recorder()
    with paired(handler, client_handler=Recorder()) as pair:
        in_thread(lambda: pair.server.write_close(4000, "from a thread"))
        info = handler.wait_closed()
    assert info.sent is not None
    assert (info.sent.code, info.sent.reason, info.clean) == (4000, "from a thread", True)


def test_work_in_a_thread_that_answers_from_there() -> None:
    done = Event()

    class Working(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            gevent.get_hub().threadpool.spawn(lambda: conn.send(message.data.upper()))
            done.set()

    with paired(Working()) as pair:
        pair.client.send("shout")
        assert pair.client.receive(timeout=5) == "SHOUT"
        assert done.is_set()


def test_writes_from_a_thread_wait_behind_a_message_in_fragments() -> None:
    half, go_on = Event(), Event()

    def pieces() -> Any:
        yield "one"
        yield "two"
        half.set()
        go_on.wait(5)
        yield "three"

    with paired(Recorder()) as pair:
        streaming = gevent.spawn(pair.server.write_stream, Opcode.TEXT, pieces())
        half.wait(5)
        in_thread(lambda: pair.server.send("from a thread"))
        gevent.sleep(0)
        go_on.set()
        assert [pair.client.receive(timeout=5) for _ in range(2)] == ["onetwothree", "from a thread"]
        streaming.get(timeout=5)


class Sending(MemoryStream):
    """Remembers the threads that sent."""

    __slots__ = ("threads",)

    def __init__(self, name: str, capacity: int) -> None:
        super().__init__(name, capacity)
        self.threads: set[int] = set()

    def try_send(self, data: Any) -> int:
        self.threads.add(get_ident())
        return super().try_send(data)


@pytest.mark.parametrize("how", ["write_stream", "write_file"])
def test_a_message_in_fragments_from_another_thread_never_touches_the_stream_there(how: str) -> None:
    with paired(Recorder(), make=Sending) as pair:

        def write() -> None:
            # Refused or queued: either would do.
            with suppress(GwsError):
                if how == "write_stream":
                    pair.server.write_stream(Opcode.TEXT, ["a", "b"])
                else:
                    pair.server.write_file(Opcode.BINARY, io.BytesIO(b"ab"))

        in_thread(write)
        pair.server.send("behind")
        assert pair.client.receive(timeout=5) in ("ab", b"ab", "behind")
        assert pair.stream.threads == {get_ident()}
