"""`inverted://host:port`: TCP with every bit inverted. A transport as somebody else would write it, on plain gevent sockets.

It uses what `gws_gevent.transports.base` promises to its implementers, and nothing else of the package.
"""

from __future__ import annotations

import socket as stdlib_socket

import gevent.socket
from gevent.hub import get_hub
from gevent.server import StreamServer

from gws_gevent.exceptions import StreamClosed
from gws_gevent.transports.base import Dialer, Endpoint, Listener, Stream, as_transport_error, refuse_unknown_params

INVERT = bytes(255 - value for value in range(256))


class InvertedStream(Stream):
    def __init__(self, sock):
        self._socket = sock
        self._closed = False

    def recv_into(self, buffer):
        try:
            received = self._socket.recv(len(buffer)).translate(INVERT)
        except OSError as error:
            raise self._mapped(error, "receive") from error
        buffer[: len(received)] = received
        return len(received)

    def send_all(self, data):
        if gevent.getcurrent() is get_hub():
            raise RuntimeError("the hub cannot wait")
        try:
            self._socket.sendall(bytes(data).translate(INVERT))
        except OSError as error:
            raise self._mapped(error, "send") from error

    def shutdown_write(self):
        self._socket.shutdown(stdlib_socket.SHUT_WR)

    def close(self):
        if not self._closed:
            self._closed = True
            try:
                self._socket.shutdown(stdlib_socket.SHUT_RDWR)
            except OSError:
                pass
            self._socket.close()

    abort = close

    def info(self, key):
        if key == "scheme":
            return "inverted"
        if self._closed:
            return None
        return {"peername": self._socket.getpeername, "sockname": self._socket.getsockname}.get(key, lambda: None)()

    def _mapped(self, error, doing):
        return StreamClosed(f"{doing}: the stream is closed") if self._closed else as_transport_error(error, doing)


class InvertedListener(Listener):
    def __init__(self, endpoint, settings):
        self._endpoint = endpoint
        self._settings = settings
        self._server = None

    def start(self, on_stream):
        sock = gevent.socket.socket()
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        try:
            sock.bind((self._endpoint.host, self._endpoint.port))
        except OSError as error:
            sock.close()
            raise as_transport_error(error, f"listen on {self._endpoint}") from error
        sock.listen(self._settings.backlog)
        self._server = StreamServer(sock, lambda accepted, _: on_stream(InvertedStream(accepted)))
        self._server.do_close = lambda *_: None
        self._server.start()
        self.address = str(Endpoint(self._endpoint.scheme, *sock.getsockname()))

    def stop_accepting(self):
        if self._server is not None:
            self._server.stop_accepting()

    def close(self):
        if self._server is not None:
            self._server.close()


class InvertedDialer(Dialer):
    def __init__(self, endpoint):
        self._endpoint = endpoint

    def dial(self):
        try:
            return InvertedStream(gevent.socket.create_connection((self._endpoint.host, self._endpoint.port)))
        except OSError as error:
            raise as_transport_error(error, f"connect to {self._endpoint}") from error


def listen(endpoint, settings):
    refuse_unknown_params(endpoint)
    return InvertedListener(endpoint, settings)


def dialer(endpoint, settings):
    refuse_unknown_params(endpoint)
    return InvertedDialer(endpoint)
