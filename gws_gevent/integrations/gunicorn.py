"""A worker for gunicorn: `gunicorn -k gws_gevent.integrations.gunicorn.GwsWorker app:app`.

Belongs here: a Server of ours inside of gunicorn's worker: its settings, sockets, signals, hooks and logs. Does not belong here:
serving (server.py, http_front.py), HTTP beside gevent's (pywsgi.py), the access log's lines (gunicorn_log.py).

gunicorn's own gevent workers leave a WebSocket inside of the WSGI call, and cut it without a word when they stop. Here a request
that is upgraded unwinds as under a Server, and every WebSocket is told 1001 when the worker stops.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import signal
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
import gevent.socket
from gevent.event import Event

from gws_gevent.exceptions import GwsError, MissingExtra
from gws_gevent.handler import EventHandler
from gws_gevent.http_head import Request
from gws_gevent.integrations.gunicorn_log import AccessLog, as_text
from gws_gevent.integrations.pywsgi import LIBRARY, WSGIHandler
from gws_gevent.options import ServerOptions, WsgiSettings
from gws_gevent.patching import patch_all
from gws_gevent.server import Server
from gws_gevent.transports.base import ListenSettings, Stream
from gws_gevent.transports.registry import listen_on_socket

try:
    from gunicorn.http.wsgi import base_environ
    from gunicorn.sock import ssl_context
    from gunicorn.workers.ggevent import VERSION, GeventWorker
except ImportError as error:
    raise MissingExtra("the worker for gunicorn", "gunicorn") from error

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.opening import ServerService
    from gws_gevent.takeover import Takeover

__all__ = ["GwsWorker"]

#: Names the handler of upgrades in the environment, for those who write no worker class of their own.
HANDLER_VARIABLE = "GWS_GEVENT_HANDLER"
#: Seconds for the closing handshakes where gunicorn is to end at once (SIGINT, SIGQUIT).
QUICK = 1.0
#: Seconds between two signs of life to the arbiter, whose shortest timeout is one second.
HEARTBEAT = 0.5
#: gunicorn's word for everybody, in `forwarded_allow_ips` and `proxy_allow_ips`.
EVERYBODY = ("0.0.0.0/0", "::/0")


class GwsWorker(GeventWorker):  # type: ignore[misc]
    """Serves gunicorn's WSGI app, and WebSocket on the same sockets.

    A route of the app upgrades with an `Upgrader`. Without any code in the app, `handler` serves every request that asks for
    WebSocket. Derive a class, and name that to gunicorn, to set what gunicorn has no settings for.

    Attributes:
        handler: an EventHandler, a subclass of it, a function that takes a connection, or "module:object" for one of these, which
            is imported where the app is. None: what the environment variable GWS_GEVENT_HANDLER names, or the app decides.
        on_request: see Server; instead of `handler`.
        options: see ServerOptions. What gunicorn has a setting for is overridden by that: `accept_limit`, `keep_alive_timeout`,
            `trusted_proxies`.
    """

    handler: ClassVar[EventHandler | type[EventHandler] | Callable[[Connection], object] | str | None] = None
    on_request: ClassVar[Callable[[Request], Any] | None] = None
    options: ClassVar[ServerOptions] = ServerOptions()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wake = Event()
        self._grace: float = self.cfg.graceful_timeout
        self._orphaned = False

    # Starting

    def init_process(self) -> None:
        """See gunicorn's Worker."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            # One that comes before gunicorn sets its handlers would go to those of the arbiter, and be lost.
            signal.signal(number, self._exit_early)
        super().init_process()

    def _exit_early(self, sig: int, frame: Any) -> None:
        self.alive = False

    def patch(self) -> None:
        """Patch, as gunicorn's gevent workers do, and say what the arbiter had imported before."""
        patch_all(self.log.error_log)

    def run(self) -> None:
        """Serve until a signal, `max_requests` or the arbiter's end stops the worker."""
        _share_handlers(logging.getLogger("gws_gevent"), self.log.error_log)
        server = self._make_server()
        server.start_listeners(*[self._listener(one) for one in self.sockets])
        try:
            while self.alive:
                self.notify()
                self._wake.wait(HEARTBEAT)
        finally:
            self._stop(server)

    def _make_server(self) -> Server:
        cfg = self.cfg
        access_log = AccessLog(self.log, cfg)
        environ = {**base_environ(cfg), "wsgi.multithread": True, "SERVER_SOFTWARE": VERSION}
        handler_class = type("WorkerHandler", (WorkerHandler,), {"worker": self, "access_log": access_log})
        settings = WsgiSettings(log=None, error_log=self.log.error_log, environ=environ, handler_class=handler_class)
        on_request = type(self).on_request
        handler = None if on_request is not None else self._handler
        options = replace(self.options, **self._options_of_settings())
        return WorkerServer(self, access_log, handler, options, on_request, wsgi=self.wsgi, wsgi_settings=settings)

    def load_wsgi(self) -> None:
        """The app, and the handler with it: what fails here ends gunicorn, later it would start workers without end."""
        super().load_wsgi()
        if type(self).on_request is None:
            self._handler = self._find_handler()

    def _find_handler(self) -> Any:
        named, whose = type(self).handler, "handler"
        if named is None:
            named, whose = os.environ.get(HANDLER_VARIABLE) or None, HANDLER_VARIABLE
        try:
            found = pkgutil.resolve_name(named) if isinstance(named, str) else named
        except (ImportError, AttributeError, ValueError) as error:
            # gunicorn's log has the traceback, which does not say which setting is wrong.
            raise GwsError(f"{whose} {named}: cannot be imported: {error}") from error
        return found() if isinstance(found, type) and issubclass(found, EventHandler) else found

    def _options_of_settings(self) -> dict[str, Any]:
        cfg = self.cfg
        trusted = [*cfg.forwarded_allow_ips, *(cfg.proxy_allow_ips if self.speaks_proxy_protocol else ())]
        # As for gunicorn, whoever reaches a Unix socket is a proxy.
        proxies = dict.fromkeys(network for name in trusted for network in (EVERYBODY if name == "*" else (name,)))
        return {
            "accept_limit": self.worker_connections,
            "keep_alive_timeout": float(cfg.keepalive) or None,
            "trusted_proxies": [*proxies, "unix"],
            "logger": self.options.logger or self.log.error_log,
        }

    def _listener(self, sock: Any) -> Any:
        settings = ListenSettings(ssl_context=ssl_context(self.cfg) if self.cfg.is_ssl else None)
        own = gevent.socket.socket(sock.FAMILY, gevent.socket.SOCK_STREAM, fileno=sock.sock.detach())
        listener: Any = listen_on_socket(own, settings)
        if self.cfg.workers > 1:
            # Another worker may be idle while this one accepts all there is.
            listener.max_accept = 1
        return listener

    @property
    def speaks_proxy_protocol(self) -> bool:
        """gunicorn's setting `proxy_protocol` is on."""
        return self.cfg.proxy_protocol not in (False, "off", None)

    # While it runs

    def notify(self) -> None:
        """Tell the arbiter that this worker lives; if there is no arbiter any more, stop."""
        self.tmp.notify()
        if self.ppid != os.getppid() and not self._orphaned:
            self._orphaned = True
            self.log.info("Parent changed, shutting down: %s", self)
            self._end()

    def count_request(self) -> None:
        """Stop after `max_requests`, upgrades among them."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self._end()

    # Stopping

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM, also after a reload: no hurry."""
        self._end()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT, SIGQUIT: at once, but not without a word."""
        self._grace = min(self._grace, QUICK)
        # Hooks may block, and a signal handler may not.
        gevent.spawn(self.cfg.worker_int, self)
        self._end()

    def _end(self) -> None:
        self.alive = False
        gevent.get_hub().loop.run_callback_threadsafe(self._wake.set)

    def _stop(self, server: Server) -> None:
        """Tell every WebSocket 1001, let requests come to their end, and give up what is left after the graceful timeout."""
        began = monotonic()
        stopping = gevent.spawn(server.stop, self._grace)
        while not stopping.ready():
            self.notify()
            stopping.join(HEARTBEAT)
        if monotonic() - began > self._grace:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)


class WorkerServer(Server):
    """The Server of one worker."""

    def __init__(self, worker: GwsWorker, access_log: AccessLog, *args: Any, **kwargs: Any) -> None:
        Server.__init__(self, *args, **kwargs)
        self._worker = worker
        self._access_log = access_log

    def _new_service(self) -> ServerService:
        service = Server._new_service(self)
        if self._access_log.enabled:
            service.on_answer = self._access_log.answered
        return service

    def on_error(self, stream: Stream | None, error: Exception) -> None:
        self._worker.log.log(logging.ERROR if stream is None else logging.DEBUG, "%s", error)

    def on_upgrade(self, conn: Connection, request: Request) -> None:
        self._worker.count_request()
        if self._access_log.enabled:
            self._access_log.follow(conn, request)


class WorkerHandler(WSGIHandler):
    """Serves HTTP in one worker: gunicorn's hooks, counts and access log around each request."""

    worker: GwsWorker
    access_log: AccessLog

    def read_request(self, raw_requestline: str) -> Any:
        valid = WSGIHandler.read_request(self, raw_requestline)
        if not self.worker.cfg.keepalive:
            self.close_connection = True
        return valid

    def get_environ(self) -> Any:
        environ = WSGIHandler.get_environ(self)
        environ["RAW_URI"] = self.path
        if not self.worker.speaks_proxy_protocol:
            # Under gunicorn it is the proxy's: who else the client is, apps read in the headers.
            peer = self.socket.getpeername()
            address, port = peer[:2] if isinstance(peer, tuple) else ("", "")
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = address, str(port)
        assert self.takeover is not None
        self.takeover.on_take = self._on_take
        return environ

    def run_application(self) -> None:
        worker = self.worker
        request = HookRequest(self)
        worker.cfg.pre_request(worker, request)
        try:
            WSGIHandler.run_application(self)
        finally:
            if not self._is_upgraded():
                worker.count_request()
            try:
                worker.cfg.post_request(worker, request, self.environ, HookResponse(self))
            except Exception:
                worker.log.exception("Exception in post_request hook")

    def _is_upgraded(self) -> bool:
        """The request has become a connection of ours, which is counted and logged by itself."""
        takeover = self.takeover
        return takeover is not None and (takeover.accepted is not None or takeover.conn is not None)

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        """As gunicorn's own workers: to the error log. What ends the process is the hub's affair."""
        hub = gevent.get_hub()
        if issubclass(t, (*hub.SYSTEM_ERROR, *hub.NOT_ERROR)):
            WSGIHandler._log_error(self, t, v, tb)
        else:
            self.worker.log.error("Error handling request %s", self.path, exc_info=(t, v, tb))

    def _on_take(self, takeover: Takeover) -> None:
        if self.access_log.enabled and takeover.by == LIBRARY:
            self.access_log.library_began(self)

    def log_request(self) -> None:
        if not self.access_log.enabled or self._is_upgraded():
            return
        if self.takeover is not None and self.takeover.by == LIBRARY:
            self.access_log.library_ended(self)
        else:
            self.access_log.request(self)


