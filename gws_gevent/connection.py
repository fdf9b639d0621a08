# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""A connection: its facts, and its life from accept to close.

Belongs here: what comes before the first message and after the last one. Does not belong here: reading (incoming.py), writing
(outgoing.py), deadlines (deadlines.py), what a frame means (protocol.py), the opening handshake (opening.py, client.py).

Everything the reader does happens in the connection's own greenlet. `abort` and `on_deadline` run elsewhere: they only end the
stream, which wakes the reader, and the reader tidies up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event
from greenlet import GreenletExit, getcurrent

from gws_gevent.closing import next_state
from gws_gevent.exceptions import ConnectionClosed, GwsError, TransportError
from gws_gevent.frames import CloseCode, CloseInfo, State, Step
from gws_gevent.handler import FunctionHandler

from ._fdio import borrow_data_stack, lend_data_stack
from .incoming import Incoming
from .protocol import Protocol
from .service import Service
from .writer import Writer

if TYPE_CHECKING:
    from gws_gevent.extensions.permessage_deflate import Agreement
    from gws_gevent.handler import EventHandler
    from gws_gevent.http_head import Request
    from gws_gevent.transports.base import Stream

__all__ = ["Acceptor", "Connection"]

#: Counts connections; threads may share it.
IDS: Final = count(1)
CONNECTING: Final = State.CONNECTING
OPEN: Final = State.OPEN
CLOSED: Final = State.CLOSED


