"""WebSocket streams of a QUIC connection: each bidirectional stream of the client carries one (ALPN `ws`).

Belongs here: `Stream` on top of aioquic's streams, and the table of a connection's streams. Does not belong here: the connection
(session.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final

from aioquic.quic import events
from gevent.exceptions import BlockingSwitchOutError, ConcurrentObjectUseError
from gevent.hub import get_hub
from greenlet import getcurrent, greenlet

from gws_gevent.exceptions import StreamClosed, TransportError
from gws_gevent.transports.base import PollableStream, ReadableWaiter, type_of_data
from gws_gevent.transports.quic.core import is_client_bidirectional
from gws_gevent.transports.quic.session import Application, QuicSession

__all__ = ["QuicStream", "StreamTable"]

#: Bytes that one stream may hold for a slow peer, as long as all of the connection hold no more than SHARED.
HELD: Final = 256 * 1024
#: Bytes for a slow peer that the streams of a connection share.
SHARED: Final = 512 * 1024
#: Bytes that each stream may hold beyond that, so that others that are stuck do not stop it. With 100 streams: 400 KiB.
OWN: Final = 4 * 1024

_WOKEN = object()


class StreamTable(Application):
    """The streams of one connection.

    Attributes:
        session: the connection.
        held: bytes of all streams that the peer has not acknowledged, as of the last turn, and what was written since.
        is_full: the peer has said that it takes no more streams on this connection.
    """

    is_full = False

    def __init__(
        self,
        session: QuicSession,
        *,
        scheme: str = "quic",
        on_stream: Callable[[QuicStream], object] | None = None,
        on_change: Callable[[], object] | None = None,
        on_end: Callable[[TransportError], object] | None = None,
    ) -> None:
        """Make an empty table.

        Args:
            on_stream: called with each stream that the peer opens. None: it may not open any.
            on_change: called when a stream has come to its end.
            on_end: called when the connection has.
        """
        self.session = session
        self.scheme = scheme
        self.held = 0
        self._on_stream = on_stream
        self._on_change = on_change
        self._on_end = on_end
        self._seen = 0  # streams of the peer
        self._in_use = 0  # streams that this side has not closed
        self._streams: dict[int, QuicStream] = {}
        self._busy: dict[int, QuicStream] = {}  # those with bytes that the peer has not acknowledged
        self._waiting: set[QuicStream] = set()  # those whose writer waits for room

    def __len__(self) -> int:
        """Streams that the application has not closed, or whose last bytes the peer has not acknowledged."""
        return len(self._streams)

    def open(self) -> QuicStream:
        """Open a stream; a TransportError if the connection is over."""
        if self.session.error is not None:
            raise self.session.error
        stream_id = self.session.core.open_stream()
        stream = self._made(stream_id)
        self.session.touch()
        return stream

    def _made(self, stream_id: int) -> QuicStream:
        self._in_use += 1
        stream = self._streams[stream_id] = self.make_stream(stream_id)
        return stream

    def make_stream(self, stream_id: int) -> QuicStream:
        """Return what stands for a new stream."""
        return QuicStream(self, stream_id)

    def has_closed(self, stream: QuicStream) -> None:
        """The application has closed a stream."""
        self._in_use -= 1
        self.is_writing(stream)

    # Application

    def on_event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.on_data(event.data, event.end_stream)
        elif isinstance(event, events.StreamReset):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.on_reset()
        elif isinstance(event, events.StopSendingReceived):
            stream = self._stream(event.stream_id)
            if stream is not None:
                stream.on_stop_sending()

    def after_events(self) -> None:
        core = self.session.core
        if self._on_stream is not None and core.streams_of_peer > self._seen:
            self._meet_new_streams()
        held = 0
        for stream_id, stream in list(self._busy.items()):
            sending = core.sending(stream_id)
            held += sending
            if stream.is_closed:
                if core.is_delivered(stream_id):
                    self._forget(stream_id)
            elif not sending:
                del self._busy[stream_id]
        self.held = held
        for stream in list(self._waiting):
            if stream.has_room():
                self._waiting.discard(stream)

    @property
    def is_idle(self) -> bool:
        return not self._streams

    @property
    def is_left(self) -> bool:
        return not self._in_use and bool(self._streams)

    def unread(self) -> Mapping[int, int]:
        return {stream_id: len(stream.inbox) for stream_id, stream in self._streams.items() if stream.inbox is not None}

    def on_end(self, error: TransportError) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._busy.clear()
        self._waiting.clear()
        for stream in streams:
            stream.on_end(error)
        if self._on_end is not None:
            self._on_end(error)

    def is_writing(self, stream: QuicStream) -> None:
        """A stream has something to send, or to be acknowledged before it may be forgotten."""
        self._busy[stream.stream_id] = stream
        self.session.touch()

    def waits_for_room(self, stream: QuicStream) -> None:
        """Its `has_room` is to be called when the peer has acknowledged something."""
        self._waiting.add(stream)

    def _forget(self, stream_id: int) -> None:
        del self._streams[stream_id], self._busy[stream_id]
        if self._on_change is not None:
            self._on_change()

    def _stream(self, stream_id: int) -> QuicStream | None:
        """Return the stream of an event; None: the application has left it, or nobody knows it."""
        if stream_id not in self._streams:
            self._meet_new_streams()
        return self._streams.get(stream_id)

    def _meet_new_streams(self) -> None:
        """Streams that the peer has opened: a stream opens all with lower numbers, too (RFC 9000 section 2.1)."""
        while self._seen < self.session.core.streams_of_peer:
            stream_id = self._seen * 4
            self._seen += 1
            if self._on_stream is not None and is_client_bidirectional(stream_id):
                self._on_stream(self._made(stream_id))


class QuicStream(PollableStream):
    """One bidirectional stream. `StreamTable` makes it."""

    __slots__ = (
        "_closed", "_ended", "_error", "_finished", "_hub", "_on_readable", "_on_writable", "_reader", "_reset", "_stopped",
        "_table", "_writer", "inbox", "stream_id",
    )  # fmt: skip

    #: What the peer is told as the reason of a reset, or of asking it to stop.
    ABORTED = 0
    LEFT = 0

    def __init__(self, table: StreamTable, stream_id: int) -> None:
        self._table = table
        self._hub = get_hub()
        self.stream_id = stream_id
        #: Bytes for whoever reads; None while there are none, so that an idle stream has no buffer.
        self.inbox: bytearray | None = None
        self._reader: greenlet | None = None
        self._writer: greenlet | None = None
        self._on_readable: ReadableWaiter | None = None
        self._on_writable: Callable[[], object] | None = None
        self._error: TransportError | None = None  # of the connection
        self._reset = False  # the peer has reset its half
        self._ended = False  # the peer writes no more
        self._stopped = False  # the peer reads no more
        self._finished = False  # we write no more
        self._closed = False

    # What the table calls, in the pump.

    @property
    def is_closed(self) -> bool:
        return self._closed

    def on_data(self, data: bytes, is_end: bool) -> None:
        if not self._closed:
            if data:
                if self.inbox is None:
                    self.inbox = bytearray(data)
                else:
                    self.inbox += data
            self._ended = self._ended or is_end
            self._wake_reader_soon()

    def on_reset(self) -> None:
        self._reset = True
        self.inbox = None
        self._wake_reader_soon()

    def on_stop_sending(self) -> None:
        self._stopped = True
        self._table.session.core.discard_sending(self.stream_id)
        self._wake_writer_soon()

    def on_end(self, error: TransportError) -> None:
        self._error = error
        self._wake_reader_soon()
        self._wake_writer_soon()

    def has_room(self) -> bool:
        """Wake whoever waits for room, if there is some now. False: they go on waiting."""
        if self._writer is None and self._on_writable is None:
            return True
        if not self._is_writable():
            return False
        self._wake_writer_soon()
        return True

    # Reading

    def try_recv_into(self, buffer: bytearray | memoryview) -> int:
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        if self.inbox is not None:
            return self._take(buffer)
        if self._reset:
            raise TransportError(errno.ECONNRESET, "receive: the peer has reset the stream")
        if self._ended:
            return 0
        if self._error is not None:
            raise self._error
        return -1

    def _take(self, buffer: bytearray | memoryview) -> int:
        inbox = self.inbox
        assert inbox is not None
        count = min(len(inbox), len(buffer))
        with memoryview(inbox) as source, memoryview(buffer) as target:
            target[:count] = source[:count]
        if count < len(inbox):
            del inbox[:count]
        else:
            self.inbox = None
        if self._error is None:
            self._table.session.consumed()
        return count

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        while True:
            received = self.try_recv_into(buffer)
            if received >= 0:
                return received
            self.wait_readable()

    def wait_readable(self) -> None:
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        if self._reader is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to receive from this stream")
        if self._is_readable():
            return
        self._reader = self._self_or_error()
        try:
            self._wait()
        finally:
            self._reader = None
        if self._closed:
            raise StreamClosed("receive: the stream was closed")

    def call_when_readable(self, waiter: ReadableWaiter | None) -> None:
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        self._on_readable = waiter
        if waiter is not None and self._is_readable():
            self._wake_reader_soon()

    def _is_readable(self) -> bool:
        return self.inbox is not None or self._ended or self._reset or self._closed or self._error is not None

    # Writing

    def try_send(self, data: type_of_data) -> int:
        self._check_sending()
        part = self._fitting(data)
        if part:
            self._put(part, False)
            self._table.held += len(part)
            self._table.is_writing(self)
        return len(part)

    def _fitting(self, data: type_of_data) -> bytes:
        """Return as much of `data` as there is room for now."""
        table = self._table
        sending = table.session.core.sending(self.stream_id)
        room = OWN - sending
        if table.held < SHARED:
            room = max(room, min(HELD - sending, SHARED - table.held))
        if len(data) <= room:
            return bytes(data)
        with memoryview(data) as view:
            return bytes(view[: max(room, 0)])

    def _put(self, data: bytes, end: bool) -> None:
        """Have bytes sent, or the end of what this side sends."""
        self._table.session.core.send_stream_data(self.stream_id, data, end_stream=end)

    def _check_sending(self) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._error is not None:
            raise self._error
        if self._finished:
            raise TransportError(errno.EPIPE, "send: after shutdown_write")
        if self._stopped:
            raise TransportError(errno.EPIPE, "send: the peer has closed the stream")

    def send_all(self, data: type_of_data) -> None:
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        if getcurrent() is self._hub:
            raise BlockingSwitchOutError("send_all may have to wait, and the hub cannot: use try_send there")
        if get_hub() is not self._hub:
            raise ConcurrentObjectUseError("this stream belongs to another thread")
        self._send_waiting(data)

    def wait_writable(self) -> None:
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        if self._writer is not None:
            raise ConcurrentObjectUseError("another greenlet is waiting to send on this stream")
        while not self._is_writable():
            self._writer = self._self_or_error()
            self._table.waits_for_room(self)
            try:
                self._wait()
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
        else:
            self._table.waits_for_room(self)

    def _is_writable(self) -> bool:
        """True where `try_send` takes a good part of what it may hold, or raises."""
        if self._closed or self._finished or self._stopped or self._error is not None:
            return True
        sending = self._table.session.core.sending(self.stream_id)
        return sending <= OWN // 2 or (sending <= HELD // 2 and self._table.held <= SHARED // 2)

    # Ends

    def shutdown_write(self) -> None:
        if self._closed:
            raise StreamClosed("shutdown: the stream is closed")
        self._finish()

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            if not self._stopped and self._error is None:
                self._put(b"", True)
                self._table.is_writing(self)

    def close(self) -> None:
        if not self._closed:
            self._finish()
            self._leave()

    def abort(self) -> None:
        if not self._closed:
            self._finished = True
            if self._error is None:
                core = self._table.session.core
                core.reset_stream(self.stream_id, self._reason())
                core.discard_sending(self.stream_id)
                self._table.is_writing(self)
            self._leave()

    def _reason(self) -> int:
        """What a reset tells the peer."""
        return self.ABORTED

    def _leave(self) -> None:
        self._closed = True
        self.inbox = self._on_readable = self._on_writable = None
        if self._error is None:
            if not self._ended and not self._reset:
                try:
                    self._table.session.core.stop_stream(self.stream_id, self.LEFT)
                except ValueError:
                    pass  # both halves have ended, and the stream is forgotten
            self._table.has_closed(self)
            self._table.session.consumed()
        self._wake_reader_soon()
        self._wake_writer_soon()

    def info(self, key: str) -> Any:
        if key == "scheme":
            return self._table.scheme
        if key == "peername":
            return self._table.session.peername
        return self._table.session.sockname if key == "sockname" else None

    # Waiting

    def _self_or_error(self) -> greenlet:
        waiter = getcurrent()
        if waiter is self._hub:
            raise BlockingSwitchOutError("this stream would have to wait, and the hub cannot")
        if get_hub() is not self._hub:
            raise ConcurrentObjectUseError("this stream belongs to another thread")
        return waiter

    def _wait(self) -> None:
        while self._hub.switch() is not _WOKEN:
            pass

    def _wake_reader_soon(self) -> None:
        if self._reader is not None or self._on_readable is not None:
            self._hub.loop.run_callback(self._wake_reader)

    def _wake_writer_soon(self) -> None:
        if self._writer is not None or self._on_writable is not None:
            self._hub.loop.run_callback(self._wake_writer)

    # Whether anybody still waits is looked up when the callback runs: by then they may have left by themselves.

    def _wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.switch(_WOKEN)
        elif self._on_readable is not None and not self._closed:
            waiter, self._on_readable = self._on_readable, None
            waiter.on_readable()

    def _wake_writer(self) -> None:
        if self._writer is not None:
            self._writer.switch(_WOKEN)
        if self._on_writable is not None and not self._closed and self._is_writable():
            callback, self._on_writable = self._on_writable, None
            callback()
