"""The accept loop of every transport over listening sockets, as a `gevent.server.StreamServer`.

Belongs here: binding, accepting, backing off, starting a greenlet per stream. Does not belong here: what a stream is.

StreamServer leaves a Greenlet object and a Python frame under every connection. Here a stream gets a raw greenlet whose first
frame is the function given to `start`, unless the user asks for a pool or a function of his own (`spawn`).
"""

from __future__ import annotations

import _socket
import errno
import logging
import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent.socket
from gevent.hub import get_hub
from gevent.server import StreamServer
from greenlet import greenlet

from gws_gevent._accel import build_of
from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.base import Endpoint, Listener, ListenSettings, Stream, as_transport_error

if TYPE_CHECKING:
    from gws_gevent._fdio import SocketStream, accept
else:
    accept = build_of("_fdio").accept

__all__ = ["SocketListener", "resolve"]

log = logging.getLogger("gws_gevent.transports")

#: The connection that was to be accepted has failed, not the listener: the next one is taken at once (accept(2), "Error handling").
_NEXT_PLEASE = {
    getattr(errno, name)
    for name in (
        "ECONNABORTED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENONET", "ENOPROTOOPT", "EPROTO",
    )
    if hasattr(errno, name)
}  # fmt: skip
#: This machine does not have that family, or not that address of it: another address of the same name may do.
_NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class SocketListener(StreamServer, Listener):  # type: ignore[misc]
    """A StreamServer that hands out streams. Subclasses say what a stream is, and how to bind where it is not by host and port.

    `max_accept`, `min_delay`, `max_delay`, `full()`, `stop(timeout)`, `serve_forever()` and the context manager are StreamServer's.

    Attributes:
        endpoint: what to listen on; None if an existing socket was given.
        settings: see ListenSettings.
    """

    scheme = ""
    endpoint: Endpoint | None = None
    socket: Any
    _handle: Callable[[Stream], object] | None = None

    def __init__(
        self,
        listener: Any,
        handle: Callable[[Stream], object] | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        *,
        settings: ListenSettings | None = None,
    ) -> None:
        """Take what StreamServer takes.

        Args:
            listener: an Endpoint, its text, a port, a (host, port) pair, or a listening socket, which the listener then owns.
            handle: called with each stream; may also be given to `start`.
            backlog: connections the kernel may queue. None: as in `settings`.
            spawn: "default" as in `settings`, or what StreamServer takes.
        """
        self.settings = settings or ListenSettings()
        self._raw = True
        self._stopped = False
        if spawn == "default" and self.settings.spawn is not None:
            spawn = self.settings.spawn
        super().__init__(listener, handle=handle, spawn=spawn)
        self.backlog = self.settings.backlog if backlog is None else backlog

    @abstractmethod
    def make_stream(self, accepted: SocketStream) -> Stream:
        """Return the stream that is served: an accepted one, or something on top of it."""

    def set_listener(self, listener: Any) -> None:
        if hasattr(listener, "accept"):
            super().set_listener(listener)
            self.address = self._url_of(listener)
            return
        self.endpoint = _as_endpoint(listener, self.scheme)
        self.address = str(self.endpoint)

    def set_spawn(self, spawn: Any) -> None:
        self._raw = isinstance(spawn, str) and spawn == "default"
        super().set_spawn(spawn)

    def set_handle(self, handle: Callable[[Stream], object] | None) -> None:
        if handle is not None:
            self.handle = handle
        self._handle = getattr(self, "handle", None)

    def start(self, on_stream: Callable[[Stream], object] | None = None) -> None:
        self.set_handle(on_stream)
        if self._handle is None:
            raise TypeError("'handle' must be provided")
        StreamServer.start(self)

    def init_socket(self) -> None:
        fresh = not hasattr(self, "socket")
        if fresh:
            if self.endpoint is None:
                raise TransportError("the listening socket that was given has been closed")
            self.socket = self.bind(self.endpoint)
        elif not self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            raise TransportError("the socket that was given does not listen")
        self._make_socket_stdlib(fresh)
        self.socket.setblocking(False)
        self.family = self.socket.family
        if self.settings.no_delay and self.family != getattr(_socket, "AF_UNIX", None):
            # Accepted sockets inherit it: one system call less for each.
            self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.address = self._url_of(self.socket)

    def bind(self, endpoint: Endpoint) -> _socket.socket:
        """Return a socket that listens on `endpoint`; a TransportError that names it if that fails."""
        doing = f"listen on {endpoint}"
        try:
            choices = _addresses(endpoint)
            for family, address in choices[:-1]:
                try:
                    return _listening(family, address, endpoint.host, self.backlog)
                except OSError as error:
                    if error.errno not in _NOT_HERE:
                        raise
            return _listening(*choices[-1], endpoint.host, self.backlog)
        except OSError as error:
            raise as_transport_error(error, doing) from error

    def start_accepting(self) -> None:
        """Accept again after `stop_accepting`."""
        self._stopped = False
        super().start_accepting()

    def stop_accepting(self) -> None:
        self._stopped = True
        self._pause()

    def _pause(self) -> None:
        StreamServer.stop_accepting(self)

    def _start_accepting_if_started(self, _event: object = None) -> None:
        # Called by the back-off timer and by the pool, whatever the owner has said meanwhile.
        if self.started and not self._stopped:
            super().start_accepting()

    def _do_read(self) -> None:
        for _ in range(self.max_accept):
            if self.full():
                self._pause()
                if self.pool is not None:
                    self.pool._semaphore.rawlink(self._start_accepting_if_started)
                return
            try:
                stream = self.do_read()
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _NEXT_PLEASE:
                    continue
                self._accept_failed(error)
                return
            self.delay = self.min_delay
            if stream is None:
                return
            try:
                self.do_handle(stream)
            except Exception as error:
                stream.abort()
                self._accept_failed(error)
                return
            if self._watcher is None:
                return

    def do_read(self) -> Stream | None:
        """Accept one stream; None if nobody is waiting."""
        accepted = accept(self.socket)
        if accepted is None:
            return None
        try:
            return self.make_stream(accepted)
        except BaseException:
            accepted.close()
            raise

    def do_handle(self, stream: Stream) -> None:
        """Start the greenlet that owns `stream`.

        A raw greenlet has nothing around its function that could catch an exception: what escapes from it is reported by the
        loop's own guard around the callback that ran the greenlet, to `hub.handle_error`, and the server goes on.
        """
        if self._raw:
            prepare = getattr(self._handle, "prepare", None)
            if prepare is None:
                self.loop.run_callback(greenlet(self._handle, get_hub()).switch, stream)
            elif (run := prepare(stream)) is not None:
                self.loop.run_callback(greenlet(run, get_hub()).switch)
        elif self._spawn is None:
            assert self._handle is not None
            self._handle(stream)
        else:
            self._spawn(self._handle, stream)

    def _accept_failed(self, error: Exception) -> None:
        where = self.address
        fatal = isinstance(error, OSError) and self.is_fatal_error(error)
        if fatal:
            self.close()
            what_next = "no longer listening"
        else:
            self._pause()
            what_next = f"trying again in {self.delay:g} s"
            self._timer = self.loop.timer(self.delay)
            self._timer.start(self._start_accepting_if_started)
            self.delay = min(self.max_delay, self.delay * 2)
        if isinstance(error, OSError) and not isinstance(error, TransportError):
            error = as_transport_error(error, f"accept on {where}")
        if self.settings.on_error is not None:
            self.settings.on_error(error)
        else:
            log.error("%s: %s", error, what_next)

    @property
    def server_host(self) -> str | None:
        """Host that the listener is bound to; None for a Unix socket."""
        return Endpoint.parse(self.address).host or None

    @property
    def server_port(self) -> int | None:
        """Port that the listener is bound to; None for a Unix socket."""
        return Endpoint.parse(self.address).port or None

    def _url_of(self, sock: Any) -> str:
        name = sock.getsockname()
        if isinstance(name, tuple):
            return str(Endpoint(self.scheme, name[0], name[1]))
        path = name if isinstance(name, str) else "@" + name[1:].decode(errors="surrogateescape")
        return str(Endpoint("unix", path=path))


