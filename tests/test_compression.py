"""Compressed messages on a connection: frames with RSV1, fragments, limits, every way of writing, and what goes over the wire."""

from __future__ import annotations

import gc
import io
import random
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult
from gevent.server import StreamServer
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent import (
    Broadcaster,
    ClientOptions,
    Connection,
    HandshakeError,
    MissingExtra,
    Opcode,
    PermessageDeflate,
    PreparedMessage,
    Rooms,
    Server,
    ServerOptions,
    WriteQueueFull,
    connect,
)
from gws_gevent.extensions.deflate import Compression, Deflate
from gws_gevent.extensions.permessage_deflate import Agreement
from gws_gevent.frames import COMPRESSED, Side
from gws_gevent.handshake import accept_key
from gws_gevent.protocol import MAX_INFLATED
from tests.core import BINARY, BUILDS, CLOSE, CONT, FIN, PING, PONG, SIDES, TEXT, core, frame, outcome
from tests.pairs import CountingStream, EchoHandler, Recorder, paired, serving, url_of
from tests.raw import RawClient, running
from tests.raw import frame as raw_frame
from tests.support import wait_until

RSV1 = COMPRESSED
KIB, MIB = 1024, 1024 * 1024
OFFER = "Sec-WebSocket-Extensions: permessage-deflate"
PROSE = " ".join(f"word{number % 37}" for number in range(300))
NOISE = random.Random(1).randbytes(2000)
NOT_TEXT = (1007, "text is not UTF-8")
NOT_DEFLATE = (1007, "message does not inflate")
TOO_BIG = (1009, "message is too big")
RESERVED_BITS = (1002, "reserved bits are set")


