"""A Locust user that speaks WebSocket, and reports to Locust's statistics.

Belongs here: what is measured, and how it is told to Locust's `request` event. Does not belong here: connecting,
reading and writing, which are the client's.

Importing Locust patches the process (gevent.monkey), and so does importing this module.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from gws_gevent.client import connect
from gws_gevent.exceptions import ConnectionClosed, GwsError, MissingExtra
from gws_gevent.frames import CloseCode
from gws_gevent.handler import EventHandler
from gws_gevent.options import ClientOptions

try:
    from locust import User
    from locust.exception import LocustError, RescheduleTask
except ImportError as error:
    raise MissingExtra("the Locust user", "locust") from error

if TYPE_CHECKING:
    from gevent import Greenlet
    from gevent.pool import Group

    from gws_gevent.connection import Connection
    from gws_gevent.frames import CloseInfo
    from gws_gevent.message import Message

__all__ = ["Failed", "MeasuredConnection", "WebSocketUser"]

#: The type column of Locust's tables.
OPEN, SEND, RECEIVE, CALL, CLOSE = "WS OPEN", "WS SEND", "WS RECV", "WS CALL", "WS CLOSE"
#: A close that the server may begin without a failure being counted.
NO_FAILURE = (CloseCode.NORMAL, CloseCode.GOING_AWAY)

Data = str | bytes
OnMessage = Callable[["MeasuredConnection", Data], float | None]


class Failed(RescheduleTask):
    """Something failed and has been reported: Locust ends the task, waits, and takes the next one.

    Attributes:
        error: what the client raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class WebSocketUser(User):
    """A user whose tasks talk WebSocket: `ws = self.connect("/chat")`. Subclass it, and give it tasks.

    Attributes:
        host: what targets are relative to, such as `"wss://example.org"`; http and https are taken for ws and wss.
        options: of every connection.
        ssl_context: for wss; None verifies against the system's authorities.
        proxy: as `gws_gevent.connect` takes it.
    """

    abstract = True
    options: ClientOptions | None = None
    ssl_context: ssl.SSLContext | None = None
    proxy: str | bool | None = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._open: dict[MeasuredConnection, None] = {}

    def connect(
        self,
        target: str = "/",
        *,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        options: ClientOptions | None = None,
        on_message: OnMessage | None = None,
    ) -> MeasuredConnection:
        """Open a connection and report it as WS OPEN.

        Args:
            target: a URL, or what follows the host, such as "/chat?room=1".
            name: under which all that happens on this connection is counted; None is the target.
            headers: more headers of the request, on top of those of the options.
            options: instead of the user's.
            on_message: called as `on_message(ws, data)` with each message, in a greenlet of the connection's own: for what a server
                sends unasked. Each is reported as WS RECV, with the milliseconds that the function returns as its response time, or
                without one for None. `receive` and `call` are not to be used then.

        Raises:
            Failed: it could not be opened.
            LocustError: a target that is no URL, in a user without a host.
        """
        options = options or self.options or ClientOptions()
        if headers:
            options = replace(options, headers={**options.headers, **headers})
        ws = MeasuredConnection(self, name or target)
        url, handler = self._url(target), _Listener(ws, on_message) if on_message is not None else None
        with ws.measured(OPEN):
            ws.connection = connect(url, handler, options, ssl_context=self.ssl_context, proxy=self.proxy)
            self._open[ws] = None
        return ws

    def on_stop(self) -> None:
        """Close what is open. Who overrides it calls this one as well."""
        for ws in list(self._open):
            ws.close()

    def start(self, group: Group) -> Greenlet:
        """Start this user, as Locust does."""
        greenlet = super().start(group)
        # `on_stop` is not called after an error in on_start, and a subclass may not call this one.
        greenlet.rawlink(self._abandon)
        return greenlet

    def forget(self, ws: MeasuredConnection) -> None:
        """A connection has been closed."""
        self._open.pop(ws, None)

    def _abandon(self, _: object) -> None:
        """In the hub: the user's greenlet has ended."""
        for ws in self._open:
            ws.connection.abort()
        self._open.clear()

    def _url(self, target: str) -> str:
        if "://" in target or target.startswith("ws+unix:"):
            return target
        if not self.host:
            raise LocustError("a WebSocketUser needs a host, in the class or as --host, or targets that are URLs")
        scheme, separator, rest = self.host.rstrip("/").partition("://")
        return {"http": "ws", "https": "wss"}.get(scheme, scheme) + separator + rest + target