class Connection(Incoming):
    """One WebSocket connection, on either side. Servers and `connect` make them.

    Attributes:
        id: a number that no other connection of this process has had.
        stream: the transport's stream.
        subprotocol: what the opening handshake chose, or None.
    """

    __slots__ = ("_closed", "_remote", "id", "subprotocol")

    def __init__(self, stream: Stream, service: Service) -> None:
        Incoming.__init__(self, stream, service)
        self.id = next(IDS)
        self.subprotocol: str | None = None
        self._remote: Any = None
        self._closed: Event | None = None

    # Facts

    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING or CLOSED."""
        return OPEN if self._is_open() else self._protocol.state

    @property
    def closed(self) -> bool:
        """True once the transport has been closed."""
        return self._protocol.state is CLOSED

    @property
    def close_info(self) -> CloseInfo | None:
        """How the connection ended, or None while closing has not begun."""
        return self._protocol.info

    @property
    def request(self) -> Request | None:
        """The opening handshake's request (method, target, headers), until the first read; with `keep_request` to the end."""
        return self._request

    @property
    def extensions(self) -> str:
        """What was negotiated about compression, written as in Sec-WebSocket-Extensions; "" where nothing was."""
        deflate = self._protocol.rules.deflate
        return str(deflate.agreement) if deflate is not None else ""

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

    def add_close_callback(self, callback: Callable[[Connection], object]) -> None:
        """Have `callback(conn)` called once the connection has closed, behind its `on_close`. It may not block.

        It may be called in any greenlet or the hub, from any thread.

        Raises:
            ConnectionClosed: the connection has closed already.
        """
        if not callable(callback):
            raise TypeError(f"callback: must be callable, not {callback!r}")
        self._service.call_when_closed(self, callback)
        # Looked at afterwards: it may close in its thread while another thread is here.
        if self.closed:
            self._service.do_not_call_when_closed(self, callback)
            raise ConnectionClosed(self._info_so_far())

    def remove_close_callback(self, callback: Callable[[Connection], object]) -> None:
        """Take back one `add_close_callback`; nothing if there is none."""
        self._service.do_not_call_when_closed(self, callback)

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.state.name} {self.remote_address}>"

    # Life

    def run(self) -> None:
        """The connection's greenlet: the opening handshake if it is still to be done, the read loop, the end.

        Nothing escapes: above is only the hub. Nothing but this function's frame is alive while it waits. A connection that was
        parked comes here again, and is open already.
        """
        borrow_data_stack()
        self._greenlet = getcurrent()
        if self._opened or self._begin():
            self._watch_idleness()
            while self._turn():
                if not self._wait():
                    lend_data_stack()
                    return
        self._finish()
        lend_data_stack()

    def __call__(self) -> None:
        """`run`: a greenlet of the connection keeps what it calls, and the connection lives anyway, unlike a bound method."""
        self.run()

    def read_loop(self) -> None:
        """Serve the handler until the connection has ended: on_open, messages, on_close. Blocks this greenlet.

        What is thrown into the greenlet while it waits (a kill, a `gevent.Timeout`) closes the connection and goes on to the
        caller.
        """
        if self._handler is None:
            raise GwsError("the connection has no handler; read it with receive() or iteration")
        self._greenlet = getcurrent()
        escaped: BaseException | None = None
        try:
            if self._begin():
                while self._turn():
                    self._wait_for_input()
        except BaseException as error:
            escaped = error
            self._note(error)
            if isinstance(error, GreenletExit):
                self._end(True)
            self._close_from_here(CloseCode.GOING_AWAY)
        escaped = self._finish() or escaped
        if escaped is None and isinstance(self._error, GreenletExit):
            escaped = self._error
        if escaped is not None:
            raise escaped

    def _begin(self) -> bool:
        """The opening handshake and `on_open`, or the whole of a function. True: go on with the loop of an event handler."""
        try:
            if self._handler is None:
                self._handler = self._service.open(self)
                if self._handler is None:
                    return False
            if isinstance(self._error, GreenletExit):
                return False  # killed before this greenlet has come to run
            self._opened = True
            self._handler.on_open(self)
            if isinstance(self._handler, FunctionHandler):
                self._handler.function(self)
                self.close()
                return False
            return True
        except GreenletExit as exit:
            # Rule: killing the greenlet aborts the transport; the peer is told nothing.
            self._note(exit)
            self._end(True)
        except BaseException as error:
            if self._opened:
                self._handler_failed(error)
            else:
                self._service.hub.handle_error(self, type(error), error, error.__traceback__)
        return False

    def accepted(
        self, subprotocol: str | None, deflate: Agreement | None, request: Request | None, remote: Any, rest: bytes
    ) -> None:
        """The opening handshake succeeded.

        Args:
            deflate: what was agreed on about compression.
            remote: what a trusted proxy says of the client's address; None where the stream's own is right.
            rest: what came behind the handshake.
        """
        self._protocol.state = next_state(self._protocol.state, Step.ACCEPTED)
        self.subprotocol = subprotocol
        if deflate is not None:
            self._protocol.agree(deflate)
        self._request = request
        self._remote = remote
        self._start_clocks()
        if rest:
            self._take(self._protocol.receive(rest, 0, len(rest)), self._heard)

    def move_to(self, service: Service, session: MutableMapping[Any, Any] | None) -> None:
        """Before it is open: let another service's options hold from here on.

        Args:
            session: what `session` is; None: made on first use.
        """
        self._service = service
        self._protocol = Protocol(service.rules)
        self._protocol.state = CONNECTING
        self._session = session

    def attach(self, handler: EventHandler) -> None:
        """Give an opened connection the handler that its `read_loop` will serve."""
        self._handler = handler

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

    # Closing

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Do the full closing handshake and return when the transport is closed, at most `close_timeout` seconds later. Idempotent.

        Messages that arrive meanwhile are dropped.

        Raises:
            ValueError: as `write_close`.
        """
        self.write_close(code, reason)
        here = getcurrent()
        if here is self._service.hub or self.closed:
            return
        if here is self._greenlet or (self._handler is None and not self._reading and not self._giving_way):
            # Nobody wants what is still to come of a message in pieces: most of it need not be inflated.
            self._protocol.skip_stream()
            while self._next() is not None:
                pass
            if self._handler is None:
                self._end(True)
            return
        if self._closed is None:
            self._closed = Event()
        self._closed.wait()

    def abort(self) -> None:
        """Drop the transport and all unsent output at once, with no goodbye. Idempotent, never blocks, also in the hub."""
        self._end(True)

    def is_served_by(self, somebody: Any) -> bool:
        """Tell whether a greenlet is the one that serves this connection, or handles one of its messages."""
        return somebody is self._greenlet or (self._pool is not None and somebody in self._pool)

    def kill(self) -> None:
        """Kill the connection's greenlet, without waiting: the transport is aborted and on_close is called."""
        if self._greenlet is not None:
            # One that is about to park would be gone before it is thrown into.
            self._parking = False
            gevent.kill(self._greenlet)
        elif self._handler is not None:
            # It was parked, or has yet to start.
            self._note(GreenletExit())
            self._end(True)

    def give_up(self, code: int, reason: str) -> None:
        """Close without sending what is queued: the frame that has begun, the close frame, and no more than `close_timeout`."""
        if not self._is_open():
            return
        if self._writer is not None:
            self._writer.drop_all_but_the_frame_begun(ConnectionClosed(self._info_so_far()))
        self._note(GwsError(reason))
        self._close_from_here(code, reason)

    def shed(self, code: int, reason: str) -> None:
        """`give_up`, and free what has been received of an incomplete message as well, now."""
        self.give_up(code, reason)
        self._protocol.fail(code, reason)
        self._account()

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7): a close frame, the end of our output, nothing more read."""
        self._protocol.fail(code, reason)
        if self._protocol.info is None or self._protocol.info.sent is None:
            self._send_close(code, _shortened(reason))
        self._wait_drained()
        try:
            self.stream.shutdown_write()
        except TransportError as error:
            self._note(error)
        # Closing with unread input would reset the connection, and the close frame could be lost with it.
        while not self._ended and self._receive_waiting() > 0:
            pass
        self._end(False)

    def _finish_closing_handshake(self) -> None:
        """The peer's close frame is here: answer it; the server closes the transport first (section 7.1.1)."""
        info = self._protocol.info
        if info is not None and info.sent is None:
            # Section 5.5.1: with the same code, and an empty one with an empty one.
            self._send_close(info.received.code, "")  # type: ignore[union-attr]  # it is why we are here
        self._wait_drained()
        if self._service.is_client:
            while not self._ended and self._receive_waiting() > 0:
                pass
        self._end(False)

    def _wait_drained(self) -> None:
        """Wait until our output is sent; the closing handshake's deadline bounds it."""
        writer = self._writer
        if writer is not None and not self._ended:
            writer.flush()
            writer.wait_drained()

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
        self._service.wheel.cancel(self)
        self._account()
        if self._closed is not None:
            self._closed.set()
        if not self._opened:
            # Otherwise once on_close has been called.
            self._service.tell_closed(self)
        if self._handler is None and self._service.is_client:
            # Nobody's greenlet is there to say so; where there is one, it comes to `_finish`.
            self._service.closed(self)
        if self._parked:
            self.on_readable()

    def _finish(self) -> BaseException | None:
        """The last thing in the connection's greenlet: the end of the closing handshake, and `on_close` after an `on_open`.

        Returns:
            what came out of `on_close`, if that was no Exception.
        """
        escaped = None
        if self._opened:
            try:
                while self._next() is not None:
                    pass
            except BaseException as error:
                self._note(error)
        self._end(True)
        if self._pool is not None:
            self._end_pool(self._pool)
        self._request = None
        if self._opened:
            self._opened = False
            try:
                self._handler.on_close(self, self._info_so_far())  # type: ignore[union-attr]  # who was opened has one
            except Exception as error:
                self._service.log(logging.ERROR, self, "on_close failed", error=error)
            except BaseException as error:
                escaped = error
                self._service.hub.handle_error(self, type(error), error, error.__traceback__)
            self._service.tell_closed(self)
        self._service.closed(self)
        self._greenlet = None
        return escaped

    def _end_pool(self, pool: Any) -> None:
        try:
            pool.join(timeout=self._service.options.close_timeout)
        except BaseException as error:
            self._note(error)
        # Not waited for: a handler may take its time over it.
        pool.kill(block=False)

    # What the Writer tells

    def output_failed(self, error: TransportError) -> None:
        """The stream failed while sending: wake the reader, who ends the connection."""
        self._note(error)
        self._end(True)

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


class Acceptor:
    """What a listener is started with: makes a connection of each new stream, and runs it."""

    __slots__ = ("_service",)

    def __init__(self, service: Any) -> None:
        self._service = service

    def prepare(self, stream: Stream) -> Connection | None:
        """Return what the new stream's greenlet is to call, so that no frame lies below that; None: the stream was refused."""
        if self._service.is_beyond_refusing():
            stream.abort()
            return None
        conn = Connection(stream, self._service)
        self._service.connections[conn] = None
        return conn

    def __call__(self, stream: Stream) -> None:
        conn = self.prepare(stream)
        if conn is not None:
            conn.run()


def _without_mapping(address: Any) -> Any:
    """Show an IPv4 peer of a dual-stack listener as one: ("::ffff:1.2.3.4", 5, 0, 0) is ("1.2.3.4", 5)."""
    if isinstance(address, tuple) and str(address[0]).startswith("::ffff:") and "." in address[0]:
        return address[0].removeprefix("::ffff:"), address[1]
    return address


def _shortened(reason: str) -> str:
    """Cut a reason to what a close frame holds, on a character's edge."""
    return reason.encode()[:123].decode("utf-8", "ignore")
