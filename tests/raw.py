"""A WebSocket client that knows nothing of this package: a gevent socket, bytes, and no rules.

Belongs here: what tests need to say anything at all to a server, right or wrong, and to read what it answers. Does not belong
here: the package's own client, assertions about one subject.
"""

from __future__ import annotations

import random
import socket as plain_socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gevent
from gevent import socket
from gevent.ssl import SSLContext

from gws_gevent import CloseInfo, Connection, EventHandler, Message, Server, ServerOptions
from gws_gevent.transports.base import ListenSettings, TlsFiles
from tests.support import wait_until

__all__ = [
    "ACCEPT", "KEY", "Answer", "Frame", "RawClient", "RawTlsClient", "Recorder", "frame", "open_client", "request", "running",
    "server_side", "shrink_send_buffer", "spawn_drip", "still_echoes",
]  # fmt: skip

#: The example of RFC 6455 section 1.3.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
#: Masking keys. Seeded, so that the same frames make the same names of tests in every process.
_masking_keys = random.Random(6455)
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#: Seconds any single wait of a raw client may take.
PATIENCE = 10.0


class Answer(NamedTuple):
    """An HTTP response; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Frame(NamedTuple):
    """A frame of the server's."""

    opcode: int
    payload: bytes
    fin: bool = True


def request(
    path: str = "/", *extra: str, method: str = "GET", version: str = "HTTP/1.1", without: str = "", **changed: str
) -> bytes:
    """Encode an upgrade request.

    Args:
        extra: more header lines.
        without: name of a usual header to leave out.
        changed: other values of the usual headers, as in `sec_websocket_version="8"`.
    """
    usual = {"host": "localhost", "upgrade": "websocket", "connection": "Upgrade"}
    usual |= {"sec-websocket-key": KEY, "sec-websocket-version": "13"}
    usual.update({name.replace("_", "-"): value for name, value in changed.items()})
    lines = [f"{name}: {value}" for name, value in usual.items() if name != without.lower()]
    return "\r\n".join([f"{method} {path} {version}", *lines, *extra, "", ""]).encode("latin-1")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
    form: int = 0,
) -> bytes:
    """Encode one frame.

    Args:
        rsv: the three reserved bits, 0 to 7.
        length: what to declare instead of the payload's own.
        form: 126 or 127 to use that length form though a shorter one would do.
    """
    declared = len(payload) if length is None else length
    form = form or (127 if declared > 0xFFFF else 126 if declared > 125 else 0)
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode, mask_bit | (form or declared)])
    if form:
        head += struct.pack("!H" if form == 126 else "!Q", declared)
    if not masked:
        return head + payload
    key = _masking_keys.randbytes(4)
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


