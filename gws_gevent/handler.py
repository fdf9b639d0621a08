"""The event handler: five callbacks, each with a working default.

Belongs here: what a user overrides, and how a plain function becomes a handler. Does not belong here: calling them.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from gws_gevent._accel import build_of

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.frames import CloseInfo
    from gws_gevent.message import Message
    from gws_gevent.options import ConnectionOptions
else:
    Message = build_of("message").Message

__all__ = ["EventHandler", "Message"]


class EventHandler:
    """Override what you need. Every method runs in the connection's own greenlet and may block; see also `parallel`.

    One handler serves many connections: what belongs to one of them goes into `conn.session`. An exception ends the
    connection with 1011 and is logged.
    """

    def on_open(self, conn: Connection) -> None:
        """The connection is open: the first thing in its read loop."""

    def on_message(self, conn: Connection, message: Message) -> None:
        """A complete message: unmasked, checked. `message.opcode`, `message.data` (`str` for text, `bytes` for binary)."""

    def on_ping(self, conn: Connection, payload: bytes) -> None:
        """A ping came. The default answers with the same payload (RFC 6455 section 5.5.3)."""
        conn.write_pong(payload)

    def on_pong(self, conn: Connection, payload: bytes) -> None:
        """A pong came that is not the answer to a keepalive ping."""

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        """The connection has ended: called exactly once for each on_open, the transport already closed."""


class FunctionHandler(EventHandler):
    """Runs `function(conn)`, which reads with `receive()` or iteration. When it returns, the connection is closed with 1000."""

    def __init__(self, function: Callable[[Connection], object]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return f"FunctionHandler({self.function!r})"


def as_handler(handler: Any) -> EventHandler:
    """Return an EventHandler for one, or for a function that takes a connection.

    Raises:
        TypeError: neither, or one that is written for asyncio.
    """
    if isinstance(handler, EventHandler):
        for name in _METHODS:
            _refuse_coroutines(getattr(handler, name))
        return handler
    if isinstance(handler, type) and issubclass(handler, EventHandler):
        raise TypeError(f"a handler is an instance: {handler.__name__}(), not {handler.__name__}")
    if callable(handler):
        _refuse_coroutines(handler)
        return FunctionHandler(handler)
    raise TypeError(f"a handler is an EventHandler or a function that takes a connection, not {handler!r}")


_METHODS = ("on_open", "on_message", "on_ping", "on_pong", "on_close")


def _refuse_coroutines(function: Any) -> None:
    """Nobody would await what it returns, and the handler would seem to do nothing."""
    if iscoroutinefunction(function):
        raise TypeError(f"a handler is written without async: gevent awaits nothing, so {function.__qualname__} would never run")


def refuse_parking(handler: EventHandler | None, options: ConnectionOptions) -> None:
    """Raise ValueError if `park_after` is set for a connection that is read by its owner, whose greenlet cannot be given back."""
    if options.park_after is not None and (handler is None or isinstance(handler, FunctionHandler)):
        reader = f"{handler.function!r}" if isinstance(handler, FunctionHandler) else "receive() or iteration"
        raise ValueError(f"park_after: needs an EventHandler; {reader} reads the connection, and waits in its greenlet")