def pack(data: bytes | str, level: int = 1) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (compressor.compress(data if isinstance(data, bytes) else data.encode()) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def unpack(data: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(data + b"\x00\x00\xff\xff")


def options_for(side: str) -> Any:
    return ServerOptions if side == "SERVER" else ClientOptions


def new_protocol(build: str, side: str, keep: bool = False, **options: Any) -> Any:
    set_options = options_for(side)(permessage_deflate=PermessageDeflate(), **options)
    protocol = core(build).Protocol(core(build, "protocol_rules").ProtocolRules(Side[side], set_options))
    protocol.agree(Agreement(not keep, not keep, 15, 15))
    return protocol


# Frames


@BUILDS
@SIDES
def test_messages_with_and_without_rsv1(build: str, side: str) -> None:
    data = b"".join(
        [
            frame(side, FIN | RSV1 | TEXT, pack(PROSE)),
            frame(side, FIN | TEXT, b"as it is"),
            frame(side, FIN | RSV1 | BINARY, pack(NOISE)),
            frame(side, FIN | RSV1 | TEXT, pack("é\U0001d11e")),
            frame(side, FIN | RSV1 | TEXT, b"\x00"),
            frame(side, FIN | BINARY, b"\xff"),
        ]
    )
    expected = [(TEXT, PROSE), (TEXT, "as it is"), (BINARY, NOISE), (TEXT, "é\U0001d11e"), (TEXT, ""), (BINARY, b"\xff")]
    assert outcome(new_protocol(build, side), data) == (expected, None)
    for size in (1, 2, 3, 100):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert outcome(new_protocol(build, side), *pieces) == (expected, None)


@BUILDS
@SIDES
def test_fragments_of_a_compressed_message(build: str, side: str) -> None:
    packed = pack(PROSE)
    data = (
        frame(side, RSV1 | TEXT, packed[:1])
        + frame(side, CONT)
        + frame(side, FIN | PING, b"p")
        + frame(side, CONT, packed[1:50])
        + frame(side, FIN | PONG)
        + frame(side, FIN | CONT, packed[50:])
        + frame(side, BINARY, b"not ")
        + frame(side, FIN | CONT, b"compressed")
    )
    expected = [(PING, b"p"), (PONG, b""), (TEXT, PROSE), (BINARY, b"not compressed")]
    assert outcome(new_protocol(build, side), data) == (expected, None)
    assert outcome(new_protocol(build, side), *(data[at : at + 1] for at in range(len(data)))) == (expected, None)


@BUILDS
@SIDES
@pytest.mark.parametrize(
    "first",
    [
        FIN | RSV1 | PING,
        FIN | RSV1 | PONG,
        FIN | RSV1 | CLOSE,
        FIN | 0x20 | TEXT,
        FIN | 0x10 | TEXT,
        FIN | 0x60 | TEXT,
        FIN | RSV1 | 3,
    ],
)
def test_reserved_bits_that_mean_nothing(build: str, side: str, first: int) -> None:
    expected = (1002, "reserved opcode") if first & 0xF == 3 else RESERVED_BITS
    assert outcome(new_protocol(build, side), frame(side, first)) == ([], expected)
    begun = frame(side, RSV1 | TEXT, pack("x"))
    assert outcome(new_protocol(build, side), begun + frame(side, FIN | RSV1 | CONT)) == ([], RESERVED_BITS)


@BUILDS
@SIDES
def test_rsv1_needs_an_agreement(build: str, side: str) -> None:
    module = core(build)
    for deflate in (None, PermessageDeflate()):
        rules = core(build, "protocol_rules").ProtocolRules(Side[side], options_for(side)(permessage_deflate=deflate))
        assert outcome(module.Protocol(rules), frame(side, FIN | RSV1 | TEXT, pack("x"))) == ([], RESERVED_BITS)


@BUILDS
@pytest.mark.parametrize("fragmented", [False, True])
@pytest.mark.parametrize(
    ("first", "payload", "failure"),
    [
        (TEXT, pack(b"\xff"), NOT_TEXT),
        (TEXT, pack(PROSE.encode() + b"\xc3"), NOT_TEXT),
        (TEXT, b"\xff\xff\xff", NOT_DEFLATE),
        (BINARY, pack(NOISE)[:-2], NOT_DEFLATE),
        (BINARY, pack(bytes(4001)), TOO_BIG),
        (BINARY, pack(bytes(MIB), 9), TOO_BIG),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_what_cannot_be_a_message(
    build: str, fragmented: bool, first: int, payload: bytes, failure: tuple[int, str], keep: bool
) -> None:
    protocol = new_protocol(build, "SERVER", keep, read_max_payload_size=4000)
    good = frame("SERVER", FIN | RSV1 | BINARY, pack(bytes(4000)))
    if fragmented:
        bad = frame("SERVER", RSV1 | first, payload[:1]) + frame("SERVER", FIN | CONT, payload[1:])
    else:
        bad = frame("SERVER", FIN | RSV1 | first, payload)
    assert outcome(protocol, good + bad + good) == ([(BINARY, bytes(4000))], failure)
    assert not protocol.incomplete


@BUILDS
def test_the_compressed_bytes_are_bounded_too(build: str) -> None:
    for pieces in ([bytes(4001)], [bytes(2000), bytes(2001)]):
        opcodes = [RSV1 | BINARY, *[CONT] * (len(pieces) - 1)]
        data = b"".join(frame("SERVER", opcode, piece) for opcode, piece in zip(opcodes, pieces, strict=True))
        assert outcome(new_protocol(build, "SERVER", read_max_payload_size=4000), data) == ([], TOO_BIG)


@BUILDS
def test_text_that_is_not_checked(build: str) -> None:
    data = (
        frame("SERVER", FIN | RSV1 | TEXT, pack(b"a\xff"))
        + frame("SERVER", RSV1 | TEXT)
        + frame("SERVER", FIN | CONT, pack(b"\xc3"))
    )
    assert outcome(new_protocol(build, "SERVER", check_utf8=False), data) == ([(TEXT, "a\ufffd"), (TEXT, "\ufffd")], None)


@BUILDS
def test_with_takeover_messages_refer_to_those_before_in_any_split(build: str) -> None:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    sources = [PROSE.encode(), b"x", PROSE.encode() * 2, NOISE, NOISE]
    packed = [(compressor.compress(source) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4] for source in sources]
    assert len(packed[4]) < 50
    data = b"".join(frame("CLIENT", FIN | RSV1 | BINARY, one) for one in packed)
    expected = [(BINARY, source) for source in sources]
    for size in (len(data), 1, 7, 100):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert outcome(new_protocol(build, "CLIENT", keep=True), *pieces) == (expected, None)
    assert outcome(new_protocol(build, "CLIENT"), data)[1] == NOT_DEFLATE


@BUILDS
@pytest.mark.parametrize("fragmented", [False, True])
def test_a_read_full_of_bombs_is_inflated_one_after_the_other(build: str, fragmented: bool) -> None:
    packed = pack(bytes(MIB), 9)
    bomb = frame("SERVER", FIN | RSV1 | BINARY, packed)
    if fragmented:
        bomb = frame("SERVER", RSV1 | BINARY, packed[:9]) + frame("SERVER", FIN | CONT, packed[9:])
    protocol = new_protocol(build, "SERVER")
    data = bomb * 20
    assert len(data) < 40 * KIB
    messages = protocol.receive(data, 0, len(data))
    rounds = 0
    while messages:
        assert sum(len(message.data) for message in messages) <= MAX_INFLATED + MIB
        rounds += len(messages)
        messages = protocol.receive(b"", 0, 0) if protocol.has_more else []
    assert rounds == 20
    assert not protocol.incomplete
    assert protocol.failure is None


PAYLOADS = st.one_of(
    st.sampled_from([b"", b"a", b"text " * 60, b"\xff", b"\xc3\xa9" * 40, bytes(390), bytes(401)]), st.binary(max_size=60)
)
SELDOM = st.sampled_from([False] * 15 + [True])


@st.composite
def compressed_streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """Messages, whole or in two fragments, compressed or not, some of them damaged; and where to cut them."""
    data = b""
    for _ in range(draw(st.integers(1, 8))):
        opcode, payload, rsv1 = draw(st.sampled_from([TEXT, BINARY])), draw(PAYLOADS), draw(st.sampled_from([0, RSV1, RSV1]))
        payload = pack(payload) if rsv1 else payload
        if draw(SELDOM) and payload:
            place = draw(st.integers(0, len(payload) - 1))
            payload = payload[:place] + bytes([draw(st.integers(0, 255))]) + payload[place + draw(st.integers(0, 1)) :]
        cut = draw(st.integers(-1, len(payload)))
        if cut < 0:
            data += frame("SERVER", FIN | rsv1 | opcode, payload)
        else:
            again = RSV1 if draw(SELDOM) else 0
            between = frame("SERVER", FIN | PING, b"p") if draw(st.booleans()) else b""
            data += frame("SERVER", rsv1 | opcode, payload[:cut]) + between + frame("SERVER", FIN | again | CONT, payload[cut:])
    return data, sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))


@pytest.mark.slow
@given(case=compressed_streams(), keep=st.booleans())
@settings(derandomize=True, deadline=None, database=None, max_examples=400)
def test_any_split_in_both_builds_gives_the_same(case: tuple[bytes, list[int]], keep: bool) -> None:
    data, cuts = case
    found = []
    for build in ("plain", "compiled"):
        for edges in ([0, len(data)], [0, *cuts, len(data)], list(range(len(data) + 1))):
            pieces = [data[begin:end] for begin, end in pairwise(edges)]
            found.append(outcome(new_protocol(build, "SERVER", keep, read_max_payload_size=400, max_fragments=3), *pieces))
    assert all(one == found[0] for one in found)


def test_rules_are_shared_by_all_that_keep_no_context() -> None:
    for build in ("plain", "compiled"):
        rules = core(build, "protocol_rules").ProtocolRules(Side.SERVER, ServerOptions(permessage_deflate=PermessageDeflate()))
        reset, other, kept = Agreement(True, True, 15, 15), Agreement(True, True, 15, 9), Agreement(False, True, 15, 15)
        assert rules.agreed(reset) is rules.agreed(reset)
        assert rules.agreed(reset) is not rules.agreed(other)
        assert rules.agreed(kept) is not rules.agreed(kept)
        assert rules.deflate is None
        assert rules.agreed(reset).max_size == rules.max_size


# Two of ours


COMBINATIONS = list(product((False, True), (False, True), (9, 12, 15), (9, 15)))


@pytest.mark.parametrize(("server_keeps", "client_keeps", "server_bits", "client_bits"), COMBINATIONS)
def test_every_combination_echoes(server_keeps: bool, client_keeps: bool, server_bits: int, client_bits: int) -> None:
    deflate = PermessageDeflate(
        server_context_takeover=server_keeps,
        client_context_takeover=client_keeps,
        server_max_window_bits=server_bits,
        client_max_window_bits=client_bits,
        threshold=0,
    )
    sent: list[Any] = [PROSE, NOISE, "", b"", "x", PROSE, NOISE, bytes(100_000), "é€" * 40_000]
    with paired(EchoHandler(), ServerOptions(permessage_deflate=deflate), None, ClientOptions(permessage_deflate=deflate)) as pair:
        assert ("server_no_context_takeover" in pair.client.extensions) is not server_keeps
        assert ("client_no_context_takeover" in pair.client.extensions) is not client_keeps
        assert f"server_max_window_bits={server_bits}; client_max_window_bits={client_bits}" in pair.client.extensions
        assert pair.server.extensions == pair.client.extensions
        for message in sent:
            pair.client.send(message)
        assert [pair.client.receive(timeout=5) for _ in sent] == sent


@pytest.mark.parametrize("codec", ["isal", "zlib-ng", "auto"])
@pytest.mark.parametrize("keep", [False, True])
def test_other_codecs_echo(codec: str, keep: bool) -> None:
    deflate = PermessageDeflate(codec=codec, server_context_takeover=keep, client_context_takeover=keep)  # type: ignore[arg-type]
    try:
        options = ServerOptions(permessage_deflate=deflate)
        with paired(EchoHandler(), options, None, ClientOptions(permessage_deflate=deflate)) as pair:
            for message in (PROSE, NOISE, PROSE, "é€" * 40_000):
                pair.client.send(message)
                assert pair.client.receive(timeout=5) == message
    except MissingExtra as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(None, PermessageDeflate()), (PermessageDeflate(), None), (PermessageDeflate(), PermessageDeflate(server_max_window_bits=8))],
)
def test_without_agreement_everything_goes_as_it_is(ours: PermessageDeflate | None, theirs: PermessageDeflate | None) -> None:
    server, client = ServerOptions(permessage_deflate=ours), ClientOptions(permessage_deflate=theirs)
    with paired(EchoHandler(), server, None, client, make=CountingStream) as pair:
        assert (pair.server.extensions, pair.client.extensions) == ("", "")
        pair.client.write_message(Opcode.TEXT, PROSE, compress=True)
        assert pair.client.receive(timeout=5) == PROSE
        assert pair.stream.sends[-1][2:].endswith(PROSE.encode())


