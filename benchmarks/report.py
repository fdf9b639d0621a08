"""Results as tables in plain text and Markdown, and as plots.

Belongs here: how results look. Does not belong here: measuring, what is to be reached.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import Results
from benchmarks.compare import Rates, Shape, median, median_of, ratio, ratio_of
from benchmarks.libraries import FLOOR, OURS
from benchmarks.targets import TARGETS, Bound

__all__ = ["Table", "draw", "markdown", "tables"]

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column is text and whose other columns are figures."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """The table for a terminal: columns side by side."""
        widths = [max(len(cell) for cell in column) for column in zip(self.header, *self.rows, strict=True)]
        lines = [_line(row, widths) for row in (self.header, ["-" * width for width in widths], *self.rows)]
        return "\n".join([self.title, "", *lines])

    def markdown(self) -> str:
        """The table with its title as a heading."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return "\n".join([f"## {self.title}", "", *("| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows))])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    figures = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *figures])


# Tables


def tables(results: Results) -> list[Table]:
    """The tables of a run: what is to be reached, and one or two for each part that was run."""
    shapes, tls_shapes = list(results.shapes), list(dict.fromkeys(shape for shape, _ in results.tls_rates))
    made = [
        _what_to_reach(results),
        _throughput(results, f"Messages per second (share of the {FLOOR})", results.rates, shapes),
        _times_ours(results, f"Throughput of {OURS} divided by that of another", results.rates, shapes),
        _throughput(results, "Messages per second over TLS", results.tls_rates, tls_shapes),
        _times_ours(results, f"Throughput over TLS of {OURS} divided by that of another", results.tls_rates, tls_shapes),
        _idle(results),
        _each(results, "Memory per idle TLS connection", "bytes", results.tls_idle),
        _each(results, "Memory per idle connection that was upgraded in a WSGI app", "bytes", results.wsgi_idle),
        _in_rounds(results, "Handshakes per second", "handshakes", results.handshakes),
        _in_rounds(results, "Broadcast", "microseconds until it has reached all", results.broadcasts),
        _fairness(results),
        _collected(results),
    ]
    return [table for table in made if table.rows]


def _what_to_reach(results: Results) -> Table:
    def cell(bound: Bound) -> str:
        value = bound.value(results)
        return MISSING if math.isnan(value) else bound.shown.format(value)

    rows = [
        [
            target.what,
            ", ".join(map(cell, target.bounds)),
            f"{'at least' if target.bounds[0].at_least else 'at most'} "
            + ", ".join(bound.shown.format(bound.limit) for bound in target.bounds),
            target.reached(results),
        ]
        for target in TARGETS
    ]
    return Table("What to reach", ["", "measured", "target", "reached"], rows)


def _servers(results: Results, rates: Rates) -> list[str]:
    measured = {name for _, name in rates}
    return [name for name in results.labels if name in measured]


def _throughput(results: Results, title: str, rates: Rates, shapes: Sequence[Shape]) -> Table:
    def cell(shape: Shape, name: str) -> str:
        rate, share = median(rates, shape, name), ratio(rates, shape, name, FLOOR)
        if math.isnan(rate):
            return MISSING
        return f"{rate:,.0f}" if math.isnan(share) or name == FLOOR else f"{rate:,.0f} ({share:.3f})"

    rows = [[results.label(name), *(cell(shape, name) for shape in shapes)] for name in _servers(results, rates)]
    return Table(title, ["", *map(str, shapes)], rows)


def _times_ours(results: Results, title: str, rates: Rates, shapes: Sequence[Shape]) -> Table:
    others = [name for name in _servers(results, rates) if name not in (OURS, FLOOR)]
    rows = [[results.label(name), *(_times(ratio(rates, shape, OURS, name)) for shape in shapes)] for name in others]
    return Table(title, ["", *map(str, shapes)], rows)


def _idle(results: Results) -> Table:
    numbers = sorted({number for growth in results.growth.values() for number in growth})
    header = ["bytes for each of", *(f"{number:,}" for number in numbers), "after a round of keepalive", f"divided by {OURS}"]
    ours = _last(results.growth.get(OURS, {}))
    rows = [
        [
            results.label(name),
            *(_whole(growth[number] / number if number in growth else math.nan) for number in numbers),
            _whole(results.keepalive.get(name, math.nan)),
            _times(_last(growth) / ours),
        ]
        for name, growth in results.growth.items()
    ]
    if results.parked is not None:
        missing = [MISSING] * (len(numbers) - 1)
        rows.append([f"{OURS}, parked", *missing, _whole(results.parked), MISSING, _times(results.parked / ours)])
    return Table("Memory per idle connection", header, rows)


