"""Writing: each method, order, coalescing, back-pressure, bounds, and what is refused before anything is sent."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gws_gevent import (
    Broadcaster,
    Client,
    ClientOptions,
    Close,
    ConnectionClosed,
    GwsError,
    Message,
    MessageTooLarge,
    Opcode,
    PreparedMessage,
    ServerOptions,
    TransportError,
    Upgrader,
    WriteQueueFull,
    connect,
)
from gws_gevent._accel import build_of
from gws_gevent.frames import frame_header
from gws_gevent.transports.base import Stream
from gws_gevent.transports.memory import memory_pair
from tests.pairs import CountingStream, EchoHandler, Pair, Recorder, paired, serving, url_of
from tests.support import wait_until

TEXT, BINARY = Opcode.TEXT, Opcode.BINARY


NUMBER: Any = 5
LIST: Any = [1]


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


def idle_pipe() -> Any:
    """A raw file that does not block: `read` returns None."""

    class Idle(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> None:
            return None

    return Idle()


def in_hub(function: Callable[[], Any]) -> Any:
    """Run `function` in the hub; return what it returned, or raise what it raised."""
    result: list[Any] = []

    def call() -> None:
        try:
            result.append((function(), None))
        except Exception as error:
            result.append((None, error))

    gevent.get_hub().loop.run_callback(call)
    wait_until(lambda: result)
    value, error = result[0]
    if error is not None:
        raise error
    return value


def read_all(conn: Any) -> list[Any]:
    """Read messages until the connection ends."""
    return list(conn)


# Each method


WRITES: dict[str, tuple[Callable[[Any], object], Any]] = {
    "write_message text": (lambda conn: conn.write_message(TEXT, "é"), "é"),
    "write_message text in bytes": (lambda conn: conn.write_message(TEXT, "é".encode()), "é"),
    "write_message binary": (lambda conn: conn.write_message(BINARY, b"\xff"), b"\xff"),
    "write_text": (lambda conn: conn.write_text("text"), "text"),
    "write_text empty": (lambda conn: conn.write_text(""), ""),
    "write_binary": (lambda conn: conn.write_binary(b"binary"), b"binary"),
    "write_binary bytearray": (lambda conn: conn.write_binary(bytearray(b"array")), b"array"),
    "write_binary memoryview": (lambda conn: conn.write_binary(memoryview(b"a view")[2:]), b"view"),
    "send str": (lambda conn: conn.send("str"), "str"),
    "send bytes": (lambda conn: conn.send(b"bytes"), b"bytes"),
    "writev": (lambda conn: conn.writev(BINARY, b"a", bytearray(b"b"), memoryview(b"c")), b"abc"),
    "writev of nothing": (lambda conn: conn.writev(BINARY), b""),
    "writev text": (lambda conn: conn.writev(TEXT, "a", "é", "ü".encode()), "aéü"),
    "writev a character in two parts": (lambda conn: conn.writev(TEXT, b"\xc3", b"\xa9"), "é"),
    "write_async": (lambda conn: conn.write_async(BINARY, b"async"), b"async"),
    "writev_async": (lambda conn: conn.writev_async(TEXT, "as", "ync"), "async"),
    "write_file": (lambda conn: conn.write_file(BINARY, io.BytesIO(b"in a file")), b"in a file"),
    "write_file empty": (lambda conn: conn.write_file(BINARY, io.BytesIO()), b""),
    "write_file opened as text": (lambda conn: conn.write_file(TEXT, io.StringIO("ééé"), 2), "ééé"),
    "write_file text": (lambda conn: conn.write_file(TEXT, io.BytesIO("ééé".encode()), 3), "ééé"),
    "write_stream": (lambda conn: conn.write_stream(TEXT, ["in ", "pieces"]), "in pieces"),
    "write_stream of nothing": (lambda conn: conn.write_stream(TEXT, []), ""),
    "write_prepared text": (lambda conn: conn.write_prepared(PreparedMessage(TEXT, "é")), "é"),
    "write_prepared binary": (lambda conn: conn.write_prepared(PreparedMessage(BINARY, b"x" * 100_000)), b"x" * 100_000),
}


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("how", WRITES)
def test_what_is_written_arrives(how: str, side: str) -> None:
    write, expected = WRITES[how]
    handler, client = Recorder(), Recorder()
    with paired(handler, client_handler=client) as pair:
        write(getattr(pair, side))
        getattr(pair, side).write_text("behind")
        receiver = client if side == "server" else handler
        wait_until(lambda: len(receiver.messages) == 2)
        assert receiver.messages == [expected, "behind"]
        assert type(receiver.messages[0]) is type(expected)


@pytest.mark.parametrize("size", [125, 126, 8191, 8192, 65535, 65536, 300_000, 2_000_000])
def test_every_size_arrives_whole_both_ways(size: int) -> None:
    data = os.urandom(size)
    with paired(EchoHandler(), capacity=16 * 1024) as pair:
        reader = gevent.spawn(pair.client.receive)
        pair.client.write_binary(data)
        assert reader.get(timeout=5) == data


@pytest.mark.parametrize("payload", [b"", b"x" * 125])
def test_control_frames(payload: bytes) -> None:
    handler, client = Recorder(), Recorder()
    with paired(handler, client_handler=client) as pair:
        pair.server.write_ping(payload)
        pair.server.write_pong(payload)
        wait_until(lambda: len(client.events) == 3 and len(handler.events) == 2)
    assert client.events[1:3] == [("ping", payload), ("pong", payload)]
    assert handler.events[1] == ("pong", payload)


def test_write_close_returns_at_once_and_the_first_code_counts() -> None:
    handler, client = Recorder(), Recorder()
    with paired(handler, client_handler=client) as pair:
        pair.server.write_text("before")
        pair.server.write_close(4000, "x" * 123)
        pair.server.write_close(4001)
        assert not pair.server.closed
        assert handler.wait_closed().clean
        assert client.wait_closed().received == Close(4000, "x" * 123)
    assert client.messages == ["before"]


def test_an_empty_close_frame() -> None:
    handler, client = Recorder(), Recorder()
    with paired(handler, client_handler=client) as pair:
        pair.server.write_close(1005)
        assert client.wait_closed().received == Close(1005, "")
        assert handler.wait_closed().received == Close(1005, "")
    assert client.infos[0].clean


def test_a_file_is_sent_in_fragments_and_never_held_whole() -> None:
    reads: list[int] = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(pair.server.buffered_amount)
            return super().read(size)

    data = os.urandom(1_000_000)
    with paired(Recorder(), ServerOptions(write_high_water=1000), capacity=10_000) as pair:
        reader = gevent.spawn(pair.client.receive)
        pair.server.write_file(BINARY, File(data), fragment_size=5000)
        assert reader.get(timeout=5) == data
        # Each read begins with no more unsent than the high-water mark.
        assert len(reads) == 201
        assert max(reads) <= 1000


# Refused before anything is sent

REFUSED: dict[str, tuple[Callable[[Any], object], type[Exception]]] = {
    "another opcode": (lambda conn: conn.write_message(Opcode.PING, b""), ValueError),
    "a continuation": (lambda conn: conn.write_message(Opcode.CONTINUATION, b""), ValueError),
    "a number as opcode": (lambda conn: conn.write_message(3, b""), ValueError),
    "text that is not UTF-8": (lambda conn: conn.write_message(TEXT, b"\xff"), UnicodeDecodeError),
    "parts that are not UTF-8": (lambda conn: conn.writev(TEXT, b"a", b"\xff"), UnicodeDecodeError),
    "async parts that are not UTF-8": (lambda conn: conn.writev_async(TEXT, b"a", b"\xff"), UnicodeDecodeError),
    "a lone surrogate": (lambda conn: conn.write_text("\ud800"), UnicodeEncodeError),
    "binary str": (lambda conn: conn.write_message(BINARY, "str"), TypeError),
    "None": (lambda conn: conn.send(None), TypeError),
    "a number as message": (lambda conn: conn.send(5), TypeError),
    "a list": (lambda conn: conn.send([1]), TypeError),
    "text that was not prepared": (lambda conn: conn.write_prepared("x"), TypeError),
    "a file that is none": (lambda conn: conn.write_file(BINARY, NUMBER), TypeError),
    "a callback that is none": (lambda conn: conn.write_async(TEXT, "x", NUMBER), TypeError),
    "a callback of parts that is none": (lambda conn: conn.writev_async(TEXT, "x", callback=NUMBER), TypeError),
    "a broadcast's callback that is none": (lambda conn: Broadcaster(TEXT, "x").broadcast([conn], NUMBER), TypeError),
    "a function that is none": (lambda conn: conn.submit(NUMBER), TypeError),
    "a close callback that is none": (lambda conn: conn.add_close_callback(NUMBER), TypeError),
    "a prepared number": (lambda conn: conn.write_prepared(PreparedMessage(BINARY, NUMBER)), TypeError),
    "a prepared list": (lambda conn: Broadcaster(BINARY, LIST).broadcast([conn]), TypeError),
    "a ping of text": (lambda conn: conn.write_ping("x"), TypeError),
    "a pong of a number": (lambda conn: conn.write_pong(5), TypeError),
    "a close reason in bytes": (lambda conn: conn.write_close(1000, b"x"), TypeError),
    "a close code in text": (lambda conn: conn.close("1000"), ValueError),
    "a number": (lambda conn: conn.write_binary(10), TypeError),
    "a number as text": (lambda conn: conn.write_text(10), TypeError),
    "too large": (lambda conn: conn.send(b"x" * 1001), MessageTooLarge),
    "too large in bytes": (lambda conn: conn.send("é" * 501), MessageTooLarge),
    "too large parts": (lambda conn: conn.writev(BINARY, b"x" * 501, b"x" * 500), MessageTooLarge),
    "too large async": (lambda conn: conn.write_async(BINARY, b"x" * 1001), MessageTooLarge),
    "too large prepared": (lambda conn: conn.write_prepared(PreparedMessage(BINARY, b"x" * 1001)), MessageTooLarge),
    "a long ping": (lambda conn: conn.write_ping(b"x" * 126), ValueError),
    "a long pong": (lambda conn: conn.write_pong(b"x" * 126), ValueError),
    "close 1006": (lambda conn: conn.write_close(1006), ValueError),
    "close 1004": (lambda conn: conn.close(1004), ValueError),
    "close 999": (lambda conn: conn.write_close(999), ValueError),
    "close 5000": (lambda conn: conn.write_close(5000), ValueError),
    "close with a long reason": (lambda conn: conn.write_close(1000, "x" * 124), ValueError),
    "close with a reason and no code": (lambda conn: conn.write_close(1005, "why"), ValueError),
    "a file opened as text": (lambda conn: conn.write_file(BINARY, io.StringIO("x")), TypeError),
    "a file that is closed": (lambda conn: conn.write_file(BINARY, closed_file()), ValueError),
    "a file that has nothing to read yet": (lambda conn: conn.write_file(BINARY, idle_pipe()), BlockingIOError),
    "fragments of no bytes": (lambda conn: conn.write_file(BINARY, io.BytesIO(b"x"), 0), ValueError),
    "a stream of another opcode": (lambda conn: conn.write_stream(Opcode.PONG, [b"x"]), ValueError),
    "a stream whose first piece is bad": (lambda conn: conn.write_stream(BINARY, ["str"]), TypeError),
    "a stream whose first piece is not UTF-8": (lambda conn: conn.write_stream(TEXT, [b"\xff"]), UnicodeDecodeError),
    "a stream that ends inside a character": (lambda conn: conn.write_stream(TEXT, [b"\xc3"]), UnicodeDecodeError),
}


#: What those were given whose TypeError is not about a `str`.
GIVEN: dict[str, Any] = {
    "None": None, "a number": 1, "a number as text": 1, "a number as message": 1, "a list": [], "a prepared number": 1,
    **dict.fromkeys((one for one in REFUSED if one.endswith(" that is none")), NUMBER),
    "a prepared list": [], "a pong of a number": 1, "a close reason in bytes": b"",
}  # fmt: skip


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_sends_nothing(what: str, side: str) -> None:
    write, error = REFUSED[what]
    options: dict[str, Any] = {"write_max_payload_size": 1000}
    handler, client = Recorder(), Recorder()
    with paired(handler, ServerOptions(**options), client_handler=client, client_options=ClientOptions(**options)) as pair:
        conn = getattr(pair, side)
        with pytest.raises(error) as caught:
            write(conn)
        given = GIVEN.get(what, "")
        assert error is not TypeError or f"not {type(given).__name__}" in str(caught.value) or f"not {given!r}" in str(caught.value)
        assert conn.buffered_amount == 0
        conn.send(b"x" * 1000)
        receiver = client if side == "server" else handler
        wait_until(lambda: receiver.messages)
        assert [event for event in receiver.events if event[0] != "open"] == [("message", b"x" * 1000)]


LATE: dict[str, Callable[[Any], object]] = {
    **{name: write for name, (write, _) in WRITES.items()},
    "write_ping": lambda conn: conn.write_ping(),
    "write_pong": lambda conn: conn.write_pong(),
    "submit": lambda conn: conn.submit(lambda: None),
}


@pytest.mark.parametrize("how", LATE)
def test_writes_after_close_raise_connection_closed(how: str) -> None:
    with paired(Recorder(), client_handler=Recorder()) as pair:
        pair.server.write_close(4000)
        with pytest.raises(ConnectionClosed) as closing:
            LATE[how](pair.server)
        pair.server.close()
        with pytest.raises(ConnectionClosed) as closed:
            LATE[how](pair.server)
    assert closing.value.info.sent == Close(4000, "")
    assert closed.value.info.clean


# Order


def test_frames_of_many_greenlets_never_interleave() -> None:
    count, rounds = 10, 5
    received: list[bytes] = []

    class Collecting(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            received.append(message.data)

    def write(number: int) -> None:
        for at in range(rounds):
            pair.server.send(bytes([number]) * (20_000 if at % 2 else 20))

    with paired(Recorder(), ServerOptions(write_high_water=1), client_handler=Collecting(), capacity=3000) as pair:
        writers = [gevent.spawn(write, number) for number in range(count)]
        gevent.joinall(writers, timeout=5, raise_error=True)
        wait_until(lambda: len(received) == count * rounds)
    for number in range(count):
        own = [data for data in received if data[0] == number]
        assert [len(data) for data in own] == [20, 20_000, 20, 20_000, 20]
        assert all(data == bytes([number]) * len(data) for data in own)


def test_every_way_of_writing_keeps_one_order() -> None:
    done: list[str] = []
    expected = ["a", "b", b"c" * 20_000, "d", "e", "f"]
    with paired(Recorder(), capacity=1000) as pair:
        conn = pair.server
        conn.send("a")
        conn.write_async(TEXT, "b", lambda error: done.append(f"b {error}"))
        conn.submit(lambda: done.append("submitted behind b"))
        conn.write_async(BINARY, b"c" * 20_000, lambda error: done.append(f"c {error}"))
        conn.submit(lambda: done.append("submitted behind c"))
        conn.write_prepared(PreparedMessage(TEXT, "d"))
        conn.write_stream(TEXT, ["e"])
        conn.writev_async(TEXT, "f", callback=lambda error: done.append(f"f {error}"))
        wait_until(lambda: len(done) == 2)
        gevent.sleep(0.005)
        assert done == ["b None", "submitted behind b"]
        assert [pair.client.receive(timeout=5) for _ in expected] == expected
        wait_until(lambda: len(done) == 5)
    assert done == ["b None", "submitted behind b", "c None", "submitted behind c", "f None"]


def test_a_callback_may_block_and_write() -> None:
    with paired(Recorder()) as pair:

        def callback(error: Exception | None) -> None:
            gevent.sleep(0)
            pair.server.send(f"callback {error}")

        pair.server.write_async(TEXT, "first", callback)
        pair.server.submit(lambda: pair.server.send("submitted"))
        assert [pair.client.receive(timeout=5) for _ in range(3)] == ["first", "callback None", "submitted"]


def test_an_exception_in_a_callback_reaches_the_hub_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, traceback: errors.append(value))
    wrong = RuntimeError("in a callback")

    def fail(error: Exception | None = None) -> None:
        raise wrong

    with paired(Recorder()) as pair:
        pair.server.write_async(TEXT, "a", fail)
        pair.server.submit(fail)
        pair.server.send("b")
        assert [pair.client.receive(timeout=5) for _ in range(2)] == ["a", "b"]
    assert errors == [wrong, wrong]


def test_callbacks_learn_of_the_end_and_submitted_functions_do_not_run() -> None:
    told: list[Any] = []
    with paired(Recorder(), capacity=1000) as pair:
        pair.server.write_async(BINARY, b"x" * 50_000, told.append)
        pair.server.submit(lambda: told.append("ran"))
        pair.server.write_async(BINARY, b"y", told.append)
        pair.server.abort()
        wait_until(lambda: len(told) == 2)
        gevent.sleep(0)
    assert [type(error) for error in told] == [ConnectionClosed, ConnectionClosed]


def test_a_submitted_close_does_the_closing_handshake() -> None:
    client = Recorder()
    with paired(Recorder(), ServerOptions(close_timeout=0.5), client_handler=client) as pair:
        pair.server.send("the last word")
        pair.server.submit(pair.server.close)
        assert client.wait_closed().received == Close(1000, "")
    assert client.messages == ["the last word"]


def test_a_callback_that_waits_for_room_gets_it() -> None:
    # Neither the write timeout nor the keepalive looked at a connection whose callback waited for itself.
    with paired(Recorder(), ServerOptions(write_high_water=1000), capacity=1000) as pair:
        pair.server.submit(lambda: pair.server.write_binary(bytes(5000)))
        assert pair.client.receive(timeout=2) == bytes(5000)


def test_a_callback_that_blocks_holds_up_no_output() -> None:
    go_on = Event()
    with paired(Recorder()) as pair:
        pair.server.write_async(TEXT, "a", lambda error: go_on.wait(5))
        pair.server.write_async(TEXT, "b")
        try:
            assert [pair.client.receive(timeout=1) for _ in range(2)] == ["a", "b"]
        finally:
            go_on.set()


def test_a_timeout_that_escapes_a_callback_holds_up_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, value, traceback: errors.append(value))
    timeout = gevent.Timeout(3)

    def fail() -> None:
        raise timeout

    with paired(Recorder()) as pair:
        pair.server.submit(fail)
        pair.server.write_async(TEXT, "behind it")
        assert pair.client.receive(timeout=1) == "behind it"
    assert errors == [timeout]


def test_a_first_fragment_that_was_interrupted_leaves_no_open_message_behind() -> None:
    with paired(Recorder(), ServerOptions(write_high_water=1000), capacity=1000) as pair:
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            pair.server.write_stream(BINARY, [bytes(5000), b"never written"])
        # The fragment is queued: another message behind it would be a protocol error of ours.
        with pytest.raises(ConnectionClosed):
            pair.server.write_async(TEXT, "in its middle")
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
    assert closed.value.info.received == Close(1011, "")


# A message in fragments


def test_control_frames_pass_between_fragments_and_messages_wait() -> None:
    client = Recorder()
    half, go_on = Event(), Event()

    def pieces() -> Iterator[str]:
        yield "one "
        yield "two "
        half.set()
        go_on.wait(5)
        yield "three"

    with paired(Recorder(), client_handler=client) as pair:
        streaming = gevent.spawn(pair.server.write_stream, TEXT, pieces())
        half.wait(5)
        pair.server.write_ping(b"between")
        waiting = [
            gevent.spawn(pair.server.send, "waited"),
            gevent.spawn(pair.server.write_prepared, PreparedMessage(TEXT, "waited too")),
            gevent.spawn(pair.server.write_stream, TEXT, ["another", " stream"]),
        ]
        gevent.sleep(0)
        told: list[Any] = []
        assert pair.server.write_async(TEXT, "queued", told.append)
        wait_until(lambda: ("ping", b"between") in client.events)
        assert client.messages == []
        assert not any(one.dead for one in waiting)
        with pytest.raises(WriteQueueFull, match="fragments"):
            in_hub(lambda: pair.server.send("from the hub"))
        go_on.set()
        gevent.joinall([streaming, *waiting], timeout=5, raise_error=True)
        wait_until(lambda: len(client.messages) == 5)
    assert client.messages[:2] == ["one two three", "queued"]
    assert sorted(client.messages[2:]) == ["another stream", "waited", "waited too"]
    assert told == [None]


@pytest.mark.parametrize(("size", "rounds", "ends"), [(30_000, 5, False), (60_000, 1, True)])
def test_what_waits_behind_a_stream_counts_as_unsent(size: int, rounds: int, ends: bool) -> None:
    client = Recorder()
    with paired(Recorder(), ServerOptions(max_buffered=50_000), client_handler=client) as pair:
        for number in range(rounds):
            half, go_on = Event(), Event()

            def pieces(half: Event = half, go_on: Event = go_on) -> Iterator[str]:
                yield from ("one ", "two ")
                half.set()
                go_on.wait(5)
                yield "three"

            streaming = gevent.spawn(pair.server.write_stream, TEXT, pieces())
            half.wait(5)
            pair.server.write_async(BINARY, bytes(size))
            if not ends:
                assert pair.server.buffered_amount >= size
            go_on.set()
            if ends:
                with pytest.raises(ConnectionClosed):
                    streaming.get(timeout=5)
                assert client.wait_closed().code == 1013
            else:
                streaming.get(timeout=5)
                wait_until(lambda number=number: len(client.messages) == 2 * number + 2)
                assert pair.server.buffered_amount == 0


def test_an_exception_in_the_middle_of_a_stream_closes_with_1011() -> None:
    def pieces() -> Iterator[str]:
        yield "one"
        yield "two"
        raise LookupError("no more")

    client = Recorder()
    with paired(Recorder(), client_handler=client) as pair:
        with pytest.raises(LookupError):
            pair.server.write_stream(TEXT, pieces())
        assert client.wait_closed().received == Close(1011, "")
    assert client.messages == []


def test_an_exception_before_the_first_fragment_leaves_the_connection_usable() -> None:
    def pieces() -> Iterator[str]:
        yield "held until the next piece says that there is one"
        raise LookupError("no more")

    with paired(Recorder()) as pair:
        with pytest.raises(LookupError):
            pair.server.write_stream(TEXT, pieces())
        pair.server.send("usable")
        assert pair.client.receive(timeout=5) == "usable"


def test_text_that_turns_out_not_to_be_utf8_closes_with_1011() -> None:
    client = Recorder()
    with paired(Recorder(), client_handler=client) as pair:
        with pytest.raises(UnicodeDecodeError):
            pair.server.write_stream(TEXT, [b"a", b"\xc3", b"a"])
        assert client.wait_closed().received == Close(1011, "")


def test_a_message_inside_of_ones_own_stream_is_an_error() -> None:
    def pieces(conn: Any, how: str) -> Iterator[str]:
        yield "one"
        WRITES[how][0](conn)
        yield "two"

    for how in ("send str", "write_stream", "write_prepared text"):
        with paired(Recorder()) as pair:
            with pytest.raises(GwsError, match="fragments"):
                pair.server.write_stream(TEXT, pieces(pair.server, how))
            pair.server.send("usable")
            assert pair.client.receive(timeout=5) == "usable"


@pytest.mark.parametrize("how", ["send str", "write_prepared text"])
def test_a_message_waits_for_each_stream_that_comes_before_it(how: str) -> None:
    write, expected = WRITES[how]
    begun, go_on = [Event(), Event()], [Event(), Event()]

    def pieces(number: int) -> Iterator[str]:
        yield f"{number} "
        yield "and "
        begun[number].set()
        go_on[number].wait(5)
        yield "more"

    with paired(Recorder()) as pair:
        streams = [gevent.spawn(pair.server.write_stream, TEXT, pieces(number)) for number in range(2)]
        begun[0].wait(5)
        waiting = gevent.spawn(write, pair.server)
        gevent.sleep(0)
        go_on[0].set()
        begun[1].wait(5)
        gevent.sleep(0)
        assert not waiting.dead
        go_on[1].set()
        assert [pair.client.receive(timeout=5) for _ in range(3)] == ["0 and more", "1 and more", expected]
        gevent.joinall([*streams, waiting], timeout=5, raise_error=True)


def test_writers_that_wait_for_a_stream_learn_of_the_end() -> None:
    half = Event()

    def pieces() -> Iterator[bytes]:
        yield b"one"
        yield b"two"
        half.set()
        Event().wait()

    told: list[Any] = []
    with paired(Recorder()) as pair:
        streaming = gevent.spawn(pair.server.write_stream, BINARY, pieces())
        half.wait(5)
        waiting = gevent.spawn(pair.server.send, "waits")
        gevent.sleep(0)
        pair.server.write_async(TEXT, "queued", told.append)
        streaming.kill()
        with pytest.raises(ConnectionClosed):
            waiting.get(timeout=5)
        wait_until(lambda: told)
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
    assert closed.value.info.received == Close(1011, "")
    assert isinstance(told[0], ConnectionClosed)


# Coalescing


def masked(data: bytes) -> bytes:
    """Return a text frame as a client sends it, masked with zeros."""
    return frame_header(0x81, len(data), bytes(4)) + data


@pytest.mark.parametrize("function", [False, True], ids=["handler", "function"])
def test_16_pipelined_messages_are_answered_with_one_send(function: bool) -> None:
    def echo(conn: Any) -> None:
        for message in conn:
            conn.send(message)

    with paired(echo if function else EchoHandler(), make=CountingStream) as pair:
        sends: list[int] = []
        # Where the machine holds it up for longer than a turn, a connection flushes and gives way: not every time.
        while len(sends) < 10 and 1 not in sends:
            pair.stream.sends.clear()
            pair.client.stream.send_all(b"".join(masked(str(number).encode()) for number in range(16)))
            assert [pair.client.receive(timeout=5) for _ in range(16)] == [str(number) for number in range(16)]
            sends.append(len(pair.stream.sends))
        assert 1 in sends, sends


def test_a_reply_is_sent_although_the_handler_then_blocks() -> None:
    go_on = Event()

    class Blocking(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            conn.send(message.data)
            go_on.wait(5)

    with paired(Blocking()) as pair:
        # Two messages in one read: the reply to the first could wait for that to the second.
        pair.client.stream.send_all(masked(b"1") + masked(b"2"))
        assert pair.client.receive(timeout=2) == "1"
        go_on.set()
        assert pair.client.receive(timeout=2) == "2"


def test_an_asynchronous_reply_is_sent_although_the_handler_then_blocks() -> None:
    go_on = Event()

    class Blocking(Recorder):
        def on_message(self, conn: Any, message: Message) -> None:
            conn.write_async(TEXT, message.data)
            go_on.wait(5)

    with paired(Blocking()) as pair:
        pair.client.stream.send_all(masked(b"1") + masked(b"2"))
        assert pair.client.receive(timeout=2) == "1"
        go_on.set()
        assert pair.client.receive(timeout=2) == "2"


def test_a_write_from_another_greenlet_is_sent_at_once() -> None:
    with paired(Recorder(), make=CountingStream) as pair:
        pair.stream.sends.clear()
        pair.server.send("hello")
        assert pair.stream.sends == [b"\x81\x05hello"]
        assert pair.server.buffered_amount == 0


# Back-pressure


def test_a_slow_reader_blocks_the_writer_and_nobody_else() -> None:
    handler = EchoHandler()
    with paired(handler, ServerOptions(write_high_water=5000), capacity=1000) as pair, paired(EchoHandler()) as other:
        sent = []

        def write() -> None:
            for number in range(100):
                pair.server.send(b"x" * 1000)
                sent.append(number)

        writer = gevent.spawn(write)
        wait_until(lambda: pair.server.buffered_amount > 5000)
        gevent.sleep(0)
        assert len(sent) == 5
        other.client.send("others are served")
        assert other.client.receive(timeout=5) == "others are served"
        assert len(sent) == 5
        assert 5000 < pair.server.buffered_amount < 5000 + 1100
        assert all(pair.client.receive(timeout=5) == b"x" * 1000 for _ in range(100))
        writer.get(timeout=5)
        assert pair.server.buffered_amount == 0


def test_idle_connections_share_their_writers() -> None:
    writer = build_of("writer").Writer
    gc.collect()
    before = sum(isinstance(one, writer) for one in gc.get_objects())
    with serving(EchoHandler()) as server:
        # Large enough to be cut, so that a Writer is needed, and one connection after the other.
        clients = [connect(url_of(server), options=ClientOptions(ping_interval=None)) for _ in range(20)]
        for client in clients:
            client.send(b"x" * 500_000)
            assert len(client.receive(timeout=5)) == 500_000
        wait_until(lambda: all(conn.buffered_amount == 0 for conn in server.connections))
        gevent.sleep(0)
        gc.collect()
        # The server has one for all; each client belongs to a service of its own.
        assert sum(isinstance(one, writer) for one in gc.get_objects()) - before <= 1 + len(clients)
        for client in clients:
            client.close()


def test_a_writer_that_waits_learns_of_the_end() -> None:
    with paired(Recorder(), ServerOptions(write_high_water=10), capacity=1000) as pair:
        writer = gevent.spawn(pair.server.send, b"x" * 10_000)
        wait_until(lambda: pair.server.buffered_amount)
        pair.client.abort()
        with pytest.raises(ConnectionClosed) as closed:
            writer.get(timeout=5)
        assert isinstance(closed.value.info.error, TransportError)
        assert pair.server.buffered_amount == 0


def test_a_writer_that_is_killed_while_it_waits_leaves_whole_frames() -> None:
    with paired(Recorder(), ServerOptions(write_high_water=10), capacity=1000) as pair:
        for error in (gevent.GreenletExit(), gevent.Timeout(1)):
            writer = gevent.spawn(pair.server.send, b"x" * 10_000)
            wait_until(lambda: pair.server.buffered_amount)
            writer.kill(error)
            rest = gevent.spawn(pair.server.send, "behind")
            assert pair.client.receive(timeout=5) == b"x" * 10_000
            assert pair.client.receive(timeout=5) == "behind"
            rest.get(timeout=5)


# Asynchronous writes to a slow consumer


def fill(pair: Pair, told: list[Any], count: int = 20) -> int:
    """Queue messages of 1000 bytes until one is refused; return how many were taken."""
    for number in range(count):
        if not pair.server.write_async(BINARY, bytes([number]) * 1000, told.append):
            return number
    return count


def test_slow_consumer_drop() -> None:
    told: list[Any] = []
    client = Recorder()
    with paired(Recorder(), ServerOptions(slow_consumer="drop", write_queue_size=5000), capacity=1000) as pair:
        assert fill(pair, told) == 5
        wait_until(lambda: told)
        assert isinstance(told.pop(), WriteQueueFull)
        assert not pair.server.write_async(BINARY, b"no callback" * 100)
        pair.client.attach(client)
        gevent.spawn(pair.client.run)
        wait_until(lambda: len(told) == 5)
        assert pair.server.write_async(BINARY, b"room again", told.append)
        wait_until(lambda: len(client.messages) == 6)
    assert client.messages == [*(bytes([number]) * 1000 for number in range(5)), b"room again"]
    assert told == [None] * 6


def test_slow_consumer_close() -> None:
    told: list[Any] = []
    with paired(Recorder(), ServerOptions(slow_consumer="close", write_queue_size=5000), capacity=1000) as pair:
        with pytest.raises(ConnectionClosed):
            fill(pair, told)
        with pytest.raises(ConnectionClosed) as closed:
            # What is behind the frame that has begun was dropped.
            assert pair.client.receive(timeout=5) == bytes(1000)
            pair.client.receive(timeout=5)
        wait_until(lambda: len(told) >= 4)
    assert closed.value.info.received is not None
    assert closed.value.info.received.code == 1008
    assert all(isinstance(error, ConnectionClosed) for error in told if error is not None)


def test_slow_consumer_block() -> None:
    told: list[Any] = []
    with paired(Recorder(), ServerOptions(slow_consumer="block", write_queue_size=5000), capacity=1000) as pair:
        writer = gevent.spawn(fill, pair, told)
        wait_until(lambda: pair.server.buffered_amount > 4000)
        gevent.sleep(0)
        assert not writer.dead
        assert pair.server.buffered_amount <= 5000 + 100
        with pytest.raises(WriteQueueFull):
            in_hub(lambda: pair.server.write_async(BINARY, b"x" * 1000))
        assert [pair.client.receive(timeout=5) for _ in range(20)] == [bytes([number]) * 1000 for number in range(20)]
        assert writer.get(timeout=5) == 20
        wait_until(lambda: len(told) == 20)
    assert told == [None] * 20


def test_writers_that_waited_for_an_empty_queue_share_one_queue_again() -> None:
    options = ServerOptions(slow_consumer="block", write_queue_size=1000)
    sizes = [900, 5000, 5001, 5002, 5003]
    with paired(Recorder(), options, capacity=100) as pair:
        writers = [gevent.spawn(pair.server.write_async, BINARY, bytes([at]) * size) for at, size in enumerate(sizes)]
        received = [pair.client.receive(timeout=5) for _ in sizes]
        gevent.joinall(writers, timeout=5, raise_error=True)
    assert sorted(received) == [bytes([at]) * size for at, size in enumerate(sizes)]


def test_a_writer_that_waited_for_an_empty_queue_writes_in_line_with_those_after_it() -> None:
    options = ServerOptions(slow_consumer="block", write_queue_size=1000)
    with paired(Recorder(), options, capacity=100) as pair:
        pair.server.write_async(BINARY, b"1" * 900)
        waiting = gevent.spawn(pair.server.write_async, BINARY, b"2" * 50_000)
        gevent.sleep(0)
        assert pair.client.receive(timeout=5) == b"1" * 900
        wait_until(lambda: waiting.dead)
        behind = gevent.spawn(pair.server.send, "3")
        assert [pair.client.receive(timeout=5) for _ in range(2)] == [b"2" * 50_000, "3"]
        behind.get(timeout=5)


def test_slow_consumer_block_behind_a_message_in_fragments() -> None:
    half, go_on = Event(), Event()

    def pieces() -> Iterator[str]:
        yield "one "
        yield "two "
        assert pair_server.write_async(TEXT, "x" * 800)
        with pytest.raises(WriteQueueFull):
            pair_server.write_async(TEXT, "its own writer cannot wait" * 10)
        half.set()
        go_on.wait(5)
        yield "three"

    with paired(Recorder(), ServerOptions(slow_consumer="block", write_queue_size=1000)) as pair:
        pair_server = pair.server
        streaming = gevent.spawn(pair.server.write_stream, TEXT, pieces())
        half.wait(5)
        waiting = gevent.spawn(pair.server.write_async, TEXT, "y" * 800)
        gevent.sleep(0)
        assert not waiting.dead
        go_on.set()
        assert [pair.client.receive(timeout=5) for _ in range(3)] == ["one two three", "x" * 800, "y" * 800]
        gevent.joinall([streaming, waiting], timeout=5, raise_error=True)


def test_one_message_larger_than_the_queue_is_taken_by_an_empty_one() -> None:
    with paired(Recorder(), ServerOptions(write_queue_size=1000), capacity=100) as pair:
        assert pair.server.write_async(BINARY, b"x" * 50_000)
        assert pair.client.receive(timeout=5) == b"x" * 50_000


# In the hub


def test_writes_in_the_hub_do_not_block_and_have_a_bound() -> None:
    with paired(Recorder(), ServerOptions(write_queue_size=5000, write_high_water=10), capacity=1000) as pair:
        for _ in range(5):
            in_hub(lambda: pair.server.send(b"x" * 1000))
        for write in (
            lambda: pair.server.send(b"x" * 1000),
            lambda: pair.server.write_prepared(PreparedMessage(BINARY, b"x" * 1000)),
        ):
            with pytest.raises(WriteQueueFull):
                in_hub(write)
        assert [pair.client.receive(timeout=5) for _ in range(5)] == [b"x" * 1000] * 5
        wait_until(lambda: pair.server.buffered_amount == 0)
        in_hub(lambda: pair.server.send("room again"))
        assert pair.client.receive(timeout=5) == "room again"


# A transport that can do no more than the five methods


class PlainStream(Stream):
    """The five methods and no `try_send`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def recv_into(self, buffer: Any) -> int:
        count: int = self.inner.recv_into(buffer)
        return count

    def send_all(self, data: Any) -> None:
        self.inner.send_all(data)

    def shutdown_write(self) -> None:
        self.inner.shutdown_write()

    def close(self) -> None:
        self.inner.close()

    def abort(self) -> None:
        self.inner.abort()

    def info(self, key: str) -> Any:
        return self.inner.info(key)


