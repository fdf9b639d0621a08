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
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from benchmarks.processes import LOAD_TIMEOUT, BenchmarkError, Server, build, run_load, running, set_up

__all__ = [
    "SHAPES",
    "Load",
    "Rates",
    "Shape",
    "load",
    "measure",
    "median",
    "median_of",
    "parse_server",
    "ratio",
    "ratio_of",
    "start_all",
    "take_turns",
]


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


_SIZES = ("1,64,1", "100,64,1", "100,64,16", "100,1024,1", "10,65000,1")
SHAPES = [Shape.parse(size + kind) for size in _SIZES for kind in ("", ",text")]


class Load(NamedTuple):
    """What a load found: messages per second, the median and the 99th percentile of a round in microseconds."""

    rate: float
    p50: float
    p99: float


#: Messages per second in each round, by shape and name of the server. NaN: that round failed.
Rates = dict[tuple[Shape, str], list[float]]


def load(server: Server, shape: Shape, seconds: float, flood: bool = False) -> Load:
    """Load a running server for so many seconds.

    Args:
        flood: one more connection sends without waiting for echoes.

    Raises:
        BenchmarkError: the server refused, closed, was silent, or sent something else than the echo.
    """
    numbers = (shape.connections, shape.size, shape.depth, seconds)
    kinds = [word for word, wanted in (("text", shape.text), ("flood", flood)) if wanted]
    program = build("wsload", tls=server.tls)
    said = run_load(program, server.address, *numbers, server.target, *kinds, timeout=seconds + LOAD_TIMEOUT).split()
    return Load(float(said[0]), float(said[said.index("p50") + 1]), float(said[said.index("p99") + 1]))


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
    with start_all(servers, note) as started:
        for shape in shapes:
            rates.update(_measure_shape(started, shape, rounds, seconds, step, note))
    return rates


def _measure_shape(
    servers: Sequence[Server],
    shape: Shape,
    rounds: int,
    seconds: float,
    step: Callable[[str], None],
    note: Callable[[str], None],
) -> Rates:
    found = take_turns(servers, rounds, lambda server: load(server, shape, seconds).rate, str(shape), step, note)
    return {(shape, name): values for name, values in found.items()}


@contextmanager
def start_all(servers: Sequence[Server], note: Callable[[str], None]) -> Iterator[list[Server]]:
    """Run all servers that start until the end of the block; `note` is told of each that does not."""
    with ExitStack() as stack:
        started = []
        for server in servers:
            try:
                stack.enter_context(running(server))
                started.append(server)
            except BenchmarkError as error:
                note(f"{server.name} was not measured: {error}")
        yield started


def take_turns(
    servers: Sequence[Server],
    rounds: int,
    measure_one: Callable[[Server], float],
    what: str,
    step: Callable[[str], None],
    note: Callable[[str], None],
) -> dict[str, list[float]]:
    """Measure each running server once in each round, and return the figures by name. NaN: that round failed.

    Each server comes first, second, ... in turn, so that a drift of the machine hits all alike.
    """
    found: dict[str, list[float]] = {server.name: [] for server in servers}
    for number in range(rounds):
        for at in range(len(servers)):
            server = servers[(number + at) % len(servers)]
            step(f"{what}, round {number + 1} of {rounds}: {server.name}")
            try:
                figure = measure_one(server)
            except BenchmarkError as error:
                figure = math.nan
                if not any(math.isnan(one) for one in found[server.name]):
                    note(f"{server.name}, {what}: {error}")
            found[server.name].append(figure)
    return found


def median_of(values: Sequence[float]) -> float:
    """The median of those values that are known; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def ratio_of(values: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of a value divided by the other's of the same round; NaN if there is none."""
    return median_of([ours / theirs for ours, theirs in zip(values, others, strict=False)])


def median(rates: Rates, shape: Shape, name: str) -> float:
    """The median of a server's rates; NaN if it has none."""
    return median_of(rates.get((shape, name), []))


def ratio(rates: Rates, shape: Shape, name: str, other: str) -> float:
    """`ratio_of` two servers with the same shape."""
    return ratio_of(rates.get((shape, name), []), rates.get((shape, other), []))


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
