"""Proxies to test against: HTTP CONNECT and SOCKS5, in this process, with faults on request.

Belongs here: what stands between a client and a server. Does not belong here: tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.socket
from gevent.server import StreamServer

__all__ = ["Between", "http_proxy", "silent_server", "socks_proxy"]

#: Called with the socket in place of the proxy's own behaviour.
Fault = Callable[[Any], object]


class Between:
    """A proxy that is running.

    Attributes:
        place: "host:port" of the proxy.
        heads: what it was asked with: heads of CONNECT, or (host, port) of SOCKS5.
        logins: user names and passwords that SOCKS5 was given.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.heads: list[Any] = []
        self.logins: list[tuple[bytes, bytes]] = []


@contextmanager
def _running(serve: Callable[[Any, Between], object], **tls: Any) -> Iterator[Between]:
    between = Between("")

    def handle(sock: Any, _address: Any) -> None:
        try:
            serve(sock, between)
        except OSError:
            pass

    server = StreamServer(("127.0.0.1", 0), handle, **tls)
    server.start()
    between.place = f"127.0.0.1:{server.server_port}"
    try:
        yield between
    finally:
        server.stop(timeout=1)


@contextmanager
def http_proxy(
    fault: Fault | None = None, login: str | None = None, say: bytes = b"", ssl_context: Any = None
) -> Iterator[Between]:
    """Run a proxy that knows CONNECT.

    Args:
        fault: what it does once it has been asked, instead of connecting.
        login: the Proxy-Authorization without which it answers 407.
        say: headers and more behind the status line of its 200.
        ssl_context: speak TLS with this.
    """

    def serve(sock: Any, between: Between) -> None:
        head = _until(sock, b"\r\n\r\n").decode()
        between.heads.append(head)
        if fault is not None:
            fault(sock)
        elif login is not None and f"\r\nProxy-Authorization: {login}\r\n" not in head:
            sock.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
        else:
            host, _, port = head.split(" ")[1].rpartition(":")
            with gevent.socket.create_connection((host.strip("[]"), int(port))) as there:
                sock.sendall(b"HTTP/1.1 200 Here you are\r\n" + say + b"\r\n")
                _pump(sock, there)

    with _running(serve, **({"ssl_context": ssl_context} if ssl_context is not None else {})) as between:
        yield between


@contextmanager
def socks_proxy(fault: Fault | None = None, login: tuple[bytes, bytes] | None = None, reply: int = 0) -> Iterator[Between]:
    """Run a proxy that knows SOCKS5 (RFC 1928, RFC 1929); every name leads to 127.0.0.1.

    Args:
        fault: what it does once it has been greeted, instead of answering.
        login: user name and password that it wants.
        reply: its answer to the request; 0 connects.
    """

    def serve(sock: Any, between: Between) -> None:
        _, count = _exactly(sock, 2)
        methods = _exactly(sock, count)
        if fault is not None:
            fault(sock)
            return
        if login is not None:
            if 2 not in methods:
                sock.sendall(b"\x05\xff")
                return
            sock.sendall(b"\x05\x02")
            _, length = _exactly(sock, 2)
            name = _exactly(sock, length)
            between.logins.append((name, _exactly(sock, _exactly(sock, 1)[0])))
            sock.sendall(b"\x01\x00" if between.logins[-1] == login else b"\x01\x01")
        else:
            sock.sendall(b"\x05\x00")
        kind = _exactly(sock, 4)[3]
        if kind == 3:
            host = _exactly(sock, _exactly(sock, 1)[0]).decode()
        else:
            packed = _exactly(sock, 4 if kind == 1 else 16)
            host = gevent.socket.inet_ntop(gevent.socket.AF_INET if kind == 1 else gevent.socket.AF_INET6, packed)
        port = int.from_bytes(_exactly(sock, 2), "big")
        between.heads.append((host, port))
        if reply:
            sock.sendall(bytes([5, reply, 0, 1]) + bytes(6))
            return
        with gevent.socket.create_connection(("127.0.0.1" if kind == 3 else host, port)) as there:
            sock.sendall(b"\x05\x00\x00\x01" + bytes(6))
            _pump(sock, there)

    with _running(serve) as between:
        yield between


@contextmanager
def silent_server() -> Iterator[str]:
    """Accept connections and never say anything; gives "host:port"."""
    with gevent.socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def _pump(one: Any, other: Any) -> None:
    back = gevent.spawn(_copy, other, one)
    try:
        _copy(one, other)
    finally:
        back.kill()


def _copy(source: Any, target: Any) -> None:
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(1)
    except OSError:
        pass


def _until(sock: Any, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError
        found += piece
    return found


def _exactly(sock: Any, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = sock.recv(count - len(found))
        if not piece:
            raise ConnectionResetError
        found += piece
    return found
