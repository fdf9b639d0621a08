"""What TLS costs by itself: an `SSLObject` and its two memory BIOs for each connection, nothing else.

python bare_tls.py PORT CERTIFICATE

Each connection in turn gets a fixed answer to its upgrade request and an echo of its first message, and is then left alone. The
context is the one that gws_gevent serves with.
"""

from __future__ import annotations

import socket
import ssl
import sys

from gws_gevent.transports.base import TlsFiles
from gws_gevent.transports.tls_contexts import server_context

ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
#: A masked frame with the 64 bytes that benchmarks.idle sends, its key all zeros.
FRAME_SIZE = 6 + 64

held = []


def advance(connection: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, step) -> object:
    """Call `step()` until it has what it needs from the peer; send what it wrote."""
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            if outgoing.pending:
                connection.sendall(outgoing.read())
            data = connection.recv(4096)
            if not data:
                raise ConnectionError("the peer closed") from None
            incoming.write(data)
        finally:
            if outgoing.pending:
                connection.sendall(outgoing.read())


def serve(connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLObject:
    """Answer the upgrade and one message; return what is to be held."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    advance(connection, incoming, outgoing, tls.do_handshake)
    request = b""
    while b"\r\n\r\n" not in request:
        request += advance(connection, incoming, outgoing, lambda: tls.read(4096))
    advance(connection, incoming, outgoing, lambda: tls.write(ACCEPTED))
    frame = b""
    while len(frame) < FRAME_SIZE:
        frame += advance(connection, incoming, outgoing, lambda: tls.read(4096))
    advance(connection, incoming, outgoing, lambda: tls.write(b"\x82\x40" + frame[6:]))
    return tls


def main(port: int, certificate: str) -> None:
    context = server_context(TlsFiles(certificate, certificate))
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        while True:
            connection, _ = listener.accept()
            try:
                held.append((serve(connection, context), connection.detach()))
            except OSError:
                connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
