"""Sends what is no good to a server of this machine: for the floods of datagrams.py.

    python -m benchmarks.flooding kcp noise PORT COUNT RATE

Belongs here: the process that floods, and how it is started. Does not belong here: what others notice of it (datagrams.py).

It sends to the loopback address and to no other. Its one line of output is what it has done.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Final

__all__ = ["KINDS", "Flooding", "flooder"]

#: What can be sent to whom. "noise" is random bytes; "starts" is what begins a conversation, and does not go on.
KINDS: Final = {
    "kcp": ("noise", "starts"),
    "quic": ("noise", "starts"),
    "h3": ("noise", "starts"),
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


def kcp_hello(random: Random) -> bytes:
    """The first datagram of a client that never comes back."""
    from gws_gevent.transports.kcp.cookie import NONCE, Control, Controls, Kind

    return Controls(None, "aes-256-gcm").write(Control(Kind.HELLO, bytes(4), random.randbytes(NONCE)))


def _send_datagrams(port: int, datagrams: list[bytes], count: int, rate: int) -> tuple[int, int, int]:
    size = answered = 0
    buffer = bytearray(65536)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        source.connect(("127.0.0.1", port))
        source.setblocking(False)
        for number in _paced(count, rate):
            data = datagrams[number % len(datagrams)]
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
    makers: dict[tuple[str, str], Callable[[Random], bytes]] = {("kcp", "starts"): kcp_hello}
    make = makers.get((transport, kind), quic_initial if kind == "starts" else noise)
    datagrams = [make(random) for _ in range(DIFFERENT)]
    began = time.perf_counter()
    if kind == "connections":
        done = _open_connections(port, count, rate)
    else:
        done = _send_datagrams(port, datagrams, count, rate)
    print(*done, time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
