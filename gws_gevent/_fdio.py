"""Waiting on, reading and writing descriptors, by gevent's io watchers: the stream under TCP, Unix sockets and TLS.

Plain twin of `_compiled/_fdio.pyx`, and what serves where there is no epoll. Belongs here: non-blocking reads and writes on a
connected socket, waiting for it, closing it without losing its number to somebody else, and the two facts that the hot path
asks the system for, the time and the thread. Does not belong here: listening, connecting, TLS.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.hub import get_hub
from gevent.monkey import get_original
from greenlet import getcurrent, greenlet

from gws_gevent.exceptions import StreamClosed
from gws_gevent.frames import frame_header
from gws_gevent.transports.base import PollableStream, ReadableWaiter, as_transport_error, type_of_data
from gws_gevent.transports.borrowed import BorrowedSocket

__all__ = ["TRIMS", "SocketStream", "accept", "borrow_data_stack", "lend_data_stack", "monotonic", "thread_id", "trim_heap"]

#: Whether the data stack of a waiting greenlet is given back: a Python frame waits here, and needs it.
TRIMS = False

thread_id = get_original("_thread", "get_ident")

#: What a watcher, and only a watcher or a close, switches into a waiting greenlet. Anything else is somebody's mistake.
_WOKEN = object()
#: SO_LINGER on, zero seconds: the next close resets the connection.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: Bytes of a payload that is put together with its header before it is sent.
SMALL_FRAME = 2048
#: Buffers that one sendmsg takes (POSIX guarantees 16).
_MAX_PARTS = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names else 16
_CAN_SEND_PARTS = hasattr(_socket.socket, "sendmsg")


def borrow_data_stack() -> None:
    """At the start of a greenlet: take a chunk for Python frames off the shelf, where a system call would get one otherwise."""


def lend_data_stack() -> None:
    """At its end: put that chunk back on the shelf, if no Python frame is alive."""


def trim_heap() -> None:
    """Give memory that the C library holds free back to the system, where there is a way to ask for it."""


class SocketStream(PollableStream):
    """A stream over a connected stream socket, TCP or Unix.

    It waits in the hub of the greenlet that made it, with watchers made when they are first needed. `adopt` and `accept` make one.
    """

    __slots__ = (
        "_borrowed", "_closed", "_counts", "_drained", "_hub", "_notify_watcher", "_on_readable", "_peer", "_pid", "_read_watcher",
        "_reader", "_socket", "_write_watcher", "_writer",
    )  # fmt: skip

    def __init__(self, descriptor: int, family: int) -> None:
        """Take over the descriptor of a connected stream socket that does not block."""
        self._socket = _socket.socket(family, _socket.SOCK_STREAM, 0, descriptor)
        self._hub = get_hub()
        self._pid = os.getpid()
        self._peer: Any = None
        self._on_readable: ReadableWaiter | None = None
        self._reader: greenlet | None = None
        self._writer: greenlet | None = None
        self._read_watcher: Any = None
        self._write_watcher: Any = None
        self._notify_watcher: Any = None
        self._borrowed: BorrowedSocket | None = None
        self._counts: list[int] | None = None
        self._drained = False
        self._closed = False

    @classmethod
    def adopt(cls, sock: Any) -> SocketStream:
        """Take the descriptor of a connected socket of gevent or the standard library; `sock` itself is of no use afterwards."""
        family, descriptor = sock.family, sock.detach()
        os.set_blocking(descriptor, False)
        return cls(descriptor, family)

    def fileno(self) -> int:
        """Return the descriptor; -1 once closed. The stream keeps owning it."""
        return -1 if self._closed else self._socket.fileno()

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        while True:
            received = self.try_recv_into(buffer)
            if received >= 0:
                return received
            self.wait_readable()

    def try_recv_into(self, buffer: bytearray | memoryview) -> int:
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        if self._drained:
            self._drained = False
            return -1
        try:
            received = self._socket.recv_into(buffer)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise as_transport_error(error, "receive") from error
        # After a short read the socket is usually empty: waiting is cheaper than a call that fails. The watchers are
        # level-triggered, so an end of stream that came with the data is not missed.
        self._drained = 0 < received < len(buffer)
        if self._counts is not None:
            self._counts[0] += received
        return received

    def try_send(self, data: type_of_data) -> int:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        try:
            return self._counted(self._socket.send(data))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise as_transport_error(error, "send") from error

    def try_send_frame(self, first_byte: int, payload: bytes | bytearray | memoryview) -> int:
        """`try_send` of an unmasked WebSocket frame (RFC 6455 section 5.2), without putting a large one together first.

        Returns:
            the bytes that were not sent.
        """
        header = frame_header(first_byte, len(payload))
        sent = self.try_send(header + payload) if len(payload) < SMALL_FRAME else self.try_send_parts((header, payload))
        return len(header) + len(payload) - sent

    def try_send_parts(self, parts: Sequence[type_of_data]) -> int:
        if not _CAN_SEND_PARTS:
            return super().try_send_parts(parts)
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        try:
            return self._counted(self._socket.sendmsg(parts[:_MAX_PARTS]))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise as_transport_error(error, "send") from error

    def _counted(self, sent: int) -> int:
        if self._counts is not None:
            self._counts[1] += sent
        return sent

    def send_all(self, data: type_of_data) -> None:
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if getcurrent() is self._hub:
            # Refused before anything is sent: half a write could not be completed later.
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        if get_hub() is not self._hub:
            raise ConcurrentObjectUseError("this stream belongs to another thread")
        self._send_waiting(data)

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
            # First of all: the descriptor may live on in waiters, or as a copy in a child process. A forked child has only such
            # a copy itself, and leaves the connection to its parent.
            if self._pid == os.getpid():
                self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass
        self._leave()

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._pid == os.getpid():
                self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError:
            pass
        self._leave()

    def count_bytes(self) -> None:
        """Begin to count what is received and sent: `info("bytes")`, also once closed. Idempotent."""
        if self._counts is None:
            self._counts = [0, 0]

    def info(self, key: str) -> Any:
        if key == "scheme":
            return "tcp" if self._socket.family in (_socket.AF_INET, _socket.AF_INET6) else "unix"
        if key == "bytes":
            return tuple(self._counts) if self._counts is not None else None
        if self._closed or key not in ("peername", "sockname", "socket"):
            return None
        if key == "socket":
            if self._borrowed is None:
                sock = self._socket
                self._borrowed = BorrowedSocket(sock.family, sock.type, sock.proto, sock.fileno())
            return self._borrowed
        if key == "peername" and self._peer is not None:
            return self._peer
        try:
            return self._socket.getpeername() if key == "peername" else self._socket.getsockname()
        except OSError:
            return None

    def wait_readable(self) -> None:
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

    def call_when_readable(self, waiter: ReadableWaiter | None) -> None:
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        self._on_readable = waiter
        if self._read_watcher is None:
            self._read_watcher = self._hub.loop.io(self._socket.fileno(), 1)
        self._read_watcher.stop()
        if waiter is not None:
            self._read_watcher.start(self._tell_readable)

    def _tell_readable(self) -> None:
        self._read_watcher.stop()
        waiter, self._on_readable = self._on_readable, None
        if waiter is not None:
            waiter.on_readable()

    def wait(self, reading: bool) -> BaseException | None:
        """`wait_readable` or `wait_writable`, with what it raises returned instead."""
        try:
            self.wait_readable() if reading else self.wait_writable()
        except BaseException as error:
            return error
        return None

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
        self._on_readable = None
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


def accept(listening: Any) -> SocketStream | None:
    """Accept one connection from a listening socket that does not block; None if there is none.

    Raises:
        OSError: as accept(2).
    """
    try:
        descriptor, peer = listening._accept()
    except (BlockingIOError, InterruptedError):
        return None
    os.set_blocking(descriptor, False)
    stream = SocketStream(descriptor, listening.family)
    stream._peer = peer if isinstance(peer, tuple) else None
    return stream
