"""Measure gws_gevent beside other WebSocket libraries and write the results: what `make bench` runs.

Belongs here: which libraries there are, and the command line. Does not belong here: measuring, tables.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import gws_gevent
from benchmarks import compare, idle
from benchmarks.processes import HERE, BenchmarkError, Server, build, free_port, pinned, set_up
from benchmarks.report import FLOOR, OURS, Results, draw, markdown, tables

__all__ = ["LIBRARIES", "Library", "Progress", "main"]

#: Above this load average a machine is too busy for figures that can be quoted.
BUSY = 0.5


class Library(NamedTuple):
    """A library whose echo server stands in servers/echo_`name`.py.

    Attributes:
        name: its name in the results.
        module: what its server imports.
        distribution: what it is called on PyPI.
        runs_on: what else its figures depend on.
    """

    name: str
    module: str
    distribution: str
    runs_on: str


LIBRARIES = [
    Library(OURS, "gws_gevent", "gws_gevent", "compiled" if gws_gevent.ACCELERATED else "plain"),
    Library("websockets", "websockets", "websockets", "asyncio"),
    Library("picows", "picows", "picows", "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"),
    Library("gevent-websocket", "geventwebsocket", "gevent-websocket", "pywsgi"),
    Library("aiohttp", "aiohttp", "aiohttp", "asyncio"),
]


class Progress:
    """One line on a terminal that says what is being done. Says nothing where stderr is not a terminal."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self._shown = sys.stderr.isatty()

    def step(self, text: str) -> None:
        """Begin a step."""
        self._done += 1
        self.show(text)

    def show(self, text: str) -> None:
        """Say more about the step that has begun."""
        if self._shown:
            print(f"\r\x1b[K[{self._done}/{self._steps}] {text}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 if there is no result for gws_gevent."""
    args = _parse(arguments)
    most = set_up() - idle.WARM_UP
    if args.connections > most:
        print(f"--connections: at most {most} here, or raise the limit of open files (ulimit -H -n)", file=sys.stderr)
        return 2
    try:
        results, servers = _prepare(args)
        _measure(results, servers, args)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130
    _write(results, args.output)
    complete = OURS in results.idle and all(compare.median(results.rates, shape, OURS) > 0 for shape in results.shapes)
    return 0 if complete else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    about = "Measure gws_gevent beside other WebSocket libraries."
    cli = argparse.ArgumentParser(prog="python -m benchmarks.run", description=about)
    cli.add_argument("--quick", action="store_true", help="1 round of 0.3 s, 500 connections: shows that it works, not how fast")
    cli.add_argument("--rounds", type=int, metavar="N", help="of each load (default: 5)")
    cli.add_argument("--seconds", type=float, metavar="S", help="of load in each round (default: 1)")
    cli.add_argument("--connections", type=int, metavar="N", help="held idle (default: 5000)")
    cli.add_argument("--settle", type=float, metavar="S", help="seconds they are idle before memory is read (default: 3)")
    shape = "CONNECTIONS,SIZE,DEPTH[,text]"
    cli.add_argument("--shape", type=compare.Shape.parse, action="append", metavar=shape, help="only these loads; may be repeated")
    names = [library.name for library in LIBRARIES if library.name != OURS]
    cli.add_argument("--library", action="append", choices=names, help="only this one beside gws_gevent; may be repeated")
    where = "of latest.md and latest.png (default: benchmarks/results)"
    cli.add_argument("--output", type=Path, default=HERE / "results", metavar="FOLDER", help=where)
    args = cli.parse_args(arguments)
    usual = {"rounds": 1, "seconds": 0.3, "connections": 500, "settle": 0.3} if args.quick else {}
    for name, value in {"rounds": 5, "seconds": 1.0, "connections": 5000, "settle": 3.0, **usual}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        if getattr(args, name) <= 0:
            cli.error(f"--{name} must be more than 0")
    return args


def _prepare(args: argparse.Namespace) -> tuple[Results, list[Server]]:
    results = Results(_facts(args), [], {FLOOR: FLOOR}, args.shape or compare.SHAPES)
    if (busy := os.getloadavg()[0]) > BUSY:
        results.notes.append(f"The machine was busy before the run (load average {busy:.1f}): do not quote these figures.")
    if args.quick:
        results.notes.append("A quick run: it shows that the benchmark works, not how fast anything is.")
    servers = []
    for library in LIBRARIES:
        if args.library and library.name not in (OURS, *args.library):
            continue
        if importlib.util.find_spec(library.module) is None:
            results.notes.append(f"{library.name} was skipped: it is not installed.")
            continue
        program = HERE / "servers" / f"echo_{library.name.replace('-', '_')}.py"
        port = free_port()
        servers.append(Server(library.name, f"127.0.0.1:{port}", (sys.executable, str(program), str(port)), "/echo"))
        results.labels[library.name] = f"{library.name} {_version(library)} ({library.runs_on})"
    port = free_port()
    servers.append(Server(FLOOR, f"127.0.0.1:{port}", (build("rawecho"), str(port))))
    results.servers = [server.name for server in servers]
    return results, servers


def _version(library: Library) -> str:
    if library.name == OURS:
        return gws_gevent.__version__
    return importlib.metadata.version(library.distribution)


def _facts(args: argparse.Namespace) -> list[str]:
    pins = "each server on one core, the load on another" if pinned(0) else "nothing pinned to a core"
    return [
        f"{date.today():%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}, gevent {importlib.metadata.version('gevent')}",
        f"Throughput: median of {args.rounds} x {args.seconds:g} s, {pins}",
        f"Memory: {args.connections:,} connections, {args.settle:g} s after the last",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _measure(results: Results, servers: list[Server], args: argparse.Namespace) -> None:
    libraries = [server for server in servers if server.name != FLOOR]
    progress = Progress(len(servers) * len(results.shapes) * args.rounds + len(libraries))
    try:
        results.rates = compare.measure(servers, results.shapes, args.rounds, args.seconds, progress.step, results.notes.append)
        for server in libraries:
            progress.step(f"{server.name}: memory")
            try:
                measured = idle.measure(server, args.connections, args.settle, step=progress.show)
                results.idle[server.name] = measured.bytes_per_connection
            except BenchmarkError as error:
                results.notes.append(f"{server.name}, memory: {error}")
    finally:
        progress.end()


def _write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plot: str | None = "latest.png"
    try:
        draw(results, folder / "latest.png")
    except ImportError:
        plot = None
        results.notes.append("There is no plot: matplotlib is not installed.")
    (folder / "latest.md").write_text(markdown(results, plot))
    print("\n".join(results.facts), end="\n\n")
    for table in tables(results):
        print(table.text(), end="\n\n")
    for note in results.notes:
        print(f"note: {note}")
    print(f"written to {folder / 'latest.md'}" + (f" and {plot}" if plot else ""))


if __name__ == "__main__":
    sys.exit(main())
