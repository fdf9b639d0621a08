"""Measure what an idle WebSocket connection costs a server in resident memory.

python -m benchmarks.idle [--connections 10000] [--target /] [--settle 3] [--extensions OFFER] [--tls] ADDRESS COMMAND ...

Starts COMMAND and opens the connections: each upgrades with a browser's usual headers and exchanges one message of 64 bytes. Then
it answers pings for SETTLE seconds and prints by how much the server's VmRSS has grown, per connection. More seconds than the
server's ping interval measure after a keepalive round. The buffers of the kernel are not part of VmRSS. ADDRESS is HOST:PORT or
unix:PATH.

Belongs here: holding connections, and reading a process's memory. Does not belong here: which libraries there are, tables.
"""

from __future__ import annotations

import argparse
import math
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import BenchmarkError, Server, dial, running, set_up

__all__ = ["WARM_UP", "Crowd", "Idle", "measure", "resident", "resident_alone"]

#: Connections opened before the first look at the server's memory: what a server makes once is not the price of a connection.
WARM_UP = 10
#: Seconds until a server must have answered.
REPLY_TIMEOUT = 10.0
#: Seconds until a server must have answered a question that makes it work.
ANSWER_TIMEOUT = 60.0
#: Connections between two reports of how far it is.
REPORT_EVERY = 500

#: As Chromium sends them. Firefox sends `Connection: keep-alive, Upgrade`, which picows refuses.
HEADERS = (
    "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://localhost\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n"
    "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\nCache-Control: no-cache\r\n\r\n"
)
MESSAGE = bytes(range(64))
FRAME = b"\x82\xc0\0\0\0\0" + MESSAGE
ECHO = b"\x82\x40" + MESSAGE
MAX_HEAD = 16 * 1024
PING, PONG = 0x89, 0x8A


class Idle(NamedTuple):
    """What was measured.

    Attributes:
        growth: by number of connections, how many bytes of resident memory the server has gained since the first WARM_UP.
        later: the same for the last number, after a longer wait; NaN if there was none.
        pings: how many came, and were answered, in the last wait.
    """

    growth: dict[int, float]
    later: float
    pings: int

    @property
    def bytes_per_connection(self) -> float:
        """What each of the largest number of connections costs."""
        return self.growth[max(self.growth)] / max(self.growth)


class Crowd:
    """Connections to a running server. Every ping is answered while they are waited with, or more are opened."""

    def __init__(self, server: Server, extensions: str = "") -> None:
        offer = f"Sec-WebSocket-Extensions: {extensions}\r\n" if extensions else ""
        self._server = server
        self._request = f"GET {server.target} HTTP/1.1\r\n{offer}{HEADERS}".encode()
        self._tls = _lenient_context() if server.tls else None
        self._by_number: dict[int, socket.socket] = {}
        self._stack = ExitStack()
        self._poller = self._stack.enter_context(select.epoll())

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return len(self._by_number)

    def open(self, count: int, step: Callable[[str], None] = lambda text: None) -> None:
        """Open connections until there are `count`; each upgrades and exchanges a message."""
        while len(self) < count:
            if len(self) % REPORT_EVERY == 0:
                step(f"{self._server.name}: {len(self):,} of {count:,} connections")
                self.wait(0)
            connection = self._stack.enter_context(_open(self._server, self._request, self._tls))
            self._by_number[connection.fileno()] = connection
            self._poller.register(connection, select.EPOLLIN)

    def wait(self, seconds: float) -> int:
        """Answer every ping for so many seconds; return how many came."""
        pings, end = 0, time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            ready = self._poller.poll(left)
            for number, _ in ready:
                pings += _answer(self._by_number[number])
            if not ready and not left:
                return pings

    def ask(self, question: str) -> bytes:
        """Send a text message of at most 125 bytes on the first connection and return the answer, which is as short."""
        connection = next(iter(self._by_number.values()))
        connection.settimeout(ANSWER_TIMEOUT)
        connection.sendall(bytes([0x81, 0x80 | len(question), 0, 0, 0, 0]) + question.encode())
        frame = b""
        while len(frame) < 2 or len(frame) < 2 + frame[1]:
            piece = connection.recv(4096)
            if not piece:
                raise BenchmarkError(f"{self._server.name} closed instead of answering")
            frame = _without_pings(frame + piece, connection)[0]
        return frame[2:]


