"""The parts of a run that measure memory: idle connections of every kind, and the garbage collector.

Belongs here: which servers each part runs, with how many connections. Does not belong here: time, how results look.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys

from benchmarks.bench import Bench, Collected, Part
from benchmarks.certificate import make_certificate
from benchmarks.idle import WARM_UP, Crowd, Idle, measure
from benchmarks.libraries import OURS, PLAIN, server_of
from benchmarks.processes import HERE, BenchmarkError, Server, free_port, running
from gws_gevent.cli.errors import UsageError
from gws_gevent.cli.option_texts import server_options

__all__ = ["BARE", "IN_APPS", "PARTS", "UNIX"]

#: Names of servers that are no library's.
UNIX = "gws_gevent, Unix socket"
BARE = "a bare SSLObject"
#: The same for upgrades in a WSGI app, by the argument of the server.
IN_APPS = {
    "wsgi": "gws_gevent, upgraded in a WSGI app",
    "flask": "gws_gevent, upgraded in Flask",
    "blocking": "gws_gevent, accept() in a WSGI app",
    "stock": "gws_gevent's handler in gevent's WSGIServer",
}

#: Whose idle memory is not measured: the plain build, which is for where there is no compiler.
NOT_IDLE = (PLAIN,)
#: The option that makes an idle connection give its greenlet back, and seconds after which all have.
PARKING, PARKED = "park_after=1", 4.0
#: Full collections of which the median is taken.
COLLECTIONS = 5
#: Seconds that the connections in memory may take.
IN_MEMORY_TIMEOUT = 600.0


def _idle(bench: Bench) -> None:
    s = bench.settings
    for library in bench.libraries:
        if library.name in NOT_IDLE:
            continue
        if library.name != OURS:
            _look(bench, server_of(library))
            continue
        options = [text for option in s.keepalive_options for text in ("--option", option)]
        _look(bench, server_of(library, "echo", *options), later=s.keepalive)
        place = f"unix:{bench.folder / 'idle.sock'}"
        _look(bench, server_of(library, "echo", *options, name=UNIX, endpoint=place), later=s.keepalive)


def _look(bench: Bench, server: Server, later: float = 0.0) -> None:
    s, results = bench.settings, bench.results
    bench.progress.step(f"{server.name}: memory")
    try:
        found = measure(server, s.connections, s.settle, later=later, step=bench.progress.show)
    except BenchmarkError as error:
        results.notes.append(f"{server.name}, memory: {error}")
        return
    results.growth[server.name] = found.growth
    if later:
        most = max(s.connections)
        results.keepalive[server.name] = found.later / most
        if found.pings < most:
            results.notes.append(f"{server.name}: only {found.pings:,} pings came in what should have been a round of keepalive.")


def _parked(bench: Bench) -> None:
    bench.progress.step("parked connections")
    try:
        server_options([PARKING])
    except UsageError:
        bench.results.notes.append(f"Parked connections were not measured: this version has no {PARKING.partition('=')[0]}.")
        return
    server = server_of(bench.library(OURS), "echo", "--option", PARKING, name="gws_gevent, parked")
    found = _measure(bench, server, max(bench.settings.connections), max(bench.settings.settle, PARKED))
    bench.results.parked = found.bytes_per_connection if found is not None else None


def _tls_idle(bench: Bench) -> None:
    s = bench.settings
    try:
        certificate = make_certificate(bench.folder)
    except BenchmarkError as error:
        bench.results.notes.append(f"Idle TLS connections were not measured: {error}")
        return
    port = free_port()
    bare = (sys.executable, str(HERE / "servers" / "bare_tls.py"), str(port), certificate)
    servers = [server_of(library, certificate=certificate) for library in bench.having("tls")]
    for server in (*servers, Server(BARE, f"127.0.0.1:{port}", bare, tls=True)):
        bench.progress.step(f"{server.name}: memory with TLS")
        found = _measure(bench, server, s.tls_connections, s.settle)
        if found is not None:
            bench.results.tls_idle[server.name] = found.bytes_per_connection


def _wsgi_idle(bench: Bench) -> None:
    """A direct connection first: the targets are ratios, and both are measured in one run."""
    count, settle = bench.settings.wsgi_connections, bench.settings.settle
    servers = [server_of(bench.library(OURS))]
    for kind, name in IN_APPS.items():
        if kind == "flask" and importlib.util.find_spec("flask") is None:
            bench.results.notes.append("Upgrades in Flask were not measured: it is not installed.")
            continue
        port = free_port()
        program = (sys.executable, str(HERE / "servers" / "wsgi_gws_gevent.py"), str(port), kind)
        servers.append(Server(name, f"127.0.0.1:{port}", program, "/echo"))
    for server in servers:
        bench.progress.step(f"{server.name}: memory")
        found = _measure(bench, server, count, settle)
        if found is not None:
            bench.results.wsgi_idle[server.name] = found.bytes_per_connection


def _measure(bench: Bench, server: Server, connections: int, settle: float) -> Idle | None:
    try:
        return measure(server, [connections], settle, step=bench.progress.show)
    except BenchmarkError as error:
        bench.results.notes.append(f"{server.name}, memory: {error}")
        return None


def _collector(bench: Bench) -> None:
    s, found = bench.settings, bench.results.collected
    ways = (("TCP", _collect_over_tcp, max(s.connections)), ("memory", _collect_in_memory, s.memory_connections))
    for what, collect, number in ways:
        bench.progress.step(f"garbage collection with {number:,} connections over {what}")
        try:
            found[f"{number:,} connections over {what}"] = collect(bench, number)
        except BenchmarkError as error:
            bench.results.notes.append(f"Garbage collection over {what}: {error}")


def _collect_over_tcp(bench: Bench, count: int) -> Collected:
    server = server_of(bench.library(OURS), "collector")
    with running(server), Crowd(server) as crowd:
        try:
            crowd.open(WARM_UP)
            before = json.loads(crowd.ask("collect"))
            crowd.open(WARM_UP + count, bench.progress.show)
            after = [json.loads(crowd.ask("collect")) for _ in range(COLLECTIONS)]
        except OSError as error:
            raise BenchmarkError(f"{server.name}: {error}") from error
    return Collected(count, statistics.median(one["seconds"] for one in after), (after[-1]["objects"] - before["objects"]) / count)


def _collect_in_memory(bench: Bench, count: int) -> Collected:
    command = [sys.executable, "-m", "benchmarks.in_memory", str(count)]
    try:
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=IN_MEMORY_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{count:,} connections took longer than {IN_MEMORY_TIMEOUT:.0f} s") from None
    if done.returncode:
        raise BenchmarkError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout)
    return Collected(count, found["seconds"], found["objects"])


PARTS = [
    Part("idle", 330, lambda bench: len(bench.libraries), _idle),
    Part("parked", 20, lambda bench: 1, _parked),
    Part("tls-idle", 60, lambda bench: len(bench.having("tls")) + 1, _tls_idle),
    Part("wsgi-idle", 120, lambda bench: len(IN_APPS) + 1, _wsgi_idle),
    Part("collector", 60, lambda bench: 2, _collector),
]
