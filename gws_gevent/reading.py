# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""From the stream to messages: reading, taking turns, waiting.

Belongs here: when to read, when to give way, what comes before a read. Does not belong here: what a frame means (protocol.py), what
becomes of a message (incoming.py).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.pool import Pool

from gws_gevent.exceptions import ConnectionClosed, TransportError
from gws_gevent.frames import Opcode
from gws_gevent.runtime import YIELD
from gws_gevent.transports.base import PollableStream

from ._fdio import SocketStream, monotonic
from .deadlines import Deadlines
from .message import Message
from .service import Service
from .writer import Writer

if TYPE_CHECKING:
    from gws_gevent.handler import EventHandler
    from gws_gevent.http_head import Request
    from gws_gevent.transports.base import Stream

__all__ = ["Reading"]

#: Seconds that connections may keep the loop without waiting, while others have input.
TURN: Final = 0.0002
#: Seconds from which a blocking read is known to have waited. Shorter ones count as work: at worst that gives way too often.
WAITED: Final = 0.00005
#: Messages handled between two looks at the clock, less one: the low bits of their number that are all set then.
LOOK_UP: Final = 15

#: What `_receive` says besides a count of bytes.
WOULD_BLOCK: Final = -1
FAILED: Final = -2

TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY
CONTINUATION: Final = Opcode.CONTINUATION


