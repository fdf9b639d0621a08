"""The core without I/O, plain and compiled, on both sides: the closing handshake, states, batches, writing."""

from __future__ import annotations

from importlib import import_module
from itertools import product
from typing import Any

import pytest

from gws_gevent.closing import close_payload, next_state
from gws_gevent.exceptions import GwsError
from gws_gevent.frames import Close, CloseCode, CloseInfo, Opcode, State, Step
from tests.core import BINARY, BUILDS, CLOSE, CONT, FIN, PING, SIDES, TEXT, feed, frame, header, new_protocol, outcome
from tests.test_accel import compiled

RESERVED = (1002, "reserved opcode")

# Close frames

SENDABLE = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
FORBIDDEN = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535]


@BUILDS
@SIDES
@pytest.mark.parametrize("code", SENDABLE)
@pytest.mark.parametrize("reason", ["", "bye", "é" * 61])
def test_close_codes_that_may_be_sent(build: str, side: str, code: int, reason: str) -> None:
    protocol = new_protocol(build, side)
    payload = code.to_bytes(2, "big") + reason.encode()
    assert outcome(protocol, frame(side, FIN | CLOSE, payload)) == ([(CLOSE, payload)], None)
    assert protocol.info == CloseInfo(received=Close(code, reason))
    assert protocol.state == State.CLOSING


@BUILDS
@SIDES
@pytest.mark.parametrize("code", FORBIDDEN)
def test_close_codes_that_may_not_be_sent(build: str, side: str, code: int) -> None:
    protocol = new_protocol(build, side)
    assert outcome(protocol, frame(side, FIN | CLOSE, code.to_bytes(2, "big"))) == ([], (1002, "bad close code"))
    assert protocol.state == State.OPEN


@BUILDS
@SIDES
def test_an_empty_close_frame(build: str, side: str) -> None:
    protocol = new_protocol(build, side)
    assert outcome(protocol, frame(side, FIN | CLOSE)) == ([(CLOSE, b"")], None)
    assert protocol.info == CloseInfo(received=Close(1005, ""))


@BUILDS
@SIDES
def test_half_a_close_code(build: str, side: str) -> None:
    assert outcome(new_protocol(build, side), frame(side, FIN | CLOSE, b"\x03")) == ([], (1002, "close frame with half a code"))


@BUILDS
@SIDES
@pytest.mark.parametrize("reason", [b"\xff", b"ok\xc3", b"\xed\xa0\x80"])
def test_a_close_reason_is_text(build: str, side: str, reason: bytes) -> None:
    data = frame(side, FIN | CLOSE, b"\x03\xe8" + reason)
    assert outcome(new_protocol(build, side), data) == ([], (1007, "close reason is not UTF-8"))
    unchecked = new_protocol(build, side, check_utf8=False)
    assert outcome(unchecked, data).failure is None
    assert unchecked.info.received == Close(1000, reason.decode("utf-8", "replace"))


@BUILDS
@SIDES
def test_nothing_is_read_behind_a_close_frame(build: str, side: str) -> None:
    protocol = new_protocol(build, side)
    data = frame(side, BINARY, b"begun") + frame(side, FIN | CLOSE, b"\x0b\xb8") + b"\xff" * 50
    assert outcome(protocol, data, frame(side, FIN | TEXT, b"late"), b"\xff\xff") == ([(CLOSE, b"\x0b\xb8")], None)
    assert (protocol.incomplete, protocol.buffered, protocol.has_more) == (False, 0, False)


@BUILDS
@SIDES
def test_nothing_is_read_behind_a_failure(build: str, side: str) -> None:
    protocol = new_protocol(build, side)
    good = frame(side, FIN | TEXT, b"good")
    result = outcome(protocol, good + header(side, FIN | 3, 0, 0) + good, good, b"\xff\xff")
    assert result == ([(TEXT, "good")], RESERVED)
    assert (protocol.incomplete, protocol.buffered, protocol.has_more) == (False, 0, False)


# Batches


