"""Compressed messages piece by piece: any split, slices that are bounded, contexts, what is skipped, bombs, what is cut off."""

from __future__ import annotations

import itertools
import os
import tracemalloc
import zlib
from typing import Any

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent import ClientOptions, Connection, ConnectionClosed, Opcode, PermessageDeflate, ServerOptions
from gws_gevent.extensions.deflate import OUTPUT_SLICE
from gws_gevent.frames import frame_header
from tests.core import BINARY, BUILDS, CONT, FIN, PING, TEXT, frame, outcome
from tests.pairs import paired
from tests.support import wait_until
from tests.test_compression import NOISE, PROSE, RSV1, compressed_streams, new_protocol, pack
from tests.test_receive_stream import Waiting, collect

MIB = 1024 * 1024
KEEP = pytest.mark.parametrize("keep", [False, True])


def raw(first: int, data: bytes) -> bytes:
    """A frame as a client sends it, masked with zeros."""
    return frame_header(first, len(data), bytes(4)) + data


def waiting(protocol: Any, max_size: int = 10**9) -> Waiting:
    stream = Waiting(max_size)
    protocol.stream_next(stream)
    return stream


def slices(protocol: Any, data: bytes) -> list[list[Any]]:
    """The pieces that each call gives."""
    found = [protocol.receive(data, 0, len(data))]
    while protocol.has_more:
        found.append(protocol.receive(b"", 0, 0))
    return [[one.data for one in messages if isinstance(one.data, str | bytes)] for messages in found]


@BUILDS
@KEEP
def test_the_same_bytes_in_every_split_are_the_same_message(build: str, keep: bool) -> None:
    text = PROSE + "é€😀" * 20
    packed = pack(text)
    parts = [packed[:1], b"", packed[1:90], packed[90:]]
    data = b"".join(
        frame("SERVER", (RSV1 | TEXT if at == 0 else CONT) | (FIN if at == 3 else 0), part) for at, part in enumerate(parts)
    )
    data += frame("SERVER", FIN | TEXT, b"behind")
    expected = ["begin", [text], "end", (TEXT, "behind")]
    for at, length in itertools.product(range(0, len(data), 11), (0, 1, 40)):
        protocol = new_protocol(build, "SERVER", keep, read_max_payload_size=6)
        stream = waiting(protocol)
        assert collect(protocol, [data[:at], data[at : at + length], data[at + length :]], stream) == expected, (at, length)
        assert protocol.failure is None
        assert not protocol.incomplete
    # Taken over where it was cut, as a message that was to come whole.
    for at in range(1, len(data) - 12, 13):
        protocol = new_protocol(build, "SERVER", keep)
        assert protocol.receive(data, 0, at) == []
        stream = waiting(protocol)
        found = collect(protocol, [b"", data[at:]], stream)
        assert found == expected, at


@pytest.mark.slow
@given(case=compressed_streams(), keep=st.booleans())
@settings(derandomize=True, deadline=None, database=None, max_examples=150)
def test_pieces_put_together_are_what_is_received_whole(case: tuple[bytes, list[int]], keep: bool) -> None:
    data, cuts = case
    for build in ("plain", "compiled"):
        options: dict[str, Any] = {"read_max_payload_size": 400, "max_fragments": 9}
        expected, failed = outcome(new_protocol(build, "SERVER", keep, **options), data)
        for edges in ([0, len(data)], [0, *cuts, len(data)], list(range(len(data) + 1))):
            protocol = new_protocol(build, "SERVER", keep, **options)
            events: list[Any] = []
            stream = waiting(protocol, 400)
            pieces: list[Any] | None = None
            for begin, end in itertools.pairwise(edges):
                messages = protocol.receive(data, begin, end)
                while messages or protocol.has_more:
                    for message in messages:
                        if message.data is stream and pieces is None:
                            pieces = []
                        elif message.data is stream and pieces is not None:
                            empty: Any = "" if stream.opcode is Opcode.TEXT else b""
                            events.append((int(stream.opcode), empty.join(pieces)))
                            stream, pieces = waiting(protocol, 400), None
                        elif message.opcode is Opcode.CONTINUATION and pieces is not None:
                            assert message.data
                            pieces.append(message.data)
                        else:
                            events.append((int(message.opcode), message.data))
                            if message.opcode < Opcode.CLOSE:
                                # It was parsed before anybody asked: the next one is to come in pieces.
                                protocol.stream_next(stream)
                    messages = protocol.receive(b"", 0, 0) if protocol.has_more else []
            assert [one for one in events if one[0] < PING] == [one for one in expected if one[0] < PING]
            assert (protocol.failure is None) == (failed is None)


