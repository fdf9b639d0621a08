"""A `Sock` for Flask with flask-sock's API, on our connections: `from gws_gevent.integrations.flask_sock import Sock`.

Belongs here: the decorator, and what a route is given. Does not belong here: taking the connection out of a WSGI
server (upgrader.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from gevent.lock import BoundedSemaphore

from gws_gevent.exceptions import ConnectionClosed as OurConnectionClosed
from gws_gevent.exceptions import MissingExtra, Refusal
from gws_gevent.frames import CloseCode, State
from gws_gevent.options import MiB, ServerOptions
from gws_gevent.takeover import Answer
from gws_gevent.upgrader import Upgrader

try:
    from flask import Blueprint, Flask, Response, current_app, request
except ImportError as error:
    raise MissingExtra("Sock", "flask") from error

if TYPE_CHECKING:
    from gws_gevent.connection import Connection

try:
    # So that `except simple_websocket.ConnectionClosed` goes on working.
    from simple_websocket import ConnectionClosed as _Base
except ImportError:
    _Base = RuntimeError

__all__ = ["ConnectionClosed", "Sock", "WebSocket"]

Route = TypeVar("Route", bound=Callable[..., Any])

#: Seconds between two looks at what has come, in a route that sends and does not receive.
LOOK_EVERY = 0.25
#: Bytes of messages kept for `receive` by such looks; then the rest stays in the system's buffers, and the client waits.
MAX_KEPT = 1 * MiB
#: Names in SOCK_SERVER_OPTIONS that mean something to simple-websocket only.
WITHOUT_MEANING = frozenset({"receive_bytes", "thread_class", "event_class", "selector_class"})


class ConnectionClosed(_Base):  # type: ignore[misc]  # whichever it is
    """The connection has ended.

    Attributes:
        reason: the close code (RFC 6455 section 7.4.1); 1006 if the client went away without a word.
        message: the text that came with it, or None.
    """

    def __init__(self, reason: int = CloseCode.NO_STATUS, message: str | None = None) -> None:
        RuntimeError.__init__(self, f"Connection closed: {int(reason)} {message or ''}".rstrip())
        self.reason = reason
        self.message = message


class Sock:
    """WebSocket routes of a Flask app.

    Args:
        app: None: call `init_app` later.

    Attributes:
        bp: the blueprint that holds the routes which were declared before there was an app.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self.app: Flask | None = None
        self.bp: Blueprint | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add the routes declared so far, and those declared from now on, to an app."""
        if self.bp is not None:
            app.register_blueprint(self.bp)
        self.app = app

    def route(self, path: str, bp: Blueprint | None = None, **options: Any) -> Callable[[Route], Route]:
        """Declare `function(ws, **variables)` as the WebSocket route of a path. When it returns, the connection is closed.

        It runs in Flask's request context. An exception that comes out of it closes with 1011, and goes on to Flask's error
        handling.

        Args:
            bp: a blueprint, which the application registers.
            options: as those of `app.route`.
        """
        options["websocket"] = True

        def decorate(function: Route) -> Route:
            @wraps(function)
            def websocket_route(*args: Any, **variables: Any) -> Any:
                return _serve(function, args, variables)

            self._place(bp).route(path, **options)(websocket_route)
            return websocket_route  # type: ignore[return-value]  # the same parameters but the first

        return decorate

    def _place(self, bp: Blueprint | None) -> Flask | Blueprint:
        place = bp or self.app or self.bp
        if place is None:
            place = self.bp = Blueprint("__gws_sock", __name__)
        return place


def _serve(function: Callable[..., Any], args: tuple[Any, ...], variables: dict[str, Any]) -> Any:
    """Take the connection of the current request, and run the route on it."""
    environ = request.environ
    try:
        conn = _upgrader().accept(environ)
    except Refusal as refusal:
        return Answer.of(refusal)
    with conn:
        try:
            function(WebSocket(conn, environ), *args, **variables)
        except ConnectionClosed:
            pass
    return Response()


def _upgrader() -> Upgrader:
    """One for an app, as long as its SOCK_SERVER_OPTIONS stay what they are."""
    given = current_app.config.get("SOCK_SERVER_OPTIONS") or {}
    kept: tuple[dict[str, Any], Upgrader] | None = current_app.extensions.get("gws_sock")
    if kept is None or kept[0] != given:
        kept = (dict(given), Upgrader(options=_options(given)))
        current_app.extensions["gws_sock"] = kept
    return kept[1]


def _options(given: Mapping[str, Any]) -> ServerOptions:
    """Flask-sock's names, and any of ServerOptions.

    Raises:
        ValueError: a wrong value, or a name that is neither.
    """
    options = {name: value for name, value in given.items() if name not in WITHOUT_MEANING}
    if isinstance(options.get("subprotocols"), str):
        options["subprotocols"] = [options["subprotocols"]]
    if options.get("subprotocols", ()) is None:
        del options["subprotocols"]
    if "max_message_size" in options:
        size = options.pop("max_message_size")
        options["read_max_payload_size"] = 2**62 if size is None else size
    unknown = options.keys() - {field.name for field in fields(ServerOptions)}
    if unknown:
        raise ValueError(f"SOCK_SERVER_OPTIONS: no such option: {', '.join(sorted(unknown))}")
    try:
        return ServerOptions(**options)
    except ValueError as error:
        raise ValueError(f"SOCK_SERVER_OPTIONS: {error}") from None


class WebSocket:
    """What a route is given: flask-sock's object. Any greenlet may send; one at a time receives.

    Attributes:
        environ: the WSGI environment of the opening handshake.
        connection: the connection below, for all that flask-sock has not.
        mode: "gws_gevent", where flask-sock says what server it runs on.
    """

    mode = "gws_gevent"

    def __init__(self, connection: Connection, environ: dict[str, Any]) -> None:
        self.connection = connection
        self.environ = environ
        # Held by whoever reads.
        self._reading = BoundedSemaphore()
        self._kept: deque[str | bytes] = deque()
        self._kept_size = 0
        self._looked = monotonic()

    @property
    def subprotocol(self) -> str | None:
        """What the opening handshake chose."""
        return self.connection.subprotocol

    @property
    def connected(self) -> bool:
        """True until either side has begun to close."""
        self._look()
        return self.connection.state is State.OPEN

    @property
    def close_reason(self) -> int:
        """The close code of the client; 1005 as long as there is none."""
        info = self.connection.close_info
        return CloseCode.NO_STATUS if info is None else info.code

    @property
    def close_message(self) -> str | None:
        """The text that came with it."""
        info = self.connection.close_info
        return info.reason or None if info is not None else None

    def send(self, data: Any) -> None:
        """Send bytes as a binary message, anything else as text. Waits while the client takes nothing.

        Raises:
            ConnectionClosed: the connection is closing or closed.
            MessageTooLarge: above `write_max_payload_size`; nothing was sent.
        """
        self._look()
        if not isinstance(data, bytes | bytearray | memoryview):
            data = str(data)
        try:
            self.connection.send(data)
        except OurConnectionClosed:
            raise self._closed() from None

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message, `str` or `bytes`; None if none has come in time.

        Args:
            timeout: seconds; None waits until the connection ends, 0 does not wait.

        Raises:
            ConnectionClosed: the connection has ended.
        """
        if not self._reading.acquire(timeout=timeout):
            return None
        try:
            if self._kept:
                data = self._kept.popleft()
                self._kept_size -= len(data)
                return data
            return self.connection.receive(timeout)
        except TimeoutError:
            return None
        except OurConnectionClosed:
            raise self._closed() from None
        finally:
            self._reading.release()

    def close(self, reason: int | None = None, message: str | None = None) -> None:
        """Begin to close.

        Args:
            reason: a close code; None is 1000.
            message: a text of at most 123 bytes.

        Raises:
            ConnectionClosed: the connection is closing or closed already.
            ValueError: a code or a text that a close frame may not have.
        """
        if not self.connected:
            raise self._closed()
        self.connection.write_close(CloseCode.NORMAL if reason is None else reason, message or "")

    def _closed(self) -> ConnectionClosed:
        return ConnectionClosed(self.close_reason, self.close_message)

    def _look(self) -> None:
        """Answer the pings, and notice the close, of a client that is sent to and not listened to. Keeps messages for `receive`."""
        now = monotonic()
        if now - self._looked < LOOK_EVERY or self._kept_size >= MAX_KEPT or not self._reading.acquire(blocking=False):
            return
        self._looked = now
        try:
            while self._kept_size < MAX_KEPT:
                data = self.connection.receive(0)
                self._kept.append(data)
                self._kept_size += len(data)
        except (TimeoutError, OurConnectionClosed):
            return  # nothing there, or the end
        finally:
            self._reading.release()
