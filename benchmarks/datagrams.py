"""Figures of the datagram transports: round trips, bytes, idle sessions, floods.

    python -m benchmarks.datagrams ping kcp
    python -m benchmarks.datagrams rate quic --sessions 100
    python -m benchmarks.datagrams bulk kcp --params "mode=fast3&mtu=1400"
    python -m benchmarks.datagrams idle kcp --sessions 1000
    python -m benchmarks.datagrams flood h3
    python -m benchmarks.datagrams all all      # ping, rate, bulk and flood of kcp, quic, h3 and tcp: about a minute

Belongs here: streams of one transport (kcp, quic, h3, tcp, tls) between two processes of one machine, without WebSocket's frames.
Does not belong here: WebSocket's own speed (bench.py), other libraries, bad lines (lossy.py), what is sent to harm (flooding.py).

Each line is `name: number`. The server is a process of its own, whose memory and time are read from /proc; the one that floods is a
third. Each session has a connection of its own, unless --streams-per-connection says otherwise (quic, h3).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent

from benchmarks.certificate import make_certificate
from benchmarks.flooding import KINDS, flooder
from gws_gevent.handshake import accept_response, judge_upgrade, make_key, request_head
from gws_gevent.http_head import parse_request
from gws_gevent.options import ServerOptions
from gws_gevent.transports import registry
from gws_gevent.transports.base import DialSettings, ListenSettings, Stream, TlsFiles
from gws_gevent.transports.tls_contexts import client_context

__all__ = ["main"]

TRANSPORTS = ("kcp", "quic", "h3", "tcp", "tls")
#: What `all` stands for.
COMPARED = ("kcp", "quic", "h3", "tcp")
MEASURED = ("ping", "rate", "bulk", "flood")
ENCRYPTED = ("quic", "h3", "tls")
#: What bounds the sessions of one address is not what is measured.
UNBOUNDED = {"kcp": "&sessions-per-address=1000000", "quic": "&per_address=1000000", "h3": "&per_address=1000000"}
#: Seconds between two pings beside a flood.
PAUSE = 0.005
#: Round trips before those that are measured.
WARM_UP = 200
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
_BUFFER = bytearray(65536)
_VIEW = memoryview(_BUFFER)


def main(args: list[str] | None = None) -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datagrams", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=(*MEASURED, "idle", "serve", "all"))
    parser.add_argument("transport", choices=(*TRANSPORTS, "all"))
    parser.add_argument("--params", default="", help="parameters of both sides' endpoints, as behind the ?")
    parser.add_argument("--sessions", type=int, default=100)
    parser.add_argument("--streams-per-connection", type=int, default=1)
    parser.add_argument("--count", type=int, default=3000, help="round trips of a ping")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long rate and bulk run, and idle sessions are watched")
    parser.add_argument("--datagrams", type=int, default=20_000, help="of a flood")
    parser.add_argument("--flood-rate", type=int, default=5000, help="datagrams a second")
    parser.add_argument("--kind", help="of a flood: this one alone")
    parser.add_argument("--certificate", default="")
    known = parser.parse_args(args)
    if known.what == "serve":
        serve(known)
        return
    all_of_them = "all" in (known.what, known.transport)
    parts = MEASURED if known.what == "all" else (known.what,)
    transports = COMPARED if known.transport == "all" else (known.transport,)
    for transport in transports:
        known.transport = transport
        for what in parts:
            if all_of_them:
                print(f"-- {what} {known.transport}", flush=True)
            with server(known) as bench:
                globals()[what](bench, known)


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
        if stream.info("scheme") == "h3":  # which carries bytes behind an opening handshake only
            stream.send_all(accept_response(judge_upgrade(parse_request(_read_head(stream)), ServerOptions())))
        # One buffer for all: nobody else runs between filling it and reading it.
        while count := stream.recv_into(_BUFFER):
            stream.send_all(bytes(_VIEW[:count]))
    except OSError:
        pass
    finally:
        stream.close()


def _read_head(stream: Stream) -> bytes:
    """Read a head, and not a byte more."""
    head, one = b"", bytearray(1)
    while not head.endswith(b"\r\n\r\n"):
        if not stream.recv_into(one):
            raise ConnectionError("the stream ended")
        head += one
    return head


class Bench:
    """A server in another process, and ways to reach it."""

    def __init__(self, process: subprocess.Popen[str], address: str, args: argparse.Namespace) -> None:
        self.pid = process.pid
        self.port = int(address.rpartition(":")[2])
        settings = DialSettings(
            ssl_context=client_context(verify=False), server_name="localhost", streams_per_connection=args.streams_per_connection
        )
        self._dialer = registry.dialer(f"{address}?{args.params}", settings)

    def dial(self) -> Stream:
        stream = self._dialer.dial()
        if stream.info("scheme") == "h3":
            stream.send_all(request_head("/", "localhost", make_key()))
            assert b" 101 " in _read_head(stream)
        return stream

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
        certificate = make_certificate(Path(folder)) if args.transport in ENCRYPTED else ""
        command = [sys.executable, "-m", "benchmarks.datagrams", "serve", args.transport]
        command += ["--params", args.params + UNBOUNDED.get(args.transport, ""), "--certificate", certificate]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Bench(process, process.stdout.readline().strip(), args)
        finally:
            process.kill()
            process.wait()


# --- Measurements ---------------------------------------------------------------------------------------------------------------


def _round_trip(stream: Stream, data: bytes, buffer: bytearray) -> float:
    began = time.perf_counter()
    stream.send_all(data)
    left = len(data)
    while left:
        left -= stream.recv_into(buffer)
    return time.perf_counter() - began


def _round_trips(stream: Stream, count: int) -> list[float]:
    data, buffer = bytes(64), bytearray(1024)
    return [_round_trip(stream, data, buffer) for _ in range(count)]


def _show(taken: list[float], when: str = "") -> None:
    ordered = sorted(taken)
    print(f"round trip of 64 bytes{when}, median, ms: {ordered[len(ordered) // 2] * 1000:.3f}")
    print(f"round trip of 64 bytes{when}, 99 of 100, ms: {ordered[len(ordered) * 99 // 100] * 1000:.3f}", flush=True)


def ping(bench: Bench, args: argparse.Namespace) -> None:
    stream = bench.dial()
    _round_trips(stream, WARM_UP)
    _show(_round_trips(stream, args.count))
    stream.close()


def rate(bench: Bench, args: argparse.Namespace) -> None:
    streams = [bench.dial() for _ in range(args.sessions)]
    gevent.joinall([gevent.spawn(_round_trips, stream, 10) for stream in streams], raise_error=True)
    before, began = bench.seconds(), time.perf_counter()

    def go_on(stream: Stream) -> int:
        data, buffer, count = bytes(64), bytearray(1024), 0
        while time.perf_counter() - began < args.seconds:
            _round_trip(stream, data, buffer)
            count += 1
        return count

    running = [gevent.spawn(go_on, stream) for stream in streams]
    gevent.joinall(running, raise_error=True)
    passed, count = time.perf_counter() - began, sum(one.value for one in running)
    print(f"round trips of 64 bytes a second, {args.sessions} sessions: {count / passed:.0f}")
    print(f"microseconds of the server's processor for each: {(bench.seconds() - before) / count * 1e6:.0f}", flush=True)
    for stream in streams:
        stream.close()


def bulk(bench: Bench, args: argparse.Namespace) -> None:
    stream, block, buffer = bench.dial(), bytes(65536), bytearray(65536)
    sent = received = 0
    before, began = bench.seconds(), time.perf_counter()

    def send() -> None:
        nonlocal sent
        while time.perf_counter() - began < args.seconds:
            stream.send_all(block)
            sent += len(block)
        stream.shutdown_write()

    sending = gevent.spawn(send)
    while count := stream.recv_into(buffer):
        received += count
    passed = time.perf_counter() - began
    sending.get()
    assert received == sent
    print(f"echo, MB/s each way: {received / passed / 1e6:.1f}")
    used = max(1 / TICK, bench.seconds() - before)
    print(f"echo, MB each way for a second of the server's processor: {received / used / 1e6:.1f}", flush=True)
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
    """Pings of a connection that exists, before and while somebody else sends what is no good."""
    stream = bench.dial()
    _round_trips(stream, WARM_UP)
    until = time.perf_counter() + args.seconds
    usual = _pings(bench, stream, lambda: time.perf_counter() > until, "before")
    for kind in [args.kind] if args.kind else KINDS[args.transport]:
        memory = bench.resident()
        with flooder(args.transport, kind, bench.port, args.datagrams, args.flood_rate) as flooding:
            used = _pings(bench, stream, flooding.is_over, f"during {kind}")
        rate = flooding.sent / flooding.seconds
        print(f"{kind}: {flooding.sent}, {rate:.0f} a second")
        print(f"microseconds of the server's processor for each: {max(0.0, used - usual) / rate * 1e6:.1f}")
        print(f"bytes that the server's memory has grown by: {bench.resident() - memory}")
        print(f"bytes sent, and bytes that were answered: {flooding.sent_bytes}, {flooding.answered_bytes}", flush=True)
    stream.close()


def _pings(bench: Bench, stream: Stream, is_over: Callable[[], bool], when: str) -> float:
    """Ping now and then; return the share of a processor that the server has used."""
    before, began, taken = bench.seconds(), time.perf_counter(), []
    while not is_over():
        taken += _round_trips(stream, 1)
        gevent.sleep(PAUSE)
    used = (bench.seconds() - before) / (time.perf_counter() - began)
    _show(taken, f", {when}")
    return used


if __name__ == "__main__":
    main()
