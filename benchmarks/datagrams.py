"""Figures of the datagram transports: round trips, bytes, idle sessions, floods.

    python -m benchmarks.datagrams ping kcp
    python -m benchmarks.datagrams rate kcp --sessions 100
    python -m benchmarks.datagrams bulk kcp --params "mode=fast3&mtu=1400"
    python -m benchmarks.datagrams idle kcp --sessions 1000
    python -m benchmarks.datagrams flood kcp

Belongs here: streams of one transport (kcp, quic, tcp, tls) between two processes of one machine, without WebSocket. Does not
belong here: WebSocket's own speed (bench.py), other libraries.

Each line is `name: number`. The server is a process of its own, whose memory and time are read from /proc.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import gevent

from benchmarks.certificate import make_certificate
from gws_gevent.transports import registry
from gws_gevent.transports.base import DialSettings, ListenSettings, Stream, TlsFiles
from gws_gevent.transports.tls_contexts import client_context

__all__ = ["main"]

TRANSPORTS = ("kcp", "quic", "tcp", "tls")
#: Round trips before those that are measured.
WARM_UP = 200
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
_BUFFER = bytearray(65536)
_VIEW = memoryview(_BUFFER)


def main(args: list[str] | None = None) -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datagrams", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("ping", "rate", "bulk", "idle", "flood", "serve"))
    parser.add_argument("transport", choices=TRANSPORTS)
    parser.add_argument("--params", default="", help="parameters of both sides' endpoints, as behind the ?")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--count", type=int, default=3000, help="round trips; megabytes of bulk; datagrams of a flood")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long idle sessions are watched")
    parser.add_argument("--certificate", default="")
    known = parser.parse_args(args)
    if known.what == "serve":
        serve(known)
        return
    with server(known) as bench:
        globals()[known.what](bench, known)


# --- The server -----------------------------------------------------------------------------------------------------------------


def serve(args: argparse.Namespace) -> None:
    settings = ListenSettings(tls=TlsFiles(args.certificate) if args.certificate else None)
    listener = registry.listen(f"{args.transport}://127.0.0.1:0?{args.params}", settings)
    listener.start(_echo)
    print(listener.address, flush=True)
    gevent.get_hub().join()


def _echo(stream: Stream) -> None:
    try:
        stream.handshake()
        # One buffer for all: nobody else runs between filling it and reading it.
        while count := stream.recv_into(_BUFFER):
            stream.send_all(bytes(_VIEW[:count]))
    except OSError:
        pass
    finally:
        stream.close()


class Bench:
    """A server in another process, and ways to reach it."""

    def __init__(self, process: subprocess.Popen[str], address: str, params: str) -> None:
        self.pid = process.pid
        self.port = int(address.rpartition(":")[2])
        settings = DialSettings(ssl_context=client_context(verify=False), server_name="localhost")
        self._dialer = registry.dialer(f"{address}?{params}", settings)

    def dial(self) -> Stream:
        return self._dialer.dial()

    def resident(self, pid: int | None = None) -> int:
        """Bytes of memory of the server, or of another process."""
        return int(Path(f"/proc/{pid or self.pid}/statm").read_text().split()[1]) * PAGE

    def seconds(self) -> float:
        """Processor time of the server."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def server(args: argparse.Namespace) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder)) if args.transport in ("quic", "tls") else ""
        # What bounds the sessions of one address is not what is measured.
        more = "&sessions-per-address=1000000" if args.transport == "kcp" else ""
        command = [sys.executable, "-m", "benchmarks.datagrams", "serve", args.transport]
        command += ["--params", args.params + more, "--certificate", certificate]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Bench(process, process.stdout.readline().strip(), args.params)
        finally:
            process.kill()
            process.wait()


# --- Measurements ---------------------------------------------------------------------------------------------------------------


def _round_trips(stream: Stream, data: bytes, count: int) -> list[float]:
    buffer, taken = bytearray(65536), []
    for _ in range(count):
        began = time.perf_counter()
        stream.send_all(data)
        left = len(data)
        while left:
            left -= stream.recv_into(buffer)
        taken.append(time.perf_counter() - began)
    return taken


