"""The core without I/O, plain and compiled, on both sides: the rules of frames and messages, and their limits.

The closing handshake, batches and writing are in test_protocol_states.py, the same bytes in every split in test_protocol_splits.py.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from gws_gevent.frames import Opcode
from tests.core import (
    BINARY,
    BUILDS,
    CLOSE,
    CONT,
    FIN,
    KEY,
    PING,
    PONG,
    SIDES,
    TEXT,
    Outcome,
    feed,
    frame,
    header,
    new_protocol,
    outcome,
)

# What is allowed


@BUILDS
@SIDES
@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_messages_of_every_length_form(build: str, side: str, length: int) -> None:
    data = frame(side, FIN | BINARY, b"\xff" * length) + frame(side, FIN | TEXT, b"t" * length)
    protocol = new_protocol(build, side)
    assert outcome(protocol, data) == ([(BINARY, b"\xff" * length), (TEXT, "t" * length)], None)
    assert not protocol.incomplete
    assert protocol.buffered == 0


@BUILDS
@SIDES
def test_opcodes_and_types_of_events(build: str, side: str) -> None:
    protocol = new_protocol(build, side)
    data = b"".join(frame(side, FIN | opcode, b"pq") for opcode in (TEXT, BINARY, PING, PONG))
    data += frame(side, FIN | CLOSE, b"\x03\xe8")
    messages = protocol.receive(data, 0, len(data))
    assert [message.opcode for message in messages] == [Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG, Opcode.CLOSE]
    assert all(type(message.opcode) is Opcode for message in messages)
    assert [message.data for message in messages] == ["pq", b"pq", b"pq", b"pq", b"\x03\xe8"]


@BUILDS
@SIDES
def test_control_frames_between_fragments(build: str, side: str) -> None:
    data = (
        frame(side, TEXT, b"one ")
        + frame(side, FIN | PING, b"p")
        + frame(side, CONT)
        + frame(side, FIN | PONG)
        + frame(side, FIN | CONT, b"two")
        + frame(side, FIN | PING, b"x" * 125)
    )
    assert outcome(new_protocol(build, side), data) == ([(PING, b"p"), (PONG, b""), (TEXT, "one two"), (PING, b"x" * 125)], None)


@BUILDS
def test_empty_fragments_make_an_empty_message(build: str) -> None:
    data = frame("SERVER", BINARY) + frame("SERVER", CONT) + frame("SERVER", FIN | CONT)
    assert outcome(new_protocol(build), data) == ([(BINARY, b"")], None)


@BUILDS
def test_only_the_named_part_of_the_buffer_is_read_and_none_of_it_kept(build: str) -> None:
    protocol = new_protocol(build)
    data = frame("SERVER", FIN | TEXT, b"whole") + frame("SERVER", FIN | BINARY, b"cut off")
    cut = len(data) - 3
    buffer = bytearray(b"\xff" * 5 + data[:cut] + b"\xff" * 7)
    first = protocol.receive(buffer, 5, 5 + cut)
    buffer[:] = b"\xee" * len(buffer)
    assert [message.data for message in first] == ["whole"]
    assert [message.data for message in protocol.receive(bytearray(data), cut, len(data))] == [b"cut off"]


@BUILDS
def test_what_is_held_of_incomplete_input_is_counted(build: str) -> None:
    protocol = new_protocol(build)
    assert feed(protocol, b"\x81") == []
    assert (protocol.incomplete, protocol.buffered) == (True, 1)
    assert feed(protocol, frame("SERVER", FIN | TEXT, b"abc")[1:]) == [(TEXT, "abc")]
    assert (protocol.incomplete, protocol.buffered) == (False, 0)
    assert feed(protocol, frame("SERVER", BINARY, b"x" * 200)) == []
    assert (protocol.incomplete, protocol.buffered) == (True, 200)
    assert feed(protocol, frame("SERVER", FIN | CONT, b"y")) == [(BINARY, b"x" * 200 + b"y")]
    assert (protocol.incomplete, protocol.buffered) == (False, 0)


# What is refused: (the first byte of each frame, its payload) or raw bytes, and the close code with its text

OUT_OF_ORDER = (1002, "fragments out of order")
RESERVED = (1002, "reserved opcode")
BAD_CONTROL = (1002, "control frame is too long or fragmented")
NOT_TEXT = (1007, "text is not UTF-8")


@BUILDS
def test_a_client_has_to_mask(build: str) -> None:
    assert outcome(new_protocol(build, "SERVER"), b"\x81\x05") == ([], (1002, "frame is not masked"))


@BUILDS
def test_a_server_may_not_mask(build: str) -> None:
    assert outcome(new_protocol(build, "CLIENT"), b"\x81\x85") == ([], (1002, "frame is masked"))


@BUILDS
@SIDES
@pytest.mark.parametrize("bits", range(0x10, 0x80, 0x10))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_reserved_bits(build: str, side: str, bits: int, opcode: int) -> None:
    assert outcome(new_protocol(build, side), header(side, FIN | bits | opcode, 0, 0)) == ([], (1002, "reserved bits are set"))


@BUILDS
@SIDES
@pytest.mark.parametrize("bits", [0x10, 0x20, 0x40])
def test_reserved_bits_on_a_continuation(build: str, side: str, bits: int) -> None:
    data = frame(side, TEXT, b"a") + header(side, FIN | bits | CONT, 0, 0)
    assert outcome(new_protocol(build, side), data) == ([], (1002, "reserved bits are set"))


@BUILDS
@SIDES
@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF])
@pytest.mark.parametrize("fin", [0, FIN])
def test_reserved_opcodes(build: str, side: str, opcode: int, fin: int) -> None:
    assert outcome(new_protocol(build, side), header(side, fin | opcode, 0, 0)) == ([], RESERVED)


@BUILDS
@SIDES
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize(
    ("fin", "length", "form"), [(0, 0, 0), (0, 125, 0), (FIN, 126, 2), (FIN, 5, 2), (FIN, 65_536, 8), (FIN, 1 << 62, 8)]
)
def test_control_frames_are_short_and_whole(build: str, side: str, opcode: int, fin: int, length: int, form: int) -> None:
    # Two bytes are enough to tell.
    assert outcome(new_protocol(build, side), header(side, fin | opcode, length, form)[:2]) == ([], BAD_CONTROL)


@BUILDS
@SIDES
@pytest.mark.parametrize("length", [0, 1, 125])
def test_a_length_below_126_in_two_bytes(build: str, side: str, length: int) -> None:
    expected = (1002, "length is not in its shortest form")
    assert outcome(new_protocol(build, side), header(side, FIN | BINARY, length, 2)) == ([], expected)


@BUILDS
@SIDES
@pytest.mark.parametrize("length", [0, 125, 126, 65_535])
def test_a_length_below_65536_in_eight_bytes(build: str, side: str, length: int) -> None:
    expected = (1002, "length is not in its shortest form")
    assert outcome(new_protocol(build, side), header(side, FIN | BINARY, length, 8)) == ([], expected)


@BUILDS
@SIDES
@pytest.mark.parametrize("length", [1 << 63, (1 << 63) + 5, (1 << 64) - 1])
@pytest.mark.parametrize("first", [FIN | TEXT, BINARY])
def test_a_length_with_the_top_bit_set_allocates_nothing(build: str, side: str, length: int, first: int) -> None:
    protocol = new_protocol(build, side)
    data = header(side, first, length, 8)
    result, peak = traced(protocol, data)
    assert result == ([], (1002, "length has its top bit set"))
    assert protocol.buffered == 0
    assert peak < 64 * 1024


@BUILDS
@SIDES
@pytest.mark.parametrize("length", [(1 << 24) + 1, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1])
@pytest.mark.parametrize("first", [FIN | TEXT, BINARY])
def test_a_declared_size_over_the_limit_is_refused_on_the_header(build: str, side: str, length: int, first: int) -> None:
    protocol = new_protocol(build, side)
    # Not even the masking key is waited for.
    result, peak = traced(protocol, header(side, first, length, 8))
    assert result == ([], (1009, "message is too big"))
    assert protocol.buffered == 0
    assert peak < 64 * 1024


@BUILDS
@SIDES
def test_memory_grows_with_what_arrives_and_not_with_what_is_declared(build: str, side: str) -> None:
    protocol = new_protocol(build, side)
    data = header(side, FIN | BINARY, 1 << 24, 8) + (KEY if side == "SERVER" else b"") + b"abc"
    result, peak = traced(protocol, data)
    assert result == ([], None)
    assert protocol.buffered == 3
    assert peak < 64 * 1024


def traced(protocol: Any, data: bytes) -> tuple[Outcome, int]:
    """The outcome, and the most memory in bytes that was allocated on the way."""
    tracemalloc.start()
    try:
        return outcome(protocol, data), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@BUILDS
@SIDES
@pytest.mark.parametrize(
    "firsts",
    [
        [CONT],
        [FIN | CONT],
        [TEXT, TEXT],
        [TEXT, FIN | BINARY],
        [BINARY, CONT, BINARY],
        [BINARY, FIN | CONT, CONT],
        [FIN | TEXT, FIN | CONT],
    ],
)
def test_fragments_out_of_order(build: str, side: str, firsts: list[int]) -> None:
    whole, last = [frame(side, first, b"a") for first in firsts[:-1]], header(side, firsts[-1], 1, 0)
    protocol = new_protocol(build, side)
    result = outcome(protocol, *whole, last)
    assert result.failure == OUT_OF_ORDER
    assert len(result.events) == sum(first & FIN != 0 for first in firsts[:-1])
    assert protocol.buffered == 0


# Sizes and fragments


@BUILDS
@SIDES
@pytest.mark.parametrize("limit", [10, 125, 126, 1000, 65_536])
def test_the_size_limit_is_exact(build: str, side: str, limit: int) -> None:
    data = frame(side, FIN | BINARY, b"x" * limit)
    assert outcome(new_protocol(build, side, read_max_payload_size=limit), data) == ([(BINARY, b"x" * limit)], None)
    form = 0 if limit < 125 else 2 if limit < 65_535 else 8
    protocol = new_protocol(build, side, read_max_payload_size=limit)
    assert outcome(protocol, header(side, FIN | BINARY, limit + 1, form)) == ([], (1009, "message is too big"))


@BUILDS
@SIDES
def test_fragments_count_together(build: str, side: str) -> None:
    options = {"read_max_payload_size": 10}
    data = frame(side, BINARY, b"x" * 6)
    fits = data + frame(side, FIN | CONT, b"y" * 4)
    assert outcome(new_protocol(build, side, **options), fits) == ([(BINARY, b"x" * 6 + b"y" * 4)], None)
    # The header of the second fragment says that it will be too much: nothing of its payload is taken.
    too_much = data + header(side, CONT, 5, 0) + (KEY if side == "SERVER" else b"")
    protocol = new_protocol(build, side, **options)
    assert outcome(protocol, too_much) == ([], (1009, "message is too big"))
    assert protocol.buffered == 0


@BUILDS
def test_control_frames_do_not_count_as_message_size(build: str) -> None:
    data = frame("SERVER", BINARY, b"x") + frame("SERVER", FIN | PING, b"p" * 125) + frame("SERVER", FIN | CONT, b"y")
    assert outcome(new_protocol(build, read_max_payload_size=2), data) == ([(PING, b"p" * 125), (BINARY, b"xy")], None)


@BUILDS
@SIDES
@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("payload", [b"", b"a"])
def test_the_limit_of_fragments_is_exact(build: str, side: str, limit: int, payload: bytes) -> None:
    def fragments(count: int) -> bytes:
        if count == 1:
            return frame(side, FIN | BINARY, payload)
        return frame(side, BINARY, payload) + frame(side, CONT, payload) * (count - 2) + frame(side, FIN | CONT, payload)

    fits = new_protocol(build, side, max_fragments=limit)
    assert outcome(fits, fragments(limit) * 3) == ([(BINARY, payload * limit)] * 3, None)
    too_many = new_protocol(build, side, max_fragments=limit)
    assert outcome(too_many, fragments(limit + 1)) == ([], (1009, "message has too many fragments"))


# UTF-8

GOOD_TEXTS = ["", "ascii", "é", "日本語", "🐍", "\x00", "\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff", "κόσμε" * 50]
#: Broken, each with the number of bytes that are enough to tell.
BAD_TEXTS = [
    (b"\x80", 1),
    (b"abc\xff", 4),
    (b"\xc0\x80", 1),
    (b"\xc1\xbf", 1),
    (b"\xe0\x80\x80", 2),
    (b"\xed\xa0\x80", 3),  # the second byte tells, but CPython's decoder waits for the whole surrogate
    (b"\xf0\x80\x80\x80", 2),
    (b"\xf4\x90\x80\x80", 2),
    (b"\xf5\x80\x80\x80", 1),
    (b"\xc3a", 2),
    (b"\xe2\x82a", 3),
    ("κόσμε".encode() + b"\xf4\x90\x80\x80edited", 12),
]


@BUILDS
@SIDES
@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_text_split_anywhere(build: str, side: str, text: str) -> None:
    payload = text.encode()
    assert outcome(new_protocol(build, side), frame(side, FIN | TEXT, payload)) == ([(TEXT, text)], None)
    for cut in range(len(payload) + 1):
        pieces = frame(side, TEXT, payload[:cut]), frame(side, FIN | CONT, payload[cut:])
        assert outcome(new_protocol(build, side), *pieces) == ([(TEXT, text)], None)


@BUILDS
@SIDES
@pytest.mark.parametrize(("payload", "telling"), BAD_TEXTS)
def test_bad_text_fails_whole_and_in_fragments(build: str, side: str, payload: bytes, telling: int) -> None:
    assert outcome(new_protocol(build, side), frame(side, FIN | TEXT, payload)) == ([], NOT_TEXT)
    for cut in range(len(payload) + 1):
        pieces = frame(side, TEXT, payload[:cut]), frame(side, FIN | CONT, payload[cut:])
        assert outcome(new_protocol(build, side), *pieces) == ([], NOT_TEXT)


@BUILDS
@SIDES
@pytest.mark.parametrize(("payload", "telling"), BAD_TEXTS)
def test_bad_text_fails_as_soon_as_it_can_be_told(build: str, side: str, payload: bytes, telling: int) -> None:
    # One fragment that is not the last, and one frame of which more is to come.
    fragment = new_protocol(build, side)
    assert outcome(fragment, frame(side, TEXT, payload[: telling - 1])) == ([], None)
    assert outcome(fragment, frame(side, CONT, payload[telling - 1 : telling])) == ([], NOT_TEXT)
    assert fragment.buffered == 0
    frame_to_come = frame(side, FIN | TEXT, payload + b"and more that never comes")
    begun = len(frame_to_come) - len(payload) - 25
    cut_off = new_protocol(build, side)
    assert outcome(cut_off, frame_to_come[: begun + telling - 1]) == ([], None)
    assert outcome(cut_off, frame_to_come[begun + telling - 1 : begun + telling]) == ([], NOT_TEXT)


@BUILDS
@SIDES
@pytest.mark.parametrize("cut", [b"\xc3", b"\xe2\x82", b"\xf0\x9f\x90"])
def test_text_that_ends_inside_a_character(build: str, side: str, cut: bytes) -> None:
    assert outcome(new_protocol(build, side), frame(side, FIN | TEXT, b"a" + cut)) == ([], NOT_TEXT)
    fragments = frame(side, TEXT, b"a" + cut), frame(side, FIN | CONT)
    assert outcome(new_protocol(build, side), *fragments) == ([], NOT_TEXT)


@BUILDS
@SIDES
def test_binary_is_not_checked(build: str, side: str) -> None:
    pieces = frame(side, BINARY, b"\xff"), frame(side, FIN | CONT, b"\xc3")
    assert outcome(new_protocol(build, side), *pieces) == ([(BINARY, b"\xff\xc3")], None)


@BUILDS
@SIDES
def test_a_text_after_a_binary_message_is_checked_and_the_other_way_round(build: str, side: str) -> None:
    text = frame(side, TEXT, b"\xc3"), frame(side, FIN | CONT, b"\xa9")
    binary = frame(side, BINARY, b"\xff"), frame(side, FIN | CONT, b"\xff")
    assert outcome(new_protocol(build, side), *text, *binary, frame(side, TEXT, b"\xff")) == (
        [(TEXT, "é"), (BINARY, b"\xff\xff")],
        NOT_TEXT,
    )


@BUILDS
@SIDES
def test_without_the_check_bad_bytes_arrive_as_replacement_characters(build: str, side: str) -> None:
    pieces = frame(side, FIN | TEXT, b"a\xffb"), frame(side, TEXT, b"a\xc3"), frame(side, FIN | CONT, b"\xff")
    events = [(TEXT, "a\ufffdb"), (TEXT, "a\ufffd\ufffd")]
    assert outcome(new_protocol(build, side, check_utf8=False), *pieces) == (events, None)
