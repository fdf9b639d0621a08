# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""One side of one WebSocket connection after the opening handshake, without I/O and without a clock.

Belongs here: bytes in, messages out; which close frame answers what. Does not belong here: what connections have in common
(protocol_rules.py), the incomplete message (partial_message.py), reading, writing, waiting, logging, calling handlers.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from gws_gevent.closing import close_payload, next_state
from gws_gevent.exceptions import ProtocolError
from gws_gevent.extensions.deflate import OUTPUT_SLICE
from gws_gevent.frames import (
    MAX_CONTROL_PAYLOAD,
    MAX_FRAME_HEADER,
    Close,
    CloseCode,
    CloseInfo,
    Opcode,
    State,
    Step,
    is_sendable_close_code,
)

from ._masking import append_frame, unmask, unmask_text
from .message import Message, new_message
from .partial_message import PartialMessage
from .protocol_rules import ProtocolRules

if TYPE_CHECKING:
    from gws_gevent.extensions.permessage_deflate import Agreement

__all__ = ["Protocol"]

#: Messages parsed before the first of them is handled. What a read holds beyond them is copied out and parsed later.
MAX_BATCH: Final = 1024

#: Bytes inflated in a batch after which the rest of a read is parsed later too: a few bytes may inflate to many.
MAX_INFLATED: Final = 256 * 1024

#: Bytes of the longest cut-off piece that is kept as it came: a control frame less one byte, rounded up.
LONGEST_HELD: Final = MAX_FRAME_HEADER + MAX_CONTROL_PAYLOAD

OPCODES: Final = {int(opcode): opcode for opcode in Opcode}
OPEN: Final = State.OPEN
CLOSED: Final = State.CLOSED
TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY
CONTINUATION: Final = Opcode.CONTINUATION
TOO_BIG: Final = CloseCode.MESSAGE_TOO_BIG