def in_hub(function: Callable[[], object]) -> None:
    """Run a function in the hub, and raise here what it raises."""
    done: AsyncResult = AsyncResult()

    def run() -> None:
        try:
            done.set(function())
        except Exception as error:
            done.set_exception(error)

    gevent.get_hub().loop.run_callback(run)
    done.get(timeout=5)


# Ways of writing, as they go over the wire


def on_the_wire(write: Any, **options: Any) -> tuple[list[tuple[int, bytes]], list[Any]]:
    """The first byte and payload of each frame that `write(server's connection)` sends, and what the client got."""
    deflate = PermessageDeflate(**options)
    both = ServerOptions(permessage_deflate=deflate), ClientOptions(permessage_deflate=deflate)
    ours = Recorder()
    with paired(Recorder(), both[0], ours, both[1], make=CountingStream) as pair:
        before = len(pair.stream.sends)
        write(pair.server)
        pair.server.write_ping(b"done")
        wait_until(lambda: ("ping", b"done") in ours.events)
        sent = b"".join(pair.stream.sends[before:])
    return [one for one in frames_of(sent) if one[0] & 0xF < CLOSE], ours.messages


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        length, at = data[1], 2
        if length >= 126:
            at = 4 if length == 126 else 10
            length = int.from_bytes(data[2:at], "big")
        found.append((data[0], data[at : at + length]))
        data = data[at + length :]
    return found


