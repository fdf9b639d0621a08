"""The parts of a run that measure time: throughput, TLS, handshakes, broadcast, fairness.

Belongs here: which servers each part runs, and which load. Does not belong here: memory, how results look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks.bench import Bench, Part
from benchmarks.certificate import make_certificate
from benchmarks.compare import Shape, load, measure, start_all, take_turns
from benchmarks.libraries import GO, OURS, PLAIN, floor, server_of
from benchmarks.processes import BenchmarkError, Server, build, run_load

__all__ = ["PARTS"]

TLS_SHAPES = tuple(Shape.parse(text) for text in ("100,64,1", "100,1024,1", "10,65000,1"))
#: The connections that are to be served while another floods.
FAIR = Shape(99, 64, 1)
FAIR_TO = (OURS, PLAIN, "picows", "websockets", GO)
#: Bytes of the message that is broadcast.
BROADCAST_SIZE = 1024
MOST_BROADCAST_ROUNDS = 3


def _echo_servers(bench: Bench) -> list[Server]:
    return [*(server_of(library) for library in bench.libraries), floor()]


def _throughput(bench: Bench) -> None:
    s, results = bench.settings, bench.results
    results.rates = measure(_echo_servers(bench), s.shapes, s.rounds, s.seconds, bench.progress.step, results.notes.append)


def _tls(bench: Bench) -> None:
    s, results = bench.settings, bench.results
    try:
        certificate = make_certificate(bench.folder)
        build("wsload", tls=True)
    except BenchmarkError as error:
        results.notes.append(f"TLS throughput was not measured: {error}")
        return
    servers = [server_of(library, certificate=certificate) for library in bench.having("tls")]
    results.tls_rates = measure(servers, TLS_SHAPES, s.rounds, s.seconds, bench.progress.step, results.notes.append)


def _handshakes(bench: Bench) -> None:
    s = bench.settings

    def handshakes(server: Server) -> float:
        return float(run_load(build("wshandshakes"), server.address, s.at_once, s.seconds, server.target).split()[0])

    bench.results.handshakes = _in_turns(bench, _echo_servers(bench), handshakes, f"handshakes, {s.at_once} at a time")


def _broadcast(bench: Bench) -> None:
    s = bench.settings

    def broadcast(server: Server) -> float:
        numbers = (s.broadcast_connections, BROADCAST_SIZE, s.broadcasts)
        return float(run_load(build("wsbroadcast"), server.address, *numbers, server.target).split()[0])

    servers = [server_of(library, "broadcast", BROADCAST_SIZE) for library in bench.having("broadcast")]
    servers.append(floor("rawbroadcast", BROADCAST_SIZE))
    bench.results.broadcasts = _in_turns(
        bench, servers, broadcast, f"broadcast to {s.broadcast_connections:,}", rounds=_broadcast_rounds(bench)
    )


def _broadcast_rounds(bench: Bench) -> int:
    """Opening the connections is what takes the time, and each round is a median already."""
    return min(bench.settings.rounds, MOST_BROADCAST_ROUNDS)


def _fairness(bench: Bench) -> None:
    s = bench.settings
    servers = [*(server_of(bench.library(name)) for name in FAIR_TO if bench.has(name)), floor()]
    flooded: dict[str, list[float]] = {server.name: [] for server in servers}

    def quiet(server: Server) -> float:
        # One behind the other, so that a drift of the machine hits both.
        p99 = load(server, FAIR, s.seconds).p99
        flooded[server.name].append(math.nan)
        flooded[server.name][-1] = load(server, FAIR, s.seconds, flood=True).p99
        return p99

    bench.results.quiet = _in_turns(bench, servers, quiet, "99 connections, with and without a flood")
    bench.results.flooded = flooded


def _in_turns(
    bench: Bench, servers: Sequence[Server], measure_one: Callable[[Server], float], what: str, rounds: int | None = None
) -> dict[str, list[float]]:
    note = bench.results.notes.append
    with start_all(servers, note) as started:
        return take_turns(started, rounds or bench.settings.rounds, measure_one, what, bench.progress.step, note)


def _rounds(count: Callable[[Bench], int]) -> Callable[[Bench], int]:
    return lambda bench: bench.settings.rounds * count(bench)


PARTS = [
    Part("throughput", 520, _rounds(lambda bench: len(bench.settings.shapes) * (len(bench.libraries) + 1)), _throughput),
    Part("tls", 90, _rounds(lambda bench: len(TLS_SHAPES) * len(bench.having("tls"))), _tls),
    Part("handshakes", 55, _rounds(lambda bench: len(bench.libraries) + 1), _handshakes),
    Part("broadcast", 80, lambda bench: _broadcast_rounds(bench) * (len(bench.having("broadcast")) + 1), _broadcast),
    Part("fairness", 70, _rounds(lambda bench: sum(map(bench.has, FAIR_TO)) + 1), _fairness),
]
