"""The same bytes in every split, with trailing data, compiled and plain, give the same events, failure and CloseInfo."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import BINARY, BUILDS, CLOSE, CONT, FIN, PING, PONG, SIDES, TEXT, Event, feed, frame, header, new_protocol

#: Derandomised: a run tells the same every time. Fuzzing beyond that has its own tools.
STEADY = settings(derandomize=True, deadline=None, database=None, max_examples=500)

#: Small enough for generated input to pass them.
LIMITS: dict[str, Any] = {"read_max_payload_size": 400, "max_fragments": 3}


class Story(NamedTuple):
    """All that can be seen of a protocol after some bytes, and the end of the stream behind them."""

    events: list[Event]
    failure: tuple[int, str] | None
    incomplete: bool
    state: int
    end: tuple[Any, ...]


def story(build: str, side: str, data: bytes, cuts: list[int], **options: Any) -> Story:
    """Feed `data` in pieces out of one buffer that is used again and again, with leftovers around each piece."""
    protocol = new_protocol(build, side, **{**LIMITS, **options})
    events: list[Event] = []
    edges = [0, *sorted(cuts), len(data)]
    buffer = bytearray(len(data) + 40)
    for begin, end in pairwise(edges):
        at = begin % 7
        buffer[:] = b"\xa5" * len(buffer)
        buffer[at : at + end - begin] = data[begin:end]
        for message in protocol.receive(buffer, at, at + end - begin):
            events.append((int(message.opcode), message.data))
        while protocol.has_more:
            events += feed(protocol, b"")
    failure = protocol.failure
    incomplete, state = protocol.incomplete, int(protocol.state)
    info = protocol.stream_ended(None)
    return Story(
        events,
        (int(failure.code), str(failure)) if failure is not None else None,
        incomplete,
        state,
        (info.received, info.sent, str(info.error), info.clean, info.code, info.reason),
    )


# Input that is nearly right: frames with now and then a wrong opcode, bit, order, length form or byte

TEXTS = st.sampled_from(["", "plain", "é", "日本語 🐍", "x" * 130, "é" * 70]).map(str.encode)
PIECES_OF_TEXT = st.sampled_from([b"\xf0\x9f", b"\x90\x8d", b"\xc3", b"\xa9", b"\xff", b"\xed\xa0\x80", b"a"])
PAYLOADS = st.one_of(TEXTS, TEXTS, PIECES_OF_TEXT, st.integers(0, 410).map(lambda size: b"z" * size))
#: Out of 16.
SELDOM = st.sampled_from([False] * 15 + [True])
WRONG = st.sampled_from([PING, FIN | 3, FIN | 0x40 | TEXT, FIN | 0xB, CONT, TEXT, FIN | BINARY])
BETWEEN = st.sampled_from([TEXT, TEXT, BINARY, FIN | TEXT, FIN | TEXT, FIN | BINARY, FIN | PING, FIN | PONG])
INSIDE = st.sampled_from([CONT, FIN | CONT, FIN | CONT, FIN | CONT, FIN | PING, FIN | PONG])
CLOSE_PAYLOADS = st.sampled_from(
    [b"", b"\x03", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x0f\xa0\xff", b"\x03\xe8" + b"r" * 123]
)
LENGTHS = st.sampled_from([(5, 2), (300, 8), (401, 2), (1 << 62, 8), (1 << 63, 8), (60, 0)])


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, bytes]:
    """A side, and the bytes that its peer sends it."""
    side = draw(st.sampled_from(["SERVER", "CLIENT"]))
    data, fragmented = b"", False
    for _ in range(draw(st.integers(1, 10))):
        first = draw(WRONG if draw(SELDOM) else INSIDE if fragmented else BETWEEN)
        payload = draw(PAYLOADS)
        data += frame(side, first, payload[:125] if first & 0x0F > CLOSE else payload)
        if first & 0x0F < CLOSE:
            fragmented = first < FIN
    if draw(st.booleans()):
        data += frame(side, FIN | CLOSE, draw(CLOSE_PAYLOADS))
    if draw(SELDOM):
        length, form = draw(LENGTHS)
        data += header(side, FIN | (CONT if fragmented else TEXT), length, form)
    if draw(SELDOM):
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    return side, data + draw(st.sampled_from([b"", b"", b"\x81", b"\xff\xff\xff", b"trailing data"]))


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[str, bytes, list[int]]:
    side, data = draw(streams())
    return side, data, draw(st.lists(st.integers(0, len(data)), max_size=8))


@pytest.mark.slow
@given(case=cut_streams())
@STEADY
def test_any_split_of_nearly_right_input(case: tuple[str, bytes, list[int]]) -> None:
    side, data, cuts = case
    expected = story("plain", side, data, [])
    assert story("plain", side, data, cuts) == expected
    assert story("compiled", side, data, []) == expected
    assert story("compiled", side, data, cuts) == expected


@pytest.mark.slow
@given(case=streams())
@STEADY
def test_byte_by_byte(case: tuple[str, bytes]) -> None:
    side, data = case
    expected = story("plain", side, data, [])
    every = list(range(len(data)))
    assert story("plain", side, data, every) == expected
    assert story("compiled", side, data, every) == expected


@pytest.mark.slow
@given(side=st.sampled_from(["SERVER", "CLIENT"]), data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=8))
@STEADY
def test_any_bytes_at_all(side: str, data: bytes, cuts: list[int]) -> None:
    cuts = [min(cut, len(data)) for cut in cuts]
    expected = story("plain", side, data, [])
    assert story("plain", side, data, cuts) == expected
    assert story("compiled", side, data, cuts) == expected


@pytest.mark.slow
@given(case=cut_streams())
@STEADY
def test_any_split_without_the_check_of_utf8(case: tuple[str, bytes, list[int]]) -> None:
    side, data, cuts = case
    expected = story("plain", side, data, [], check_utf8=False)
    assert expected.failure is None or expected.failure[0] != 1007
    assert story("plain", side, data, cuts, check_utf8=False) == expected
    assert story("compiled", side, data, cuts, check_utf8=False) == expected


# Input that is right, where what comes out is known beforehand


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, bytes, list[Event], list[int]]:
    """Messages in one to three fragments with control frames between them: side, bytes, events, cuts."""
    side = draw(st.sampled_from(["SERVER", "CLIENT"]))
    data, events = b"", list[Event]()
    for _ in range(draw(st.integers(1, 5))):
        content = draw(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
        opcode = TEXT if isinstance(content, str) else BINARY
        payload = content.encode() if isinstance(content, str) else content
        edges = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=2)))
        pieces = [payload[begin:end] for begin, end in zip([0, *edges], [*edges, len(payload)], strict=True)]
        for i, piece in enumerate(pieces):
            last = FIN if i == len(pieces) - 1 else 0
            data += frame(side, last | (opcode if i == 0 else CONT), piece)
            if last:
                events.append((opcode, content))
            if draw(st.integers(0, 3)) == 0:
                ping = draw(st.sampled_from([PING, PONG])), draw(st.binary(max_size=20))
                data += frame(side, FIN | ping[0], ping[1])
                events.append(ping)
    return side, data, events, draw(st.lists(st.integers(0, len(data)), max_size=8))


@BUILDS
@pytest.mark.slow
@given(case=conversations())
@STEADY
def test_what_was_said_is_what_is_heard(build: str, case: tuple[str, bytes, list[Event], list[int]]) -> None:
    side, data, events, cuts = case
    told = story(build, side, data, cuts)
    assert told.events == events
    assert (told.failure, told.incomplete) == (None, False)
    assert told.end == (None, None, "None", False, 1006, "")


# One long example, cut once in every place


def example(side: str) -> bytes:
    return (
        frame(side, FIN | TEXT, "whole é".encode())
        + frame(side, TEXT, b"one \xf0\x9f")
        + frame(side, FIN | PING, b"p" * 125)
        + frame(side, CONT, b"\x90\x8d two ")
        + frame(side, FIN | PONG)
        + frame(side, FIN | CONT)
        + frame(side, FIN | BINARY, b"\xff" * 300)
        + frame(side, FIN | CLOSE, b"\x0f\xa1" + "goodbye é".encode())
    )


EXAMPLE_EVENTS = [
    (TEXT, "whole é"),
    (PING, b"p" * 125),
    (PONG, b""),
    (TEXT, "one 🐍 two "),
    (BINARY, b"\xff" * 300),
    (CLOSE, b"\x0f\xa1" + "goodbye é".encode()),
]


@BUILDS
@SIDES
@pytest.mark.parametrize("trailing", [b"", b"\x81", b"\xff" * 40])
def test_cut_once_in_every_place(build: str, side: str, trailing: bytes) -> None:
    data = example(side) + trailing
    for cut in range(len(data) + 1):
        told = story(build, side, data, [cut])
        assert told.events == EXAMPLE_EVENTS, cut
        assert (told.failure, told.incomplete) == (None, False), cut
        assert told.end == ((4001, "goodbye é"), None, "None", False, 4001, "goodbye é"), cut


@BUILDS
@SIDES
def test_a_stream_that_ends_anywhere_gives_what_was_complete(build: str, side: str) -> None:
    data = example(side)
    given_so_far = 0
    for end in range(len(data) + 1):
        told = story(build, side, data[:end], [])
        assert told.events == EXAMPLE_EVENTS[: len(told.events)]
        assert len(told.events) >= given_so_far
        assert told.failure is None
        given_so_far = len(told.events)
    assert given_so_far == len(EXAMPLE_EVENTS)


@BUILDS
@SIDES
@pytest.mark.parametrize("size", [126, 65_535, 65_536, 70_000])
def test_long_messages_in_reads_of_every_usual_size(build: str, side: str, size: int) -> None:
    data = frame(side, FIN | BINARY, bytes(range(256)) * (size // 256 + 1)) + frame(side, FIN | TEXT, b"t" * size)
    for read in (1024, 4096, 16_384, 65_535, 65_536):
        told = story(build, side, data, list(range(read, len(data), read)), read_max_payload_size=1 << 20)
        assert told.events == [(BINARY, bytes(range(256)) * (size // 256 + 1)), (TEXT, "t" * size)]