def test_the_threshold_decides_and_the_writer_overrides_it() -> None:
    def write(conn: Connection) -> None:
        for compress in (None, True, False):
            conn.write_message(Opcode.TEXT, "a" * 599, compress)
            conn.write_message(Opcode.TEXT, "a" * 600, compress)

    frames, got = on_the_wire(write, threshold=600)
    plain, packed = FIN | TEXT, FIN | RSV1 | TEXT
    assert [first for first, _ in frames] == [plain, packed, packed, packed, plain, plain]
    assert unpack(frames[1][1]) == b"a" * 600
    assert got == ["a" * 599, "a" * 600] * 3


def test_what_does_not_get_smaller_goes_as_it_is() -> None:
    def write(conn: Connection) -> None:
        conn.send(NOISE)
        conn.write_async(Opcode.BINARY, NOISE)
        conn.write_prepared(PreparedMessage(Opcode.BINARY, NOISE))

    frames, got = on_the_wire(write)
    assert [first for first, _ in frames] == [FIN | BINARY] * 3
    assert got == [NOISE, NOISE, NOISE]


def test_what_is_to_be_compressed_is_compressed_though_it_gets_larger() -> None:
    def write(conn: Connection) -> None:
        conn.write_message(Opcode.BINARY, b"x", compress=True)
        conn.write_message(Opcode.TEXT, "", compress=True)

    frames, got = on_the_wire(write)
    assert [first for first, _ in frames] == [FIN | RSV1 | BINARY, FIN | TEXT]
    assert (unpack(frames[0][1]), got) == (b"x", [b"x", ""])


