"""What a run has and what it finds: settings, libraries, results, progress.

Belongs here: the data that the parts of a run share. Does not belong here: measuring, how results look.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.compare import SHAPES, Rates, Shape
from benchmarks.libraries import Library

__all__ = ["FULL", "QUICK", "Bench", "Collected", "Part", "Progress", "Results", "Settings"]

#: Characters of the bar.
BAR = 24


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: in which each server is measured once.
        seconds: of load in a round.
        shapes: loads of the throughput.
        connections: numbers of idle connections at which memory is looked at.
        settle: seconds that they have been idle by then.
        keepalive: seconds after which a round of keepalive is over, and `keepalive_options` of the server with which that is so.
        tls_connections, wsgi_connections, broadcast_connections, memory_connections: of those parts.
        broadcasts: of one message, in a round.
        at_once: handshakes under way.
    """

    rounds: int = 5
    seconds: float = 1.0
    shapes: tuple[Shape, ...] = tuple(SHAPES)
    connections: tuple[int, ...] = (1000, 5000, 19000)
    settle: float = 3.0
    keepalive: float = 35.0
    keepalive_options: tuple[str, ...] = ()
    tls_connections: int = 3000
    wsgi_connections: int = 10_000
    broadcast_connections: int = 10000
    memory_connections: int = 100_000
    broadcasts: int = 15
    at_once: int = 50


FULL = Settings()
QUICK = Settings(
    rounds=1,
    seconds=0.2,
    connections=(200, 400),
    settle=0.2,
    keepalive=1.6,
    keepalive_options=("ping_interval=1",),
    tls_connections=100,
    wsgi_connections=200,
    broadcast_connections=200,
    memory_connections=1000,
    broadcasts=3,
    at_once=20,
)


class Collected(NamedTuple):
    """A full garbage collection: with so many connections, how long it took, how many objects there were for each of them."""

    connections: int
    seconds: float
    objects: float


@dataclass(slots=True)
class Results:
    """What a run found out. Rates and times are lists, of one figure a round.

    Attributes:
        facts: lines about the machine, the programs and the run.
        labels: a server's name with its version, in the order in which servers are shown.
        shapes: the loads of `rates`.
        rates, tls_rates: messages per second.
        handshakes: per second, by server.
        broadcasts: microseconds until a message has reached all.
        quiet, flooded: 99th percentile of 99 connections' round trip in microseconds, without and with one more that floods.
        growth: bytes of memory, by server and number of connections.
        keepalive: bytes per connection after a round of keepalive.
        parked: bytes per connection that gave its greenlet back.
        tls_idle: bytes per idle TLS connection.
        wsgi_idle: bytes per idle connection that was upgraded in a WSGI app, and of one that was not, measured beside it.
        collected: what a full collection costs, by what was collected.
        notes: what was skipped or failed.
    """

    facts: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    shapes: tuple[Shape, ...] = ()
    rates: Rates = field(default_factory=dict)
    tls_rates: Rates = field(default_factory=dict)
    handshakes: dict[str, list[float]] = field(default_factory=dict)
    broadcasts: dict[str, list[float]] = field(default_factory=dict)
    quiet: dict[str, list[float]] = field(default_factory=dict)
    flooded: dict[str, list[float]] = field(default_factory=dict)
    growth: dict[str, dict[int, float]] = field(default_factory=dict)
    keepalive: dict[str, float] = field(default_factory=dict)
    parked: float | None = None
    tls_idle: dict[str, float] = field(default_factory=dict)
    wsgi_idle: dict[str, float] = field(default_factory=dict)
    collected: dict[str, Collected] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def label(self, name: str) -> str:
        """A server's name with its version, if it has one."""
        return self.labels.get(name, name)


class Progress:
    """A bar on a terminal, with what is being done. Says nothing where stderr is not a terminal.

    Args:
        seconds: that the whole run takes, roughly; any unit will do.
    """

    def __init__(self, seconds: float) -> None:
        self._whole = seconds
        self._before = 0.0
        self._part = 0.0
        self._steps = 1
        self._done = 0
        self._shown = sys.stderr.isatty()

    def begin(self, seconds: float, steps: int) -> None:
        """Begin a part that takes its share of the whole in so many steps."""
        self._before += self._part
        self._part, self._steps, self._done = seconds, max(steps, 1), 0

    def step(self, text: str) -> None:
        """Begin a step."""
        self.show(text)
        self._done = min(self._done + 1, self._steps)

    def show(self, text: str) -> None:
        """Say more about the step that has begun."""
        if self._shown:
            done = self.done
            bar = ("#" * round(done * BAR)).ljust(BAR, ".")
            print(f"\r\x1b[K[{bar}] {done:4.0%}  {text}", end="", file=sys.stderr, flush=True)

    @property
    def done(self) -> float:
        """The share of the run that is over."""
        return (self._before + self._part * self._done / self._steps) / self._whole

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Bench:
    """A run.

    Attributes:
        libraries: those that can be measured here.
        folder: for sockets and certificates; gone after the run.
    """

    settings: Settings
    libraries: list[Library]
    results: Results
    progress: Progress
    folder: Path

    def having(self, kind: str) -> list[Library]:
        """The libraries that have servers of a kind."""
        return [library for library in self.libraries if kind in library.kinds]

    def has(self, name: str) -> bool:
        """True if that library is to be measured."""
        return any(library.name == name for library in self.libraries)

    def library(self, name: str) -> Library:
        """The library with that name."""
        return next(library for library in self.libraries if library.name == name)


class Part(NamedTuple):
    """A part of a run.

    Attributes:
        name: for the command line.
        seconds: that it takes with the full settings, roughly.
        steps: how many `progress.step` it will take.
        run: measures, and writes into `results`.
    """

    name: str
    seconds: float
    steps: Callable[[Bench], int]
    run: Callable[[Bench], None]
