"""Pairs of streams inside one process, without a descriptor: for tests, and for `memory:name` endpoints.

Belongs here: bounded buffers between two greenlets of one hub, the names that can be dialled. Does not belong here: threads; both
ends of a pair live in the thread that made them.

A subclass of MemoryStream that overrides one method makes a stream with a fault, for tests of what is above.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.hub import get_hub
from gevent.pool import Pool
from greenlet import getcurrent, greenlet

from gws_gevent.exceptions import StreamClosed, TransportError
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    NonBlockingStream,
    Stream,
    refuse_unknown_params,
    type_of_data,
)

__all__ = ["MemoryDialer", "MemoryListener", "MemoryStream", "dialer", "listen", "memory_pair"]

#: Bytes one direction holds before its writer waits.
CAPACITY = 64 * 1024

_WOKEN = object()


class MemoryStream(NonBlockingStream):
    """One end of a pair; `memory_pair` makes both."""

    __slots__ = (
        "_capacity", "_closed", "_ended", "_finished", "_inbox", "_name", "_on_writable", "_peer", "_reader", "_reset", "_writer",
    )  # fmt: skip

    def __init__(self, name: str, capacity: int) -> None:
        self._name = name
        self._capacity = capacity
        self._peer: MemoryStream | None = None
        #: Bytes for our reader; None while there are none, so that an idle pair has no buffer.
        self._inbox: bytearray | None = None
        self._reader: greenlet | None = None
        self._writer: greenlet | None = None
        self._on_writable: Callable[[], object] | None = None
        self._ended = False  # the peer writes no more
        self._reset = False  # the peer aborted
        self._finished = False  # we write no more
        self._closed = False

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        while True:
            if self._closed:
                raise StreamClosed("receive: the stream is closed")
            if self._reset:
                raise TransportError(errno.ECONNRESET, "receive: the peer aborted the stream")
            if self._inbox is not None:
                return self._take(buffer)
            if self._ended:
                return 0
            self._reader = getcurrent()
            try:
                _wait(self._reader)
            finally:
                self._reader = None

    def _take(self, buffer: bytearray | memoryview) -> int:
        inbox = self._inbox
        assert inbox is not None
        count = min(len(inbox), len(buffer))
        with memoryview(inbox) as source, memoryview(buffer) as target:
            target[:count] = source[:count]
        if count < len(inbox):
            del inbox[:count]
        else:
            self._inbox = None
        if self._peer is not None:
            self._peer._wake_writer_soon()
        return count

    def try_send(self, data: type_of_data) -> int:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._finished:
            raise TransportError(errno.EPIPE, "send: after shutdown_write")
        peer = self._peer
        if peer is None:
            raise TransportError(errno.EPIPE, "send: the peer has closed the stream")
        held = len(peer._inbox) if peer._inbox is not None else 0
        count = min(len(data), self._capacity - held)
        if count <= 0:
            return 0
        with memoryview(data) as view:
            if peer._inbox is None:
                peer._inbox = bytearray(view[:count])
            else:
                peer._inbox += view[:count]
        peer._wake_reader_soon()
        return count

    def send_all(self, data: type_of_data) -> None:
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if getcurrent() is get_hub():
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        self._send_waiting(data)

    def wait_writable(self) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        while not self._is_writable():
            self._writer = getcurrent()
            try:
                _wait(self._writer)
            finally:
                self._writer = None
        if self._closed:
            raise StreamClosed("send: the stream was closed")

    def call_when_writable(self, callback: Callable[[], object]) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        self._on_writable = callback
        if self._is_writable():
            self._wake_writer_soon()

    def _is_writable(self) -> bool:
        """True where `try_send` would not return 0: it takes bytes, or raises."""
        peer = self._peer
        return self._closed or self._finished or peer is None or peer._inbox is None or len(peer._inbox) < self._capacity

    def shutdown_write(self) -> None:
        if self._closed:
            raise StreamClosed("shutdown: the stream is closed")
        self._finished = True
        if self._peer is not None:
            self._peer._ended = True
            self._peer._wake_reader_soon()

    def close(self) -> None:
        self._end(reset=False)

    def abort(self) -> None:
        self._end(reset=True)

    def _end(self, *, reset: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._inbox = self._on_writable = None
        peer, self._peer = self._peer, None
        if peer is not None:
            peer._peer = None
            peer._ended = True
            if reset:
                peer._reset = True
                peer._inbox = None
            peer._wake_reader_soon()
            peer._wake_writer_soon()
        self._wake_reader_soon()
        self._wake_writer_soon()

    def info(self, key: str) -> Any:
        if key == "scheme":
            return "memory"
        return self._name if key in ("peername", "sockname") else None

    def _wake_reader_soon(self) -> None:
        if self._reader is not None:
            get_hub().loop.run_callback(self._wake_reader)

    def _wake_writer_soon(self) -> None:
        if self._writer is not None:
            get_hub().loop.run_callback(self._wake_writer)
        if self._on_writable is not None:
            get_hub().loop.run_callback(self._notify)

    # Whether anybody still waits is looked up when the callback runs: by then they may have left by themselves.

    def _wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.switch(_WOKEN)

    def _wake_writer(self) -> None:
        if self._writer is not None:
            self._writer.switch(_WOKEN)

    def _notify(self) -> None:
        callback = self._on_writable
        if callback is not None and self._is_writable():
            self._on_writable = None
            callback()


def _wait(waiter: greenlet) -> None:
    hub = get_hub()
    if waiter is hub:
        raise BlockingSwitchOutError("this stream would have to wait, and the hub cannot")
    while hub.switch() is not _WOKEN:
        pass


def memory_pair(
    capacity: int = CAPACITY, *, name: str = "", make: Callable[[str, int], MemoryStream] = MemoryStream
) -> tuple[MemoryStream, MemoryStream]:
    """Return two connected streams.

    Args:
        capacity: bytes each direction holds before its writer waits.
        name: what `info("peername")` and `info("sockname")` return.
        make: makes the first of them, which is where a test puts its stream with a fault.
    """
    if capacity < 1:
        raise ValueError(f"capacity: must be at least 1 byte, not {capacity!r}")
    ours, theirs = make(name, capacity), MemoryStream(name, capacity)
    ours._peer, theirs._peer = theirs, ours
    return ours, theirs


def _listeners() -> dict[str, MemoryListener]:
    """The listeners of this thread by name. They live with its hub, like all that its connections share."""
    found: dict[str, MemoryListener] = get_hub().__dict__.setdefault("_gws_gevent_memory_listeners", {})
    return found


class MemoryListener(Listener):
    """Listens on a name in this thread."""

    def __init__(self, endpoint: Endpoint, settings: ListenSettings | None = None) -> None:
        self.endpoint = endpoint
        self.settings = settings or ListenSettings()
        self.address = str(endpoint)
        self._on_stream: Callable[[Stream], object] | None = None
        self._spawn = self.settings.spawn
        if isinstance(self._spawn, int):
            self._spawn = Pool(self._spawn)

    def start(self, on_stream: Callable[[Stream], object]) -> None:
        if _listeners().setdefault(self.endpoint.host, self) is not self:
            raise TransportError(errno.EADDRINUSE, f"listen on {self.address}: somebody is already listening there")
        self._on_stream = on_stream

    def stop_accepting(self) -> None:
        self._on_stream = None

    def close(self) -> None:
        self.stop_accepting()
        if _listeners().get(self.endpoint.host) is self:
            del _listeners()[self.endpoint.host]

    def connect(self) -> MemoryStream | None:
        """Return the dialling end of a new pair whose other end is being served; None if we accept no more."""
        on_stream = self._on_stream
        if on_stream is None:
            return None
        ours, theirs = memory_pair(name=self.address)
        if self._spawn is None:
            hub = get_hub()
            hub.loop.run_callback(greenlet(on_stream, hub).switch, ours)
        else:
            try:
                getattr(self._spawn, "spawn", self._spawn)(on_stream, ours)
            except BaseException:
                ours.close()
                raise
        return theirs


class MemoryDialer(Dialer):
    """Connects to a name in this thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def dial(self) -> MemoryStream:
        listener = _listeners().get(self.endpoint.host)
        stream = listener.connect() if listener is not None else None
        if stream is None:
            raise TransportError(errno.ECONNREFUSED, f"connect to {self.endpoint}: nobody is listening there")
        return stream


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `memory:name`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return MemoryListener(endpoint, settings)


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `memory:name`; it has no parameters."""
    refuse_unknown_params(endpoint)
    return MemoryDialer(endpoint)