class RawClient:
    """One TCP connection; what was read too much waits in `buffer`."""

    def __init__(self, port: int, receive_buffer: int | None = None, source: str = "") -> None:
        self.sock: Any = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.sock.bind((source, 0))
        self.sock.settimeout(PATIENCE)
        self.buffer = bytearray()
        try:
            self.sock.connect(("127.0.0.1", port))
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close with whatever goodbye the kernel says."""
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, *pieces: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(b"".join(pieces))

    def upgrade(self, *extra: str, path: str = "/") -> Answer:
        """Do the opening handshake; it must succeed."""
        self.send(request(path, *extra))
        answer = self.read_answer()
        assert answer.status == 101, answer
        assert answer.headers["sec-websocket-accept"] == ACCEPT
        return answer

    def read_answer(self) -> Answer:
        """Read one response, its body by Content-Length."""
        while b"\r\n\r\n" not in self.buffer:
            self._read_some()
        head, _, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        self.buffer = bytearray(rest)
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(status), headers, self._take(int(headers.get("content-length", 0))))

    def read_frame(self) -> Frame:
        """Read one frame; its header must be one a server may send."""
        first, second = self._take(2)
        assert not first & 0x70
        assert second < 0x80, "a server masks nothing"
        length = second
        if second == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif second == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        return Frame(first & 0x0F, self._take(length), first >= 0x80)

    def read_close(self) -> tuple[int | None, bytes]:
        """Read a close frame and return its code (None: an empty frame) and reason."""
        opcode, payload, fin = self.read_frame()
        assert (opcode, fin) == (8, True), (opcode, payload[:80])
        return (int.from_bytes(payload[:2], "big"), payload[2:]) if payload else (None, b"")

    def read_end(self) -> None:
        """The server must have nothing more to say, and end the stream in an orderly way."""
        assert not self.buffer, bytes(self.buffer[:80])
        assert self.sock.recv(65536) == b""

    def read_to_the_end(self) -> bytes:
        """Everything up to the end of the stream or a reset."""
        try:
            while piece := self.sock.recv(65536):
                self.buffer += piece
        except ConnectionError:
            pass
        return bytes(self.buffer)

    def echo(self, text: bytes = b"hello") -> None:
        """Have a text message echoed."""
        self.send(frame(1, text))
        assert self.read_frame() == Frame(1, text)

    def local_port(self) -> int:
        """Our port, as the server sees it in `remote_address`."""
        port: int = self.sock.getsockname()[1]
        return port

    def _read_some(self) -> None:
        piece = self.sock.recv(65536)
        if not piece:
            raise EOFError(f"the stream ended after {bytes(self.buffer[-80:])!r}")
        self.buffer += piece

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._read_some()
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken


class RawTlsClient(RawClient):
    """The same inside TLS, its handshake done."""

    def __init__(self, port: int, context: SSLContext) -> None:
        super().__init__(port)
        try:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        except BaseException:
            self.sock.close()
            raise


class Recorder(EventHandler):
    """Echoes, and remembers each connection's opening and end.

    Attributes:
        opened: connections, in order of on_open.
        closed: (connection, info) of each on_close, in order.
    """

    def __init__(self) -> None:
        self.opened: list[Connection] = []
        self.closed: list[tuple[Connection, CloseInfo]] = []

    def on_open(self, conn: Connection) -> None:
        self.opened.append(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.closed.append((conn, info))

    def info(self) -> CloseInfo:
        """How the first connection that was opened ended, once it has."""
        first = self.opened[0]
        wait_until(lambda: any(conn is first for conn, _ in self.closed), what="on_close of the first connection")
        (info,) = [info for conn, info in self.closed if conn is first]
        return info

    def check_all_closed_once(self) -> None:
        """on_close has been called exactly once for each on_open."""
        ended = [conn for conn, _ in self.closed]
        assert len(ended) == len(self.opened)
        assert set(ended) == set(self.opened)


@contextmanager
def running(
    handler: Any = None, on_request: Any = None, *, tls: TlsFiles | None = None, **options: Any
) -> Iterator[tuple[Server, int]]:
    """Serve on a free port, TCP or TLS; afterwards no connection may be left, and a Recorder's records must match up."""
    handler = handler or (Recorder() if on_request is None else None)
    server = Server(handler, ServerOptions(**options), on_request)
    server.start("tls://127.0.0.1:0" if tls else "127.0.0.1:0", settings=ListenSettings(tls=tls))
    try:
        yield server, int(server.address.rpartition(":")[2])
        wait_until(lambda: not server.connections, what=f"the end of {set(server.connections)}")
    finally:
        server.stop(timeout=0.1)
    if isinstance(handler, Recorder):
        handler.check_all_closed_once()


@contextmanager
def open_client(port: int, **settings: Any) -> Iterator[RawClient]:
    """A raw client after its opening handshake."""
    with RawClient(port, **settings) as client:
        client.upgrade()
        yield client


def still_echoes(port: int) -> None:
    """A fresh connection is served from the first byte to the closing handshake."""
    with open_client(port) as client:
        client.echo()
        client.send(frame(8, b"\x03\xe8"))
        assert client.read_close() == (1000, b"")
        client.read_end()


def server_side(server: Server, client: RawClient) -> Connection:
    """The server's connection to this client, as soon as there is one."""
    port = client.local_port()

    def find() -> Connection | None:
        found = [conn for conn in server.connections if conn.remote_address[1] == port]
        return found[0] if found else None

    found = wait_until(find, what="the server's connection")
    assert found is not None
    return found


def shrink_send_buffer(conn: Connection) -> None:
    """Let the kernel hold little of what a connection sends, so that a peer that doesn't read is noticed at once."""
    conn.net_conn.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_SNDBUF, 4096)


def spawn_drip(client: RawClient, data: bytes, seconds: float) -> gevent.Greenlet:
    """Send one byte every so many seconds, until the server has had enough."""

    def drip() -> None:
        try:
            for at in range(len(data)):
                client.send(data[at : at + 1])
                gevent.sleep(seconds)
        except OSError:
            return

    return gevent.spawn(drip)
