"""TCP: a stream over a descriptor that waits by gevent's io watchers, its listener and its dialer.

Belongs here: non-blocking reads and writes on a stream socket of any family (unix.py uses the same stream), closing it without
losing its number to somebody else, TCP's own options. Does not belong here: the accept loop (accepting.py), TLS.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import gevent.socket
from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gws_gevent.exceptions import EndpointError, StreamClosed, TransportError
from gws_gevent.transports.accepting import SocketListener, resolve
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    NonBlockingStream,
    Stream,
    as_transport_error,
    refuse_unknown_params,
    type_of_data,
)

__all__ = ["SocketStream", "TcpDialer", "TcpListener", "dialer", "listen"]

#: What a watcher, and only a watcher or a close, switches into a waiting greenlet. Anything else is somebody's mistake.
_WOKEN = object()
#: SO_LINGER on, zero seconds: the next close resets the connection.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: Buffers that one sendmsg takes (POSIX guarantees 16).
_MAX_PARTS = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names else 16
_CAN_SEND_PARTS = hasattr(_socket.socket, "sendmsg")


class SocketStream(NonBlockingStream):
    """A stream over a connected stream socket, TCP or Unix.

    It waits with watchers of the hub of the greenlet that made it, each made when it is first needed.
    """

    __slots__ = (
        "_borrowed", "_closed", "_drained", "_hub", "_notify_watcher", "_read_watcher", "_reader", "_socket",
        "_write_watcher", "_writer",
    )  # fmt: skip

    def __init__(self, sock: _socket.socket) -> None:
        """Take over `sock`, which is connected and does not block. Whoever has a socket object of another kind calls `adopt`."""
        self._socket = sock
        self._hub = get_hub()
        self._reader: greenlet | None = None
        self._writer: greenlet | None = None
        self._read_watcher: Any = None
        self._write_watcher: Any = None
        self._notify_watcher: Any = None
        self._borrowed: _BorrowedSocket | None = None
        self._drained = False
        self._closed = False

    @classmethod
    def adopt(cls, sock: Any) -> SocketStream:
        """Take the descriptor of a connected socket of gevent or the standard library; `sock` itself is of no use afterwards."""
        family, kind, proto = sock.family, sock.type, sock.proto
        own = _socket.socket(family, kind, proto, fileno=sock.detach())
        own.setblocking(False)
        return cls(own)

    def fileno(self) -> int:
        """Return the descriptor; -1 once closed. The stream keeps owning it."""
        return -1 if self._closed else self._socket.fileno()

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        while True:
            received = self.try_recv_into(buffer)
            if received is not None:
                return received
            self.wait_readable()

    def try_recv_into(self, buffer: bytearray | memoryview) -> int | None:
        """Like `recv_into` without waiting: None means that `wait_readable` comes first."""
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        if self._drained:
            self._drained = False
            return None
        try:
            received = self._socket.recv_into(buffer)
        except BlockingIOError:
            return None
        except OSError as error:
            raise as_transport_error(error, "receive") from error
        # After a short read the socket is usually empty: waiting is cheaper than a call that fails. The watchers are
        # level-triggered, so an end of stream that came with the data is not missed.
        self._drained = 0 < received < len(buffer)
        return received

    def try_send(self, data: type_of_data) -> int:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise as_transport_error(error, "send") from error

    def try_send_parts(self, parts: Sequence[type_of_data]) -> int:
        if not _CAN_SEND_PARTS:
            return super().try_send_parts(parts)
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        try:
            return self._socket.sendmsg(parts[:_MAX_PARTS])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise as_transport_error(error, "send") from error

    def send_all(self, data: type_of_data) -> None:
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if getcurrent() is self._hub:
            # Refused before anything is sent: half a write could not be completed later.
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        sent = self.try_send(data)
        if sent == len(data):
            return
        with memoryview(data) as view:
            while sent < len(view):
                self.wait_writable()
                sent += self.try_send(view[sent:])

    def shutdown_write(self) -> None:
        if self._closed:
            raise StreamClosed("shutdown: the stream is closed")
        try:
            self._socket.shutdown(_socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # ENOTCONN: the peer has reset the connection, as the next read will tell
                raise as_transport_error(error, "shutdown") from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # First of all: the descriptor may live on in waiters, or as a copy in a child process.
            self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass
        self._leave()

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError:
            pass
        self._leave()

    def info(self, key: str) -> Any:
        if key == "scheme":
            return "tcp" if self._socket.family in (_socket.AF_INET, _socket.AF_INET6) else "unix"
        if self._closed or key not in ("peername", "sockname", "socket"):
            return None
        if key == "socket":
            if self._borrowed is None:
                sock = self._socket
                self._borrowed = _BorrowedSocket(sock.family, sock.type, sock.proto, sock.fileno())
            return self._borrowed
        try:
            return self._socket.getpeername() if key == "peername" else self._socket.getsockname()
        except OSError:
            return None

    def wait_readable(self) -> None:
        """Wait until there is something to receive, or until `interrupt`."""
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        if self._read_watcher is None:
            self._read_watcher = self._hub.loop.io(self._socket.fileno(), 1)
        self._reader = getcurrent()
        try:
            self._wait(self._read_watcher, self._reader)
        finally:
            self._reader = None
            if self._closed:
                self._leave()
        if self._closed:
            raise StreamClosed("receive: the stream was closed")

    def wait_writable(self) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if self._write_watcher is None:
            self._write_watcher = self._hub.loop.io(self._socket.fileno(), 2)
        self._writer = getcurrent()
        try:
            self._wait(self._write_watcher, self._writer)
        finally:
            self._writer = None
            if self._closed:
                self._leave()
        if self._closed:
            raise StreamClosed("send: the stream was closed")

    def call_when_writable(self, callback: Callable[[], object]) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._notify_watcher is None:
            self._notify_watcher = self._hub.loop.io(self._socket.fileno(), 2)
        self._notify_watcher.stop()
        self._notify_watcher.start(self._notify, callback)

    def _notify(self, callback: Callable[[], object]) -> None:
        self._notify_watcher.stop()
        callback()

    def _wait(self, watcher: Any, waiter: greenlet) -> None:
        hub = self._hub
        if waiter is hub:
            raise BlockingSwitchOutError("this stream would have to wait, and the hub cannot")
        if get_hub() is not hub:
            raise ConcurrentObjectUseError("this stream belongs to another thread")
        watcher.start(waiter.switch, _WOKEN)
        try:
            while hub.switch() is not _WOKEN:
                pass
        finally:
            watcher.stop()

    def _leave(self) -> None:
        """Give the descriptor back once nobody waits on it: until then its number may not go to another connection."""
        if self._reader is None and self._writer is None:
            for watcher in (self._read_watcher, self._write_watcher, self._notify_watcher):
                if watcher is not None:
                    watcher.stop()
                    watcher.close()
            self._read_watcher = self._write_watcher = self._notify_watcher = None
            if self._borrowed is not None:
                self._borrowed.close()
                self._borrowed = None
            try:
                self._socket.close()
            except OSError:
                pass
            return
        if self._notify_watcher is not None:
            self._notify_watcher.stop()
        self.interrupt()

    def interrupt(self) -> None:
        """Let a waiting `wait_readable` and `wait_writable` return now, for a stream on top of this one."""
        # Whether they still wait is looked up when the callbacks run: by then they may have left by themselves.
        self._hub.loop.run_callback(self._wake_reader)
        self._hub.loop.run_callback(self._wake_writer)

    def _wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.switch(_WOKEN)

    def _wake_writer(self) -> None:
        if self._writer is not None:
            self._writer.switch(_WOKEN)


class _BorrowedSocket(gevent.socket.socket):  # type: ignore[misc]
    """A gevent socket on a descriptor that a stream owns: to close it is to let go of the descriptor."""

    def close(self) -> None:
        self._closed = True
        if self.fileno() >= 0:
            self.detach()

    def __del__(self) -> None:
        self.close()


class TcpListener(SocketListener):
    """Listens on one TCP port."""

    scheme = "tcp"

    def make_stream(self, sock: _socket.socket) -> Stream:
        return SocketStream(sock)


class TcpDialer(Dialer):
    """Connects to one TCP port."""

    def __init__(self, endpoint: Endpoint, settings: DialSettings | None = None) -> None:
        if not endpoint.host or not endpoint.port:
            raise EndpointError(f"{str(endpoint)!r}: to connect, a host and a port are needed")
        self.endpoint = endpoint
        self.settings = settings or DialSettings()

    def dial(self) -> SocketStream:
        doing = f"connect to {self.endpoint}"
        try:
            found = resolve(self.endpoint.host, self.endpoint.port)
        except OSError as error:
            raise as_transport_error(error, doing) from error
        failure: TransportError | None = None
        for family, address in found:
            sock = gevent.socket.socket(family, _socket.SOCK_STREAM)
            try:
                sock.settimeout(None)
                sock.connect(address)
                if self.settings.no_delay:
                    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
                return SocketStream.adopt(sock)
            except OSError as error:
                failure = as_transport_error(error, doing)
            finally:
                sock.close()
        raise failure or TransportError(f"{doing}: the name has no address")


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `tcp://host:port`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return TcpListener(endpoint, settings=settings)


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `tcp://host:port`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return TcpDialer(endpoint, settings)
