"""Streams over sockets that another server has accepted.

Belongs here: making a Stream of somebody's connected socket. Does not belong here: finding that socket (foreign.py).
"""

from __future__ import annotations

import os
import socket as _socket
import ssl
from typing import TYPE_CHECKING, Any

from gws_gevent._accel import build_of
from gws_gevent.exceptions import StreamClosed, TransportError
from gws_gevent.transports.base import Stream, as_transport_error, type_of_data

if TYPE_CHECKING:
    from gws_gevent._fdio import SocketStream
else:
    SocketStream = build_of("_fdio").SocketStream

__all__ = ["ObjectStream", "stream_of"]


def stream_of(sock: Any) -> Stream:
    """Return a stream on a connected socket of gevent or the standard library, which is of no use afterwards."""
    if isinstance(sock, ssl.SSLSocket) or hasattr(sock, "do_handshake"):
        return ObjectStream(sock)
    return SocketStream.adopt(sock)


class ObjectStream(Stream):
    """A stream on a socket object that has to be read and written by its own methods, as with TLS."""

    __slots__ = ("_closed", "_socket")

    def __init__(self, sock: Any) -> None:
        """Take a socket whose methods wait for its greenlet only."""
        self._socket = sock
        self._closed = False

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """See Stream."""
        if self._closed:
            raise StreamClosed("receive: the stream is closed")
        try:
            return int(self._socket.recv_into(buffer))
        except ssl.SSLEOFError:
            return 0
        except OSError as error:
            raise self._mapped(error, "receive") from error

    def send_all(self, data: type_of_data) -> None:
        """See Stream."""
        if self._closed:
            raise StreamClosed("send: the stream is closed")
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._mapped(error, "send") from error

    def _mapped(self, error: OSError, doing: str) -> TransportError:
        return StreamClosed(f"{doing}: the stream was closed") if self._closed else as_transport_error(error, doing)

    def close(self) -> None:
        """See Stream."""
        self.abort()

    def abort(self) -> None:
        """See Stream."""
        if self._closed:
            return
        self._closed = True
        try:
            # The connection below, whatever the object is: that wakes who waits for it.
            with _socket.socket(fileno=_dup(self._socket)) as below:
                below.shutdown(_socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    def info(self, key: str) -> Any:
        """See Stream."""
        if key == "scheme":
            return "tls"
        if self._closed or key not in ("peername", "sockname", "tls"):
            return None
        if key == "tls":
            return self._socket
        try:
            return self._socket.getpeername() if key == "peername" else self._socket.getsockname()
        except OSError:
            return None


def _dup(sock: Any) -> int:
    return os.dup(sock.fileno())
