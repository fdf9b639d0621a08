"""Compare the echo throughput of WebSocket servers side by side.

python -m benchmarks.compare [--rounds 5] [--seconds 1] [--shape CONNECTIONS,SIZE,DEPTH[,text] ...] NAME=ADDRESS=COMMAND ...

Every server is started once and runs on one core; the load (wsload.c) runs on another. A round loads each server in turn, so that a
drift of the machine hits all alike. The figure to quote is the ratio to the first server named: the median of the rounds' ratios.
ADDRESS is HOST:PORT or unix:PATH, with @TARGET behind it where the echo is not at "/". A server sends binary messages back as
binary and text as text.

Belongs here: loading servers, and what the rates mean. Does not belong here: which libraries there are, tables.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.processes import BenchmarkError, Server, build, pinned, running, set_up

__all__ = ["SHAPES", "Rates", "Shape", "load", "measure", "median", "parse_server", "ratio"]

#: Seconds a load may take beyond those it was given: for its handshakes, and for a server that is slow.
LOAD_TIMEOUT = 60.0


class Shape(NamedTuple):
    """A kind of load: so many connections, each sending `depth` messages of `size` bytes at a time and waiting for their echoes."""

    connections: int
    size: int
    depth: int
    text: bool = False

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read CONNECTIONS,SIZE,DEPTH[,text]; anything else is a ValueError."""
        numbers, kind = text.split(",")[:3], text.split(",")[3:]
        if len(numbers) < 3 or kind not in ([], ["text"]) or not all(number.isdecimal() for number in numbers):
            raise ValueError(f"a shape is CONNECTIONS,SIZE,DEPTH or CONNECTIONS,SIZE,DEPTH,text, not {text!r}")
        connections, size, depth = map(int, numbers)
        return cls(connections, size, depth, bool(kind))

    def __str__(self) -> str:
        deep = f", {self.depth} deep" if self.depth > 1 else ""
        return f"{self.connections} x {self.size:,} B{deep}{', text' if self.text else ''}"


SHAPES = [Shape.parse(text) for text in ("1,64,1", "100,64,1", "100,64,16", "100,1024,1", "100,1024,1,text", "10,65000,1")]

#: Messages per second in each round, by shape and name of the server. NaN: that round failed.
Rates = dict[tuple[Shape, str], list[float]]


def load(server: Server, shape: Shape, seconds: float) -> float:
    """Load a running server for so many seconds and return the messages per second.

    Raises:
        BenchmarkError: the server refused, closed, was silent, or sent something else than the echo.
    """
    numbers = [str(number) for number in (shape.connections, shape.size, shape.depth, seconds)]
    command = [*pinned(1), build("wsload"), server.address, *numbers, server.target, *(["text"] if shape.text else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + LOAD_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"the load took longer than {error.timeout:.0f} s") from None
    if done.returncode:
        raise BenchmarkError(done.stderr.strip() or f"the load ended with status {done.returncode}")
    return float(done.stdout.split()[0])


def measure(
    servers: Sequence[Server],
    shapes: Sequence[Shape],
    rounds: int,
    seconds: float,
    step: Callable[[str], None],
    note: Callable[[str], None],
) -> Rates:
    """Load each server with each shape, round by round.

    Args:
        seconds: of load in each round.
        step: is told what comes next, before each load.
        note: is told of each server that does not start, and once for each shape that a server cannot be loaded with.
    """
    rates: Rates = {}
    with ExitStack() as stack:
        started = []
        for server in servers:
            try:
                stack.enter_context(running(server))
                started.append(server)
            except BenchmarkError as error:
                note(f"{server.name} was not measured: {error}")
        for shape in shapes:
            rates.update(((shape, server.name), []) for server in started)
            for number in range(rounds):
                # Each server comes first, second, ... in turn.
                for at in range(len(started)):
                    server = started[(number + at) % len(started)]
                    step(f"{shape}, round {number + 1} of {rounds}: {server.name}")
                    try:
                        rate = load(server, shape, seconds)
                    except BenchmarkError as error:
                        rate = math.nan
                        if not any(math.isnan(one) for one in rates[shape, server.name]):
                            note(f"{server.name}, {shape}: {error}")
                    rates[shape, server.name].append(rate)
    return rates


def median(rates: Rates, shape: Shape, name: str) -> float:
    """The median of a server's rates; NaN if it has none."""
    known = [rate for rate in rates.get((shape, name), []) if not math.isnan(rate)]
    return statistics.median(known) if known else math.nan


def ratio(rates: Rates, shape: Shape, name: str, other: str) -> float:
    """The median over the rounds of `name`'s rate divided by `other`'s in the same round; NaN if there is none."""
    pairs = zip(rates.get((shape, name), []), rates.get((shape, other), []), strict=False)
    ratios = [ours / theirs for ours, theirs in pairs if not math.isnan(ours / theirs)]
    return statistics.median(ratios) if ratios else math.nan


def parse_server(text: str) -> Server:
    """Read NAME=ADDRESS[@TARGET]=COMMAND; anything else is a ValueError."""
    name, _, rest = text.partition("=")
    address, _, command = rest.partition("=")
    address, _, target = address.partition("@")
    if not (name and address and command):
        raise ValueError(f"a server is NAME=ADDRESS=COMMAND, not {text!r}")
    return Server(name, address, tuple(shlex.split(command)), target or "/")


def main() -> int:
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--seconds", type=float, default=1.0, help="of load in each round (default: 1)")
    cli.add_argument("--shape", type=Shape.parse, action="append", metavar="CONNECTIONS,SIZE,DEPTH[,text]", help="may be repeated")
    cli.add_argument("server", type=parse_server, nargs="+", metavar="NAME=ADDRESS=COMMAND")
    args = cli.parse_args()
    set_up()
    shapes, first, notes = args.shape or SHAPES, args.server[0].name, list[str]()
    try:
        rates = measure(args.server, shapes, args.rounds, args.seconds, lambda text: None, notes.append)
    except BenchmarkError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return 130
    for shape in shapes:
        for server in args.server:
            rate, against = median(rates, shape, server.name), ratio(rates, shape, server.name, first)
            print(f"{shape!s:>24}  {server.name:<24} {rate:>11,.0f} msg/s  {against:6.3f} of {first}")
    for note in notes:
        print(note, file=sys.stderr)
    return 1 if notes else 0


if __name__ == "__main__":
    sys.exit(main())