def ping(bench: Bench, args: argparse.Namespace) -> None:
    stream = bench.dial()
    _round_trips(stream, bytes(64), WARM_UP)
    taken = sorted(_round_trips(stream, bytes(64), args.count))
    print(f"round trip of 64 bytes, median, ms: {taken[len(taken) // 2] * 1000:.3f}")
    print(f"round trip of 64 bytes, 99 of 100, ms: {taken[len(taken) * 99 // 100] * 1000:.3f}")
    stream.close()


def rate(bench: Bench, args: argparse.Namespace) -> None:
    streams = [bench.dial() for _ in range(args.sessions)]
    each = max(10, 10 * args.count // args.sessions)
    gevent.joinall([gevent.spawn(_round_trips, stream, bytes(64), 10) for stream in streams])
    began = time.perf_counter()
    gevent.joinall([gevent.spawn(_round_trips, stream, bytes(64), each) for stream in streams], raise_error=True)
    passed = time.perf_counter() - began
    print(f"round trips of 64 bytes a second, {args.sessions} sessions: {each * args.sessions / passed:.0f}")
    for stream in streams:
        stream.close()


def bulk(bench: Bench, args: argparse.Namespace) -> None:
    size = min(args.count, 100) * 1_000_000
    stream, block, received, buffer = bench.dial(), bytes(65536), 0, bytearray(65536)
    before, began = bench.seconds(), time.perf_counter()

    def send() -> None:
        for _ in range(size // len(block)):
            stream.send_all(block)
        stream.shutdown_write()

    sending = gevent.spawn(send)
    while count := stream.recv_into(buffer):
        received += count
    passed = time.perf_counter() - began
    sending.get()
    assert received == size // len(block) * len(block)
    print(f"echo, MB/s each way: {received / passed / 1e6:.1f}")
    print(f"echo, MB each way for a second of the server's processor: {received / max(0.01, bench.seconds() - before) / 1e6:.1f}")
    stream.close()


def idle(bench: Bench, args: argparse.Namespace) -> None:
    buffer = bytearray(100)

    def open_one() -> Stream:
        stream = bench.dial()
        stream.send_all(b"x")
        stream.recv_into(buffer)
        return stream

    streams = [open_one() for _ in range(100)]
    gevent.sleep(0.5)
    before, ours = bench.resident(), bench.resident(os.getpid())
    streams += [open_one() for _ in range(args.sessions)]
    gevent.sleep(0.5)
    grown, here = bench.resident() - before, bench.resident(os.getpid()) - ours
    print(f"bytes per idle session, server: {grown // args.sessions}")
    print(f"bytes per idle session, client: {here // args.sessions}")
    began = bench.seconds()
    gevent.sleep(args.seconds)
    print(f"server's processor, percent, idle: {(bench.seconds() - began) / args.seconds * 100:.2f}")
    for stream in streams:
        stream.abort()


def flood(bench: Bench, args: argparse.Namespace) -> None:
    """Garbage from another socket, while one stream goes on."""
    stream, random, count = bench.dial(), Random(1), max(args.count, 20_000)
    _round_trips(stream, bytes(64), WARM_UP)
    garbage = [random.randbytes(random.choice((1, 24, 44, 68, 500, 1200))) for _ in range(1000)]
    memory, seconds, taken = bench.resident(), bench.seconds(), []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        source.connect(("127.0.0.1", bench.port))
        source.setblocking(False)
        for number in range(count):
            try:
                source.send(garbage[number % len(garbage)])
            except OSError:
                pass
            if not number % 100:
                taken += _round_trips(stream, bytes(64), 1)
        answers = 0
        try:
            while True:
                answers += len(source.recv(65536))
        except OSError:
            pass
    taken.sort()
    print(f"datagrams of garbage: {count}")
    print(f"microseconds of the server's processor for each: {(bench.seconds() - seconds) / count * 1e6:.1f}")
    print(f"bytes that the server's memory has grown by: {bench.resident() - memory}")
    print(f"bytes that it answered: {answers}")
    print(f"round trip of 64 bytes meanwhile, median, ms: {taken[len(taken) // 2] * 1000:.3f}")
    stream.close()


if __name__ == "__main__":
    main()
