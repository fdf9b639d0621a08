"""What is to be reached, and whether a run did.

Belongs here: the targets, and how each follows from the results. Does not belong here: measuring, how tables look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.bench import Results
from benchmarks.compare import Shape, ratio, ratio_of
from benchmarks.libraries import FLOOR, GO, OURS, PLAIN
from benchmarks.memory import BARE, IN_APPS, UNIX

__all__ = ["TARGETS", "Bound", "Target", "linearity"]

#: The share of the C loop's throughput that gws 1.9 had on one core of a quiet machine: for where it cannot be run.
GWS_SHARES = {(100, 64, 1): 0.73, (100, 64, 16): 0.08, (100, 1024, 1): 0.71, (10, 65000, 1): 0.70}


class Bound(NamedTuple):
    """A figure and its limit.

    Attributes:
        shown: how it is written, with {} for the figure, and the same for its limit.
        limit: the figure may be this.
        value: reads it from results; NaN if it was not measured.
        at_least: the limit is the least; otherwise the most.
    """

    shown: str
    limit: float
    value: Callable[[Results], float]
    at_least: bool = True

    def reached(self, results: Results) -> bool | None:
        """Whether it is; None if it was not measured."""
        value = self.value(results)
        if math.isnan(value):
            return None
        return value >= self.limit if self.at_least else value <= self.limit


class Target(NamedTuple):
    """A row of the table: a measurement and its bounds."""

    what: str
    bounds: Sequence[Bound]

    def reached(self, results: Results) -> str:
        """ "yes", "no", or "-" if nothing of it was measured and all else is within its bounds."""
        found = [bound.reached(results) for bound in self.bounds]
        return "no" if False in found else "-" if None in found else "yes"


# Memory


def _keepalive(name: str) -> Callable[[Results], float]:
    return lambda results: results.keepalive.get(name, math.nan)


def linearity(growth: dict[int, float]) -> float:
    """What a connection between the two largest numbers costs, divided by what one between the two before costs.

    The first connections do not count: part of what they need is memory that the process has already. NaN with fewer than three
    numbers.
    """
    points = sorted(growth)
    if len(points) < 3:
        return math.nan
    before, less, most = points[-3:]
    slope = (growth[less] - growth[before]) / (less - before)
    return (growth[most] - growth[less]) / (most - less) / slope if slope > 0 else math.nan


def _linearity_of_ours(results: Results) -> float:
    return linearity(results.growth.get(OURS, {}))


def _parked(results: Results) -> float:
    return math.nan if results.parked is None else results.parked


def _above_bare(results: Results) -> float:
    return results.tls_idle.get(OURS, math.nan) - results.tls_idle.get(BARE, math.nan)


def _upgraded_in(kind: str) -> Callable[[Results], float]:
    return lambda results: results.wsgi_idle.get(IN_APPS[kind], math.nan) / results.wsgi_idle.get(OURS, math.nan)


# Time


def _rate(shape: Shape, ours: str, other: str) -> Callable[[Results], float]:
    return lambda results: ratio(results.rates, shape, ours, other)


def _against_gws(shape: Shape) -> Callable[[Results], float]:
    def value(results: Results) -> float:
        measured = ratio(results.rates, shape, OURS, GO)
        share = GWS_SHARES.get((shape.connections, shape.size, shape.depth), math.nan)
        return ratio(results.rates, shape, OURS, FLOOR) / share if math.isnan(measured) else measured

    return value


def _handshakes(results: Results) -> float:
    return ratio_of(results.handshakes.get(OURS, []), results.handshakes.get("picows", []))


def _broadcast(results: Results) -> float:
    return ratio_of(results.broadcasts.get(OURS, []), results.broadcasts.get(FLOOR, []))


def _fairness(results: Results) -> float:
    return ratio_of(results.flooded.get(OURS, []), results.quiet.get(OURS, []))


def _at_most(limit: float, what: str, shown: str, value: Callable[[Results], float]) -> Target:
    return Target(what, [Bound(shown, limit, value, at_least=False)])


def _throughput_of(text: str, floor: float, picows: float | None = None, gws: float | None = None) -> list[Target]:
    """The same bounds for binary messages and for text."""
    targets = []
    for shape in (Shape.parse(text), Shape.parse(f"{text},text")):
        bounds = [Bound("{:.2f} of the floor", floor, _rate(shape, OURS, FLOOR))]
        if picows is not None:
            bounds.append(Bound("{:.2f} x picows", picows, _rate(shape, OURS, "picows")))
        if gws is not None:
            bounds.append(Bound("{:.2f} x gws", gws, _against_gws(shape)))
        targets.append(Target(str(shape), bounds))
    return targets


def _plain(text: str, limit: float) -> Target:
    shape = Shape.parse(text)
    return Target(f"plain Python, {shape}", [Bound("{:.2f} x gevent-websocket", limit, _rate(shape, PLAIN, "gevent-websocket"))])


TARGETS = [
    _at_most(2300, "idle connection over TCP, after a round of keepalive", "{:,.0f} bytes", _keepalive(OURS)),
    _at_most(2300, "idle connection over a Unix socket, after a round of keepalive", "{:,.0f} bytes", _keepalive(UNIX)),
    _at_most(1.05, "growth: a connection beyond 5,000, divided by one between 1,000 and 5,000", "{:.2f}", _linearity_of_ours),
    _at_most(700, "idle connection that gave its greenlet back", "{:,.0f} bytes", _parked),
    _at_most(2300, "idle TLS connection, above a bare SSLObject", "{:,.0f} bytes", _above_bare),
    _at_most(1.05, "idle connection that was upgraded in a WSGI app", "{:.2f} x a direct one", _upgraded_in("wsgi")),
    _at_most(1.05, "idle connection that was upgraded in Flask", "{:.2f} x a direct one", _upgraded_in("flask")),
    *_throughput_of("1,64,1", 0.95),
    *_throughput_of("100,64,1", 0.80, 1.15, 1.05),
    *_throughput_of("100,1024,1", 0.80, 1.15, 1.05),
    *_throughput_of("100,64,16", 0.60, 8, 6),
    *_throughput_of("10,65000,1", 0.85, 2, 1.2),
    Target("handshakes per second", [Bound("{:.2f} x picows", 2, _handshakes)]),
    _plain("1,64,1", 0.95),
    _plain("100,64,1", 1.2),
    _plain("100,1024,1", 1.2),
    _plain("10,65000,1", 1.2),
    _at_most(1.3, "time of a broadcast, 1,024 B", "{:.2f} x a C loop", _broadcast),
    _at_most(2, "p99 of 99 connections beside a flood", "{:.2f} x without", _fairness),
]