def _last(growth: dict[int, float]) -> float:
    return growth[max(growth)] / max(growth) if growth else math.nan


def _each(results: Results, title: str, unit: str, found: dict[str, float]) -> Table:
    ours = found.get(OURS, math.nan)
    rows = [[results.label(name), _whole(value), _times(value / ours)] for name, value in found.items()]
    return Table(title, ["", unit, f"divided by those of {OURS}"], rows)


def _in_rounds(results: Results, title: str, unit: str, found: dict[str, list[float]]) -> Table:
    ours = found.get(OURS, [])
    rows = [[results.label(name), _whole(median_of(values)), _times(ratio_of(values, ours))] for name, values in found.items()]
    return Table(title, ["", unit, f"divided by those of {OURS}"], rows)


def _fairness(results: Results) -> Table:
    rows = [
        [results.label(name), _whole(median_of(quiet)), _whole(median_of(flooded)), _times(ratio_of(flooded, quiet))]
        for name, quiet in results.quiet.items()
        for flooded in (results.flooded.get(name, []),)
    ]
    header = ["99th percentile of the round trip, 99 connections", "microseconds", "with one that floods", "divided"]
    return Table("Fairness", header, rows)


def _collected(results: Results) -> Table:
    rows = [[what, f"{one.seconds * 1000:,.1f}", f"{one.objects:.1f}"] for what, one in results.collected.items()]
    return Table("A full garbage collection", ["", "milliseconds", "objects per connection"], rows)


def _whole(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:,.0f}"


def _times(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.2f}"


# The report


def markdown(results: Results, plot: str | None) -> str:
    """The whole report. `plot`: the name of the plot's file, beside the report's."""
    parts = ["# Benchmark results", "\n".join(f"- {fact}" for fact in results.facts)]
    if plot is not None:
        parts.append(f"![Throughput and memory of each server]({plot})")
    parts += [table.markdown() for table in tables(results)]
    if results.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(parts) + "\n"


# Plots


def draw(results: Results, path: Path) -> bool:
    """Draw the share of the floor's throughput for each shape, and memory against the number of connections.

    Returns:
        False if neither was measured, and nothing was drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    drawings = [drawing for drawing, data in ((_draw_throughput, results.rates), (_draw_memory, results.growth)) if data]
    if not drawings:
        return False
    # Not an import statement: type checkers run where the bench extra is not installed.
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(13, 5.5 * len(drawings)), layout="constrained")
    colours = {name: f"C{at}" for at, name in enumerate(_all_names(results))}
    for axes, drawing in zip(figure.subplots(len(drawings), 1, squeeze=False).flat, drawings, strict=True):
        drawing(axes, results, colours)
    figure.savefig(path, dpi=110)
    return True


def _all_names(results: Results) -> Iterable[str]:
    """Every name that is drawn, once: a server has the same colour in each drawing."""
    return dict.fromkeys([*(name for name in results.labels if name != FLOOR), *results.growth])


def _draw_throughput(axes: Any, results: Results, colours: dict[str, str]) -> None:
    names = [name for name in _servers(results, results.rates) if name != FLOOR]
    width = 0.85 / len(names)
    for at, name in enumerate(names):
        shares = [ratio(results.rates, shape, name, FLOOR) for shape in results.shapes]
        places = [group + (at - (len(names) - 1) / 2) * width for group in range(len(shares))]
        heights = [0.0 if math.isnan(share) else share for share in shares]
        bars = axes.bar(places, heights, width, color=colours[name], label=results.label(name))
        texts = [MISSING if math.isnan(share) else f"{share:.2f}" for share in shares]
        axes.bar_label(bars, texts, rotation=90, padding=3, fontsize=6)
    axes.set_xticks(range(len(results.shapes)), [str(shape).replace(", ", "\n") for shape in results.shapes])
    axes.set_ylabel(f"share of the {FLOOR}'s messages per second")
    axes.set_title("Echo throughput (more is better)")
    axes.margins(y=0.15)
    axes.legend(fontsize=8)


def _draw_memory(axes: Any, results: Results, colours: dict[str, str]) -> None:
    for name, growth in results.growth.items():
        numbers = [0, *sorted(growth)]
        megabytes = [growth.get(number, 0.0) / 1e6 for number in numbers]
        axes.plot(numbers, megabytes, marker="o", markersize=4, color=colours[name], label=results.label(name))
    axes.set_xlabel("idle connections")
    axes.set_ylabel("megabytes of resident memory gained")
    axes.set_title("Memory (less is better)")
    axes.legend(fontsize=8)
