"""Measure gws_gevent beside other WebSocket servers and write the results: what `make bench` runs.

Belongs here: the command line, facts about the machine, the order of the parts. Does not belong here: measuring, tables.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import compare, memory, speed
from benchmarks.bench import FULL, QUICK, Bench, Part, Progress, Results, Settings
from benchmarks.idle import WARM_UP
from benchmarks.libraries import FLOOR, LIBRARIES, OURS, label_of, why_not
from benchmarks.processes import HERE, ROOT, BenchmarkError, pinned, set_up
from benchmarks.report import draw, markdown, tables

__all__ = ["PARTS", "main"]

#: Above this load average a machine is too busy for figures that can be quoted.
BUSY = 0.5

PARTS = [*speed.PARTS, *memory.PARTS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 if something could not be measured at all."""
    args = _parse(arguments)
    settings = _settings(args, set_up() - WARM_UP)
    parts = [part for part in PARTS if not args.only or part.name in args.only]
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            bench = _prepare(args, settings, parts, Path(folder))
            _measure(bench, parts)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        return 130
    _write(bench.results, args.output)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    about = "Measure gws_gevent beside other WebSocket servers."
    cli = argparse.ArgumentParser(prog="python -m benchmarks.run", description=about)
    cli.add_argument("--quick", action="store_true", help="very little of everything: shows that it works, not how fast")
    cli.add_argument("--only", type=_names, action="extend", metavar="PART[,PART...]", help=", ".join(part.name for part in PARTS))
    others = [library.name for library in LIBRARIES if library.name != OURS]
    beside = "only this one beside gws_gevent; may be repeated"
    cli.add_argument("--library", action="append", choices=others, metavar="NAME", help=f"{beside}: {', '.join(others)}")
    cli.add_argument("--rounds", type=_above_zero(int), metavar="N", help=f"in which each server is measured ({FULL.rounds})")
    cli.add_argument("--seconds", type=_above_zero(float), metavar="S", help=f"of load in a round ({FULL.seconds:g})")
    shape = "CONNECTIONS,SIZE,DEPTH[,text]"
    cli.add_argument("--shape", type=compare.Shape.parse, action="append", metavar=shape, help="of throughput; may be repeated")
    numbers = ",".join(map(str, FULL.connections))
    cli.add_argument("--connections", type=_numbers, metavar="N[,N...]", help=f"idle, when memory is looked at ({numbers})")
    cli.add_argument("--settle", type=_above_zero(float), metavar="S", help=f"seconds they are idle before ({FULL.settle:g})")
    where = "of latest.md and latest.png (default: benchmarks/results)"
    cli.add_argument("--output", type=Path, default=HERE / "results", metavar="FOLDER", help=where)
    args = cli.parse_args(arguments)
    return args


def _names(text: str) -> list[str]:
    names = text.split(",")
    known = [part.name for part in PARTS]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no {name!r}; there are {', '.join(known)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(_above_zero(int)(number) for number in text.split(",")))


def _above_zero(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError("must be more than 0")
        return value

    parse.__name__ = kind.__name__
    return parse


def _settings(args: argparse.Namespace, most: int) -> Settings:
    """The settings that the command line asks for. Numbers of connections end at what the limit of open files allows."""
    chosen = QUICK if args.quick else FULL
    named = ("rounds", "seconds", "connections", "settle")
    given = {name: getattr(args, name) for name in named if getattr(args, name) is not None}
    if args.shape:
        given["shapes"] = tuple(args.shape)
    chosen = replace(chosen, **given)
    fewer = {name: min(getattr(chosen, name), most) for name in ("tls_connections", "broadcast_connections")}
    return replace(chosen, connections=tuple(sorted({min(number, most) for number in chosen.connections})), **fewer)


def _prepare(args: argparse.Namespace, settings: Settings, parts: Sequence[Part], folder: Path) -> Bench:
    results = Results(_facts(settings), shapes=settings.shapes)
    if (busy := os.getloadavg()[0]) > BUSY:
        results.notes.append(f"The machine was busy before the run (load average {busy:.1f}): do not quote these figures.")
    if args.quick:
        results.notes.append("A quick run: it shows that the benchmark works, not how fast anything is.")
    libraries = []
    for library in LIBRARIES:
        if args.library and library.name not in (OURS, *args.library):
            continue
        if (reason := why_not(library)) is not None:
            results.notes.append(f"{library.name} was skipped: {reason}.")
            continue
        libraries.append(library)
        results.labels[library.name] = label_of(library)
    results.labels[FLOOR] = FLOOR
    return Bench(settings, libraries, results, Progress(sum(part.seconds for part in parts)), folder)


def _facts(s: Settings) -> list[str]:
    pins = "each server on one core, the load on another" if pinned(0) else "nothing pinned to a core"
    return [
        f"{date.today():%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores, Linux {'.'.join(platform.release().split('.')[:2])}",
        f"{platform.python_implementation()} {platform.python_version()}, gevent {importlib.metadata.version('gevent')}{_commit()}",
        f"Medians of {s.rounds} x {s.seconds:g} s, {pins}; handshakes {s.at_once} at a time",
        f"Memory {s.settle:g} s after the last of {', '.join(f'{n:,}' for n in s.connections)} connections"
        f" ({s.tls_connections:,} with TLS); broadcast to {s.broadcast_connections:,}",
    ]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return f", commit {done.stdout.strip()}" if not done.returncode else ""


def _measure(bench: Bench, parts: Sequence[Part]) -> None:
    try:
        for part in parts:
            bench.progress.begin(part.seconds, part.steps(bench))
            part.run(bench)
    finally:
        bench.progress.end()


def _write(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "latest.png"
    plot.unlink(missing_ok=True)
    try:
        drawn = draw(results, plot)
    except ImportError:
        drawn = False
        results.notes.append("There is no plot: matplotlib is not installed.")
    (folder / "latest.md").write_text(markdown(results, plot.name if drawn else None))
    print("\n".join(results.facts), end="\n\n")
    for table in tables(results):
        print(table.text(), end="\n\n")
    for note in results.notes:
        print(f"note: {note}")
    print(f"written to {folder / 'latest.md'}" + (f" and {plot.name}" if drawn else ""))


if __name__ == "__main__":
    sys.exit(main())