@BUILDS
@pytest.mark.parametrize("count", [1023, 1024, 1025, 2048, 3000])
def test_at_most_1024_messages_at_once(build: str, count: int) -> None:
    protocol = new_protocol(build)
    data = b"".join(frame("SERVER", FIN | BINARY, b"%d" % i) for i in range(count))
    batches = [protocol.receive(data, 0, len(data))]
    while protocol.has_more:
        batches.append(protocol.receive(b"", 0, 0))
    assert [message.data for batch in batches for message in batch] == [b"%d" % i for i in range(count)]
    assert [len(batch) for batch in batches[:-1]] == [1024] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= 1024
    assert (protocol.incomplete, protocol.buffered) == (False, 0)


@BUILDS
def test_bytes_that_come_with_a_batch_left_behind_stand_behind_it(build: str) -> None:
    protocol = new_protocol(build)
    data = frame("SERVER", FIN | PING) * 1030 + frame("SERVER", FIN | TEXT, b"cut off")
    assert len(protocol.receive(data[:-4], 0, len(data) - 4)) == 1024
    assert protocol.has_more
    assert [message.opcode for message in protocol.receive(data, len(data) - 4, len(data))] == [Opcode.PING] * 6 + [Opcode.TEXT]
    assert (protocol.incomplete, protocol.has_more) == (False, False)


@BUILDS
def test_a_fragmented_message_goes_on_across_batches(build: str) -> None:
    protocol = new_protocol(build)
    pings = frame("SERVER", FIN | PING) * 1024
    data = frame("SERVER", TEXT, b"\xc3") + pings + frame("SERVER", FIN | CONT, b"\xa9") + pings
    events = feed(protocol, data)
    assert events == [(PING, b"")] * 1024 + [(TEXT, "é")] + [(PING, b"")] * 1024


@BUILDS
def test_a_failure_behind_a_full_batch_comes_with_the_next(build: str) -> None:
    protocol = new_protocol(build)
    data = frame("SERVER", FIN | PING) * 1024 + b"\xff\xff"
    assert len(protocol.receive(data, 0, len(data))) == 1024
    assert protocol.failure is None
    assert protocol.receive(b"", 0, 0) == []
    assert outcome(protocol).failure == (1002, "reserved bits are set")
    assert not protocol.has_more


# Writing


@BUILDS
def test_a_client_masks_each_frame_with_a_fresh_key(build: str) -> None:
    client, server = new_protocol(build, "CLIENT"), new_protocol(build, "SERVER")
    keys = set()
    for _ in range(64):
        out = bytearray()
        client.append_frame(out, TEXT, b"the same", True)
        assert out[:2] == b"\x81\x88"
        keys.add(bytes(out[2:6]))
        assert feed(server, bytes(out)) == [(TEXT, "the same")]
    assert len(keys) == 64


@BUILDS
@pytest.mark.parametrize("side", ["CLIENT", "SERVER"])
@pytest.mark.parametrize("length", [0, 1, 125, 126, 65_535, 65_536])
def test_the_other_side_reads_what_is_written(build: str, side: str, length: int) -> None:
    writer, reader = new_protocol(build, side), new_protocol(build, "SERVER" if side == "CLIENT" else "CLIENT")
    out = bytearray()
    writer.append_frame(out, BINARY, memoryview(b"x" * length), False)
    writer.append_frame(out, PING, b"p", True)
    writer.append_frame(out, CONT, bytearray(b"y"), True)
    assert feed(reader, bytes(out)) == [(PING, b"p"), (BINARY, b"x" * length + b"y")]


def test_a_server_does_not_mask() -> None:
    out = bytearray(b"begun")
    new_protocol("plain", "SERVER").append_frame(out, TEXT, b"hi", False)
    assert out == b"begun\x01\x02hi"


@pytest.mark.parametrize("code", SENDABLE)
def test_close_payload(code: int) -> None:
    assert close_payload(code) == code.to_bytes(2, "big")
    assert close_payload(code, "é") == code.to_bytes(2, "big") + b"\xc3\xa9"
    assert close_payload(CloseCode.NO_STATUS) == b""
    assert len(close_payload(code, "x" * 123)) == 125


@BUILDS
@pytest.mark.parametrize(
    ("code", "reason", "problem"),
    [(code, "", f"close code {code} may not be sent") for code in FORBIDDEN if code != 1005]
    + [
        (1005, "why", "close code 1005 may not be sent"),
        (True, "", "close code True may not be sent"),
        ("1000", "", "close code '1000' may not be sent"),
        (1000, "x" * 124, "a close reason holds at most 123 bytes of UTF-8, not 124"),
        (1000, "é" * 62, "a close reason holds at most 123 bytes of UTF-8, not 124"),
    ],
)
def test_close_frames_that_may_not_be_sent(build: str, code: Any, reason: str, problem: str) -> None:
    protocol, out = new_protocol(build), bytearray()
    with pytest.raises(ValueError, match=problem):
        protocol.begin_close(out, code, reason)
    assert (out, protocol.info, protocol.state) == (b"", None, State.OPEN)


