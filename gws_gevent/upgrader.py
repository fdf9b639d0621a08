"""Upgrading streams that somebody else accepted."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from gws_gevent._accel import build_of
from gws_gevent.exceptions import HandshakeError
from gws_gevent.handler import EventHandler, as_handler, refuse_parking
from gws_gevent.opening import ServerService
from gws_gevent.options import ServerOptions, options_or_default
from gws_gevent.transports.base import Stream

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
else:
    Connection = build_of("connection").Connection

__all__ = ["Upgrader"]


class Upgrader:
    """Does the server's opening handshake on a stream. See Server for the arguments."""

    def __init__(self, handler: EventHandler | Callable[[Connection], object], options: ServerOptions | None = None) -> None:
        handler, options = as_handler(handler), options_or_default(options, ServerOptions)
        refuse_parking(handler, options)
        self._service = ServerService(handler, options, None, self._remember)
        self._failed: dict[Stream | None, Exception] = {}

    def upgrade_stream(self, stream: Stream) -> Connection:
        """Read the request off `stream`, answer it, and return the open connection; call its `read_loop()` in this greenlet.

        Raises:
            HandshakeError: the request was refused, and the peer has been told; or the stream failed (`__cause__`).
        """
        conn = Connection(stream, self._service)
        self._service.connections[conn] = None
        handler = None
        try:
            handler = self._service.open(conn)
        finally:
            if handler is None:
                conn.abort()
                self._service.closed(conn)
        if handler is None:
            raise HandshakeError("the request was not upgraded") from self._failed.pop(stream, None)
        conn.attach(handler)
        return conn

    @property
    def connections(self) -> Collection[Connection]:
        """Every connection from its first byte to its end; a copy."""
        return frozenset(self._service.connections)

    def _remember(self, stream: Stream | None, error: Exception) -> None:
        self._failed[stream] = error
