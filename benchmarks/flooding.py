"""Sends what is no good to a server of this machine: for the floods of datagrams.py.

    python -m benchmarks.flooding kcp noise PORT COUNT RATE

Belongs here: the process that floods, and how it is started. Does not belong here: what others notice of it (datagrams.py).

It sends to the loopback address and to no other. Its one line of output is what it has done.
"""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Final

__all__ = ["KINDS", "Flooding", "flooder"]

#: What can be sent to whom. "noise" is random bytes; "starts" is what begins a conversation, and does not go on: with QUIC it
#: cannot be decrypted. "initials" can, and each asks for a handshake; "handshakes" are whole ones, each followed by a goodbye.
#: "stock" are opening handshakes of WebSocket from a hundred addresses, for a server of KCP with cookie=0.
KINDS: Final = {
    "kcp": ("noise", "starts"),
    "quic": ("noise", "starts", "initials", "handshakes"),
    "h3": ("noise", "starts", "initials", "handshakes"),
    "tcp": ("connections",),
    "tls": ("connections",),
}
#: Different ones, sent in turn.
DIFFERENT: Final = 1000
#: Seconds between two bursts.
TURN: Final = 0.002


class Flooding:
    """A process that floods.

    Attributes:
        sent, sent_bytes, answered_bytes, seconds: what it has done, when it is over.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.sent = self.sent_bytes = self.answered_bytes = 0
        self.seconds = 0.0

    def is_over(self) -> bool:
        """Ask, without waiting."""
        return self._process.poll() is not None

    def read(self) -> None:
        """Read what it has done."""
        output, _ = self._process.communicate()
        *counts, seconds = output.split()
        self.sent, self.sent_bytes, self.answered_bytes = map(int, counts)
        self.seconds = float(seconds)


@contextmanager
def flooder(transport: str, kind: str, port: int, count: int, rate: int) -> Iterator[Flooding]:
    """Start a process that floods, and read afterwards what it has done."""
    command = [sys.executable, "-m", "benchmarks.flooding", transport, kind, str(port), str(count), str(rate)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    flooding = Flooding(process)
    try:
        yield flooding
        flooding.read()
    finally:
        process.kill()
        process.wait()


def noise(random: Random) -> bytes:
    return random.randbytes(random.choice((1, 24, 44, 68, 500, 1200)))


def quic_initial(random: Random) -> bytes:
    """An Initial packet (RFC 9000 section 17.2.2) that nobody can decrypt."""
    ids = bytes([8]) + random.randbytes(8) + bytes([8]) + random.randbytes(8)
    before = b"\xc3" + struct.pack(">I", 1) + ids + b"\0"
    rest = 1200 - len(before) - 2
    return before + struct.pack(">H", 0x4000 | rest) + random.randbytes(rest)


def whole_initial(alpn: str) -> bytes:
    """The first packet of a client that never comes back."""
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

    client = QuicConnection(configuration=QuicConfiguration(alpn_protocols=[alpn], server_name="localhost"))
    client.connect(("127.0.0.1", 1), 0.0)
    return client.datagrams_to_send(0.0)[0][0]


def kcp_hello(random: Random) -> bytes:
    """The first datagram of a client that never comes back."""
    from gws_gevent.transports.kcp.cookie import NONCE, Control, Controls, Kind

    return Controls(None, "aes-256-gcm").write(Control(Kind.HELLO, bytes(4), random.randbytes(NONCE)))


def kcp_push(random: Random) -> bytes:
    """An opening handshake as the first segment of a stock peer."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    request += b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    head = struct.pack("<BBHIIII", 81, 0, 128, random.getrandbits(32), 0, 0, len(request))
    return random.randbytes(4) + head + request


def _send_datagrams(port: int, datagrams: list[bytes], count: int, rate: int, sources: int = 1) -> tuple[int, int, int]:
    size = answered = 0
    buffer = bytearray(65536)
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(sources)]
        for number, source in enumerate(sockets):
            source.bind((f"127.0.0.{1 + number}", 0))
            source.connect(("127.0.0.1", port))
            source.setblocking(False)
        for number in _paced(count, rate):
            data, source = datagrams[number % len(datagrams)], sockets[number % sources]
            try:
                source.send(data)
                size += len(data)
                while True:
                    answered += source.recv_into(buffer)
            except OSError:
                pass
        return count, size, answered


def _open_connections(port: int, count: int, rate: int) -> tuple[int, int, int]:
    """Connections that say something and break off. A fifth as many: each is several packets."""
    data, sent = Random(1).randbytes(1200), 0
    for number in _paced(count // 5, rate // 5):
        with socket.socket() as source:
            source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            source.connect(("127.0.0.1", port))
            source.sendall(data)
        sent = number + 1
    return sent, sent * len(data), 0


def _shake_hands(port: int, alpn: str, count: int, rate: int) -> tuple[int, int, int]:
    """Real clients. A twentieth as many: each costs both sides some milliseconds."""
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection
    from aioquic.quic.events import HandshakeCompleted

    clients: dict[bytes, QuicConnection] = {}
    sent = answered = 0
    target = ("127.0.0.1", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        source.connect(target)
        source.setblocking(False)

        def send(client: QuicConnection) -> None:
            nonlocal sent
            for data, _ in client.datagrams_to_send(time.perf_counter()):
                try:
                    sent += source.send(data)
                except OSError:
                    pass

        def receive() -> None:
            nonlocal answered
            try:
                while True:
                    data = source.recv(65536)
                    answered += len(data)
                    client = clients.get(data[6:14] if data[0] & 0x80 else data[1:9])
                    if client is not None:
                        client.receive_datagram(data, target, time.perf_counter())
                        while (event := client.next_event()) is not None:
                            if isinstance(event, HandshakeCompleted):
                                client.close()
                                clients.pop(client.host_cid, None)
                        send(client)
            except OSError:
                pass

        for _ in _paced(count // 20, rate // 20):
            configuration = QuicConfiguration(alpn_protocols=[alpn], server_name="localhost", verify_mode=ssl.CERT_NONE)
            client = QuicConnection(configuration=configuration)
            client.connect(target, time.perf_counter())
            clients[client.host_cid] = client
            send(client)
            receive()
        return count // 20, sent, answered


def _paced(count: int, rate: int) -> Iterator[int]:
    """Count, with as many in a second as `rate` says."""
    began = time.perf_counter()
    for number in range(count):
        while (ahead := number / rate - (time.perf_counter() - began)) > TURN:
            time.sleep(ahead)
        yield number


def main(transport: str, kind: str, port: int, count: int, rate: int) -> None:
    """Flood, and print: number, bytes, bytes answered, seconds."""
    random = Random(1)
    makers: dict[tuple[str, str], Callable[[Random], bytes]] = {
        ("kcp", "starts"): kcp_hello,
        ("kcp", "stock"): kcp_push,
        ("quic", "initials"): lambda _: whole_initial("ws"),
        ("h3", "initials"): lambda _: whole_initial("h3"),
    }
    make = makers.get((transport, kind), quic_initial if kind == "starts" else noise)
    datagrams = [make(random) for _ in range(min(DIFFERENT, count))] if kind not in ("connections", "handshakes") else []
    began = time.perf_counter()
    if kind == "connections":
        done = _open_connections(port, count, rate)
    elif kind == "handshakes":
        done = _shake_hands(port, "ws" if transport == "quic" else transport, count, rate)
    else:
        done = _send_datagrams(port, datagrams, count, rate, 100 if kind == "stock" else 1)
    print(*done, time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