class MeasuredConnection:
    """A connection that reports what happens on it. What fails is counted as a failure and raises `Failed`.

    Attributes:
        connection: the client's own, whose use is not reported.
        name: under which it is counted.
        closing: we began the closing handshake.
    """

    connection: Connection

    def __init__(self, user: WebSocketUser, name: str) -> None:
        self.name = name
        self._user = user
        self.closing = False
        self._reported_close = False

    @property
    def closed(self) -> bool:
        """True once the connection has ended."""
        return self.connection.closed

    def send(self, data: Data, *, name: str | None = None) -> None:
        """Send text or bytes: WS SEND, with the time until the system has taken it."""
        with self.measured(SEND, name) as request:
            request["response_length"] = len(data)
            self.connection.send(data)

    def receive(self, timeout: float | None = None, *, name: str | None = None) -> Any:
        """Return the next message: WS RECV, with the time it was waited for.

        Args:
            timeout: seconds; when they are over, that is a failure. The connection stays usable.
        """
        with self.measured(RECEIVE, name) as request:
            data = self.connection.receive(timeout)
            request["response_length"] = len(data)
            return data

    def call(
        self,
        data: Data,
        *,
        answers: Callable[[Any], object] | None = None,
        timeout: float | None = 10.0,
        name: str | None = None,
    ) -> Any:
        """Send a message and return its answer: WS CALL, with the time between the two.

        Args:
            answers: tells whether a message is the answer; others are passed over. None: the next message is.
            timeout: seconds to wait for the answer; None waits for ever.
        """
        with self.measured(CALL, name) as request:
            deadline = None if timeout is None else perf_counter() + timeout
            self.connection.send(data)
            while True:
                try:
                    answer = self.connection.receive(None if deadline is None else deadline - perf_counter())
                except TimeoutError:
                    # In the same words each time: Locust keeps a line for each error that says something else.
                    raise TimeoutError(f"no answer within {timeout:g} seconds") from None
                if answers is None or answers(answer):
                    request["response_length"] = len(answer)
                    return answer

    def __iter__(self) -> Iterator[Any]:
        """Each message until the connection ends, as WS RECV without a response time: nobody had asked for it."""
        for data in self.connection:
            self.report(RECEIVE, None, len(data))
            yield data
        self.report_close(None)

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Do the closing handshake: WS CLOSE, with the time it took. Once it has been closed there is nothing to do or to report.

        A close that the server began, or a loss of the connection, is reported as WS CLOSE without a response time; it is a
        failure unless its code was 1000 or 1001.
        """
        self.closing = not self.connection.closed and self.connection.close_info is None
        began = perf_counter()
        self.connection.close(code, reason)
        self.report_close((perf_counter() - began) * 1000 if self.closing else None)

    def __enter__(self) -> MeasuredConnection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # What Locust is told

    def measured(self, kind: str, name: str | None = None) -> _Measured:
        """Report a block of code as one request: its time, and the error that came out of it, which becomes `Failed`."""
        return _Measured(self, kind, name)

    def report(
        self,
        kind: str,
        milliseconds: float | None,
        length: int = 0,
        error: Exception | None = None,
        name: str | None = None,
        began: float | None = None,
    ) -> None:
        """Fire Locust's `request` event.

        Args:
            milliseconds: None: counted without a response time.
            length: of the message, in characters or bytes.
            began: seconds since the epoch; None is now.
        """
        self._user.environment.events.request.fire(
            request_type=kind,
            name=name or self.name,
            response_time=milliseconds,
            response_length=length,
            exception=error,
            context=self._user.context(),
            start_time=time() if began is None else began,
        )

    def report_close(self, milliseconds: float | None) -> None:
        """Report, once, that the connection has ended."""
        if self._reported_close:
            return
        self._reported_close = True
        self._user.forget(self)
        info = self.connection.close_info
        assert info is not None
        good = info.clean and (self.closing or info.code in NO_FAILURE)
        self.report(CLOSE, milliseconds, error=None if good else ConnectionClosed(info))


class _Measured:
    """The block of `MeasuredConnection.measured`; what it is entered with takes `response_length`."""

    def __init__(self, ws: MeasuredConnection, kind: str, name: str | None) -> None:
        self._ws = ws
        self._kind = kind
        self._name = name
        self._facts = {"response_length": 0}

    def __enter__(self) -> dict[str, int]:
        self._since_epoch, self._began = time(), perf_counter()
        return self._facts

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        milliseconds = (perf_counter() - self._began) * 1000
        if error is not None and not isinstance(error, GwsError | OSError):
            return  # the user's own mistake, a kill, or the end of the test: Locust sees to it
        length = self._facts["response_length"] if error is None else 0
        self._ws.report(self._kind, milliseconds, length, error, self._name, self._since_epoch)
        if isinstance(error, ConnectionClosed):
            self._ws.report_close(None)
        if error is not None:
            raise Failed(error) from error


class _Listener(EventHandler):
    """Reads a connection in a greenlet of its own, for `on_message`."""

    def __init__(self, ws: MeasuredConnection, on_message: OnMessage) -> None:
        self._ws = ws
        self._on_message = on_message

    def on_open(self, conn: Connection) -> None:
        self._ws.connection = conn

    def on_message(self, conn: Connection, message: Message) -> None:
        self._ws.report(RECEIVE, self._on_message(self._ws, message.data), len(message.data))

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        if not self._ws.closing:
            self._ws.report_close(None)
