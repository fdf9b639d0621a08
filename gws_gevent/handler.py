"""The event handler: five callbacks, each with a working default.

Belongs here: what a user overrides, and how a plain function becomes a handler. Does not belong here: calling them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

from gws_gevent._accel import build_of

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.frames import CloseInfo
    from gws_gevent.message import Message
    from gws_gevent.options import ConnectionOptions
else:
    Message = build_of("message").Message

__all__ = ["EventHandler", "Message"]

#: Flags of the code of a function whose call runs nothing of it.
_LAZY: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class EventHandler:
    """Override what you need. Every method runs in the connection's own greenlet and may block; see also `parallel`.

    One handler serves many connections: what belongs to one of them goes into `conn.session`. An exception ends the
    connection with 1011 and is logged.

    A subclass with a method that is a coroutine or generator function is a TypeError: nobody would await what its call returns.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("on_open", "on_message", "on_ping", "on_pong", "on_close"):
            method = cls.__dict__.get(name)
            if isinstance(method, FunctionType) and method.__code__.co_flags & _LAZY:
                raise TypeError(f"{method.__qualname__} must be a plain method: nobody awaits what its call returns")

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
        TypeError: neither.
    """
    if isinstance(handler, EventHandler):
        return handler
    if isinstance(handler, type) and issubclass(handler, EventHandler):
        raise TypeError(f"a handler is an instance: {handler.__name__}(), not {handler.__name__}")
    if not callable(handler):
        raise TypeError(f"a handler is an EventHandler or a function that takes a connection, not {handler!r}")
    _check_function(handler)
    return FunctionHandler(handler)


def _check_function(function: Any) -> None:
    """Raise TypeError for what would fail, or do nothing, only when a connection is there."""
    code = function.__code__ if type(function) is FunctionType else None
    if code is not None and code.co_argcount == 1 and not code.co_kwonlyargcount and not code.co_flags & _LAZY:
        return  # the usual one: `on_request` may make one for each connection, and a signature takes its time
    name = getattr(function, "__qualname__", None) or repr(function)
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(f"a handler is a plain function, and {name} is a coroutine function")
        if inspect.isgeneratorfunction(called):
            raise TypeError(f"a handler is a plain function, and {name} is a generator function, whose call runs nothing")
    try:
        inspect.signature(function).bind(None)
    except ValueError:
        pass  # some that are written in C do not tell what they take: it will show
    except TypeError as error:
        raise TypeError(f"a handler is called with one argument, the connection, which {name} does not take: {error}") from None


def refuse_parking(handler: EventHandler | None, options: ConnectionOptions) -> None:
    """Raise ValueError if `park_after` is set for a connection that is read by its owner, whose greenlet cannot be given back."""
    if options.park_after is not None and (handler is None or isinstance(handler, FunctionHandler)):
        reader = f"{handler.function!r}" if isinstance(handler, FunctionHandler) else "receive() or iteration"
        raise ValueError(f"park_after: needs an EventHandler; {reader} reads the connection, and waits in its greenlet")