class HookRequest:
    """What gunicorn's hooks `pre_request` and `post_request` get as the request: the facts of gunicorn's own class."""

    def __init__(self, handler: WorkerHandler) -> None:
        environ = handler.environ
        self.method: str = handler.command
        self.uri: str = handler.path
        self.path: str = environ["PATH_INFO"]
        self.query: str = environ["QUERY_STRING"]
        self.version = tuple(int(part) for part in handler.request_version.removeprefix("HTTP/").split("."))
        self.headers = [(name.upper(), value) for name, value in handler.headers.items()]
        self.remote_addr = self.peer_addr = handler.socket.getpeername()
        self.scheme: str = environ["wsgi.url_scheme"]


class HookResponse:
    """What `post_request` gets as the response."""

    def __init__(self, handler: WorkerHandler) -> None:
        self.status = handler._orig_status or ""
        self.status_code = int(self.status.partition(" ")[0] or 0)
        self.headers = [(as_text(name), as_text(value)) for name, value in handler.response_headers or ()]
        self.headers_sent: bool = handler.headers_sent
        self.sent: int = handler.response_length


def _share_handlers(logger: logging.Logger, other: logging.Logger) -> None:
    """Let `logger` write where `other` does, unless the program has said where it is to write."""
    if not logger.hasHandlers():
        for handler in other.handlers:
            logger.addHandler(handler)
        logger.setLevel(other.level)