def test_every_way_of_writing_takes_compress() -> None:
    """Above the threshold, below it, and where compressing makes it larger."""

    def write(conn: Connection) -> None:
        for data in (PROSE, "short", "~"):
            for compress in (None, True, False):
                conn.send(data, compress)
                conn.write_text(data, compress=compress)
                conn.write_binary(data.encode(), compress=compress)
                conn.writev(Opcode.TEXT, data, "", compress=compress)
                conn.write_async(Opcode.TEXT, data, compress=compress)
                conn.writev_async(Opcode.TEXT, "", data, compress=compress)
                conn.write_prepared(PreparedMessage(Opcode.TEXT, data, compress))
                assert Broadcaster(Opcode.TEXT, data, compress).broadcast([conn]) == {}
                rooms.join("room", conn)
                assert rooms.broadcast("room", Opcode.TEXT, data, compress=compress) == {}
                thread = threading.Thread(
                    target=lambda data=data, compress=compress: (
                        conn.send(data, compress),
                        conn.write_async(Opcode.TEXT, data, None, compress),
                        conn.write_prepared(PreparedMessage(Opcode.TEXT, data, compress)),
                    )
                )
                thread.start()
                while thread.is_alive():
                    gevent.sleep(0.001)
                gevent.sleep(0.005)

    rooms: Rooms = Rooms()
    frames, got = on_the_wire(write)
    assert len(got) == 9 * 12
    assert {one if isinstance(one, str) else one.decode() for one in got} == {PROSE, "short", "~"}
    # As the threshold says, compressed, not compressed; and the same for what is short.
    bits = [bool(first & RSV1) for first, _ in frames]
    assert [set(bits[at : at + 12]) for at in range(0, 108, 12)] == [{True}, {True}, {False}] + [{False}, {True}, {False}] * 2


