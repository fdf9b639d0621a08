"""What the connections of one server or one client share.

Belongs here: options, limits over all connections, the set of them, the log. Does not belong here: anything of a single one.
"""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING, Any

from gevent.event import Event

from gws_gevent import runtime
from gws_gevent._accel import build_of
from gws_gevent.frames import CloseCode
from gws_gevent.session import SessionStorage

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from gws_gevent.connection import Connection
    from gws_gevent.frames import Side
    from gws_gevent.handler import EventHandler
    from gws_gevent.options import ConnectionOptions
    from gws_gevent.protocol import ProtocolRules
else:
    ProtocolRules = build_of("protocol").ProtocolRules

__all__ = ["Service"]


class Service:
    """One per server and hub, or per client.

    Attributes:
        connections: every connection from accept to the end of its greenlet.
        buffered: bytes of incomplete messages and unsent output over all of them.
        keep_request: connections keep their request past the first read.
    """

    def __init__(self, side: Side, options: ConnectionOptions) -> None:
        self.side = side
        self.options = options
        self.rules = ProtocolRules(side, options)
        self.runtime = runtime.current()
        self.connections: set[Connection] = set()
        self.buffered = 0
        self._logger = options.logger if options.logger is not None else logging.getLogger("gws_gevent")
        self.keep_request = False
        self._ids = count(1)
        self._empty: Event | None = None

    def open(self, conn: Connection) -> EventHandler | None:
        """Do the opening handshake in the connection's greenlet; None if it was refused and the stream is to be closed."""
        raise NotImplementedError

    def handshake_timed_out(self, conn: Connection) -> None:
        """In the hub: the opening handshake's deadline has passed."""
        conn.abort()

    def closed(self, conn: Connection) -> None:
        """A connection's greenlet has come to its end."""
        self.connections.discard(conn)
        if self._empty is not None and not self.connections:
            self._empty.set()

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until no connection is left; False if some are after `timeout` seconds."""
        if not self.connections:
            return True
        self._empty = Event()
        return bool(self._empty.wait(timeout))

    def next_id(self) -> int:
        """A number no other connection of this service has."""
        return next(self._ids)

    def new_session(self) -> MutableMapping[Any, Any]:
        """Make a session."""
        return self.options.new_session() if self.options.new_session is not None else SessionStorage()

    def account(self, change: int) -> None:
        """Bytes held have changed; above `max_buffered` the largest offender is closed with 1013."""
        self.buffered += change
        if change > 0 and self.buffered > self.options.max_buffered:
            largest = max(self.connections, key=lambda conn: conn.held, default=None)
            if largest is not None:
                largest.shed(CloseCode.TRY_AGAIN_LATER, "too much is buffered")

    def log(self, level: int, conn: Connection | None, text: str, *args: object, error: BaseException | None = None) -> None:
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
    return str(address or "unix")