class Protocol:
    """The state of one connection: feed it bytes with `receive`, encode with `append_frame` and `begin_close`.

    Attributes:
        rules: the limits, and what was negotiated.
        state: OPEN from the start.
        info: the closing handshake so far; None while nobody has begun it.
        partial: what has begun and not ended, a message or a frame that is cut off; None most of the time.
        failure: the ProtocolError that ended reading; the caller answers it with a close frame of its code. Bytes after it are
            ignored.
    """

    __slots__ = ("failure", "info", "partial", "rules", "state")

    def __init__(self, rules: ProtocolRules) -> None:
        self.rules = rules
        self.partial: PartialMessage | None = None
        self.state = OPEN
        self.info: CloseInfo | None = None
        self.failure: ProtocolError | None = None

    def receive(self, data: bytes | bytearray, at: int, end: int) -> list[Message]:
        """Take the bytes `data[at:end]` and return what they complete: messages and control frames, in order.

        At most MAX_BATCH at once: while `has_more` is true, call again with no bytes before the next read. Nothing of
        `data` is referred to after the call. After a close frame, or once `failure` is set, bytes are ignored.
        """
        messages: list[Message] = []
        if self.failure is not None or self.state is CLOSED or (self.info is not None and self.info.received is not None):
            return messages
        try:
            if self.partial is not None:
                if self.partial.stream is None:
                    at = self._resume(messages, data, at, end)
                else:
                    at = self._resume_stream(messages, data, at, end)
            if at < end:
                self._parse(messages, data, at, end)
        except ProtocolError as error:
            self.failure = error
            if error.code != TOO_BIG or self.partial is None or not self.partial.rest:
                self.partial = None
        return messages

    def receive_whole(self, data: bytes | bytearray, at: int, end: int) -> Message | None:
        """Like `receive` where `data[at:end]` is one whole message in one frame; None, and nothing is taken, if it is not.

        A short cut for the most usual case, which needs no list.
        """
        if self.partial is not None or self.info is not None or self.failure is not None or self.state is CLOSED:
            return None
        parser = self.rules.parser
        try:
            size = parser.read_header(data, at, end, False)
            if size == 0 or parser.opcode >= 8 or not parser.fin or parser.compressed or end - at - size != parser.length:
                return None
            return self._whole(parser.opcode, data, at + size, parser.length, at + size - 4 if parser.expect_masked else -1)
        except ProtocolError:
            return None  # `receive` meets it again and says so

    @property
    def has_more(self) -> bool:
        """True when a batch left complete frames behind."""
        partial = self.partial
        if partial is None or self.failure is not None:
            return False
        if len(partial.rest) > 0 or partial.has_more:
            return True
        return partial.stream is not None and partial.opcode != 0 and partial.declared < 0

    @property
    def incomplete(self) -> bool:
        """True while a message has begun and not ended, or a frame is cut off."""
        return self.failure is None and self.partial is not None and not self.partial.is_waiting()

    @property
    def buffered(self) -> int:
        """Bytes held of incomplete frames and messages."""
        return self.partial.size if self.partial is not None else 0

    def agree(self, agreement: Agreement) -> None:
        """Both ends have agreed on permessage-deflate, before the first frame."""
        self.rules = self.rules.agreed(agreement)

    def append_frame(self, out: bytearray, opcode: int, payload: bytes | bytearray | memoryview, fin: bool) -> None:
        """Encode one frame at the end of `out`; a client's is masked with a fresh key (section 5.3)."""
        append_frame(out, 0x80 | opcode if fin else opcode, payload, os.urandom(4) if self.rules.is_client else b"")

    def begin_close(self, out: bytearray, code: int, reason: str) -> None:
        """Encode our close frame at the end of `out`; nothing if one was sent before.

        Raises:
            ValueError: as `close_payload`; nothing was encoded.
            GwsError: the stream has ended; nothing was encoded.
        """
        payload = close_payload(code, reason)
        if self.info is not None and self.info.sent is not None:
            return
        self.state = next_state(self.state, Step.CLOSE_SENT)
        self._closing().sent = Close(code, reason)
        self.append_frame(out, Opcode.CLOSE, payload, True)

    def answer_close(self, out: bytearray) -> None:
        """Answer the peer's close frame with the same code, an empty one with an empty one (section 5.5.1)."""
        if self.info is not None and self.info.received is not None:
            self.begin_close(out, self.info.received.code, "")

    def fail(self, code: int, reason: str) -> None:
        """Read no more: forget what is incomplete and ignore later bytes, as after a `failure` of the peer's making."""
        if self.failure is None:
            self.failure = ProtocolError(code, reason)
        self.partial = None

    def stream_ended(self, error: BaseException | None) -> CloseInfo:
        """The transport has ended: settle how. `error` is what ended it, None for an orderly end of stream."""
        info = self._closing()
        if self.state is not CLOSED:
            self.state = next_state(self.state, Step.STREAM_ENDED)
            self.partial = None
            exchanged = info.sent is not None and info.received is not None
            info.error = self.failure if self.failure is not None else None if exchanged else error
            info.clean = exchanged and info.error is None
        return info

    def _closing(self) -> CloseInfo:
        if self.info is None:
            self.info = CloseInfo()
        return self.info

    def _parse(self, messages: list[Message], data: bytes | bytearray, at: int, end: int) -> int:
        """`_parse_frames`; and keep a frame that is too big behind messages: their reader may want it in pieces."""
        try:
            return self._parse_frames(messages, data, at, end)
        except ProtocolError as error:
            if error.code == TOO_BIG and messages:
                self._open_partial().rest = bytes(data[self.rules.parser.at : end])
            raise

    def _parse_frames(self, messages: list[Message], data: bytes | bytearray, at: int, end: int) -> int:
        """Cut frames out of `data[at:end]`; keep what is cut off at its end. Returns the offset reached."""
        parser = self.rules.parser
        fragmented = self.partial is not None and self.partial.opcode != 0
        inflated = 0
        while at < end:
            size = parser.read_header(data, at, end, fragmented)
            payload_at = at + size
            length = parser.length
            key_at = payload_at - 4 if parser.expect_masked else -1
            if size == 0 or (parser.opcode >= 8 and end - payload_at < length):
                self._open_partial().held = bytes(data[at:end])
                return end
            if parser.opcode >= 8:
                at = payload_at + length
                messages.append(self._control(parser.opcode, unmask(data, payload_at, length, key_at)))
                if parser.opcode == 8:
                    return end
            elif parser.allow_compressed and messages and parser.fin and end - payload_at >= length and self._may_be_too_big():
                # Not behind other messages: their reader may say that it takes the next one in pieces.
                return self._hold_rest(data, at, end)
            elif parser.fin and not fragmented and end - payload_at >= length:
                at = payload_at + length
                if parser.compressed:
                    inflated += self._inflate(messages, parser.opcode, unmask(data, payload_at, length, key_at))
                else:
                    messages.append(self._whole(parser.opcode, data, payload_at, length, key_at))
            else:
                before = len(messages)
                at = self._begin_fragment(messages, data, payload_at, end, key_at)
                fragmented = self.partial is not None
                if len(messages) > before and parser.allow_compressed:
                    inflated += len(messages[before].data)
            if (len(messages) >= MAX_BATCH or inflated >= MAX_INFLATED) and at < end:
                return self._hold_rest(data, at, end)
        return at

    def _may_be_too_big(self) -> bool:
        """True where the frame ends a compressed message that may come to more than the limit."""
        rules, partial = self.rules, self.partial
        if rules.parser.opcode == 0:
            return partial is not None and partial.compressed and len(partial.buffer) + rules.parser.length > rules.never_too_big
        return rules.parser.compressed and rules.parser.length > rules.never_too_big

    def _whole(self, opcode: int, data: bytes | bytearray, at: int, length: int, key_at: int) -> Message:
        if opcode == 2:
            return new_message(BINARY, unmask(data, at, length, key_at))
        try:
            return new_message(TEXT, unmask_text(data, at, length, key_at, self.rules.utf8_errors))
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_DATA, "text is not UTF-8") from None

    def _inflate(self, messages: list[Message], opcode: int, payload: bytes | bytearray) -> int:
        """Add a compressed message (RFC 7692 section 7.2.2); return its size."""
        rules = self.rules
        inflated = rules.deflate.inflate(payload, rules.max_size)  # type: ignore[union-attr]  # else its header would have been refused
        messages.append(new_message(OPCODES[opcode], self._data_of(opcode, inflated)))
        return len(inflated)

    def _data_of(self, opcode: int, inflated: bytes) -> str | bytes:
        if opcode == 2:
            return inflated
        try:
            return inflated.decode("utf-8", self.rules.utf8_errors)
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_DATA, "text is not UTF-8") from None

    def _control(self, opcode: int, payload: bytes) -> Message:
        if opcode == 8:
            self._closing().received = self._parse_close(payload)
            self.state = next_state(self.state, Step.CLOSE_RECEIVED)
            self.partial = None
        return new_message(OPCODES[opcode], payload)

    def _parse_close(self, payload: bytes) -> Close:
        if not payload:
            return Close(CloseCode.NO_STATUS, "")
        if len(payload) == 1:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "close frame with half a code")
        code = int.from_bytes(payload[:2], "big")
        if not is_sendable_close_code(code):
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "bad close code")
        try:
            return Close(code, payload[2:].decode("utf-8", self.rules.utf8_errors))
        except UnicodeDecodeError:
            raise ProtocolError(CloseCode.INVALID_DATA, "close reason is not UTF-8") from None

    def _open_partial(self) -> PartialMessage:
        if self.partial is None:
            rules = self.rules
            self.partial = PartialMessage(rules.max_size, rules.max_fragments, rules.check_utf8)
        return self.partial

    def _drop_empty_partial(self) -> None:
        if self.partial is not None and self.partial.is_empty():
            self.partial = None

    def _begin_fragment(self, messages: list[Message], data: bytes | bytearray, at: int, end: int, key_at: int) -> int:
        """A data frame that is no message by itself: a fragment, or one whose payload is cut off."""
        parser, partial = self.rules.parser, self._open_partial()
        key = bytes(data[key_at : key_at + 4]) if key_at >= 0 else b""
        partial.begin_frame(parser.opcode, parser.fin, parser.length, key, parser.compressed)
        return self._add(messages, partial, data, at, end)

    def _add(self, messages: list[Message], partial: PartialMessage, data: bytes | bytearray, at: int, end: int) -> int:
        at = partial.add(data, at, end)
        if partial.is_complete():
            if partial.compressed:
                opcode = partial.opcode
                self._inflate(messages, opcode, partial.take_compressed())
            else:
                messages.append(partial.take())
            if partial.is_empty():
                self.partial = None
        return at

    def _hold_rest(self, data: bytes | bytearray, at: int, end: int) -> int:
        self._open_partial().rest = bytes(data[at:end])
        return end

    def _resume(self, messages: list[Message], data: bytes | bytearray, at: int, end: int) -> int:
        """Go on where the last call stopped; returns the offset from which `data` can be parsed by itself."""
        partial = self._open_partial()
        if partial.rest:
            # The caller gives no bytes here; if it does, they belong behind.
            whole = partial.rest + bytes(data[at:end])
            partial.rest = b""
            self._drop_empty_partial()
            self._parse(messages, whole, 0, len(whole))
            return end
        if partial.held:
            return self._resume_held(messages, partial, data, at, end)
        return self._add(messages, partial, data, at, end) if partial.remaining > 0 else at

    def _resume_held(self, messages: list[Message], partial: PartialMessage, data: bytes | bytearray, at: int, end: int) -> int:
        """A cut-off header or control frame: top it up with no more than such a frame can need, then see how far that went."""
        parser, held = self.rules.parser, partial.held
        top_up = min(end - at, LONGEST_HELD)
        joined = held + bytes(data[at : at + top_up])
        size = parser.read_header(joined, 0, len(joined), partial.opcode != 0)
        if size == 0 or (parser.opcode >= 8 and len(joined) - size < parser.length):
            partial.held = joined
            return at + top_up
        partial.held = b""
        key_at = size - 4 if parser.expect_masked else -1
        if parser.opcode >= 8:
            at += size + parser.length - len(held)
            payload = unmask(joined, size, parser.length, key_at)
            self._drop_empty_partial()
            messages.append(self._control(parser.opcode, payload))
            return end if parser.opcode == 8 else at
        key = joined[key_at:size] if key_at >= 0 else b""
        partial.begin_frame(parser.opcode, parser.fin, parser.length, key, parser.compressed)
        return self._add(messages, partial, data, at + size - len(held), end)

    # A message in pieces

    def stream_next(self, stream: Any) -> None:
        """Give out the next message that has not been returned yet in pieces, as it comes, and not bounded by `max_size`.

        `receive` then returns Messages of opcode CONTINUATION: one whose data is `stream`, the pieces (`str` for text, never
        empty), and again one whose data is `stream`. Control frames stand between them. It is the next message's turn if one has
        begun in pieces. A no-op while this stream waits.

        Args:
            stream: has `max_size`, in bytes, and `skipped`: while that is true, pieces are left out. Its `opcode` is set.
        """
        if self.state is CLOSED or (self.info is not None and self.info.received is not None):
            return
        if self.failure is not None:
            if self.partial is None:
                return
            # The frame that was too big as a part of a message is kept: now it is one of a stream.
            self.failure = None
        partial = self._open_partial()
        if partial.stream is None or partial.opcode == 0:
            partial.begin_stream(stream)
        elif partial.stream is not stream:
            partial.stream.skipped = True
            partial.next_stream = stream

    def stream_none(self, stream: Any) -> None:
        """Take `stream_next` back, unless its message has begun."""
        partial = self.partial
        if partial is None:
            return
        if partial.next_stream is stream:
            partial.next_stream = None
        elif partial.stream is stream and partial.opcode == 0:
            self.partial = None
            if partial.held or partial.rest:
                whole = self._open_partial()
                whole.held, whole.rest = partial.held, partial.rest

    def skip_stream(self) -> None:
        """Leave out the pieces that are still to come of the message that is being given out."""
        partial = self.partial
        if partial is not None and partial.stream is not None and partial.opcode != 0:
            partial.stream.skipped = True

    def _resume_stream(self, messages: list[Message], data: bytes | bytearray, at: int, end: int) -> int:
        """`_resume` for a message in pieces."""
        partial = self._open_partial()
        if partial.held or partial.rest:
            whole = partial.held + partial.rest + bytes(data[at:end])
            partial.held = partial.rest = b""
            self._parse(messages, whole, self._stream_frames(messages, whole, 0, len(whole)), len(whole))
            return end
        return self._stream_frames(messages, data, at, end)

    def _stream_frames(self, messages: list[Message], data: bytes | bytearray, at: int, end: int) -> int:
        """Cut pieces out of `data[at:end]`. Returns the offset from which there are other messages."""
        partial = self._open_partial()
        if partial.opcode != 0 and partial.declared < 0:
            partial.take_over(self.rules.deflate)
            self._begin_pieces(messages, partial)
        inflated = 0
        while at < end or partial.has_more:
            if not partial.has_more:
                if partial.remaining == 0:
                    parser = self.rules.stream_parser
                    size = parser.read_header(data, at, end, partial.opcode != 0)
                    if size == 0 or (parser.opcode >= 8 and end - at - size < parser.length):
                        partial.held = bytes(data[at:end])
                        return end
                    if parser.opcode != 0 and parser.opcode < 8 and messages:
                        # It stands first in what is returned, so that its reader cannot be interrupted in front of it.
                        return self._hold_rest(data, at, end)
                    at = self._stream_header(messages, partial, data, at + size)
                    if parser.opcode == 8:
                        return end
                    if parser.opcode > 8:
                        if len(messages) >= MAX_BATCH and at < end:
                            return self._hold_rest(data, at, end)
                        continue
                at = partial.add_piece(data, at, end)
            inflated += self._add_piece(messages, partial)
            if not partial.has_more and partial.is_complete():
                messages.append(new_message(CONTINUATION, partial.stream))
                if not partial.end_stream():
                    self.partial = None
                    return at
            if partial.has_more or ((len(messages) >= MAX_BATCH or inflated >= OUTPUT_SLICE) and at < end):
                return self._hold_rest(data, at, end)
        return at

    def _stream_header(self, messages: list[Message], partial: PartialMessage, data: bytes | bytearray, payload_at: int) -> int:
        """Take a control frame, or the header of a data frame; returns the offset behind it."""
        parser = self.rules.stream_parser
        key_at = payload_at - 4 if parser.expect_masked else -1
        if parser.opcode >= 8:
            messages.append(self._control(parser.opcode, unmask(data, payload_at, parser.length, key_at)))
            return payload_at + parser.length
        key = bytes(data[key_at : key_at + 4]) if key_at >= 0 else b""
        partial.begin_piece(parser.opcode, parser.fin, parser.length, key, self.rules.deflate if parser.compressed else None)
        if parser.opcode != 0:
            self._begin_pieces(messages, partial)
        return payload_at

    def _begin_pieces(self, messages: list[Message], partial: PartialMessage) -> None:
        partial.stream.opcode = OPCODES[partial.opcode]
        messages.append(new_message(CONTINUATION, partial.stream))

    def _add_piece(self, messages: list[Message], partial: PartialMessage) -> int:
        """Add what can be given out of the message, of a compressed one a slice; return how many bytes were inflated for that."""
        before = partial.inflated
        piece = partial.take_piece()
        if piece and not partial.stream.skipped:
            messages.append(new_message(CONTINUATION, piece))
        return partial.inflated - before
