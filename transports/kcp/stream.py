"""A KCP session as a stream: who waits for it.

Belongs here: greenlets that wait, callbacks. Does not belong here: what a session does (session.py), listening and dialling
(endpoints.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gws_gevent.exceptions import StreamClosed
from gws_gevent.transports.base import PollableStream, ReadableWaiter, type_of_data
from gws_gevent.transports.datagram import Address
from gws_gevent.transports.kcp.session import KcpSession

__all__ = ["KcpStream"]

_WOKEN = object()


class KcpStream(PollableStream):
    """One end of a KCP session."""

    __slots__ = ("_closed", "_on_readable", "_on_writable", "_reader", "_session", "_sockname", "_writer")

    def __init__(self, session: KcpSession, sockname: Address) -> None:
        """Watch a session.

        Args:
            sockname: address of its port.
        """
        self._session = session
        self._sockname = sockname
        self._closed = False
        self._reader: greenlet | None = None
        self._writer: greenlet | None = None
        self._on_readable: ReadableWaiter | None = None
        self._on_writable: Callable[[], object] | None = None
        session.watcher = self

    # Reading

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        while True:
            count = self.try_recv_into(buffer)
            if count >= 0:
                return count
            self.wait_readable()

    def try_recv_into(self, buffer: bytearray | memoryview) -> int:
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        return self._session.take_into(buffer)

    def wait_readable(self) -> None:
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        while not self._closed and not self._session.can_read():
            self._reader = getcurrent()
            try:
                _wait(self._reader)
            finally:
                self._reader = None
        if self._closed:
            raise StreamClosed("receive: the stream is closed")

    def call_when_readable(self, waiter: ReadableWaiter | None) -> None:
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        self._on_readable = waiter
        if waiter is not None and self._session.can_read():
            get_hub().loop.run_callback(self._notify_readable)

    # Writing

    def try_send(self, data: type_of_data) -> int:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        return self._session.try_send(data)

    def send_all(self, data: type_of_data) -> None:
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if getcurrent() is get_hub():
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        self._send_waiting(data)

    def wait_writable(self) -> None:
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        while not self._closed and not self._session.can_write():
            self._writer = getcurrent()
            try:
                _wait(self._writer)
            finally:
                self._writer = None
        if self._closed:
            raise StreamClosed("send: the stream is closed")

    def call_when_writable(self, callback: Callable[[], object]) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        self._on_writable = callback
        if self._session.can_write():
            get_hub().loop.run_callback(self._notify_writable)

    # The end

    def shutdown_write(self) -> None:
        if self._closed:
            raise StreamClosed("shutdown: the stream is closed")
        self._session.end_writing()

    def close(self) -> None:
        if not self._closed:
            self._leave()
            self._session.close()

    def abort(self) -> None:
        if not self._closed:
            self._leave()
            self._session.abort()

    def _leave(self) -> None:
        self._closed = True
        self._on_readable = self._on_writable = None
        self._session.watcher = None
        run_callback = get_hub().loop.run_callback
        if self._reader is not None:
            run_callback(self._wake_reader)
        if self._writer is not None:
            run_callback(self._wake_writer)

    def info(self, key: str) -> Any:
        if key == "scheme":
            return "kcp"
        if key == "peername":
            return self._session.address
        return self._sockname if key == "sockname" else None

    # What the session calls

    def session_changed(self) -> bool:
        """See Watcher."""
        session, wakes_reader = self._session, False
        if (self._reader is not None or self._on_readable is not None) and session.can_read():
            wakes_reader = True
            get_hub().loop.run_callback(self._wake_reader if self._reader is not None else self._notify_readable)
        if (self._writer is not None or self._on_writable is not None) and session.can_write():
            run_callback = get_hub().loop.run_callback
            if self._writer is not None:
                run_callback(self._wake_writer)
            if self._on_writable is not None:
                run_callback(self._notify_writable)
        return wakes_reader

    # Whether anybody still waits is looked up when the callback runs: by then they may have left by themselves.

    def _wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.switch(_WOKEN)

    def _wake_writer(self) -> None:
        if self._writer is not None:
            self._writer.switch(_WOKEN)

    def _notify_readable(self) -> None:
        waiter, self._on_readable = self._on_readable, None
        if waiter is not None:
            waiter.on_readable()

    def _notify_writable(self) -> None:
        callback = self._on_writable
        if callback is not None and self._session.can_write():
            self._on_writable = None
            callback()


def _wait(waiter: greenlet) -> None:
    hub = get_hub()
    if waiter is hub:
        raise BlockingSwitchOutError("this stream would have to wait, and the hub cannot")
    while hub.switch() is not _WOKEN:
        pass
