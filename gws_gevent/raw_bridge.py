"""The raw bridge: a WebSocket server whose messages carry the bytes of a TCP or Unix connection, as websockify's do.

Belongs here: binary messages to bytes and back, what the end of one side is for the other. Does not belong here: WebSocket itself,
which is the Server's; streams of WebSocket on both sides (bridge.py).
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from greenlet import getcurrent, greenlet

from gws_gevent import runtime
from gws_gevent._accel import build_of
from gws_gevent.carrying import LinkLimits, Turns, bad_gateway, gateway_timeout, send_watched, within, words_of
from gws_gevent.exceptions import ConnectionClosed, Refusal, TransportError
from gws_gevent.frames import CloseCode, CloseInfo, Opcode
from gws_gevent.handler import EventHandler, Message
from gws_gevent.handshake import Request
from gws_gevent.opening import ServerService
from gws_gevent.options import BridgeOptions, ServerOptions, options_or_default
from gws_gevent.server import Server
from gws_gevent.transports.base import DialSettings, EndpointLike, Stream
from gws_gevent.transports.registry import dialer

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.timers import Timed
else:
    Connection, Timed = build_of("connection").Connection, build_of("timers").Timed

__all__ = ["RawBridge"]

#: Bytes of the target's that go into one message.
MESSAGE_SIZE = 64 * 1024
#: What noVNC and other clients of websockify offer.
SUBPROTOCOL = "binary"


class RawBridge(Server):
    """Carries the payload of binary messages to a connection of its own to the target, and back. Text is refused (1003).

    The target is reached before the opening handshake is answered: 502 if it is down, 504 if it does not answer in time. The end of
    the target's stream closes the WebSocket with 1000, its failure with 1014. When the client has closed, the target reads an
    end behind the last byte, and has `close_timeout` to end as well.

    Args:
        target: an endpoint, such as `"tcp://127.0.0.1:5900"` or `"unix:/run/app.sock"`.
        options: see BridgeOptions. Those about heads of the target's answer and about forwarding do not matter here.
        dial: how the target is reached, such as with which certificates.

    Raises:
        EndpointError: a target that cannot be understood.
        MissingExtra: a library is not installed.
    """

    def __init__(self, target: EndpointLike, options: BridgeOptions | None = None, dial: DialSettings | None = None) -> None:
        given = options_or_default(options, BridgeOptions)
        self.target = target
        self._dialer = dialer(target, dial or DialSettings())
        self._target_timeout = given.target_timeout
        #: Streams to the target by the greenlets whose connections have yet to be opened.
        self._dialled: dict[greenlet, Stream] = {}
        limits = LinkLimits(given.idle_timeout, given.write_timeout, given.close_timeout)
        super().__init__(_RawHandler(self, limits), self._server_options(given))

    def _server_options(self, given: BridgeOptions) -> ServerOptions:
        return ServerOptions(
            handshake_timeout=given.handshake_timeout,
            close_timeout=given.close_timeout,
            write_timeout=given.write_timeout,
            max_connections=given.max_connections,
            max_request_head=given.max_request_head,
            trusted_proxies=given.trusted_proxies,
            origins=given.origins,
            subprotocols=(SUBPROTOCOL,),
            authorize=self._reach_target,
            logger=given.logger,
        )

    def _reach_target(self, request: Request, session: MutableMapping[Any, Any]) -> bool:
        """The last thing before a client is let in."""
        try:
            with within(self._target_timeout, gateway_timeout()):
                self._dialled[getcurrent()] = self._dialer.dial()
        except Refusal:
            self._warn("no connection within %g s", self._target_timeout)
            raise
        except TransportError as error:
            self._warn("%s", words_of(error))
            raise bad_gateway() from error
        return True

    def _warn(self, text: str, *args: object) -> None:
        log = self.options.logger or logging.getLogger("gws_gevent")
        log.warning(f"%s: {text}", self.target, *args)

    @property
    def stopping(self) -> bool:
        """True from `stop` to the next `start`."""
        return self._service is not None and self._service.stopping

    def _new_service(self) -> ServerService:
        return _RawService(self, self._handler, self.options, self._tell)


class _RawService(ServerService):
    """Drops the stream to the target of a connection that did not come to be opened."""

    def __init__(self, bridge: RawBridge, handler: EventHandler | None, options: ServerOptions, on_error: Any) -> None:
        ServerService.__init__(self, handler, options, None, on_error)
        self._dialled = bridge._dialled

    def open(self, conn: Connection) -> EventHandler | None:
        handler = None
        try:
            handler = ServerService.open(self, conn)
        finally:
            if handler is None:
                self._drop()
        return handler

    def closed(self, conn: Connection) -> None:
        self._drop()  # it was killed before its on_open
        ServerService.closed(self, conn)

    def _drop(self) -> None:
        far = self._dialled.pop(getcurrent(), None)
        if far is not None:
            far.abort()


class _RawHandler(EventHandler):
    """One for all connections of a bridge."""

    def __init__(self, bridge: RawBridge, limits: LinkLimits) -> None:
        self._bridge = bridge
        self._limits = limits
        self._links: dict[Connection, _RawLink] = {}

    def on_open(self, conn: Connection) -> None:
        self._links[conn] = _RawLink(conn, self._bridge._dialled.pop(getcurrent()), self._limits)

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode is not Opcode.BINARY:
            conn.write_close(CloseCode.UNSUPPORTED_DATA, "only binary messages are carried")
        else:
            self._links[conn].send(message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self._links.pop(conn).end(in_order=info.clean and not self._bridge.stopping)


class _RawLink(Timed):
    """A WebSocket connection and the stream that its messages are carried to."""

    __slots__ = ("_blocked", "_closes_at", "_conn", "_far", "_limits", "_reader", "_touched", "_wheel")

    def __init__(self, conn: Connection, far: Stream, limits: LinkLimits) -> None:
        super().__init__()
        self._conn = conn
        self._far = far
        self._limits = limits
        self._wheel = runtime.current().wheel
        self._touched = monotonic()
        # When `send` began to wait for the target; 0.0: it does not.
        self._blocked = 0.0
        # The WebSocket has closed, and the target has until then to end as well; 0.0: it is open.
        self._closes_at = 0.0
        self._wheel.schedule(self, self._next_deadline())
        self._reader = gevent.spawn(self._carry_back)

    def send(self, data: bytes) -> None:
        """Client to target, in the connection's greenlet: while it waits here, nothing more is read from the client."""
        self._touched = monotonic()
        try:
            with memoryview(data) as view:
                send_watched(self._far, view, self._waits)
        except TransportError:
            self._fail()
        self._blocked = 0.0

    def _waits(self) -> None:
        self._blocked = monotonic()
        self._wheel.schedule(self, self._next_deadline())

    def _carry_back(self) -> None:
        buffer, turns = runtime.current().buffer, Turns()
        with memoryview(buffer) as whole, whole[:MESSAGE_SIZE] as room:
            try:
                while True:
                    before = monotonic()
                    count = self._far.recv_into(room)
                    if count == 0:
                        break
                    self._touched = monotonic()
                    self._conn.write_binary(bytes(room[:count]))
                    turns.carried(before)
                self._conn.write_close(CloseCode.NORMAL)
            except TransportError:
                self._fail()
            except ConnectionClosed:
                self._drop_what_comes(room)

    def _drop_what_comes(self, room: memoryview) -> None:
        """Unread, it would reset the connection when that is closed, and what the target has yet to read would be lost."""
        turns, before = Turns(), monotonic()
        with suppress(TransportError):
            while self._far.recv_into(room):
                turns.carried(before)
                before = monotonic()

    def _fail(self) -> None:
        self._conn.write_close(CloseCode.BAD_GATEWAY, "the server behind this bridge failed")

    def end(self, in_order: bool) -> None:
        """The WebSocket has closed, and so does the stream to the target.

        Args:
            in_order: behind the last byte for the target, and when that has ended as well or had its time. False: at once.
        """
        try:
            if in_order and not self._blocked:
                self._closes_at = monotonic() + self._limits.close
                self._wheel.schedule(self, self._closes_at)
                with suppress(TransportError):
                    self._far.shutdown_write()
            else:
                self._far.close()
            if getcurrent() is not self._reader:
                self._reader.join()
        finally:
            self._wheel.cancel(self)
            self._far.close()

    def _next_deadline(self) -> float:
        if self._closes_at:
            return self._closes_at
        idle = self._touched + self._limits.idle
        return min(idle, self._blocked + self._limits.write) if self._blocked else idle

    def on_deadline(self, now: float) -> float:
        due = self._next_deadline()
        if due > now:
            return due
        if self._closes_at:
            self._far.close()
        elif self._blocked and now - self._blocked >= self._limits.write:
            self._far.abort()  # `send` hears of it
        else:
            self._conn.write_close(CloseCode.GOING_AWAY, "idle")
        return float("inf")
