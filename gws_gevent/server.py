"""The server: endpoints, connections, start and stop.

Belongs here: what a program that serves calls. Does not belong here: the opening handshake (opening.py), a connection's life.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from greenlet import getcurrent

from gws_gevent._accel import build_of
from gws_gevent.exceptions import GwsError
from gws_gevent.frames import CloseCode
from gws_gevent.handler import EventHandler, as_handler, refuse_parking
from gws_gevent.handshake import Response
from gws_gevent.http_head import Request
from gws_gevent.opening import Front, ServerService
from gws_gevent.option_names import names_options
from gws_gevent.options import ServerOptions, WsgiSettings, options_or_default
from gws_gevent.transports.base import Endpoint, EndpointLike, Listener, ListenSettings, Stream, TlsFiles
from gws_gevent.transports.registry import listen, listen_on_socket

if TYPE_CHECKING:
    from gws_gevent.connection import Acceptor, Connection
else:
    _connection = build_of("connection")
    Acceptor, Connection = _connection.Acceptor, _connection.Connection

__all__ = ["Server", "serve"]

#: Seconds that `stop` waits for greenlets after it has aborted their transports.
GRACE = 1.0
#: Seconds that a browser may remember where HTTP/3 is. If it is gone, the browser comes back by itself.
ALTERNATIVE_AGE = 86400


class Server:
    """Serves WebSocket connections on any number of endpoints, one greenlet each.

    Args:
        handler: an EventHandler, or a function that takes a connection. None needs `on_request` or `wsgi`.
        options: see ServerOptions.
        on_request: instead of a handler; called with each Request. It returns a handler to upgrade with, a Response to answer
            with, or None for 404. A Refusal may be returned or raised; any other answer or exception is logged and answered 500.
            Beside a WSGI app it is called with requests that ask for WebSocket only, and None leaves one to the app.
        wsgi: a WSGI app. It gets every request that does not ask for WebSocket, and without a handler and `on_request` those too.
        wsgi_settings: see WsgiSettings.

    Raises:
        TypeError: an argument of another kind; no handler, no on_request and no app; both of the first two.
        ValueError: `park_after` with a function.
    """

    @names_options(ServerOptions)
    def __init__(
        self,
        handler: EventHandler | Callable[[Connection], object] | None = None,
        options: ServerOptions | None = None,
        on_request: Callable[[Request], EventHandler | Callable[[Connection], object] | Response | None] | None = None,
        wsgi: Callable[..., Any] | None = None,
        wsgi_settings: WsgiSettings | None = None,
    ) -> None:
        if handler is None and on_request is None and wsgi is None:
            raise TypeError("a server needs a handler, on_request, or a WSGI app")
        if handler is not None and on_request is not None:
            raise TypeError("give a handler or on_request, not both: on_request returns the handler")
        if on_request is not None and not callable(on_request):
            raise TypeError(f"on_request is a function that takes a Request, not {on_request!r}")
        if wsgi is not None and not callable(wsgi):
            raise TypeError(f"a WSGI app is called with an environ and start_response; this is none: {wsgi!r}")
        self.options = options_or_default(options, ServerOptions)
        self._handler = as_handler(handler) if handler is not None else None
        if self._handler is not None:
            refuse_parking(self._handler, self.options)
        self._on_request = on_request
        self._wsgi = wsgi
        self._wsgi_settings = wsgi_settings
        self._listeners: list[Listener] = []
        self._service: ServerService | None = None
        self._stopped = Event()

    # Starting

    def start(self, *endpoints: EndpointLike, settings: ListenSettings | None = None) -> None:
        """Listen on endpoints such as `"127.0.0.1:3001"`, `"tls://:443"` or `"unix:/run/ws.sock"`, and return.

        A (host, port) pair and a port, which means all addresses, are taken as well.

        Raises:
            TypeError: no endpoint, or something that is none.
            EndpointError: an endpoint that cannot be understood.
            TransportError: one that cannot be listened on. Those before it are closed again.
        """
        if not endpoints:
            raise TypeError('at least one endpoint is needed, such as "127.0.0.1:3001"')
        settings = self._complete(settings)
        self._start([listen(endpoint, settings) for endpoint in endpoints])

    def run(self, *endpoints: EndpointLike, settings: ListenSettings | None = None) -> None:
        """`start`, and serve until `stop` is called. Signals are the program's affair; `serve()` takes care of them."""
        self.start(*endpoints, settings=settings)
        self.serve_forever()

    def run_tls(self, endpoint: EndpointLike, cert: str, key: str | None = None) -> None:
        """Serve TLS on one endpoint with a certificate and key in PEM files, until `stop` is called."""
        parsed = Endpoint.of(endpoint)
        if parsed.scheme == "tcp":
            parsed = replace(parsed, scheme="tls")
        self.run(parsed, settings=ListenSettings(tls=TlsFiles(cert, key)))

    def run_listener(self, listener: Any) -> None:
        """Serve a Listener of any transport, or a listening socket, until `stop` is called."""
        self.start_listeners(listener)
        self.serve_forever()

    def start_listeners(self, *listeners: Any, settings: ListenSettings | None = None) -> None:
        """Serve Listeners of any transport, or listening sockets, and return.

        Args:
            settings: for the sockets.
        """
        settings = self._complete(settings)
        self._start([one if isinstance(one, Listener) else listen_on_socket(one, settings) for one in listeners])

    def serve_forever(self) -> None:
        """Block until `stop` has finished; an exception thrown in, such as KeyboardInterrupt, stops the server first.

        Raises:
            GwsError: the server was never started.
        """
        if self._service is None and not self._stopped.is_set():
            raise GwsError("serve_forever: call start() first, or run(), which does both")
        try:
            self._stopped.wait()
        finally:
            self.stop()

    def _complete(self, settings: ListenSettings | None) -> ListenSettings:
        settings = settings or ListenSettings()
        on_error = settings.on_error or (lambda error: self.on_error(None, error))
        return replace(settings, no_delay=self.options.no_delay and settings.no_delay, on_error=on_error)

    def _start(self, listeners: list[Listener]) -> None:
        if self._service is None or self._service.stopping:
            self._service = self._new_service()
            self._stopped.clear()
        on_stream = Acceptor(self._service)
        started: list[Listener] = []
        try:
            for listener in listeners:
                listener.start(on_stream)
                started.append(listener)
        except BaseException:
            for listener in started:
                listener.close()
            raise
        self._listeners += started
        self._service.alt_svc = _alternatives(self.addresses)

    def _new_service(self) -> ServerService:
        front = self._make_front() if self._wsgi is not None else None
        service = ServerService(self._handler, self.options, self._on_request, self._tell, front)
        if type(self).on_upgrade is not Server.on_upgrade or "on_upgrade" in vars(self):
            service.on_upgrade = self.on_upgrade  # who does not override it is not called for each connection
        service.accepting = self._accepting
        return service

    def _make_front(self) -> Front:
        # Who serves no app needs no WSGI server.
        from gws_gevent.http_front import HttpFront

        return HttpFront(self._wsgi, self._wsgi_settings or WsgiSettings())

    def _tell(self, stream: Stream | None, error: Exception) -> None:
        self.on_error(stream, error)

    # While it runs

    @property
    def connections(self) -> Collection[Connection]:
        """Every connection from accept to close; a copy."""
        return frozenset(self._service.connections) if self._service is not None else frozenset()

    @property
    def addresses(self) -> list[str]:
        """The bound endpoints as URLs, in the order given; port 0 is replaced by the real one."""
        return [listener.address for listener in self._listeners]

    @property
    def address(self) -> str:
        """The first of `addresses`.

        Raises:
            GwsError: the server listens nowhere.
        """
        if not self._listeners:
            raise GwsError("the server is not listening")
        return self._listeners[0].address

    def on_error(self, stream: Stream | None, error: Exception) -> None:
        """Told of what fails outside of an open connection: a failed accept (no stream), TLS, an opening handshake. Override it."""
        level = logging.ERROR if stream is None else logging.DEBUG
        (self.options.logger or logging.getLogger("gws_gevent")).log(level, "%s", error)

    def on_upgrade(self, conn: Connection, request: Request) -> None:
        """Told of each connection that has been upgraded, before its handler is. Override it. What it raises is logged.

        Not of one that a library in the WSGI app speaks WebSocket on by itself.
        """

    def _accepting(self, on: bool) -> None:
        """`accept_limit` has been reached, or there is room again."""
        for listener in self._listeners:
            if on:
                listener.start_accepting()
            else:
                listener.stop_accepting()

    def reload(self) -> None:
        """Read certificate files again, for connections accepted from now on.

        Raises:
            TransportError: a file cannot be used; that listener keeps what it had.
        """
        for listener in self._listeners:
            listener.reload()

    # Stopping

    def stop(self, timeout: float | None = 5.0) -> None:
        """Stop accepting, close every connection with 1001, wait `timeout` seconds, abort what is left. Idempotent.

        In a handler the connection that it serves is closed as well but not waited for: it ends when the handler has returned.
        """
        service = self._service
        if service is None or service.stopping:
            return
        service.stopping = True
        try:
            for listener in self._listeners:
                listener.close()
            self._listeners.clear()
            self._end_connections(service, timeout)
        except BaseException:
            # A Timeout around us, or a kill: nobody would come back to what is left.
            for conn in list(service.connections):
                conn.abort()
                conn.kill()
            raise
        finally:
            # Also when we are stopped ourselves, as in a handler whose own connection has to go: `serve_forever` waits for this.
            if self._service is service:  # else somebody has started anew meanwhile, and that is not stopped
                self._stopped.set()

    def _end_connections(self, service: ServerService, timeout: float | None) -> None:
        service.stop_awaiting()
        here, spared = getcurrent(), 0
        for conn in list(service.connections):
            conn.write_close(CloseCode.GOING_AWAY)
            spared += conn.is_served_by(here)
        if service.wait_empty(timeout, spared):
            return
        for conn in list(service.connections):
            if not conn.is_served_by(here):
                conn.abort()
        if not service.wait_empty(GRACE, spared):
            for conn in list(service.connections):
                if not conn.is_served_by(here):
                    conn.kill()
            service.wait_empty(GRACE, spared)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


@names_options(ServerOptions)
def serve(
    handler: EventHandler | Callable[[Connection], object], *endpoints: EndpointLike, options: ServerOptions | None = None
) -> None:
    """Serve a handler on endpoints until SIGINT or SIGTERM stops it: `serve(echo, "127.0.0.1:3001")`.

    In a thread other than the main one no signal arrives: use `Server` there, and its `stop`.
    """
    server = Server(handler, options)
    server.start(*endpoints)
    with _on_signals(server.stop):
        server.serve_forever()


def _alternatives(addresses: Sequence[str]) -> str:
    """The value of an Alt-Svc header that names the ports with HTTP/3, on the same host (RFC 7838 section 3)."""
    ports = [endpoint.port for endpoint in map(Endpoint.parse, addresses) if endpoint.scheme == "h3"]
    return ", ".join(f'h3=":{port}"; ma={ALTERNATIVE_AGE}' for port in ports)


@contextmanager
def _on_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` in a greenlet on SIGINT and SIGTERM, where they arrive: in the main thread."""
    numbers = (signal.SIGINT, signal.SIGTERM) if gevent.get_hub().main_hub else ()
    watchers = [gevent.signal_handler(number, stop) for number in numbers]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