def test_a_client_takes_compress_too(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed: list[bytes] = []
    original = Deflate.compress
    monkeypatch.setattr(Deflate, "compress", lambda self, data, *how: compressed.append(data) or original(self, data, *how))
    server = Recorder()
    deflate = PermessageDeflate()
    with paired(server, ServerOptions(permessage_deflate=deflate), None, ClientOptions(permessage_deflate=deflate)) as pair:
        for data, compress, count in (("short", None, 0), ("short", True, 3), (PROSE, None, 3), (PROSE, False, 0)):
            compressed.clear()
            pair.client.write_prepared(PreparedMessage(Opcode.TEXT, data, compress))
            assert Broadcaster(Opcode.TEXT, data, compress).broadcast([pair.client]) == {}
            pair.client.write_async(Opcode.TEXT, data, compress=compress)
            assert compressed == [data.encode()] * count
        wait_until(lambda: len(server.messages) == 12)
    assert server.messages == ["short"] * 6 + [PROSE] * 6


def test_every_way_of_writing_compresses() -> None:
    def write(conn: Connection) -> None:
        conn.send(PROSE)
        conn.write_text(PROSE)
        conn.writev(Opcode.TEXT, PROSE[:100], PROSE[100:])
        conn.write_async(Opcode.TEXT, PROSE)
        conn.writev_async(Opcode.TEXT, PROSE[:100], PROSE[100:])
        conn.write_prepared(PreparedMessage(Opcode.TEXT, PROSE))
        thread = threading.Thread(target=lambda: (conn.send(PROSE), conn.write_prepared(PreparedMessage(Opcode.TEXT, PROSE))))
        thread.start()
        gevent.sleep(0)
        thread.join()
        gevent.sleep(0.01)

    frames, got = on_the_wire(write)
    assert [first for first, _ in frames] == [FIN | RSV1 | TEXT] * 8
    assert {payload for _, payload in frames} == {pack(PROSE)}
    assert got == [PROSE] * 8
    frames, got = on_the_wire(write, server_context_takeover=True)
    assert [first for first, _ in frames] == [FIN | RSV1 | TEXT] * 8
    assert got == [PROSE] * 8


@pytest.mark.parametrize("keep", [False, True])
def test_fragments_are_compressed_as_one_message(keep: bool) -> None:
    pieces = [PROSE, "", "é", PROSE]

    def write(conn: Connection) -> None:
        conn.send(PROSE)
        conn.write_stream(Opcode.TEXT, pieces)
        conn.write_file(Opcode.BINARY, io.BytesIO(bytes(100_000)), 40_000)
        conn.write_stream(Opcode.TEXT, [])
        conn.write_stream(Opcode.TEXT, [PROSE, ""], compress=False)
        conn.write_stream(Opcode.TEXT, [PROSE, ""])
        conn.send(PROSE)

    frames, got = on_the_wire(write, server_context_takeover=keep)
    assert got == [PROSE, "".join(pieces), bytes(100_000), "", PROSE, PROSE, PROSE]
    whole, text, more, last = FIN | RSV1 | TEXT, RSV1 | TEXT, CONT, FIN | CONT
    assert [first for first, _ in frames] == [
        whole, text, more, more, last, RSV1 | BINARY, more, last, whole, TEXT, last, text, last, whole,
    ]  # fmt: skip
    if not keep:
        assert unpack(b"".join(payload for _, payload in frames[1:5])).decode() == "".join(pieces)


def test_messages_behind_a_stream_are_compressed_in_their_turn() -> None:
    def write(conn: Connection) -> None:
        def pieces() -> Any:
            yield PROSE
            conn.write_async(Opcode.TEXT, PROSE + "behind")
            yield PROSE

        conn.write_stream(Opcode.TEXT, pieces())

    frames, got = on_the_wire(write, server_context_takeover=True)
    assert [first for first, _ in frames] == [RSV1 | TEXT, FIN | CONT, FIN | RSV1 | TEXT]
    assert got == [PROSE * 2, PROSE + "behind"]


@pytest.mark.parametrize("keep", [False, True])
def test_many_writers_and_prepared_messages_between(keep: bool) -> None:
    prepared = PreparedMessage(Opcode.TEXT, PROSE + "prepared")

    def write(conn: Connection) -> None:
        def writer(number: int) -> None:
            for round in range(5):
                conn.send(f"{number} {round} " + PROSE)
                conn.write_prepared(prepared)
                gevent.sleep(0)

        gevent.joinall([gevent.spawn(writer, number) for number in range(5)])

    frames, got = on_the_wire(write, server_context_takeover=keep)
    assert all(first == FIN | RSV1 | TEXT for first, _ in frames)
    assert sorted(got) == sorted([f"{n} {r} " + PROSE for n in range(5) for r in range(5)] + [prepared.payload.decode()] * 25)


def test_a_prepared_message_is_compressed_once_for_each_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = Compression.take
    monkeypatch.setattr(Compression, "take", lambda self, bits: calls.append(bits) or original(self, bits))
    prepared = PreparedMessage(Opcode.TEXT, PROSE)
    compression = Compression(PermessageDeflate(), Side.SERVER)
    alike = [compression.agreed(Agreement(reset, True, 15, 15)) for reset in (True, False, True, False)]
    frames = {prepared.frame_for(deflate) for deflate in alike}
    assert (len(frames), calls) == (1, [15])
    assert prepared.frame_for(compression.agreed(Agreement(True, True, 10, 15))) not in frames
    assert calls == [15, 10]
    assert prepared.frame_for(None) == prepared.frame
    assert unpack(frames_of(frames.pop())[0][1]).decode() == PROSE
    short = PreparedMessage(Opcode.TEXT, "short")
    assert short.frame_for(alike[0]) == short.frame


def test_what_is_refused_after_it_was_compressed_leaves_the_peer_in_step() -> None:
    both = PermessageDeflate(server_context_takeover=True)
    limits = ServerOptions(permessage_deflate=both, write_queue_size=5000, write_high_water=10)
    blocks = [random.Random(seed).randbytes(1000) for seed in range(9)]
    with paired(Recorder(), limits, None, ClientOptions(permessage_deflate=both), capacity=1000) as pair:
        sent = 0
        for block in blocks:
            try:
                in_hub(lambda block=block: pair.server.send(block))
            except WriteQueueFull:
                break
            sent += 1
        assert 0 < sent < len(blocks)
        for write in (
            lambda: pair.server.send(blocks[8]),
            lambda: pair.server.write_stream(Opcode.BINARY, [blocks[8], blocks[8]]),
        ):
            with pytest.raises(WriteQueueFull):
                in_hub(write)
        assert [pair.client.receive(timeout=5) for _ in range(sent)] == blocks[:sent]
        wait_until(lambda: pair.server.buffered_amount == 0)
        # Compressed before, and never sent: to refer to it would be wrong.
        pair.server.send(blocks[8])
        assert pair.client.receive(timeout=5) == blocks[8]


# Over sockets


@pytest.mark.slow
def test_a_bomb_is_refused_without_inflating_it() -> None:
    limit = 4 * MIB
    bomb = pack(bytes(50 * MIB), 9)
    assert len(bomb) < 60 * KIB
    with running(permessage_deflate=PermessageDeflate(), read_max_payload_size=limit) as (_, port):
        for pieces in ([bomb], [bomb[:100], bomb[100:]]):
            with RawClient(port) as client:
                client.upgrade(OFFER)
                gc.collect()
                tracemalloc.start()
                try:
                    before, _ = tracemalloc.get_traced_memory()
                    for at, piece in enumerate(pieces):
                        last = at == len(pieces) - 1
                        client.send(raw_frame(CONT if at else BINARY, piece, fin=last, rsv=4 if at == 0 else 0))
                    assert client.read_close()[0] == 1009
                    _, peak = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                assert peak - before < 2 * limit
                client.read_end()
        with RawClient(port) as client:
            client.upgrade(OFFER)
            client.echo()
            client.send(raw_frame(8, b"\x03\xe8"))
            client.read_close()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (raw_frame(2, pack(NOISE)[:-3], rsv=4), 1007),
        (raw_frame(2, b"\xff", rsv=4), 1007),
        (raw_frame(1, pack(b"\xff"), rsv=4), 1007),
        (raw_frame(1, pack("x"), rsv=6), 1002),
        (raw_frame(9, pack("x"), rsv=4), 1002),
        (raw_frame(1, pack("x"), rsv=4, fin=False) + raw_frame(0, b"", rsv=4), 1002),
    ],
)
def test_bad_input_ends_its_own_connection_only(sent: bytes, code: int) -> None:
    with running(permessage_deflate=PermessageDeflate()) as (_, port):
        with RawClient(port) as good, RawClient(port) as client:
            good.upgrade(OFFER)
            client.upgrade(OFFER)
            client.send(sent)
            assert client.read_close()[0] == code
            client.read_end()
            good.send(raw_frame(1, pack("still there"), rsv=4))
            assert good.read_frame().payload == b"still there"
            good.send(raw_frame(8, b"\x03\xe8"))
            good.read_close()


