# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""What the connections of one server or one client share.

Belongs here: options, limits over all connections, the set of them, the log. Does not belong here: anything of a single one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gevent.event import Event

from gws_gevent import runtime
from gws_gevent.frames import CloseCode, Side
from gws_gevent.session import SessionStorage

from .protocol_rules import ProtocolRules

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from contextvars import Context

    from gws_gevent.connection import Connection
    from gws_gevent.frame_output import FrameOutput
    from gws_gevent.handler import EventHandler
    from gws_gevent.options import ConnectionOptions

__all__ = ["Service"]


class Service:
    """One per server and hub, or per client.

    Attributes:
        connections: every connection from accept to the end of its greenlet. A dict used as a set, which would be larger.
        buffered: bytes of incomplete messages and unsent output over all of them.
        keep_request: connections keep their request past the first read.
        turn_began: monotonic time since when connections have been reading without waiting; 0: nobody has read since.
        spare_writers: writers of connections that have nothing to send.
    """

    def __init__(self, side: Side, options: ConnectionOptions, home: Service | None = None) -> None:
        """Make one.

        Args:
            home: whose connections these are as well: both have one set of them.
        """
        self.side = side
        self.options = options
        self.runtime = runtime.current()
        self.rules = ProtocolRules(side, options, self.runtime.compression(options.permessage_deflate, side))
        # What each message needs, where it is found at once.
        self.is_client = side is Side.CLIENT
        self.parallel = bool(options.parallel)
        self.write_max_payload_size = options.write_max_payload_size
        self.write_high_water = options.write_high_water
        self.write_queue_size = options.write_queue_size
        self.hub = self.runtime.hub
        self.wheel = self.runtime.wheel
        self.buffer = self.runtime.buffer
        self.thread = self.runtime.thread
        self.turn_began = 0.0
        self.spare_writers: list[Any] = home.spare_writers if home is not None else []
        self._dirty: list[FrameOutput] = []
        self.connections: dict[Connection, None] = home.connections if home is not None else {}
        self.buffered = 0
        self._logger = options.logger if options.logger is not None else logging.getLogger("gws_gevent")
        self.keep_request = False
        self._empty: Event | None = None
        self._spared = 0
        # Only connections that somebody wants to hear of stand in it.
        self._when_closed: dict[Connection, list[Callable[[Connection], object]]] = {}
        # Of parked connections.
        self._contexts: dict[Any, Context] = {}

    def open(self, conn: Connection) -> EventHandler | None:
        """Do the opening handshake in the connection's greenlet; None if it was refused and the stream is to be closed."""
        raise NotImplementedError

    def handshake_timed_out(self, conn: Connection) -> None:
        """In the hub: the opening handshake's deadline has passed."""
        conn.abort()

    def closed(self, conn: Connection) -> None:
        """A connection's greenlet has come to its end."""
        self.connections.pop(conn, None)
        if self._empty is not None and len(self.connections) <= self._spared:
            self._empty.set()

    def call_when_closed(self, conn: Connection, callback: Callable[[Connection], object]) -> None:
        """Have `callback(conn)` called by `tell_closed`."""
        self._when_closed.setdefault(conn, []).append(callback)

    def do_not_call_when_closed(self, conn: Connection, callback: Callable[[Connection], object]) -> None:
        """Take `call_when_closed` back, once; nothing if there is nothing to take back."""
        callbacks = self._when_closed.get(conn)
        if callbacks is not None and callback in callbacks:
            callbacks.remove(callback)
            if not callbacks:
                self._when_closed.pop(conn, None)

    def tell_closed(self, conn: Connection) -> None:
        """The connection has closed and nobody is called for it any more: tell those who asked for that."""
        for callback in self._when_closed.pop(conn, ()):
            try:
                callback(conn)
            except Exception as error:
                self.log(logging.ERROR, conn, "a callback for the end of a connection failed", error=error)

    def keep_context(self, conn: Any, context: Context | None) -> None:
        """A connection gives its greenlet back: keep the context variables that are set in it, if any."""
        if context:
            self._contexts[conn] = context

    def take_context(self, conn: Any) -> Context | None:
        """Return what `keep_context` kept, for the connection's next greenlet."""
        return self._contexts.pop(conn, None)

    def wait_empty(self, timeout: float | None, spared: int = 0) -> bool:
        """Wait until no connection is left but those `spared`; False if some are after `timeout` seconds."""
        if len(self.connections) <= spared:
            return True
        self._spared = spared
        self._empty = Event()
        return bool(self._empty.wait(timeout))

    def new_session(self) -> MutableMapping[Any, Any]:
        """Make a session."""
        return self.options.new_session() if self.options.new_session is not None else SessionStorage()

    def flush_later(self, conn: FrameOutput) -> None:
        """Send what `conn` holds back before the loop next waits, whatever its handler does until then."""
        self._dirty.append(conn)
        if len(self._dirty) == 1:
            # run_callback and no prepare watcher: it runs on libev and libuv, and behind the callbacks that write.
            self.hub.loop.run_callback(self._flush)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for conn in dirty:
            conn.flush_deferred()

    def account(self, change: int) -> None:
        """Bytes held have changed; above `max_buffered` the largest offender is closed with 1013."""
        self.buffered += change
        if change > 0 and self.buffered > self.options.max_buffered:
            self._shed_the_largest()

    def _shed_the_largest(self) -> None:
        largest = max(self.connections, key=lambda conn: conn.held, default=None)
        if largest is not None:
            largest.shed(CloseCode.TRY_AGAIN_LATER, "too much is buffered")

    def log(self, level: int, conn: Any, text: str, *args: object, error: BaseException | None = None) -> None:
        """Log a record that carries the connection's id and peer."""
        if not self._logger.isEnabledFor(level):
            return
        if conn is None:
            self._logger.log(level, text, *args, exc_info=error)
            return
        extra = {"connection": conn.id, "peer": conn.remote_address}
        self._logger.log(level, f"[%s %s] {text}", conn.id, _shown(conn.remote_address), *args, exc_info=error, extra=extra)


def _shown(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        return f"[{address[0]}]:{address[1]}" if ":" in str(address[0]) else f"{address[0]}:{address[1]}"
    text = str(address or "unix")
    return text if text.isprintable() else repr(text)