@BUILDS
def test_no_close_frame_after_the_end_and_none_that_is_said_to_be_sent(build: str) -> None:
    protocol, out = new_protocol(build), bytearray()
    info = protocol.stream_ended(None)
    with pytest.raises(GwsError, match="CLOSE_SENT is not possible while CLOSED"):
        protocol.begin_close(out, 1000, "")
    assert (out, info.sent) == (b"", None)


# States


def test_every_step_in_every_state_is_in_the_table_or_an_error() -> None:
    allowed = {
        (State.CONNECTING, Step.ACCEPTED): State.OPEN,
        (State.CONNECTING, Step.STREAM_ENDED): State.CLOSED,
        (State.OPEN, Step.CLOSE_SENT): State.CLOSING,
        (State.OPEN, Step.CLOSE_RECEIVED): State.CLOSING,
        (State.OPEN, Step.STREAM_ENDED): State.CLOSED,
        (State.CLOSING, Step.CLOSE_SENT): State.CLOSING,
        (State.CLOSING, Step.CLOSE_RECEIVED): State.CLOSING,
        (State.CLOSING, Step.STREAM_ENDED): State.CLOSED,
    }
    for pair in product(State, Step):
        if pair in allowed:
            assert next_state(*pair) is allowed[pair]
        else:
            with pytest.raises(GwsError, match=f"{pair[1].name} is not possible while {pair[0].name}"):
                next_state(*pair)


RESET = ConnectionResetError("reset")
PEERS_CLOSE = "received"
OUR_CLOSE = "sent"
ANSWER = "answered"
BAD_FRAME = "failed"

#: Steps, how the transport ended; then the state before it ended, both close frames, and whether that was clean.
LIVES: list[tuple[list[str], BaseException | None, str, Close | None, Close | None, bool]] = [
    ([], None, "OPEN", None, None, False),
    ([], RESET, "OPEN", None, None, False),
    ([OUR_CLOSE], None, "CLOSING", None, Close(3000, "ours"), False),
    ([OUR_CLOSE], RESET, "CLOSING", None, Close(3000, "ours"), False),
    ([PEERS_CLOSE], None, "CLOSING", Close(4000, "theirs"), None, False),
    ([PEERS_CLOSE, ANSWER], None, "CLOSING", Close(4000, "theirs"), Close(4000, ""), True),
    ([PEERS_CLOSE, ANSWER, ANSWER], None, "CLOSING", Close(4000, "theirs"), Close(4000, ""), True),
    # The transport may break once both have said goodbye.
    ([PEERS_CLOSE, ANSWER], RESET, "CLOSING", Close(4000, "theirs"), Close(4000, ""), True),
    ([OUR_CLOSE, PEERS_CLOSE], None, "CLOSING", Close(4000, "theirs"), Close(3000, "ours"), True),
    ([OUR_CLOSE, PEERS_CLOSE, ANSWER], None, "CLOSING", Close(4000, "theirs"), Close(3000, "ours"), True),
    ([PEERS_CLOSE, OUR_CLOSE, ANSWER], None, "CLOSING", Close(4000, "theirs"), Close(3000, "ours"), True),
    ([OUR_CLOSE, OUR_CLOSE], None, "CLOSING", None, Close(3000, "ours"), False),
    ([ANSWER], None, "OPEN", None, None, False),
    ([BAD_FRAME], None, "OPEN", None, None, False),
    ([BAD_FRAME, OUR_CLOSE], RESET, "CLOSING", None, Close(3000, "ours"), False),
    ([OUR_CLOSE, BAD_FRAME], None, "CLOSING", None, Close(3000, "ours"), False),
]