def test_an_offer_of_2000_entries() -> None:
    with running(permessage_deflate=PermessageDeflate()) as (_, port):
        for value, accepted in (
            (["x"] * 2000 + ["permessage-deflate"], True),
            (["x"] * 2000, False),
            (["permessage-deflate; y"] * 600, False),
        ):
            with RawClient(port) as client:
                answer = client.upgrade("Sec-WebSocket-Extensions: " + ",".join(value))
                assert ("sec-websocket-extensions" in answer.headers) is accepted
                client.echo()
                client.send(raw_frame(8, b"\x03\xe8"))
                client.read_close()


@pytest.mark.parametrize(
    "answer",
    ["permessage-deflate", "permessage-deflate; x", "permessage-deflate; server_max_window_bits=99", "other, permessage-deflate"],
)
def test_a_client_fails_on_an_answer_that_does_not_fit(answer: str) -> None:
    def refuse(sock: Any, address: Any) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += sock.recv(4096)
        key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        head = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}\r\n"
        sock.sendall(f"HTTP/1.1 101 OK\r\n{head}Sec-WebSocket-Extensions: {answer}\r\n\r\n".encode())
        sock.recv(1)
        sock.close()

    server = StreamServer(("127.0.0.1", 0), refuse)
    server.start()
    try:
        with pytest.raises(HandshakeError, match=r"permessage-deflate|not offered"):
            connect(f"ws://127.0.0.1:{server.server_port}/", options=ClientOptions(permessage_deflate=PermessageDeflate()))
    finally:
        server.stop()


