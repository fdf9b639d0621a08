"""Measure what an idle WebSocket connection costs a server in resident memory.

python -m benchmarks.idle [--connections 10000] [--target /] [--settle 3] [--extensions OFFER] ADDRESS COMMAND ...

Starts COMMAND and opens the connections: each upgrades with a browser's usual headers and exchanges one message of 64 bytes. Then
it answers pings for SETTLE seconds and prints by how much the server's VmRSS has grown, per connection. More seconds than the
server's ping interval measure after a keepalive round. The buffers of the kernel are not part of VmRSS. ADDRESS is HOST:PORT or
unix:PATH.

Belongs here: holding connections, and reading a process's memory. Does not belong here: which libraries there are, tables.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import BenchmarkError, Server, dial, running, set_up

__all__ = ["WARM_UP", "Idle", "measure"]

#: Connections opened before the first look at the server's memory: what a server makes once is not the price of a connection.
WARM_UP = 10
#: Seconds until a server must have answered.
REPLY_TIMEOUT = 10.0
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


class Idle(NamedTuple):
    """What was measured: bytes of resident memory for each connection, and how many pings came and were answered."""

    bytes_per_connection: float
    pings: int


def measure(
    server: Server, connections: int, settle: float, extensions: str = "", step: Callable[[str], None] = lambda text: None
) -> Idle:
    """Run a server, hold so many idle connections to it, and return what each costs.

    Args:
        settle: seconds between the last connection and the second look at the server's memory.
        extensions: value of Sec-WebSocket-Extensions to offer; nothing is offered without.
        step: is told how far it is.

    Raises:
        BenchmarkError: the server did not start, answered wrongly, or closed.
    """
    offer = f"Sec-WebSocket-Extensions: {extensions}\r\n" if extensions else ""
    request = f"GET {server.target} HTTP/1.1\r\n{offer}{HEADERS}".encode()
    with running(server) as process, ExitStack() as stack:
        try:
            held = [stack.enter_context(_open(server, request)) for _ in range(WARM_UP)]
            before = _resident(process.pid)
            for number in range(connections):
                if number % REPORT_EVERY == 0:
                    step(f"{server.name}: {number:,} of {connections:,} connections")
                held.append(stack.enter_context(_open(server, request)))
            step(f"{server.name}: {connections:,} connections, idle for {settle:g} s")
            pings = _answer_pings(held, settle)
        except OSError as error:
            raise BenchmarkError(f"{server.name}: {error}") from error
        return Idle((_resident(process.pid) - before) / connections, pings)


def _resident(pid: int) -> int:
    """Bytes of resident memory of a process and of all it started: the workers of a server that forks count."""
    status = Path(f"/proc/{pid}/status").read_text()
    own = sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return own + sum(map(_resident, children))


def _open(server: Server, request: bytes) -> socket.socket:
    connection = dial(server.address)
    try:
        connection.settimeout(REPLY_TIMEOUT)
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


def _answer_pings(held: list[socket.socket], seconds: float) -> int:
    """Answer every ping for so many seconds; return how many came."""
    by_number = {connection.fileno(): connection for connection in held}
    pings, end = 0, time.monotonic() + seconds
    with select.epoll() as poller:
        for number in by_number:
            poller.register(number, select.EPOLLIN)
        while (left := end - time.monotonic()) > 0:
            for number, _ in poller.poll(left):
                pings += _answer(by_number[number])
    return pings


def _answer(connection: socket.socket) -> int:
    frames, pings = connection.recv(4096), 0
    if not frames:
        raise BenchmarkError("the server closed an idle connection")
    while len(frames) >= 2:
        length = frames[1] & 127
        # A server's frame, without a mask; control frames have no more than 125 bytes (RFC 6455, 5.5).
        if frames[0] == 0x89:
            pings += 1
            connection.sendall(bytes([0x8A, 0x80 | length, 0, 0, 0, 0]) + frames[2 : 2 + length])
        frames = frames[2 + length :]
    return pings


def main() -> int:
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.idle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--connections", type=int, default=10000)
    cli.add_argument("--target", default="/", help="where the echo is (default: /)")
    cli.add_argument("--settle", type=float, default=3.0, help="seconds of idleness (default: 3)")
    cli.add_argument("--extensions", default="", metavar="OFFER", help="value of Sec-WebSocket-Extensions to offer")
    cli.add_argument("address", metavar="ADDRESS")
    cli.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    args = cli.parse_args()
    if not args.command:
        cli.error("a COMMAND that starts the server is needed")
    most = set_up() - WARM_UP
    if args.connections > most:
        cli.error(f"--connections: at most {most} here, or raise the limit of open files (ulimit -H -n)")
    server = Server(args.command[0], args.address, tuple(args.command), args.target)
    try:
        idle = measure(server, args.connections, args.settle, args.extensions)
    except BenchmarkError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return 130
    print(f"{idle.bytes_per_connection:,.0f} bytes for each of {args.connections:,} connections, {idle.pings:,} pings answered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