class Reading(Deadlines):
    """The part of a connection that gets messages out of the stream. One greenlet at a time reads.

    What `Incoming` keeps is here as well: its flags would cost each connection a word more in a struct of their own.
    """

    __slots__ = (
        "_batch_at", "_giving_way", "_greenlet", "_handler", "_opened", "_parked", "_parking", "_pollable", "_pool",
        "_request", "_session",
    )  # fmt: skip

    def __init__(self, stream: Stream, service: Service) -> None:
        Deadlines.__init__(self, stream, service)
        self._handler: EventHandler | None = None
        self._greenlet: Any = None
        self._request: Request | None = None
        self._session: MutableMapping[Any, Any] | None = None
        self._pool: Pool | None = None
        self._batch_at = 0
        self._opened = False
        self._giving_way = False
        self._parking = False
        self._parked = False
        self._pollable = self._socket is not None or isinstance(stream, PollableStream)
        if self._pollable and self._socket is None:
            carrier = stream.info("carrier")
            self._socket = carrier if type(carrier) is SocketStream else None

    def _next(self) -> Message | None:
        """The next message or control frame; None when the connection has ended."""
        while True:
            message = self._take_message()
            if message is not None or self._ended:
                return message
            self._wait_for_input()

    def _take_message(self) -> Message | None:
        """The next message or control frame; None: nothing can be read without waiting, or the connection has ended."""
        batch = self._batch
        if batch is None:
            return self._fetch()
        if self._batch_at & LOOK_UP == LOOK_UP:
            # Before a message is taken: an exception thrown in here must not lose it.
            self._give_way(monotonic())
        message = batch[self._batch_at]
        self._batch_at += 1
        if self._batch_at == len(batch):
            # From here on a write is sent at once, with all that was held back before it.
            self._batch = None
        return message

    def _fetch(self) -> Message | None:
        """`_take_message` where the last batch is handled: read. Only closing, and a stream that is not pollable, make it wait."""
        protocol = self._protocol
        while self._batch is None:
            if not self._may_read():
                return None
            if protocol.partial is not None and protocol.has_more:
                self._take(protocol.receive(b"", 0, 0), monotonic())
                continue
            count = self._receive()
            if count <= 0:
                if count != WOULD_BLOCK:
                    self._end(count == FAILED)
                return None
            message = protocol.receive_whole(self._service.buffer, 0, count)
            if message is not None:
                return message
            self._take(protocol.receive(self._service.buffer, 0, count), self._heard)
        return self._take_message()

    def _may_read(self) -> bool:
        """Do what comes before a read: send what was held back, give way, take the next step of closing. False: read no more."""
        if self._ended:
            return False
        writer = self._writer
        if writer is not None and writer.size and not writer.draining:
            self._flush_before_waiting(writer)
        if self._service.turn_began != 0.0:
            # What a read has left behind may have taken long since.
            self._give_way(self._heard if self._protocol.partial is None else monotonic())
            if self._ended:
                return False
        protocol = self._protocol
        if protocol.failure is None and protocol.info is None:
            return True
        if protocol.partial is not None and protocol.has_more:
            return True
        if protocol.failure is not None:
            self._fail(protocol.failure.code, str(protocol.failure))
            return False
        if protocol.info is not None and protocol.info.received is not None:
            self._finish_closing_handshake()
            return False
        return True

    def _receive(self) -> int:
        """Read into the shared buffer: bytes, 0 if the peer has finished, WOULD_BLOCK, or FAILED."""
        if self._request is not None and not self._service.keep_request:
            self._request = None
        service = self._service
        try:
            if self._socket is self.stream:
                count = self._socket.try_recv_into(service.buffer)
            elif self._pollable:
                count = self.stream.try_recv_into(service.buffer)  # type: ignore[attr-defined]
            else:
                count = self._receive_blocking()
        except TransportError as error:
            self._note(error)
            return FAILED
        if count > 0:
            self._heard = monotonic()
            if service.turn_began == 0.0:
                service.turn_began = self._heard
        return count

    def _receive_blocking(self) -> int:
        """A stream that can only block is a turn of its own if it did."""
        before = monotonic()
        self._reading = True
        try:
            return self.stream.recv_into(self._service.buffer)
        finally:
            self._reading = False
            if monotonic() - before > WAITED:
                self._service.turn_began = 0.0

    def _receive_waiting(self) -> int:
        """Like `_receive`, and wait where that would block."""
        while True:
            if self._service.turn_began != 0.0:
                self._give_way(monotonic())
            count = self._receive()
            if count != WOULD_BLOCK:
                return count
            self._wait_for_input()

    def _wait_for_input(self) -> None:
        """Wait in a greenlet that goes on afterwards; what is thrown into it goes on to its owner."""
        self._reading = True
        try:
            self.stream.wait_readable()  # type: ignore[attr-defined]
        except TransportError as error:
            self._note(error)
            self._end(True)
        finally:
            self._reading = False
            self._service.turn_began = 0.0

    def _give_way(self, now: float) -> None:
        """Let the others run once a turn is over: a connection with endless input would starve them."""
        service = self._service
        if service.turn_began == 0.0:
            service.turn_began = now
        elif now - service.turn_began > TURN:
            self._giving_way = True
            try:
                gevent.sleep(YIELD)
            finally:
                self._giving_way = False
                service.turn_began = monotonic()

    def _take(self, messages: list[Message], now: float) -> None:
        if messages:
            self._batch = messages
            self._batch_at = 0
        partial = self._protocol.partial
        if partial is None or partial.is_waiting():
            self._message_since = 0.0
            if self._accounted:
                self._account()
            return
        if not self._message_since or _holds_data(messages):
            # Control frames stand in the middle of a message without being part of it: they leave its clock alone.
            self._message_has_begun(now)
        self._account()

    def _flush_before_waiting(self, writer: Writer) -> None:
        try:
            self._flush(writer)
        except ConnectionClosed:
            return  # the reader learns it from the stream

    # What the other parts of the connection provide

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection."""
        raise NotImplementedError

    def _finish_closing_handshake(self) -> None:
        """The peer's close frame has come."""
        raise NotImplementedError

    def __call__(self) -> None:
        """The connection's greenlet."""
        raise NotImplementedError


def _holds_data(messages: list[Message]) -> bool:
    return any(message.opcode is TEXT or message.opcode is BINARY or message.opcode is CONTINUATION for message in messages)
