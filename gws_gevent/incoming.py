# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""What becomes of the messages of a connection: calls of a handler, or results of `receive()`; and parking.

Belongs here: an event handler's loop, the other face, where an idle connection waits. Does not belong here: reading (reading.py),
what a frame means (protocol.py), what comes before the first message and after the last (connection.py).

An event handler's connection waits in one place, `_wait`, which the greenlet's first function calls: whatever else there is to do
has returned by then. So no Python frame, and little of the C stack, stays alive in the greenlet of an idle connection.
"""

from __future__ import annotations

import logging
from contextvars import copy_context
from typing import Any, Final

import gevent
from gevent.exceptions import ConcurrentObjectUseError
from gevent.pool import Pool
from greenlet import GreenletExit, getcurrent, greenlet

from gws_gevent.exceptions import ConnectionClosed, GwsError, TransportError
from gws_gevent.frames import CloseCode, Opcode, State
from gws_gevent.handler import FunctionHandler
from gws_gevent.streamed import MessageStream

from ._fdio import monotonic
from .message import Message
from .reading import Reading

__all__ = ["Incoming"]

#: Bytes of one message in pieces, unless `receive_stream` is told otherwise.
MAX_STREAMED: Final = 1024 * 1024 * 1024
#: What stands for no bound.
NO_BOUND: Final = 2**63 - 1

OPEN: Final = State.OPEN
TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY
CONTINUATION: Final = Opcode.CONTINUATION


class Incoming(Reading):
    """The half of a connection that reads: the connection's own greenlet does, or whoever calls `receive`."""

    __slots__ = ()

    # An event handler's loop

    def _turn(self) -> bool:
        """Read and handle all there is without waiting. True: the next step is to wait; False: the connection has ended."""
        failed = False
        while True:
            try:
                return self._work(self._handler)
            except GreenletExit as exit:
                # Rule: killing the greenlet aborts the transport; the peer is told nothing.
                self._note(exit)
                self._end(True)
                return False
            except BaseException as error:
                self._handler_failed(error)
                if failed:
                    # Handlers are not called once the first failure has closed: this one is no handler's, and would come again.
                    self._end(True)
                failed = True

    def _work(self, handler: Any) -> bool:
        while True:
            message = self._take_message()
            if message is None:
                return not self._ended
            self._handle(handler, message)

    def _wait(self) -> bool:
        """Wait until there is something to read. False: parked instead, and the greenlet is to end."""
        self._reading = True
        error = self._socket.wait(True) if self._socket is not None else self._wait_as_it_can()
        self._service.turn_began = 0.0
        if error is None and self._parking:
            return not self._try_to_park()
        self._reading = False
        if error is not None:
            self._waiting_failed(error)
        return True

    def _wait_as_it_can(self) -> BaseException | None:
        """A PollableStream that is not, and is not carried by, a SocketStream."""
        try:
            self.stream.wait_readable()  # type: ignore[attr-defined]
        except BaseException as error:
            return error
        return None

    def _waiting_failed(self, error: BaseException) -> None:
        self._parking = False
        if isinstance(error, TransportError | GreenletExit | ConcurrentObjectUseError) or not self._is_open():
            # It would fail again and again, without a switch between. What the greenlet of a forked child meets is the last of
            # these: the connection is its parent's, so nothing may be said there.
            self._note(error)
            self._end(True)
        else:
            self._handler_failed(error)

    def _handle(self, handler: Any, message: Message) -> None:
        if message.opcode is TEXT or message.opcode is BINARY:
            if self._protocol.state is OPEN or self._is_open():
                if self._service.parallel:
                    self._handle_in_pool(handler, message)
                else:
                    handler.on_message(self, message)
        else:
            self._handle_control(handler, message)

    def _handle_control(self, handler: Any, message: Message) -> None:
        if message.opcode is CONTINUATION:
            self._skip_piece(message.data)
            return
        if not self._is_open():
            return
        if message.opcode is Opcode.PING:
            if handler is None:
                self.write_pong(message.data)
            else:
                handler.on_ping(self, message.data)
        elif message.opcode is Opcode.PONG and not self._is_keepalive_pong(message.data) and handler is not None:
            handler.on_pong(self, message.data)

    def _handle_in_pool(self, handler: Any, message: Message) -> None:
        if self._pool is None:
            self._pool = Pool(self._service.options.parallel)
        one = gevent.Greenlet(self._handle_one_of_many, handler, message)
        # A greenlet begins with no context variable set; this one is to find those of the connection.
        one.gr_context = copy_context()
        self._pool.start(one)

    def _handle_one_of_many(self, handler: Any, message: Message) -> None:
        try:
            handler.on_message(self, message)
        except GreenletExit:
            raise
        except BaseException as error:
            self._handler_failed(error)

    def _handler_failed(self, error: BaseException) -> None:
        if isinstance(error, ConnectionClosed) and not self._is_open():
            return  # it wrote or read once more after the end: no fault of its own
        self._service.log(logging.ERROR, self, "handler failed", error=error)
        if not self._service.options.recovery or not isinstance(error, Exception):
            self._service.hub.handle_error(self, type(error), error, error.__traceback__)
        self._note(error)
        # The log has the traceback, the peer has nothing.
        self._close_from_here(CloseCode.INTERNAL_ERROR)

    # Parking: an idle connection without a greenlet

    def _park(self) -> None:
        """In the hub: let the greenlet that waits for input end, if that is all it does."""
        if self._may_park and self._reading and self._writer is None and self._protocol.partial is None:
            self._parking = True
            # It wakes up, finds nothing to read, and sees to the rest by itself.
            self._socket.interrupt()  # type: ignore[union-attr]  # see _may_park

    def _try_to_park(self) -> bool:
        """In the connection's greenlet, which ends if this is True. `_reading` stays on: input is waited for all the same."""
        self._parking = False
        if self._ended or self._socket is None:
            self._reading = False
            return False
        try:
            self._socket.call_when_readable(self)
        except TransportError as error:
            self._note(error)
            self._reading = False
            return False
        self._may_park = False
        self._parked = True
        self._service.keep_context(self, self._greenlet.gr_context)
        self._greenlet = None
        self._service.runtime.greenlet_given_back()
        return True

    def on_readable(self) -> None:
        """In the hub, or where a parked connection has just been ended: go on in a new greenlet."""
        self._parked = self._reading = False
        fresh = greenlet(self, self._service.hub)
        context = self._service.take_context(self)
        if context is not None:
            fresh.gr_context = context
        self._service.hub.loop.run_callback(fresh.switch)

    def _watch_idleness(self) -> None:
        """Park when nothing has come for `park_after` seconds, where the stream is one that can do without a greenlet."""
        park_after = self._service.options.park_after
        if park_after is not None and self._socket is not None:
            self._may_park = True
            self._look_at(monotonic() + park_after)

    # The other face

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message: `str` for text, `bytes` for binary. Control frames are handled on the way.

        Args:
            timeout: seconds to wait; None waits until the connection ends.

        Raises:
            TimeoutError: nothing came in time. The connection stays usable and nothing is lost.
            ConnectionClosed: the connection has ended.
        """
        self._check_reader()
        return self._receive_data() if timeout is None else self._in_time(timeout, None)

    def receive_stream(self, max_size: int | None = MAX_STREAMED, timeout: float | None = None) -> MessageStream:
        """Wait until the next message begins, and return it to be read piece by piece: iterate over what is returned.

        Neither `read_max_payload_size` nor `max_fragments` bounds it, and `message_timeout` counts from one piece to the next.
        Text is checked across fragments (RFC 6455 section 8.1). Nothing more is received while no piece is asked for. A message
        that had come whole before this call is one piece.

        Args:
            max_size: bytes of the whole message, of a compressed one what it inflates to; 1009 above it. None is no bound.
            timeout: seconds to wait for its beginning; None waits until the connection ends.

        Raises:
            TimeoutError: none has begun in time. The connection stays usable and nothing is lost.
            ConnectionClosed: the connection has ended.
            ValueError, TypeError: a `max_size` below 0, or one that is no number of bytes.
        """
        self._check_reader()
        if max_size is not None and not isinstance(max_size, int):
            raise TypeError(f"max_size: must be a whole number of bytes, or None, not {max_size!r}")
        if max_size is not None and max_size < 0:
            raise ValueError(f"max_size: must be at least 0, or None, not {max_size!r}")
        bound = NO_BOUND if max_size is None else min(max_size, NO_BOUND)
        stream = MessageStream(self, bound)  # type: ignore[arg-type]  # every Incoming is a Connection
        if timeout is None:
            self._begin_stream(stream)
        else:
            self._in_time(timeout, stream)
        return stream

    def next_piece(self, stream: MessageStream) -> Any:
        """For MessageStream: wait for the next piece; None when the message has ended. Raises as `receive`."""
        self._check_reader()
        while True:
            message = self._next()
            if message is None:
                raise ConnectionClosed(self._info_so_far())
            if message.opcode is not CONTINUATION:
                self._handle_control(self._handler, message)
            elif self._is_open():
                return None if message.data is stream else message.data

    def _check_reader(self) -> None:
        if self._reading or self._giving_way:
            raise GwsError("another greenlet is reading this connection")
        if self._handler is not None and not self._ended and not self._may_be_read_here():
            raise GwsError("this connection is read by its handler; receive() in its callbacks, or connect without one")

    def _may_be_read_here(self) -> bool:
        """A function reads as it likes, also in other greenlets; the loop of an event handler lets only its callbacks read."""
        if self._greenlet is None:
            # Not served yet: what `connect` has returned will be, what an Upgrader has returned is the caller's to read.
            return not self._service.is_client
        return self._greenlet is getcurrent() or isinstance(self._handler, FunctionHandler)

    def _in_time(self, timeout: float, stream: MessageStream | None) -> Any:
        """Receive a message, or begin a stream."""
        timer = gevent.Timeout.start_new(max(0, timeout))  # in this order NaN is 0
        try:
            return self._receive_data() if stream is None else self._begin_stream(stream)
        except gevent.Timeout as raised:
            if raised is not timer:
                raise
            raise TimeoutError(f"no message within {timeout} seconds") from None
        finally:
            timer.close()

    def _receive_data(self) -> Any:
        while True:
            message = self._next()
            if message is None:
                raise ConnectionClosed(self._info_so_far())
            if message.opcode is TEXT or message.opcode is BINARY:
                if self._is_open():
                    return message.data
            else:
                self._handle_control(self._handler, message)

    def _begin_stream(self, stream: MessageStream) -> None:
        protocol = self._protocol
        try:
            while True:
                if self._batch is None:
                    # What is parsed from here on. A message that is in the batch has come whole.
                    protocol.stream_next(stream)
                message = self._next()
                if message is None:
                    raise ConnectionClosed(self._info_so_far())
                if message.data is stream:
                    return
                if message.opcode is TEXT or message.opcode is BINARY:
                    if self._is_open() and self._hold_whole(stream, message):
                        return
                else:
                    self._handle_control(self._handler, message)
        finally:
            protocol.stream_none(stream)

    def _hold_whole(self, stream: MessageStream, message: Message) -> bool:
        data = message.data
        if len(data.encode() if message.opcode is TEXT else data) > stream.max_size:
            self._batch = None
            self._protocol.fail(CloseCode.MESSAGE_TOO_BIG, "message is too big")
            return False
        stream.hold(message.opcode, data)
        return True

    def _skip_piece(self, data: Any) -> None:
        """A piece that is met by another reader than its stream's: nobody wants the rest."""
        if type(data) is MessageStream:
            data.skipped = True
        else:
            self._protocol.skip_stream()