# Slices


@BUILDS
@KEEP
def test_a_slice_at_a_time_is_inflated(build: str, keep: bool) -> None:
    """5 MB of zeros, 5 KB on the wire, in one read: nothing is inflated that was not asked for."""
    bomb = pack(bytes(5 * MIB), 9)
    protocol = new_protocol(build, "SERVER", keep, read_max_payload_size=100)
    waiting(protocol)
    data = frame("SERVER", FIN | RSV1 | BINARY, bomb) + frame("SERVER", FIN | BINARY, b"behind")
    messages = protocol.receive(data, 0, len(data))
    assert sum(len(one.data) for one in messages if isinstance(one.data, bytes)) <= OUTPUT_SLICE
    assert protocol.buffered < 2 * len(data)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        size = len(messages[1].data)
        while size < 5 * MIB:
            (piece,) = protocol.receive(b"", 0, 0)
            assert len(piece.data) <= OUTPUT_SLICE
            size += len(piece.data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 6 * OUTPUT_SLICE
    assert size == 5 * MIB
    assert protocol.has_more
    end, behind = protocol.receive(b"", 0, 0), []
    while protocol.has_more:
        behind += protocol.receive(b"", 0, 0)
    assert [one.data for one in end[1:] + behind] == [b"behind"]


@BUILDS
def test_many_small_fragments_that_inflate_to_much_come_in_slices(build: str) -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [compressor.compress(bytes(30_000)) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(100)]
    data = b"".join(frame("SERVER", RSV1 | BINARY if at == 0 else CONT, part) for at, part in enumerate(parts))
    protocol = new_protocol(build, "SERVER")
    waiting(protocol)
    found = slices(protocol, data)
    assert max(sum(map(len, one)) for one in found) < OUTPUT_SLICE + 30_000
    assert sum(len(piece) for one in found for piece in one) == 3_000_000
    assert max(len(one) for one in found) <= 3


@BUILDS
@KEEP
@pytest.mark.parametrize("size", [1, OUTPUT_SLICE - 1, OUTPUT_SLICE, OUTPUT_SLICE + 1, 300_000])
def test_the_streams_limit_counts_what_it_inflates_to_and_what_arrives(build: str, keep: bool, size: int) -> None:
    for source in (bytes(size), os.urandom(size)):
        packed = pack(source)
        for first in (0, 1, len(packed)):
            data = frame("SERVER", RSV1 | BINARY, packed[:first]) + frame("SERVER", FIN | CONT, packed[first:])
            for limit in (size - 1, max(size, len(packed))):
                protocol = new_protocol(build, "SERVER", keep)
                waiting(protocol, limit)
                got = sum(len(piece) for one in slices(protocol, data) for piece in one)
                if limit < size:
                    assert protocol.failure.code == 1009
                    assert got <= limit
                    assert protocol.partial is None
                else:
                    assert (protocol.failure, got) == (None, size)


@BUILDS
@KEEP
def test_what_is_cut_off_or_broken(build: str, keep: bool) -> None:
    text = PROSE.encode() * 30
    packed = pack(text, 6)
    for damaged in (packed[:-1], packed[:-20], packed[: len(packed) // 2], b"\xff\xff", packed + b"x", packed[:100] + b"\xff" * 9):
        protocol = new_protocol(build, "SERVER", keep)
        stream = waiting(protocol)
        found = collect(protocol, [frame("SERVER", FIN | RSV1 | TEXT, damaged)], stream)
        assert "end" not in found
        assert (protocol.failure.code, str(protocol.failure)) == (1007, "message does not inflate")
        if packed.startswith(damaged):
            assert text.decode().startswith(found[1][0]), "what came before is given out"
        assert protocol.receive(b"", 0, 0) == []


@BUILDS
def test_text_is_checked_across_slices_and_fragments(build: str) -> None:
    text = "x" + "é" * OUTPUT_SLICE  # a slice ends inside of a character
    protocol = new_protocol(build, "SERVER")
    stream = waiting(protocol)
    assert collect(protocol, [frame("SERVER", FIN | RSV1 | TEXT, pack(text))], stream)[1] == [text]
    for bad in (b"good \xff", b"good \xe2\x82", b"x" * OUTPUT_SLICE + b"\xc3"):
        protocol = new_protocol(build, "SERVER")
        stream = waiting(protocol)
        assert "end" not in collect(protocol, [frame("SERVER", FIN | RSV1 | TEXT, pack(bad))], stream)
        assert (protocol.failure.code, str(protocol.failure)) == (1007, "text is not UTF-8")
    protocol = new_protocol(build, "SERVER", check_utf8=False)
    stream = waiting(protocol)
    found = collect(protocol, [frame("SERVER", FIN | RSV1 | TEXT, pack(b"a\xff\xe2"))], stream)
    assert found[1:] == [["a\ufffd\ufffd"], "end"]


@BUILDS
@KEEP
def test_a_message_of_nothing_and_one_of_several_streams(build: str, keep: bool) -> None:
    first, second = (zlib.compressobj(1, zlib.DEFLATED, -15, zdict=past) for past in (b"", PROSE.encode()))
    twice = first.compress(PROSE.encode()) + first.flush(zlib.Z_FINISH)
    twice += second.compress(PROSE.encode()) + second.flush(zlib.Z_SYNC_FLUSH)
    protocol = new_protocol(build, "SERVER", keep)
    for packed, expected in ((b"", ""), (b"\x00", ""), (twice[:-4], PROSE * 2), (pack("on"), "on")):
        stream = waiting(protocol)
        found = collect(protocol, [frame("SERVER", FIN | RSV1 | TEXT, packed)], stream)
        assert found == ["begin", *([[expected]] if expected else []), "end"]


# What is skipped


@BUILDS
@KEEP
def test_what_is_skipped_is_inflated_only_where_later_messages_refer_to_it(build: str, keep: bool) -> None:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = [(compressor.compress(one) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for one in (NOISE * 200, NOISE)]
    if not keep:
        packed[1] = pack(NOISE)
    protocol = new_protocol(build, "SERVER", keep)
    stream = waiting(protocol)
    data = frame("SERVER", RSV1 | BINARY, packed[0][:900])
    assert len(protocol.receive(data, 0, len(data))) == 2
    protocol.skip_stream()
    partial = protocol.partial
    data = frame("SERVER", FIN | CONT, packed[0][900:])
    rounds = 1
    found = [one.data for one in protocol.receive(data, 0, len(data))]
    while protocol.has_more:
        rounds += 1
        found += [one.data for one in protocol.receive(b"", 0, 0)]
    assert found == [stream]
    assert (partial.inflated > 390_000) == keep
    assert (rounds > 5) == keep, "a bomb that nobody wants is inflated in slices as well"
    data = frame("SERVER", FIN | RSV1 | BINARY, packed[1])
    assert [one.data for one in protocol.receive(data, 0, len(data))] == [NOISE]


@BUILDS
@KEEP
@pytest.mark.parametrize("fragmented", [False, True])
def test_a_message_that_inflates_to_too_much_may_still_be_taken_in_pieces(build: str, keep: bool, fragmented: bool) -> None:
    """Glued behind a small one, whose reader has not yet said that it takes the next one in pieces."""
    packed, big = [pack("small"), pack(bytes(5000))], frame("SERVER", FIN | RSV1 | BINARY, pack(bytes(5000)))
    if fragmented:
        big = frame("SERVER", RSV1 | BINARY, packed[1][:5]) + frame("SERVER", FIN | CONT, packed[1][5:])
    data = frame("SERVER", FIN | RSV1 | TEXT, packed[0]) + big + frame("SERVER", FIN | TEXT, b"behind")
    protocol = new_protocol(build, "SERVER", keep, read_max_payload_size=100)
    assert [one.data for one in protocol.receive(data, 0, len(data))] == ["small"]
    assert (protocol.failure, protocol.has_more) == (None, True)
    stream = waiting(protocol)
    assert collect(protocol, [b""], stream) == ["begin", [bytes(5000)], "end", (TEXT, "behind")]
    # Nobody says so: it is too big.
    protocol = new_protocol(build, "SERVER", keep, read_max_payload_size=100)
    assert len(protocol.receive(data, 0, len(data))) == 1
    assert protocol.receive(b"", 0, 0) == []
    assert protocol.failure.code == 1009
    # What cannot be too big is parsed with the rest.
    protocol = new_protocol(build, "SERVER", keep)
    assert len(protocol.receive(data, 0, len(data))) == 3


# Connections


def deflating(keep: bool = False, **options: Any) -> tuple[ServerOptions, None, ClientOptions]:
    made = PermessageDeflate(client_context_takeover=keep, server_context_takeover=keep, threshold=1)
    return ServerOptions(permessage_deflate=made, **options), None, ClientOptions(permessage_deflate=made)


@KEEP
def test_compressed_messages_in_pieces_and_skipped_ones(keep: bool) -> None:
    """The text of each refers to the one before, where a context is kept: one that was skipped must have been inflated too."""
    text = "the same text again and again, with an é in it; " * 4000
    found: list[Any] = []

    def read(conn: Connection) -> None:
        for number in range(4):
            stream = conn.receive_stream()
            if number != 1:
                pieces: list[Any] = list(stream)
                assert number or len(pieces) > 1, "what had come whole before is one piece"
                assert all(pieces)
                found.append((stream.opcode, "".join(pieces) if stream.opcode is Opcode.TEXT else b"".join(pieces)))
        found.append(conn.receive())

    with paired(read, *deflating(keep)) as pair:
        assert "permessage-deflate" in pair.client.extensions
        pair.client.send(text)
        pair.client.send(text + "skipped")
        pair.client.write_stream(Opcode.TEXT, [text[:100], text[100:]])
        pair.client.send(text.encode())
        pair.client.send(text)
        wait_until(lambda: len(found) == 4, what="the messages")
    assert found == [(Opcode.TEXT, text), (Opcode.TEXT, text), (Opcode.BINARY, text.encode()), text]


def test_fragments_are_given_out_as_they_come() -> None:
    found: list[Any] = []

    def read(conn: Connection) -> None:
        found.extend(conn.receive_stream())

    with paired(read, *deflating(read_max_payload_size=10)) as pair:
        compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
        for at, part in enumerate([PROSE, "é" * 100, PROSE]):
            data = compressor.compress(part.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH)
            pair.client.stream.send_all(raw((RSV1 | TEXT) if at == 0 else CONT, data))
            wait_until(lambda at=at: len(found) == at + 1, what="a piece")
        assert found == [PROSE, "é" * 100, PROSE]
        pair.client.stream.send_all(raw(FIN | CONT, b"\x00"))


@pytest.mark.parametrize("fragments", [False, True])
def test_max_size_bounds_what_a_message_inflates_to(fragments: bool) -> None:
    """And `read_max_payload_size` does not, as for a message that is not compressed."""
    sizes: list[int] = []
    caught: list[Exception] = []

    def read(conn: Connection) -> None:
        try:
            for max_size in (12_000, 11_999):
                sizes.append(0)
                for piece in conn.receive_stream(max_size):
                    sizes[-1] += len(piece)
        except ConnectionClosed as error:
            caught.append(error)

    with paired(read, *deflating(read_max_payload_size=100)) as pair:
        for _ in range(2):
            if fragments:
                pair.client.write_stream(Opcode.BINARY, [bytes(6000), bytes(6000)])
            else:
                pair.client.send(bytes(12_000))
        with pytest.raises(ConnectionClosed):
            pair.client.receive(timeout=5)
        wait_until(lambda: caught, what="the end")
        assert pair.client.close_info is not None
        assert pair.client.close_info.received is not None
        assert pair.client.close_info.received.code == 1009
    assert sizes == [12_000, 6000 if fragments else 0]


def test_who_inflates_much_lets_others_run_and_goes_on_while_nothing_arrives() -> None:
    """One read that inflates to 20 MB: its reader gives way, and its message is timed from piece to piece."""
    bomb = pack(bytes(20 * MIB), 9)
    ticks, done = 0, False
    sizes: list[int] = []

    def read(conn: Connection) -> None:
        nonlocal done
        sizes.append(sum(len(piece) for piece in conn.receive_stream()))
        conn.receive()
        done = True

    def tick() -> None:
        nonlocal ticks
        while not done:
            ticks += 1
            gevent.sleep(0.0005)

    with paired(read, *deflating(message_timeout=30), capacity=MIB) as pair:
        ticker = gevent.spawn(tick)
        pair.client.stream.send_all(raw(FIN | RSV1 | BINARY, bomb) + raw(FIN | TEXT, b"x"))
        wait_until(lambda: done, 20, what="the end")
        ticker.join()
    assert sizes == [20 * MIB]
    assert ticks > 5


def test_closing_in_the_middle_of_a_bomb_does_not_inflate_the_rest() -> None:
    seen: list[Any] = []

    def read(conn: Connection) -> None:
        stream = conn.receive_stream()
        next(stream)
        partial = conn._protocol.partial if hasattr(conn, "_protocol") else None  # of the plain build
        conn.close(4000)
        with pytest.raises(ConnectionClosed):
            next(stream)
        seen.append(partial.inflated if partial is not None else 0)

    with paired(read, *deflating(), capacity=MIB) as pair:
        pair.client.stream.send_all(raw(FIN | RSV1 | BINARY, pack(bytes(20 * MIB), 9)))
        assert list(pair.client) == []
        assert pair.client.close_info is not None
        assert pair.client.close_info.code == 4000
        wait_until(lambda: seen)
    assert seen[0] <= 2 * OUTPUT_SLICE


@pytest.mark.parametrize("what", ["text", "cut off"])
def test_what_breaks_in_the_middle_ends_its_connection(what: str) -> None:
    codes: list[int | None] = []
    pieces: list[Any] = []

    def read(conn: Connection) -> None:
        try:
            for piece in conn.receive_stream():
                pieces.append(piece)
        except ConnectionClosed:
            codes.append(conn.close_info.sent.code if conn.close_info is not None and conn.close_info.sent else None)

    good = "good " * 50_000
    data = pack(good.encode() + b"\xff") if what == "text" else pack(good)[:-3]
    with paired(read, *deflating()) as pair:
        pair.client.stream.send_all(raw(FIN | RSV1 | TEXT, data))
        with pytest.raises(ConnectionClosed):
            pair.client.receive(timeout=5)
        wait_until(lambda: codes, what="the end")
    assert codes == [1007]
    assert len(pieces) >= 3
    assert good.startswith("".join(pieces))
