"""A connection: the read loop, the two faces of reading, and the life from accept to close.

Belongs here: reading, dispatching, closing. Does not belong here: writing (outgoing.py), deadlines (deadlines.py), what a frame
means (protocol.py), the opening handshake (opening.py, client.py).

Everything the reader does happens in the connection's own greenlet. `abort` and `on_deadline` run elsewhere: they only end the
stream, which wakes the reader, and the reader tidies up.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.pool import Pool
from greenlet import GreenletExit, getcurrent

from gws_gevent._accel import build_of
from gws_gevent.deadlines import Deadlines
from gws_gevent.exceptions import ConnectionClosed, GwsError, TransportError
from gws_gevent.frames import CloseCode, CloseInfo, Opcode, Side, State, Step

if TYPE_CHECKING:
    from gws_gevent.handler import EventHandler
    from gws_gevent.http_head import Request
    from gws_gevent.messages import Message
    from gws_gevent.protocol import next_state
    from gws_gevent.service import Service
    from gws_gevent.transports.base import Stream
    from gws_gevent.writer import Writer
else:
    next_state = build_of("protocol").next_state

__all__ = ["Connection"]

#: Seconds that one connection may keep the loop while others have input.
TURN = 0.005
#: Seconds from which a read is known to have waited. Shorter ones count as work: at worst that gives way too often.
WAITED = 0.00005
#: Messages handled between two looks at the clock.
LOOK_UP = 32


class Connection(Deadlines):
    """One WebSocket connection, on either side. Servers and `connect` make them.

    Attributes:
        id: a number no other connection of the same server has.
        stream: the transport's stream.
        subprotocol: what the opening handshake chose, or None.
        latency: seconds of the last keepalive round trip, or None.
    """

    __slots__ = (
        "_batch_at", "_closed", "_giving_way", "_greenlet", "_handler", "_opened", "_pool", "_remote", "_request", "_session",
        "_turn_began", "id", "subprotocol",
    )  # fmt: skip

    def __init__(self, stream: Stream, service: Service) -> None:
        Deadlines.__init__(self, stream, service)
        self.id = service.next_id()
        self.subprotocol: str | None = None
        self._batch_at = 0
        self._greenlet: Any = None
        self._handler: EventHandler | None = None
        self._request: Request | None = None
        self._session: MutableMapping[Any, Any] | None = None
        self._remote: Any = None
        self._pool: Pool | None = None
        self._closed: Event | None = None
        self._giving_way = False
        self._opened = False
        self._turn_began = 0.0

    # Facts

    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING or CLOSED."""
        return State.OPEN if self._is_open() else self._protocol.state

    @property
    def closed(self) -> bool:
        """True once the transport has been closed."""
        return self._protocol.state is State.CLOSED

    @property
    def close_info(self) -> CloseInfo | None:
        """How the connection ended, or None while closing has not begun."""
        return self._protocol.info

    @property
    def request(self) -> Request | None:
        """The opening handshake's request (method, target, headers), until the first read; with `keep_request` to the end."""
        return self._request

    @property
    def session(self) -> MutableMapping[Any, Any]:
        """Storage of this connection, made on first use."""
        if self._session is None:
            self._session = self._service.new_session()
        return self._session

    @property
    def remote_address(self) -> Any:
        """The client's address as the socket module gives it; behind a trusted proxy, what the proxy says."""
        return _without_mapping(self._remote if self._remote is not None else self.stream.info("peername"))

    @property
    def local_address(self) -> Any:
        """Our address as the socket module gives it."""
        return _without_mapping(self.stream.info("sockname"))

    @property
    def net_conn(self) -> Any:
        """A gevent socket on the same descriptor, for options and addresses; the connection keeps it. None without a socket."""
        return self.stream.info("socket")

    @property
    def held(self) -> int:
        """Bytes of incomplete messages and unsent output held for this connection."""
        return self._protocol.buffered + self.buffered_amount

    def set_no_delay(self, on: bool) -> None:
        """Set or clear TCP_NODELAY, where there is TCP."""
        import socket

        sock = self.net_conn
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(on))

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.state.name} {self.remote_address}>"

    # Life

    def run(self) -> None:
        """The connection's greenlet from accept to close. Nothing escapes: above is only the hub."""
        self._greenlet = getcurrent()
        try:
            handler = self._service.open(self)
            if handler is not None:
                self._handler = handler
                self.read_loop()
        except GreenletExit:
            self._error = self._error or GreenletExit()
        except BaseException:
            self._runtime.hub.handle_error(self, *sys.exc_info())
        finally:
            self._end(abort=True)
            self._service.closed(self)
            self._greenlet = None

    def accepted(self, subprotocol: str | None, request: Request | None, remote: Any, rest: bytes) -> None:
        """The opening handshake succeeded; `rest` is what came behind it."""
        self._protocol.state = next_state(self._protocol.state, Step.ACCEPTED)
        self.subprotocol = subprotocol
        self._request = request
        self._remote = remote
        self._start_clocks()
        if rest:
            self._take(self._protocol.receive(rest, 0, len(rest)), self._heard)

    def attach(self, handler: EventHandler) -> None:
        """Give an opened connection the handler that its `read_loop` will serve."""
        self._handler = handler

    def run_read_loop(self) -> None:
        """A client's greenlet: the read loop, out of which nothing escapes."""
        try:
            self.read_loop()
        except BaseException:
            self._runtime.hub.handle_error(self, *sys.exc_info())

    def read_loop(self) -> None:
        """Serve the handler until the connection has ended: on_open, messages, on_close. Blocks this greenlet."""
        handler = self._handler
        if handler is None:
            raise GwsError("the connection has no handler; read it with receive() or iteration")
        self._greenlet = getcurrent()
        try:
            self._opened = True
            handler.on_open(self)
            handler.serve(self)
        except GreenletExit as exit:
            # Rule: killing the greenlet aborts the transport; the peer is told nothing.
            self._error = self._error or exit
            self._end(abort=True)
        except BaseException as error:
            self._handler_failed(error)
        finally:
            self._finish(handler)
            self._greenlet = None

    def dispatch(self) -> None:
        """Read until the connection has ended, handing each message to the handler."""
        handler = self._handler
        assert handler is not None
        while True:
            message = self._next()
            if message is None:
                return
            try:
                self._handle(handler, message)
            except Exception as error:
                self._handler_failed(error)

    # Reading

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message: `str` for text, `bytes` for binary. Control frames are handled on the way.

        Args:
            timeout: seconds to wait; None waits until the connection ends.

        Raises:
            TimeoutError: nothing came in time. The connection stays usable and nothing is lost.
            ConnectionClosed: the connection has ended.
        """
        if self._reading or self._giving_way:
            raise GwsError("another greenlet is reading this connection")
        if timeout is None:
            return self._receive_data()
        timer = gevent.Timeout.start_new(max(timeout, 0))
        try:
            return self._receive_data()
        except gevent.Timeout as raised:
            if raised is not timer:
                raise
            raise TimeoutError(f"no message within {timeout} seconds") from None
        finally:
            timer.close()

    def __iter__(self) -> Connection:
        return self

    def __next__(self) -> Any:
        """The next message; iteration ends when the connection does, `close_info` says how."""
        try:
            return self.receive()
        except ConnectionClosed:
            raise StopIteration from None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or isinstance(error, ConnectionClosed):
            self.close()
        else:
            self.close(CloseCode.INTERNAL_ERROR if isinstance(error, Exception) else CloseCode.GOING_AWAY)

    def _receive_data(self) -> Any:
        while True:
            message = self._next()
            if message is None:
                raise ConnectionClosed(self._info_so_far())
            if message.opcode is Opcode.TEXT or message.opcode is Opcode.BINARY:
                if self._is_open():
                    return message.data
            else:
                self._handle_control(self._handler, message)

    def _next(self) -> Message | None:
        """The next message or control frame; None when the connection has ended."""
        while True:
            if self._batch is not None and self._batch_at % LOOK_UP == LOOK_UP - 1:
                # Before a message is taken: an exception thrown in here must not lose it.
                self._give_way()
            batch = self._batch
            if batch is not None:
                message = batch[self._batch_at]
                self._batch_at += 1
                if self._batch_at == len(batch):
                    # From here on a write is sent at once, with all that was held back before it.
                    self._batch = None
                return message
            if not self._fetch():
                return None

    def _fetch(self) -> bool:
        """Read once, or take the next step of closing; False when the connection has ended."""
        if self._ended:
            return False
        writer = self._writer
        if writer is not None and writer.size and not writer.draining:
            self._flush_before_waiting(writer)
        self._give_way()
        if self._ended:
            return False
        protocol = self._protocol
        if protocol.has_more:
            self._take(protocol.receive(b"", 0, 0), self._heard)
            return True
        if protocol.failure is not None:
            self._fail(protocol.failure.code, str(protocol.failure))
            return False
        if protocol.info is not None and protocol.info.received is not None:
            self._finish_closing_handshake()
            return False
        count = self._receive()
        if count <= 0:
            self._end(abort=count < 0)
            return False
        self._take(protocol.receive(self._runtime.buffer, 0, count), self._heard)
        return True

    def _receive(self) -> int:
        """Wait for bytes in the shared buffer. 0: the peer finished. -1: the stream failed or was closed."""
        if self._request is not None and not self._service.keep_request:
            self._request = None
        self._reading = True
        before = monotonic()
        try:
            count = self.stream.recv_into(self._runtime.buffer)
        except TransportError as error:
            self._error = self._error or error
            return -1
        finally:
            self._reading = False
        after = monotonic()
        if after - before > WAITED:
            self._turn_began = after
        self._heard = after
        return count

    def _give_way(self) -> None:
        """Let the others run once this connection has kept the loop for a turn: one with endless input would starve them."""
        if monotonic() - self._turn_began > TURN:
            self._giving_way = True
            try:
                gevent.sleep(0)
            finally:
                self._giving_way = False
                self._turn_began = monotonic()

    def _take(self, messages: list[Message], now: float) -> None:
        if messages:
            self._batch = messages
            self._batch_at = 0
        if not self._protocol.incomplete:
            self._message_since = 0.0
        elif not self._message_since or any(_is_data(message) for message in messages):
            # Control frames stand in the middle of a message without being part of it: they leave its clock alone.
            self._message_has_begun(now)
        if self._accounted or self._protocol.incomplete:
            self._account()

    def _handle(self, handler: EventHandler, message: Message) -> None:
        if message.opcode is Opcode.TEXT or message.opcode is Opcode.BINARY:
            if self._protocol.state is State.OPEN or self._is_open():
                if self._service.options.parallel:
                    self._handle_in_pool(handler, message)
                else:
                    handler.on_message(self, message)
        else:
            self._handle_control(handler, message)

    def _handle_control(self, handler: EventHandler | None, message: Message) -> None:
        if not self._is_open():
            return
        if message.opcode is Opcode.PING:
            if handler is None:
                self.write_pong(message.data)
            else:
                handler.on_ping(self, message.data)
        elif message.opcode is Opcode.PONG and not self._is_keepalive_pong(message.data) and handler is not None:
            handler.on_pong(self, message.data)

    def _handle_in_pool(self, handler: EventHandler, message: Message) -> None:
        if self._pool is None:
            self._pool = Pool(self._service.options.parallel)
        self._pool.spawn(self._handle_one_of_many, handler, message)

    def _handle_one_of_many(self, handler: EventHandler, message: Message) -> None:
        try:
            handler.on_message(self, message)
        except Exception as error:
            self._handler_failed(error)

    def _handler_failed(self, error: BaseException) -> None:
        if isinstance(error, ConnectionClosed) and not self._is_open():
            return  # it wrote or read once more after the end: no fault of its own
        self._service.log(logging.ERROR, self, "handler failed", error=error)
        if not self._service.options.recovery or not isinstance(error, Exception):
            self._runtime.hub.handle_error(self, type(error), error, error.__traceback__)
        self._error = self._error or error
        # The log has the traceback, the peer has nothing.
        self._close_from_here(CloseCode.INTERNAL_ERROR)

    # Closing

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Do the full closing handshake and return when the transport is closed, at most `close_timeout` seconds later. Idempotent.

        Messages that arrive meanwhile are dropped.

        Raises:
            ValueError: as `write_close`.
        """
        self.write_close(code, reason)
        here = getcurrent()
        if here is self._runtime.hub or self.closed:
            return
        if here is self._greenlet or (self._handler is None and not self._reading and not self._giving_way):
            while self._next() is not None:
                pass
            if self._handler is None:
                self._finish_without_handler()
            return
        if self._closed is None:
            self._closed = Event()
        self._closed.wait()

    def abort(self) -> None:
        """Drop the transport and all unsent output at once, with no goodbye. Idempotent, never blocks, also in the hub."""
        self._end(abort=True)

    def kill(self) -> None:
        """Kill the connection's greenlet, without waiting: the transport is aborted and on_close is called."""
        if self._greenlet is not None:
            gevent.kill(self._greenlet)

    def give_up(self, code: int, reason: str) -> None:
        """Close without sending what is queued: the frame that has begun, the close frame, and no more than `close_timeout`."""
        if not self._is_open():
            return
        if self._writer is not None:
            self._writer.drop_all_but_the_frame_begun(ConnectionClosed(self._info_so_far()))
        self._error = self._error or GwsError(reason)
        self._close_from_here(code, reason)

    def shed(self, code: int, reason: str) -> None:
        """`give_up`, and free what has been received of an incomplete message as well, now."""
        self.give_up(code, reason)
        self._protocol.fail(code, reason)
        self._account()

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7): a close frame, the end of our output, nothing more read."""
        if self._protocol.info is None or self._protocol.info.sent is None:
            self._send_close(code, _shortened(reason))
        self._wait_drained()
        try:
            self.stream.shutdown_write()
        except TransportError as error:
            self._error = self._error or error
        # Closing with unread input would reset the connection, and the close frame could be lost with it.
        while not self._ended and self._receive() > 0:
            pass
        self._end(abort=False)

    def _finish_closing_handshake(self) -> None:
        """The peer's close frame is here: answer it; the server closes the transport first (section 7.1.1)."""
        info = self._protocol.info
        if info is not None and info.sent is None:
            writer = self._open_writer()
            out = writer.tail()
            before = len(out)
            self._protocol.answer_close(out)
            writer.appended(len(out) - before)
            self._closing_has_begun()
            writer.flush()
        self._wait_drained()
        if self._service.side is Side.CLIENT:
            while not self._ended and self._receive() > 0:
                pass
        self._end(abort=False)

    def _wait_drained(self) -> None:
        """Wait until our output is sent; the closing handshake's deadline bounds it."""
        writer = self._writer
        if writer is not None and not self._ended:
            writer.flush()
            writer.wait_drained()

    def _flush_before_waiting(self, writer: Writer) -> None:
        try:
            self._flush(writer)
        except ConnectionClosed:
            return  # the reader learns it from the stream

    def _info_so_far(self) -> CloseInfo:
        return self._protocol.info if self._protocol.info is not None else CloseInfo(error=self._error)

    def _end(self, abort: bool) -> None:
        """The transport is done with. Idempotent, never blocks; the reader, if another greenlet, wakes and unwinds."""
        if self._ended:
            return
        self._ended = True
        if self._remote is None:
            self._remote = self.stream.info("peername")
        info = self._protocol.stream_ended(self._error)
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.fail(ConnectionClosed(info))
        if abort:
            self.stream.abort()
        else:
            self.stream.close()
        self._runtime.wheel.cancel(self)
        self._account()
        if self._closed is not None:
            self._closed.set()

    def _finish(self, handler: EventHandler) -> None:
        """The handler has returned: bring the connection to its end and say so once."""
        try:
            while self._next() is not None:
                pass
        except BaseException as error:
            self._error = self._error or error
        self._end(abort=True)
        if self._pool is not None:
            self._pool.join(timeout=self._service.options.close_timeout)
            self._pool.kill()
        self._request = None
        if self._opened:
            self._opened = False
            try:
                handler.on_close(self, self._info_so_far())
            except Exception as error:
                self._service.log(logging.ERROR, self, "on_close failed", error=error)
        self._service.closed(self)

    def _finish_without_handler(self) -> None:
        self._end(abort=True)
        self._service.closed(self)

    # What the Writer tells

    def output_failed(self, error: TransportError) -> None:
        """The stream failed while sending: wake the reader, who ends the connection."""
        self._error = self._error or error
        self._end(abort=True)

    def output_changed(self, writer: Writer) -> None:
        """Unsent output appeared, shrank or is gone."""
        self._release(writer)
        if not self._ended:
            self._watch_output(writer)
            self._account()

    def _account(self) -> None:
        held = 0 if self._ended else self.held
        change, self._accounted = held - self._accounted, held
        if change:
            self._service.account(change)


def _is_data(message: Message) -> bool:
    return message.opcode is Opcode.TEXT or message.opcode is Opcode.BINARY


def _without_mapping(address: Any) -> Any:
    """Show an IPv4 peer of a dual-stack listener as one: ("::ffff:1.2.3.4", 5, 0, 0) is ("1.2.3.4", 5)."""
    if isinstance(address, tuple) and str(address[0]).startswith("::ffff:") and "." in address[0]:
        return address[0].removeprefix("::ffff:"), address[1]
    return address


def _shortened(reason: str) -> str:
    """Cut a reason to what a close frame holds, on a character's edge."""
    return reason.encode()[:123].decode("utf-8", "ignore")
