"""Reading a message piece by piece: every split, limits, UTF-8, what is skipped, what is interrupted, what was parsed before."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import given

from gws_gevent import (
    ClientOptions,
    Connection,
    ConnectionClosed,
    GwsError,
    Message,
    MessageStream,
    Opcode,
    ProtocolError,
    ServerOptions,
    connect,
)
from gws_gevent.frames import frame_header
from tests.core import BINARY as BINARY_OPCODE
from tests.core import BUILDS, CONT, FIN, PING, SIDES, TEXT, frame, new_protocol
from tests.pairs import Pair, Recorder, paired, serving, url_of
from tests.support import wait_until
from tests.test_protocol_splits import STEADY, cut_streams, story

BINARY = Opcode.BINARY


def raw(first: int, data: bytes) -> bytes:
    """A frame as a client sends it, masked with zeros."""
    return frame_header(first, len(data), bytes(4)) + data


# The core: the same bytes, every split


class Waiting:
    """What the core needs to know of a stream."""

    def __init__(self, max_size: int = 10**9) -> None:
        self.max_size = max_size
        self.skipped = False
        self.opcode: Any = None


def collect(protocol: Any, pieces: list[bytes], stream: Waiting, found: list[Any] | None = None) -> list[Any]:
    """What comes out: "begin", the pieces joined, "end", whole messages and control frames as (opcode, data).

    Args:
        found: what had come out before.
    """
    found = [] if found is None else found
    for piece in pieces:
        messages = protocol.receive(piece, 0, len(piece))
        while messages or protocol.has_more:
            for message in messages:
                if message.data is stream:
                    found.append("end" if "begin" in found else "begin")
                elif message.opcode is not Opcode.CONTINUATION:
                    found.append((int(message.opcode), message.data))
                elif isinstance(found[-1], list):
                    found[-1] = [found[-1][0] + message.data]
                else:
                    found.append([message.data])
            messages = protocol.receive(b"", 0, 0) if protocol.has_more else []
    return found


@BUILDS
@SIDES
@pytest.mark.parametrize("kind", [TEXT, BINARY_OPCODE])
def test_the_same_bytes_in_every_split_are_the_same_message(build: str, side: str, kind: int) -> None:
    payload = "aé€😀".encode() * 2
    data = b"".join(
        (
            frame(side, kind, payload[:3]),
            frame(side, CONT),
            frame(side, CONT, payload[3:9]),
            frame(side, FIN | CONT, payload[9:]),
            frame(side, FIN | TEXT, b"behind"),
        )
    )
    whole = payload.decode() if kind == TEXT else payload
    for at, length in itertools.product(range(len(data)), (0, 1, 2, 7)):
        protocol = new_protocol(build, side, read_max_payload_size=6)
        stream = Waiting()
        protocol.stream_next(stream)
        assert not protocol.incomplete
        found = collect(protocol, [data[:at], data[at : at + length], data[at + length :]], stream)
        assert found == ["begin", [whole], "end", (TEXT, "behind")], (at, length)
        assert stream.opcode == kind
        assert protocol.failure is None
        assert not protocol.incomplete


class Wanting:
    """Reads messages in pieces and puts them together again; `modes` says for each whether it is skipped, or read whole."""

    def __init__(self, build: str, side: str, modes: list[str], **limits: Any) -> None:
        self.protocol = new_protocol(build, side, **limits)
        self.modes = itertools.cycle(modes)
        self.mode = next(self.modes)
        self.events: list[Any] = []
        self.stream: Waiting | None = None
        self.pieces: list[Any] = []
        self.want()

    def want(self) -> None:
        self.stream, self.pieces, self.mode = None, [], next(self.modes)
        if self.mode != "whole":
            self.protocol.stream_next(Waiting())

    def feed(self, data: bytes) -> None:
        while True:
            for message in self.protocol.receive(data, 0, len(data)):
                self.take(message)
            if not self.protocol.has_more:
                return
            data = b""

    def take(self, message: Any) -> None:
        if message.opcode is not Opcode.CONTINUATION:
            self.events.append((int(message.opcode), message.data))
            if self.stream is None and message.opcode < Opcode.CLOSE and not self.waits():
                self.want()
        elif isinstance(message.data, str | bytes):
            assert message.data, "a piece is not empty"
            self.pieces.append(message.data)
        elif self.stream is None:
            self.stream = message.data
            if self.mode == "skipped":
                message.data.skipped = True
        else:
            assert message.data is self.stream
            empty: Any = "" if self.stream.opcode is Opcode.TEXT else b""
            whole = None if self.stream.skipped else empty.join(self.pieces)
            self.events.append((int(self.stream.opcode), whole))
            self.want()

    def waits(self) -> bool:
        partial = self.protocol.partial
        return partial is not None and partial.stream is not None


@pytest.mark.slow
@pytest.mark.parametrize("modes", [["pieces"], ["skipped"], ["whole", "pieces"], ["pieces", "skipped", "whole", "whole"]])
@given(case=cut_streams())
@STEADY
def test_pieces_put_together_are_what_is_received_whole(case: tuple[str, bytes, list[int]], modes: list[str]) -> None:
    side, data, cuts = case
    limits: dict[str, Any] = {"check_utf8": "skipped" not in modes}
    expected = story("plain", side, data, [], read_max_payload_size=10_000, max_fragments=1000, **limits)
    for build in ("plain", "compiled"):
        wanting = Wanting(build, side, modes, read_max_payload_size=10_000, max_fragments=1000, **limits)
        for begin, end in itertools.pairwise([0, *sorted(cuts), len(data)]):
            wanting.feed(data[begin:end])
        failure = wanting.protocol.failure
        assert len(wanting.events) == len(expected.events)
        assert all(
            found in (one, (one[0], None)) for found, one in zip(wanting.events, expected.events, strict=True)
        ), (wanting.events, expected.events)
        if expected.failure is None or expected.failure[0] != 1009:
            assert (failure and int(failure.code)) == (expected.failure and expected.failure[0])


@BUILDS
def test_every_fragment_is_a_piece_and_control_frames_stand_between(build: str) -> None:
    protocol = new_protocol(build)
    stream = Waiting()
    protocol.stream_next(stream)
    data = frame("SERVER", TEXT, b"one") + frame("SERVER", FIN | PING, b"p") + frame("SERVER", CONT, b"two")
    data += frame("SERVER", FIN | CONT)
    found = [(int(message.opcode), message.data) for message in protocol.receive(data, 0, len(data))]
    assert found == [(CONT, stream), (CONT, "one"), (PING, b"p"), (CONT, "two"), (CONT, stream)]


@BUILDS
def test_a_message_that_has_begun_is_taken_over_wherever_it_was_cut(build: str) -> None:
    payload = "aé€😀".encode()
    data = frame("SERVER", TEXT, payload[:5]) + frame("SERVER", FIN | CONT, payload[5:]) + frame("SERVER", FIN | TEXT, b"x")
    for at in range(1, len(data) - 7):
        protocol = new_protocol(build)
        assert protocol.receive(data, 0, at) == []
        stream = Waiting()
        protocol.stream_next(stream)
        # From its header on it can begin without more bytes.
        assert protocol.has_more == (at >= 6), at
        found = collect(protocol, [b""], stream)
        assert found[:1] == ["begin"] * (at >= 6), at
        assert collect(protocol, [data[at:]], stream, found) == ["begin", [payload.decode()], "end", (TEXT, "x")], at


@BUILDS
def test_a_message_in_pieces_begins_what_receive_returns(build: str) -> None:
    protocol = new_protocol(build)
    stream = Waiting()
    protocol.stream_next(stream)
    data = frame("SERVER", FIN | PING) * 3 + frame("SERVER", FIN | TEXT, b"x")
    assert [message.data for message in protocol.receive(data, 0, len(data))] == [b""] * 3
    assert [message.data for message in protocol.receive(b"", 0, 0)] == [stream, "x", stream]


@BUILDS
@pytest.mark.parametrize("limits", [{"read_max_payload_size": 20}, {"max_fragments": 1}])
def test_a_frame_that_was_too_big_as_a_part_of_a_message_is_one_of_a_stream(build: str, limits: dict[str, Any]) -> None:
    data = frame("SERVER", FIN | TEXT, b"next is large") + frame("SERVER", BINARY_OPCODE, b"x" * 15)
    data += frame("SERVER", CONT, b"y" * 30) + frame("SERVER", FIN | CONT, b"z")
    protocol = new_protocol(build, **limits)
    assert [message.data for message in protocol.receive(data, 0, len(data))] == ["next is large"]
    assert protocol.failure.code == 1009
    assert not protocol.has_more
    assert 30 < protocol.buffered < len(data)
    stream = Waiting()
    protocol.stream_next(stream)
    assert protocol.failure is None
    assert collect(protocol, [b""], stream) == ["begin", [b"x" * 15 + b"y" * 30 + b"z"], "end"]


@BUILDS
def test_what_was_too_big_is_forgotten_when_the_connection_fails(build: str) -> None:
    protocol = new_protocol(build, read_max_payload_size=20)
    data = frame("SERVER", FIN | TEXT, b"a") + frame("SERVER", FIN | TEXT, b"x" * 30)
    assert len(protocol.receive(data, 0, len(data))) == 1
    assert protocol.buffered == len(data) - 7
    protocol.fail(1009, "too big")
    assert protocol.buffered == 0
    protocol.stream_next(Waiting())
    assert protocol.failure.code == 1009
    assert protocol.receive(data, 0, len(data)) == []
    # With nothing in front of it nobody could have asked: nothing is kept.
    protocol = new_protocol(build, read_max_payload_size=20)
    assert protocol.receive(data, 7, len(data)) == []
    assert (protocol.failure.code, protocol.buffered) == (1009, 0)


@BUILDS
@pytest.mark.parametrize(
    ("max_size", "fails"), [(19, True), (20, False), (0, True)]
)
def test_the_streams_own_limit(build: str, max_size: int, fails: bool) -> None:
    for first in (20, 10, 1, 0):
        protocol = new_protocol(build)
        stream = Waiting(max_size)
        protocol.stream_next(stream)
        data = frame("SERVER", BINARY_OPCODE, b"x" * first) + frame("SERVER", FIN | CONT, b"x" * (20 - first))
        collect(protocol, [data], stream)
        assert (protocol.failure is not None) == fails
        if fails:
            assert (protocol.failure.code, protocol.buffered) == (1009, 0)


@BUILDS
def test_a_limit_is_judged_on_the_header(build: str) -> None:
    protocol = new_protocol(build)
    protocol.stream_next(Waiting(2**62))
    header = b"\x82\xff" + (2**63 - 1).to_bytes(8, "big") + bytes(4)
    assert protocol.receive(header, 0, len(header)) == []
    assert protocol.failure.code == 1009
    protocol = new_protocol(build)
    protocol.stream_next(Waiting(2**63 - 1))
    data = frame("SERVER", BINARY_OPCODE, b"x") + b"\x00" + header[1:]
    protocol.receive(data, 0, len(data))
    assert protocol.failure.code == 1009


@BUILDS
def test_a_message_that_has_begun_obeys_the_streams_limit(build: str) -> None:
    protocol = new_protocol(build)
    data = frame("SERVER", FIN | BINARY_OPCODE, b"x" * 20)
    assert protocol.receive(data, 0, 15) == []
    stream = Waiting(19)
    protocol.stream_next(stream)
    assert protocol.receive(data, 15, len(data)) == []
    assert protocol.failure.code == 1009


BAD_TEXT = {
    "a bad byte": [b"good \xff"],
    "a character cut by the end": [b"good \xe2\x82"],
    "a character that goes on wrong in the next fragment": [b"good \xe2\x82", b"a"],
    "a surrogate over two fragments": [b"\xed", b"\xa0\x80"],
}


@BUILDS
@pytest.mark.parametrize("what", BAD_TEXT)
def test_text_is_checked_across_fragments(build: str, what: str) -> None:
    *front, last = BAD_TEXT[what]
    frames = [frame("SERVER", TEXT if at == 0 else CONT, one) for at, one in enumerate(front)]
    frames.append(frame("SERVER", FIN | (CONT if front else TEXT), last))
    for pieces in ([b"".join(frames)], frames, [bytes([byte]) for byte in b"".join(frames)]):
        protocol = new_protocol(build)
        stream = Waiting()
        protocol.stream_next(stream)
        assert "end" not in collect(protocol, pieces, stream)
        assert protocol.failure.code == 1007
    protocol = new_protocol(build, check_utf8=False)
    stream = Waiting()
    protocol.stream_next(stream)
    found = collect(protocol, frames, stream)
    assert found[-1] == "end"
    assert "\ufffd" in found[1][0]


@BUILDS
def test_a_stream_that_is_not_wanted_any_more_is_passed_over(build: str) -> None:
    protocol = new_protocol(build)
    one, two = Waiting(), Waiting()
    protocol.stream_next(one)
    head = frame("SERVER", TEXT, b"first")
    assert len(protocol.receive(head, 0, len(head))) == 2
    protocol.stream_next(two)
    assert one.skipped
    rest = frame("SERVER", CONT, b"\xff not even text") + frame("SERVER", FIN | CONT, b"x") + frame("SERVER", FIN | TEXT, b"second")
    messages = protocol.receive(rest, 0, len(rest))
    assert [message.data for message in messages] == [one]
    messages = protocol.receive(b"", 0, 0)
    assert [message.data for message in messages] == [two, "second", two]
    assert not protocol.incomplete


@BUILDS
def test_many_control_frames_come_in_batches(build: str) -> None:
    protocol = new_protocol(build)
    stream = Waiting()
    protocol.stream_next(stream)
    pings = frame("SERVER", FIN | PING) * 3000
    found = collect(protocol, [pings + frame("SERVER", FIN | TEXT, b"x"), pings], stream)
    assert found == [(PING, b"")] * 3000 + ["begin", ["x"], "end"] + [(PING, b"")] * 3000


@BUILDS
def test_a_close_frame_in_the_middle(build: str) -> None:
    protocol = new_protocol(build)
    stream = Waiting()
    protocol.stream_next(stream)
    data = frame("SERVER", TEXT, b"x") + frame("SERVER", 0x88) + frame("SERVER", FIN | CONT, b"y")
    assert [message.data for message in protocol.receive(data, 0, len(data))] == [stream, "x", b""]
    assert protocol.partial is None
    protocol.stream_next(Waiting())
    assert protocol.partial is None


# Connections


def collecting(found: list[Any], **how: Any) -> Any:
    def collect_all(conn: Connection) -> None:
        while True:
            try:
                stream = conn.receive_stream(**how)
                pieces: list[Any] = list(stream)
            except ConnectionClosed as closed:
                found.append(closed)
                return
            found.append((stream.opcode, "".join(pieces) if stream.opcode == Opcode.TEXT else b"".join(pieces)))

    return collect_all


def test_messages_of_every_kind_over_tcp() -> None:
    sent: list[Any] = ["text ✓", b"\x00\xff", "", b"", "é" * 200_000, os.urandom(300_000), "x"]
    found: list[Any] = []
    with serving(collecting(found), ServerOptions(read_max_payload_size=10)) as server, connect(url_of(server)) as conn:
        for data in sent:
            conn.send(data)
        conn.write_stream(Opcode.TEXT, ["in ", "", "fragments ", "€"])
        conn.close()
        wait_until(lambda: len(found) == len(sent) + 2)
    assert [data for _, data in found[:-2]] == sent
    assert found[-2] == (Opcode.TEXT, "in fragments €")
    assert isinstance(found[-1], ConnectionClosed)
    assert found[-1].info.clean


def test_a_client_reads_pieces_too() -> None:
    def speak(conn: Connection) -> None:
        conn.write_stream(BINARY, [b"a" * 70_000, b"b"])
        conn.send("whole")

    with serving(speak) as server, connect(url_of(server)) as conn:
        stream = conn.receive_stream(timeout=5)
        assert (stream.opcode, b"".join(stream)) == (BINARY, b"a" * 70_000 + b"b")
        assert list(stream) == []
        assert conn.receive(timeout=5) == "whole"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["one frame", "fragments"])
def test_a_message_larger_than_memory_should_hold(way: str) -> None:
    """100 MB go by; what the process needs at most grows by a few of them."""
    piece = os.urandom(64 * 1024)
    count = 1600
    size = count * len(piece)
    received = 0

    def swallow(conn: Connection) -> None:
        nonlocal received
        for data in conn.receive_stream():
            received += len(data)
        conn.send(str(received))

    # A server's frames are not masked: sent by the raw stream, one frame of any size costs nothing here.
    with paired(lambda conn: None, client_options=ClientOptions(ping_interval=None)) as warm:
        warm.client.close()
    with serving(swallow, ServerOptions(read_max_payload_size=1000, max_fragments=10)) as server, connect(url_of(server)) as conn:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if way == "fragments":
            conn.write_stream(BINARY, (piece for _ in range(count)))
        else:
            conn.stream.send_all(frame_header(0x82, size, bytes(4)))
            for _ in range(count):
                conn.stream.send_all(piece)
        assert conn.receive(timeout=60) == str(size)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_a_slow_reader_slows_its_peer_down() -> None:
    begun, go_on = Event(), Event()
    total: list[int] = []

    def slow(conn: Connection) -> None:
        stream = conn.receive_stream()
        size = len(next(stream))
        begun.set()
        go_on.wait(5)
        total.append(size + sum(len(piece) for piece in stream))

    sent: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield bytes(10_000)

    with paired(slow, capacity=10_000, client_options=ClientOptions(write_high_water=10_000)) as pair:
        writer = gevent.spawn(pair.client.write_stream, BINARY, pieces())
        begun.wait(5)
        gevent.sleep(0.01)
        assert len(sent) < 10
        go_on.set()
        writer.get(timeout=5)
        wait_until(lambda: total)
    assert total == [1_000_000]


def test_pings_are_answered_between_pieces() -> None:
    client = Recorder()
    found: list[Any] = []
    with paired(collecting(found), client_handler=client) as pair:
        pair.client.stream.send_all(raw(0x01, b"a") + raw(0x89, b"between") + raw(0x80, b"b"))
        wait_until(lambda: found)
    assert found[0] == (Opcode.TEXT, "ab")
    assert ("pong", b"between") in client.events


def test_a_large_message_glued_to_a_small_one() -> None:
    """The usual protocol of an upload: a few words, and the file right behind them in the same segment."""
    found: list[Any] = []

    def upload(conn: Connection) -> None:
        for words in conn:
            found.append(words)
            found.append(b"".join(conn.receive_stream()))

    with paired(upload, ServerOptions(read_max_payload_size=100)) as pair:
        for number in range(3):
            pair.client.stream.send_all(raw(0x81, b"a file") + raw(0x82, bytes(5000)) + raw(0x81, b"and") + raw(0x82, b"small"))
            wait_until(lambda number=number: len(found) == 4 * (number + 1))
        pair.client.stream.send_all(raw(0x81, b"a file") + raw(0x82, bytes(5000))[:1000])
        wait_until(lambda: len(found) == 13)
        pair.client.stream.send_all(raw(0x82, bytes(5000))[1000:] + raw(0x81, b"the end"))
        wait_until(lambda: len(found) == 15)
    assert found == ["a file", bytes(5000), "and", b"small"] * 3 + ["a file", bytes(5000), "the end"]


def test_a_message_that_nobody_streams_is_still_too_big() -> None:
    received: list[Any] = []

    def read(conn: Connection) -> None:
        received.extend(conn)

    with paired(read, ServerOptions(read_max_payload_size=100)) as pair:
        pair.client.stream.send_all(raw(0x81, b"small") + raw(0x82, bytes(5000)))
        with pytest.raises(ConnectionClosed) as closed:
            pair.client.receive(timeout=5)
    assert received == ["small"]
    assert closed.value.info.code == 1009


def test_a_message_that_had_come_whole_is_one_piece() -> None:
    found: list[Any] = []

    def read(conn: Connection) -> None:
        found.append(conn.receive())
        stream = conn.receive_stream()
        found.append((stream.opcode, list(stream)))
        found.append([list(conn.receive_stream()), conn.receive()])

    with paired(read) as pair:
        pair.client.stream.send_all(raw(0x81, b"1") + raw(0x82, b"2") + raw(0x81, b"") + raw(0x81, b"4"))
        wait_until(lambda: len(found) == 3)
    assert found == ["1", (BINARY, [b"2"]), [[], "4"]]


# What is left unread


def big_then_small(pair: Pair) -> None:
    frames = [raw(0x01, b"a" * 1000), *(raw(0x00, b"b" * 1000) for _ in range(50)), raw(0x80, b"c"), raw(0x81, b"behind")]
    writer = gevent.spawn(pair.client.stream.send_all, b"".join(frames))
    wait_until(lambda: writer.dead)


LEFT = {
    "at once": 0,
    "after the first piece": 1,
    "in the middle": 20,
    "before the last piece": 51,
}


@pytest.mark.parametrize("capacity", [1000, 100_000])
@pytest.mark.parametrize("where", LEFT)
@pytest.mark.parametrize("next_read", ["receive", "receive_stream", "iteration"])
def test_the_rest_that_is_not_read_is_skipped(where: str, capacity: int, next_read: str) -> None:
    found: list[Any] = []

    def read(conn: Connection) -> None:
        stream = conn.receive_stream()
        for _ in range(LEFT[where]):
            next(stream)
        if next_read == "receive":
            found.append(conn.receive())
        elif next_read == "iteration":
            found.append(next(conn))
        else:
            found.append("".join(conn.receive_stream()))
        with pytest.raises(GwsError, match="skipped"):
            next(stream)
        found.append("over")

    with paired(read, ServerOptions(read_max_payload_size=100), capacity=capacity) as pair:
        big_then_small(pair)
        wait_until(lambda: len(found) == 2)
    assert found == ["behind", "over"]


def test_a_handler_may_read_the_next_message_in_pieces() -> None:
    found: list[Any] = []

    class Uploads(Recorder):
        def on_message(self, conn: Connection, message: Message) -> None:
            super().on_message(conn, message)
            if message.data == "take":
                found.append("".join(conn.receive_stream()))
            elif message.data == "leave":
                found.append(next(conn.receive_stream())[:1])

    handler = Uploads()
    with paired(handler, ServerOptions(read_max_payload_size=100)) as pair:
        for words in (b"take", b"leave", b"take"):
            pair.client.stream.send_all(raw(0x81, words))
            big_then_small(pair)
        wait_until(lambda: len(handler.messages) == 6)
    assert handler.messages == ["take", "behind", "leave", "behind", "take", "behind"]
    assert [len(one) for one in found] == [51_001, 1, 51_001]


def test_closing_in_the_middle_passes_over_the_rest() -> None:
    def read(conn: Connection) -> None:
        next(conn.receive_stream())
        conn.close(4000, "enough")

    with paired(read, capacity=1000) as pair:
        pair.client.stream.send_all(raw(0x01, b"a"))
        assert list(pair.client) == []
        assert pair.client.close_info is not None
        assert pair.client.close_info.code == 4000
        assert pair.client.close_info.clean


# Interrupted


def test_a_timeout_before_the_message_begins_loses_nothing() -> None:
    with paired(Recorder()) as pair:
        for send in (lambda: pair.server.send("whole"), lambda: pair.server.write_stream(Opcode.TEXT, ["wh", "ole"])):
            for _ in range(2):
                with pytest.raises(TimeoutError, match="no message within"):
                    pair.client.receive_stream(timeout=0.005)
            send()
            assert pair.client.receive(timeout=5) == "whole"
            with pytest.raises(TimeoutError):
                pair.client.receive_stream(timeout=0)
            send()
            assert "".join(pair.client.receive_stream(timeout=5)) == "whole"  # type: ignore[arg-type]


def test_timeouts_between_pieces_lose_nothing() -> None:
    found: list[Any] = []
    waits: list[int] = []

    def patient(conn: Connection) -> None:
        stream = None
        while stream is None:
            try:
                stream = conn.receive_stream(timeout=0.001)
            except TimeoutError:
                waits.append(0)
        while True:
            with gevent.Timeout(0.001, False):
                for piece in stream:
                    found.append(piece)
                found.append(None)
                return
            waits.append(1)

    data = raw(0x01, "é€".encode()) + raw(0x89, b"") + raw(0x80, b"z")
    with paired(patient) as pair:
        for at in range(len(data)):
            before = len(waits)
            pair.client.stream.send_all(data[at : at + 1])
            wait_until(lambda before=before: len(waits) > before + 1 or found[-1:] == [None])
        wait_until(lambda: found[-1:] == [None])
    assert found == ["é", "€", "z", None]


@pytest.mark.slow
def test_a_waiting_stream_has_no_message_clock_and_a_message_is_timed_from_piece_to_piece() -> None:
    found: list[Any] = []
    options = ServerOptions(message_timeout=0.3)
    with paired(collecting(found), options, client_options=ClientOptions(ping_interval=None)) as pair:
        for _ in range(6):
            pair.client.write_ping(b"only a ping")
            gevent.sleep(0.1)
        pair.client.stream.send_all(raw(0x01, b"a"))
        for _ in range(6):
            gevent.sleep(0.1)
            pair.client.stream.send_all(raw(0x00, b"b"))
        pair.client.stream.send_all(raw(0x80, b"c"))
        wait_until(lambda: found)
        assert found == [(Opcode.TEXT, "abbbbbbc")]
        pair.client.stream.send_all(raw(0x01, b"and then nothing"))
        wait_until(lambda: len(found) == 2)
    assert isinstance(found[1], ConnectionClosed)
    assert "more than 0.3 seconds" in str(found[1].info.error)


# The end


@pytest.mark.parametrize("end", ["abort", "close frame", "end of stream"])
def test_a_message_that_is_cut_off_by_the_end_raises(end: str) -> None:
    found: list[Any] = []
    with paired(collecting(found)) as pair:
        pair.client.stream.send_all(raw(0x01, b"a") + (raw(0x88, b"\x03\xe8") if end == "close frame" else b""))
        gevent.sleep(0)
        if end == "abort":
            pair.client.abort()
        elif end == "end of stream":
            pair.client.stream.shutdown_write()
        wait_until(lambda: found)
    assert isinstance(found[0], ConnectionClosed)


BAD = {
    "text": (raw(0x01, b"good") + raw(0x80, b"\xff"), 1007),
    "a fragment out of order": (raw(0x01, b"good") + raw(0x81, b"new"), 1002),
    "reserved bits": (raw(0x01, b"good") + raw(0xC0, b"x"), 1002),
    "too much": (raw(0x01, b"good") + raw(0x80, bytes(1000)), 1009),
    "an unmasked frame": (raw(0x01, b"good") + b"\x80\x01x", 1002),
}


@pytest.mark.parametrize("what", BAD)
def test_a_message_that_breaks_a_rule_fails_the_connection(what: str) -> None:
    data, code = BAD[what]
    pieces: list[Any] = []
    errors: list[ConnectionClosed] = []

    def read(conn: Connection) -> None:
        stream = conn.receive_stream(max_size=1000)
        try:
            for piece in stream:
                pieces.append(piece)
        except ConnectionClosed as closed:
            errors.append(closed)

    with paired(read) as pair:
        pair.client.stream.send_all(data)
        assert list(pair.client) == []
        assert pair.client.close_info is not None
        assert pair.client.close_info.code == code
        wait_until(lambda: errors)
    assert pieces == ["good"]
    assert isinstance(errors[0].info.error, ProtocolError)


@pytest.mark.parametrize("data", [b"x" * 11, "é" * 6])
def test_a_message_that_had_come_whole_obeys_the_streams_limit(data: Any) -> None:
    errors: list[ConnectionClosed] = []

    def read(conn: Connection) -> None:
        conn.receive()
        with pytest.raises(ConnectionClosed) as closed:
            conn.receive_stream(max_size=10)
        errors.append(closed.value)

    payload = data.encode() if isinstance(data, str) else data
    with paired(read) as pair:
        pair.client.stream.send_all(raw(0x81, b"1") + raw(0x81 if isinstance(data, str) else 0x82, payload))
        assert list(pair.client) == []
        assert pair.client.close_info is not None
        assert pair.client.close_info.code == 1009
        wait_until(lambda: errors)


def test_wrong_use() -> None:
    with paired(Recorder()) as pair:
        with pytest.raises(ValueError, match="max_size"):
            pair.client.receive_stream(max_size=-1)
        for wrong in ("1", 1e6):
            with pytest.raises(TypeError, match="max_size"):
                pair.client.receive_stream(max_size=wrong)  # type: ignore[arg-type]
        first = gevent.spawn(pair.client.receive_stream)
        gevent.sleep(0)
        with pytest.raises(GwsError, match="another greenlet is reading"):
            pair.client.receive_stream()
        pair.server.write_stream(Opcode.TEXT, ["a"])
        stream = first.get(timeout=5)
        assert isinstance(stream, MessageStream)
        reading = gevent.spawn(list, stream)
        gevent.sleep(0)
        assert reading.get(timeout=5) == ["a"]
        for bound in (None, 2**63, 2**200):
            pair.server.send("unbounded")
            assert list(pair.client.receive_stream(max_size=bound, timeout=5)) == ["unbounded"]
        pair.server.abort()
        with pytest.raises(ConnectionClosed):
            pair.client.receive_stream()
