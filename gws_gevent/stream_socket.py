"""A stream as what WSGI servers and WebSocket libraries expect below them: a raw file to read, and a socket.

Belongs here: those two faces of a stream. Does not belong here: HTTP, deadlines (whoever gives the functions sees to those).
"""

from __future__ import annotations

import errno
import io
import socket as _socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from gws_gevent.exceptions import TransportError
from gws_gevent.transports.base import PollableStream, Stream

Take = Callable[["TakenSocket"], tuple[Stream, Callable[[Any], None], bytes]]

__all__ = ["READER_SIZE", "Intake", "StreamSocket", "TakenSocket", "as_socket_error"]

#: Bytes of the buffer between an Intake and the server. A connection that the app reads itself keeps it to its end; large reads of
#: a body go past it.
READER_SIZE = 2048


def as_socket_error(error: TransportError, number: int) -> OSError:
    """The error that a socket would have raised: servers know its number, and that it is nothing to report."""
    mapped = OSError(error.errno or number, error.strerror or str(error))
    mapped.__cause__ = error
    return mapped


class Intake(io.RawIOBase):
    """What comes in, as a raw file: first what was read already, then what `receive(buffer)` says."""

    def __init__(self, receive: Callable[[memoryview], int], sock: Any) -> None:
        self._receive = receive
        self._ahead = b""
        self._dry = False
        #: Where libraries look for the socket below `wsgi.input`.
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._ahead:
            count = min(len(self._ahead), len(buffer))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        return 0 if self._dry else self._receive(buffer)

    def end(self) -> None:
        """Nothing more comes in: whoever still holds this reads the end of a file."""
        self._dry, self._ahead = True, b""
        self._receive = len

    def put_back(self, data: bytes) -> None:
        """Have `data` read before all else."""
        self._ahead = data + self._ahead

    def take_back(self, reader: Any) -> bytes:
        """Take what `reader`, which reads from here, has not handed out yet, and what would follow without receiving."""
        self._dry = True
        try:
            kept = b"" if reader.closed else reader.read(len(reader.peek()))
        finally:
            self._dry = False
        rest, self._ahead = kept + self._ahead, b""
        return rest


class StreamSocket:
    """The sending half of a stream as a socket object. Errors are OSError with a number, as those of a socket are."""

    def __init__(self, stream: Stream, send: Callable[[Any], None]) -> None:
        self._stream = stream
        self._send = send

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream.info('scheme')} {self.getpeername()!r}>"

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Return when the stream owns every byte."""
        try:
            self._send(data)
        except TransportError as error:
            raise as_socket_error(error, errno.EPIPE) from error

    def send(self, data: Any, flags: int = 0) -> int:
        """Send all of `data`, where a socket would send as much as fits: not every caller looks at the count."""
        self.sendall(data)
        return len(data)

    def fileno(self) -> int:
        """The descriptor; -1 where there is none."""
        stream = self._stream.info("carrier") or self._stream
        return int(stream.fileno()) if hasattr(stream, "fileno") else -1

    def getpeername(self) -> Any:
        """As a socket's."""
        return self._stream.info("peername")

    def getsockname(self) -> Any:
        """As a socket's."""
        return self._stream.info("sockname")

    def setsockopt(self, *option: Any) -> None:
        """Set an option of the socket below; nothing where there is none."""
        sock = self._stream.info("socket")
        if sock is not None:
            sock.setsockopt(*option)

    def shutdown(self, how: int) -> None:
        """End our output, whatever `how` says of the other direction."""
        if how != _socket.SHUT_RD:
            try:
                self._stream.shutdown_write()
            except TransportError as error:
                raise as_socket_error(error, errno.ENOTCONN) from error

    def close(self) -> None:
        """Close the stream. Idempotent."""
        self._stream.close()