def test_a_stream_without_try_send() -> None:
    ours, theirs = memory_pair(1000)
    handler = EchoHandler()
    told: list[Any] = []
    serving = gevent.spawn(lambda: Upgrader(handler).upgrade_stream(PlainStream(ours)).read_loop())
    client = Client.from_stream(PlainStream(theirs))
    big = os.urandom(200_000)
    for number in range(5):
        client.send(f"{number}")
    writer = gevent.spawn(client.send, big)
    assert [client.receive(timeout=5) for _ in range(6)] == [*"01234", big]
    writer.get(timeout=5)
    served = handler.open.get()
    in_hub(lambda: served.send("from the hub"))
    served.write_async(TEXT, "asynchronous", told.append)
    assert [client.receive(timeout=5) for _ in range(2)] == ["from the hub", "asynchronous"]
    wait_until(lambda: told == [None])
    client.close(4000)
    serving.join(5)
    assert handler.infos[0].received == Close(4000, "")
    assert handler.infos[0].clean


def test_fragments_over_tcp() -> None:
    def stream(conn: Any) -> None:
        conn.write_stream(Opcode.TEXT, ["one ", "two ", "three"])
        conn.write_stream(Opcode.BINARY, [b"4", b"5"])

    with serving(stream) as server, connect(url_of(server)) as conn:
        assert list(conn) == ["one two three", b"45"]


def test_a_prepared_message_larger_than_the_kernel_takes_over_tcp() -> None:
    prepared = PreparedMessage(Opcode.BINARY, bytes(range(256)) * 40_000)

    def write(conn: Any) -> None:
        for _ in range(3):
            conn.write_prepared(prepared)
        conn.write_message(Opcode.BINARY, prepared.payload)
        conn.write_text("after it")

    with serving(write, ServerOptions(write_max_payload_size=2**24)) as server:
        with connect(url_of(server), options=ClientOptions(read_max_payload_size=2**24)) as conn:
            received = list(conn)
    assert [len(one) for one in received] == [10_240_000] * 4 + [8]
    assert all(one == prepared.payload for one in received[:4])
    assert received[4] == "after it"