def test_over_tcp_both_ways() -> None:
    deflate = PermessageDeflate()
    with serving(EchoHandler(), ServerOptions(permessage_deflate=deflate)) as server:
        with connect(url_of(server), options=ClientOptions(permessage_deflate=deflate)) as conn:
            assert conn.extensions.startswith("permessage-deflate; server_no_context_takeover; client_no_context_takeover")
            for message in (PROSE, NOISE, bytes(3 * MIB), "é" * MIB):
                conn.send(message)
                assert conn.receive(timeout=10) == message
        with connect(url_of(server)) as conn:
            assert conn.extensions == ""


def test_clients_of_one_process_share_a_compressor(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = Compression.new_compressor
    monkeypatch.setattr(Compression, "new_compressor", lambda self, bits: made.append(bits) or original(self, bits))
    deflate = PermessageDeflate(level=7)  # as no other test has it, whose compressors might be there still
    with serving(EchoHandler(), ServerOptions(permessage_deflate=deflate)) as server:
        clients = [connect(url_of(server), options=ClientOptions(permessage_deflate=PermessageDeflate(level=7))) for _ in range(20)]
        for client in clients:
            client.send(PROSE)
            assert client.receive(timeout=5) == PROSE
        for client in clients:
            client.close()
    assert made == [15, 15], "one for all clients, one for the server"


def test_a_server_says_at_once_that_its_codec_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    options = ServerOptions(permessage_deflate=PermessageDeflate(codec="isal", level=5))
    with pytest.raises(MissingExtra, match=r"pip install 'gws_gevent\[deflate\]'"):
        Server(EchoHandler(), options).start("127.0.0.1:0")
    with pytest.raises(MissingExtra, match=r"pip install 'gws_gevent\[deflate\]'"):
        connect("ws://127.0.0.1:1/", options=ClientOptions(permessage_deflate=PermessageDeflate(codec="isal", level=5)))