def measure(
    server: Server,
    points: Sequence[int],
    settle: float,
    *,
    later: float = 0.0,
    extensions: str = "",
    step: Callable[[str], None] = lambda text: None,
) -> Idle:
    """Run a server, hold idle connections to it, and return what they cost.

    Args:
        points: after so many connections its memory is looked at.
        settle: seconds between the last connection of each point and the look.
        later: seconds after which it is looked at once more; 0 is not.
        extensions: value of Sec-WebSocket-Extensions to offer; nothing is offered without.
        step: is told how far it is.

    Raises:
        BenchmarkError: the server did not start, answered wrongly, or closed.
    """
    with running(server) as process, Crowd(server, extensions) as crowd:
        try:
            crowd.open(WARM_UP)
            before, growth, after = resident(process.pid), dict[int, float](), math.nan
            for point in sorted(points):
                crowd.open(WARM_UP + point, step)
                step(f"{server.name}: {point:,} connections, idle for {settle:g} s")
                pings = crowd.wait(settle)
                growth[point] = resident(process.pid) - before
            if later:
                step(f"{server.name}: {max(points):,} connections, idle for {later:g} s more")
                pings = crowd.wait(later)
                after = resident(process.pid) - before
        except OSError as error:
            raise BenchmarkError(f"{server.name}: {error}") from error
        return Idle(growth, after, pings)


def resident(pid: int) -> int:
    """Bytes of resident memory of a process and of all it started: the workers of a server that forks count."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return resident_alone(pid) + sum(map(resident, children))


def resident_alone(pid: int) -> int:
    """Bytes of resident memory of one process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def _lenient_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _open(server: Server, request: bytes, tls: ssl.SSLContext | None) -> socket.socket:
    connection = dial(server.address)
    try:
        connection.settimeout(REPLY_TIMEOUT)
        if tls is not None:
            connection = tls.wrap_socket(connection)
        connection.sendall(request)
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(4096)
            if not piece or len(head) > MAX_HEAD:
                raise BenchmarkError(f"{server.name} gave no complete answer to the handshake: {head[:80]!r}")
            head += piece
        if not head.startswith(b"HTTP/1.1 101 "):
            raise BenchmarkError(f"{server.name} refused: {head[:80]!r}")
        connection.sendall(FRAME)
        echo = head.partition(b"\r\n\r\n")[2]
        while len(echo) < len(ECHO) and (piece := connection.recv(len(ECHO) - len(echo))):
            echo += piece
        if echo != ECHO:
            raise BenchmarkError(f"{server.name} sent {echo[:80]!r} as the echo")
    except BaseException:
        connection.close()
        raise
    return connection


def _answer(connection: socket.socket) -> int:
    frames = connection.recv(4096)
    if not frames:
        raise BenchmarkError("the server closed an idle connection")
    return _without_pings(frames, connection)[1]


def _without_pings(frames: bytes, connection: socket.socket) -> tuple[bytes, int]:
    """Answer the pings at the beginning; return what is left, and how many there were."""
    pings = 0
    # A server's frame, without a mask; control frames have no more than 125 bytes (RFC 6455, 5.5).
    while len(frames) >= 2 and frames[0] == PING and len(frames) >= 2 + frames[1]:
        length = frames[1]
        connection.sendall(bytes([PONG, 0x80 | length, 0, 0, 0, 0]) + frames[2 : 2 + length])
        frames, pings = frames[2 + length :], pings + 1
    return frames, pings


def _points(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> int:
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.idle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--connections", type=_points, default=[10000], metavar="N[,N...]", help="(default: 10000)")
    cli.add_argument("--target", default="/", help="where the echo is (default: /)")
    cli.add_argument("--settle", type=float, default=3.0, help="seconds of idleness (default: 3)")
    cli.add_argument("--extensions", default="", metavar="OFFER", help="value of Sec-WebSocket-Extensions to offer")
    cli.add_argument("--tls", action="store_true", help="the server speaks TLS")
    cli.add_argument("address", metavar="ADDRESS")
    cli.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    args = cli.parse_args()
    if not args.command:
        cli.error("a COMMAND that starts the server is needed")
    most = set_up() - WARM_UP
    if max(args.connections) > most:
        cli.error(f"--connections: at most {most} here, or raise the limit of open files (ulimit -H -n)")
    server = Server(args.command[0], args.address, tuple(args.command), args.target, args.tls)
    try:
        idle = measure(server, args.connections, args.settle, extensions=args.extensions)
    except BenchmarkError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return 130
    for point, grown in idle.growth.items():
        print(f"{grown / point:,.0f} bytes for each of {point:,} connections")
    print(f"{idle.pings:,} pings answered while they were all idle")
    return 0


if __name__ == "__main__":
    sys.exit(main())