@BUILDS
@SIDES
@pytest.mark.parametrize(("steps", "error", "state", "received", "sent", "clean"), LIVES)
def test_lives(
    build: str,
    side: str,
    steps: list[str],
    error: BaseException | None,
    state: str,
    received: Close | None,
    sent: Close | None,
    clean: bool,
) -> None:
    protocol, out = new_protocol(build, side), bytearray()
    for step in steps:
        if step == OUR_CLOSE:
            protocol.begin_close(out, 3000, "ours")
        elif step == PEERS_CLOSE:
            feed(protocol, frame(side, FIN | CLOSE, (4000).to_bytes(2, "big") + b"theirs"))
        elif step == ANSWER:
            protocol.answer_close(out)
        else:
            feed(protocol, b"\xff\xff")
    assert protocol.state is State[state]
    assert close_frames(build, side, out) == ([] if sent is None else [sent])
    info = protocol.stream_ended(error)
    assert protocol.state is State.CLOSED
    assert (info.received, info.sent, info.clean) == (received, sent, clean)
    assert info.error is (protocol.failure if BAD_FRAME in steps else None if clean else error)
    assert (info.code, info.reason) == (received or (1006, ""))
    assert protocol.stream_ended(OSError("later")) is info
    assert info.clean is clean
    assert feed(protocol, frame(side, FIN | TEXT, b"late")) == []


def close_frames(build: str, side: str, out: bytearray) -> list[Close]:
    """The close frames that the other side reads in `out`."""
    peer = new_protocol(build, "CLIENT" if side == "SERVER" else "SERVER")
    events = feed(peer, bytes(out))
    return [peer.info.received] if events else []


@BUILDS
@SIDES
def test_an_empty_close_frame_is_answered_with_an_empty_one(build: str, side: str) -> None:
    protocol, out = new_protocol(build, side), bytearray()
    feed(protocol, frame(side, FIN | CLOSE))
    protocol.answer_close(out)
    assert out[:2] == (b"\x88\x00" if side == "SERVER" else b"\x88\x80")
    info = protocol.stream_ended(None)
    assert info == CloseInfo(Close(1005, ""), Close(1005, ""), None, True)


@BUILDS
@SIDES
def test_messages_are_still_read_while_our_close_frame_is_under_way(build: str, side: str) -> None:
    protocol = new_protocol(build, side)
    protocol.begin_close(bytearray(), 1000, "")
    data = frame(side, FIN | TEXT, b"in flight") + frame(side, FIN | CLOSE, b"\x03\xe8")
    assert feed(protocol, data) == [(TEXT, "in flight"), (CLOSE, b"\x03\xe8")]
    assert protocol.stream_ended(None).clean


@BUILDS
def test_the_end_of_the_stream_drops_what_was_incomplete(build: str) -> None:
    protocol = new_protocol(build)
    feed(protocol, frame("SERVER", BINARY, b"x" * 100))
    protocol.stream_ended(None)
    assert (protocol.incomplete, protocol.buffered) == (False, 0)


@BUILDS
def test_a_close_frame_after_the_end_is_a_mistake_of_ours(build: str) -> None:
    protocol, out = new_protocol(build), bytearray()
    protocol.stream_ended(None)
    with pytest.raises(GwsError, match="CLOSE_SENT is not possible while CLOSED"):
        protocol.begin_close(out, 1000, "")
    assert out == b""


def test_a_close_info_in_words() -> None:
    assert str(CloseInfo()) == "received no close frame, sent no close frame"
    assert str(CloseInfo(Close(1000, "bye"), Close(1000))) == "received 1000 'bye', sent 1000"
    assert str(CloseInfo(error=RESET)) == "received no close frame, sent no close frame: reset"


@BUILDS
@pytest.mark.parametrize(
    ("opcode", "data", "expected"),
    [
        (Opcode.TEXT, "hi", "Message(TEXT, 'hi')"),
        (Opcode.BINARY, b"\x00", "Message(BINARY, b'\\x00')"),
        (Opcode.PING, b"", "Message(PING, b'')"),
        (Opcode.TEXT, "x" * 78, f"Message(TEXT, '{'x' * 78}')"),
        (Opcode.TEXT, "x" * 79, f"Message(TEXT, '{'x' * 75}...)"),
    ],
)
def test_the_repr_of_a_message_is_short(build: str, opcode: Opcode, data: str | bytes, expected: str) -> None:
    messages = import_module("gws_gevent.message") if build == "plain" else compiled("message")
    assert repr(messages.Message(opcode, data)) == expected