class TakenSocket:
    """A socket for a library that speaks WebSocket itself: its first use takes the connection from the request.

    It waits in the greenlet that calls; one may receive while another sends. `send` sends everything.
    """

    def __init__(self, below: Any, take: Take) -> None:
        """Make one.

        Args:
            below: what to ask for the descriptor, addresses and options.
            take: called with this socket at its first use; raises if somebody else has the connection, and returns its stream, how
                to send to that, and what was read ahead.
        """
        self._below = below
        self._take: Take | None = take
        self._stream: Any = None
        self._send: Any = None
        self._ahead = b""
        self._timeout: float | None = None
        self._left = Event()
        self._left.set()
        self._closed = False
        self._number = -1
        self._sending = self._has_sent = self._has_gone = False
        self._goodbye: bytes | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._below!r}>"

    def _begin(self) -> None:
        if self._take is not None:
            self._number = self._below.fileno()
            take, self._take = self._take, None
            self._stream, self._send, self._ahead = take(self)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Wait for bytes and return some, at most `size`; none: the peer has finished, or this has been closed."""
        self._begin()
        if self._ahead:
            taken, self._ahead = self._ahead[:size], self._ahead[size:]
            return taken
        return b"" if self._closed else self._in_time(self._receive, size)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """Like `recv`, into a buffer. TimeoutError as `settimeout` says."""
        self._begin()
        view = memoryview(buffer)[: size or len(buffer)]
        if self._ahead:
            count = min(len(self._ahead), len(view))
            view[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        return 0 if self._closed else self._in_time(self._stream.recv_into, view)

    def _receive(self, size: int) -> bytes:
        """Receive without holding a buffer during the wait: an idle connection would keep its 4 KB."""
        while True:
            pollable = isinstance(self._stream, PollableStream)
            buffer = bytearray(size)
            count = self._stream.try_recv_into(buffer) if pollable else self._stream.recv_into(buffer)
            if count >= 0:
                return bytes(memoryview(buffer)[:count])
            del buffer
            self._stream.wait_readable()

    def _in_time(self, receive: Callable[[Any], Any], what: Any) -> Any:
        self._left.clear()
        try:
            with gevent.Timeout(self._timeout, TimeoutError("timed out")):
                return receive(what)
        except TransportError as error:
            raise as_socket_error(error, errno.ECONNRESET) from error
        finally:
            self._left.set()

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Return when the stream owns every byte."""
        self._begin()
        if self._has_gone:
            return  # behind a close frame nothing may follow (RFC 6455 section 5.5.1)
        self._sending = True
        try:
            self._send(data)
            self._has_sent = True
        except TransportError as error:
            raise as_socket_error(error, errno.EPIPE) from error
        finally:
            self._sending = False
        self._say_goodbye()

    def go_away(self, close_frame: bytes) -> None:
        """Send a close frame in the library's place, without waiting: at once, or behind what is being sent.

        Nothing that the library sends after that goes anywhere. The peer's answer to the frame tells it that the connection ends.
        """
        self._goodbye = close_frame
        if self._has_sent and not self._sending:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        # A stream that cannot send without waiting keeps it to itself.
        try_send = getattr(self._stream, "try_send", None)
        if self._goodbye is None or self._has_gone or try_send is None:
            return
        self._has_gone = True
        try:
            try_send(self._goodbye)
        except TransportError:
            pass  # the peer has left

    def send(self, data: Any, flags: int = 0) -> int:
        """Send all of `data`, where a socket would send as much as fits: not every caller looks at the count."""
        self.sendall(data)
        return len(data)

    def fileno(self) -> int:
        """The descriptor; -1 where there is none."""
        return self._number if self._take is None else int(self._below.fileno())

    def getpeername(self) -> Any:
        """As a socket's."""
        return self._below.getpeername() if self._stream is None else self._stream.info("peername")

    def getsockname(self) -> Any:
        """As a socket's."""
        return self._below.getsockname() if self._stream is None else self._stream.info("sockname")

    def settimeout(self, seconds: float | None) -> None:
        """Bound each `recv`."""
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        """What `settimeout` was given."""
        return self._timeout

    def shutdown(self, how: int) -> None:
        """End our output, whatever `how` says of the other direction."""
        self._begin()
        if how != _socket.SHUT_RD:
            try:
                self._stream.shutdown_write()
            except TransportError as error:
                raise as_socket_error(error, errno.ENOTCONN) from error

    def close(self) -> None:
        """Nothing more is wanted. The server, whose connection it is, closes it in order once the app has returned."""
        self._closed = True

    def finish(self, seconds: float) -> None:
        """Close in order: end our output, and read on for so long until the peer has ended its own."""
        try:
            with gevent.Timeout(seconds, False):
                self._stream.shutdown_write()
                # A thread of the library may still be reading, and is told by the peer's end.
                self._left.wait()
                buffer = bytearray(4096)
                while self._stream.recv_into(buffer):
                    pass
        except TransportError:
            pass  # the peer has left
        self._stream.close()