def _as_endpoint(listener: Any, scheme: str) -> Endpoint:
    if isinstance(listener, Endpoint):
        return listener
    if isinstance(listener, tuple):
        return Endpoint(scheme, listener[0], listener[1])
    if isinstance(listener, int):
        return Endpoint(scheme, "", listener)
    if isinstance(listener, str):
        text = listener if "://" in listener or listener.startswith("unix:") else f"{scheme}://{listener}"
        endpoint = Endpoint.parse(text)
        if endpoint.scheme != scheme:
            raise EndpointError(f"{listener!r}: not an endpoint of {scheme}")
        return endpoint
    raise TypeError(f"expected an endpoint, a port, a (host, port) pair or a listening socket, not {listener!r}")


def _addresses(endpoint: Endpoint) -> list[tuple[int, Any]]:
    """What to try to bind, best first. IPv4 comes before IPv6 for a name that has both: such names are mostly localhost."""
    if not endpoint.host:
        wildcard = [(_socket.AF_INET6, ("::", endpoint.port))] if _socket.has_ipv6 else []
        return [*wildcard, (_socket.AF_INET, ("0.0.0.0", endpoint.port))]
    return sorted(resolve(endpoint.host, endpoint.port), key=lambda choice: choice[0] != _socket.AF_INET)


def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """Return (family, address) of every address of `host`, as the system orders them; an OSError if there is none.

    Only a name goes to gevent's resolver, which may start a thread for it.
    """
    try:
        found = _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM, 0, _socket.AI_NUMERICHOST)
    except UnicodeError as error:
        # Python encodes the name before the system sees it. A label of more than 63 bytes fails there, and not as an OSError.
        raise _socket.gaierror(_socket.EAI_NONAME, "Name or service not known") from error
    except _socket.gaierror:
        found = gevent.socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def _listening(family: int, address: Any, host: str, backlog: int) -> _socket.socket:
    sock = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6:
            # "" is every address of both families on one socket; [::] is IPv6 alone, so that 0.0.0.0 can be bound beside it.
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1 if host else 0)
        sock.bind(address)
        sock.listen(backlog)
        return sock
    except BaseException:
        sock.close()
        raise
