"""Results as tables in plain text and Markdown, and as a plot.

Belongs here: how results look. Does not belong here: measuring.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare import Rates, Shape, median, ratio

__all__ = ["FLOOR", "OURS", "Results", "Table", "draw", "markdown", "tables"]

#: The library all others are compared with, and the C loop that bounds them all.
OURS = "gws_gevent"
FLOOR = "C epoll loop"

MISSING = "-"


@dataclass(slots=True)
class Results:
    """What a run found out.

    Attributes:
        facts: lines about the machine, the programs and the run.
        servers: names in the order in which they are shown.
        labels: a server's name with its version.
        shapes: the loads.
        rates: messages per second.
        idle: bytes per idle connection, by server.
        notes: what was skipped or failed.
    """

    facts: list[str]
    servers: list[str]
    labels: dict[str, str]
    shapes: list[Shape]
    rates: Rates = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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


def tables(results: Results) -> list[Table]:
    """The tables of a run."""
    header = ["", *map(str, results.shapes)]
    measured = [name for name in results.servers if any((shape, name) in results.rates for shape in results.shapes)]
    others = [name for name in measured if name not in (OURS, FLOOR)]
    idle = results.idle
    return [
        Table(
            f"Messages per second (share of the {FLOOR})",
            header,
            [[results.labels[name], *(_rate(results, shape, name) for shape in results.shapes)] for name in measured],
        ),
        Table(
            f"Throughput of {OURS} divided by that of another",
            header,
            [
                [results.labels[name], *(_times(ratio(results.rates, shape, OURS, name)) for shape in results.shapes)]
                for name in others
            ],
        ),
        Table(
            "Memory per idle connection",
            ["", "bytes", f"bytes divided by those of {OURS}"],
            [
                [results.labels[name], f"{idle[name]:,.0f}", _times(idle[name] / idle[OURS] if idle.get(OURS) else math.nan)]
                for name in results.servers
                if name in idle
            ],
        ),
    ]


def _rate(results: Results, shape: Shape, name: str) -> str:
    rate, share = median(results.rates, shape, name), ratio(results.rates, shape, name, FLOOR)
    if math.isnan(rate):
        return MISSING
    return f"{rate:,.0f}" if math.isnan(share) or name == FLOOR else f"{rate:,.0f} ({share:.3f})"


def _times(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.2f}"


def markdown(results: Results, plot: str | None) -> str:
    """The whole report. `plot`: the name of the plot's file, beside the report's."""
    parts = ["# Benchmark results", "\n".join(f"- {fact}" for fact in results.facts)]
    if plot is not None:
        parts.append(f"![Throughput and memory of each server]({plot})")
    parts += [table.markdown() for table in tables(results)]
    if results.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in results.notes))
    return "\n\n".join(parts) + "\n"


def draw(results: Results, path: Path) -> None:
    """Draw the share of the floor's throughput for each shape, and the bytes per idle connection.

    Raises:
        ImportError: matplotlib is not installed.
    """
    # Not an import statement: type checkers run where the bench extra is not installed.
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(13, 5.5), layout="constrained")
    throughput, memory = figure.subplots(1, 2, width_ratios=[5, 2])
    names = [name for name in results.servers if name != FLOOR]
    _draw_throughput(throughput, results, names)
    _draw_memory(memory, results, names)
    figure.savefig(path, dpi=110)


def _draw_throughput(axes: Any, results: Results, names: Sequence[str]) -> None:
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        shares = [ratio(results.rates, shape, name, FLOOR) for shape in results.shapes]
        places = [group + (at - (len(names) - 1) / 2) * width for group in range(len(shares))]
        heights = [0.0 if math.isnan(share) else share for share in shares]
        bars = axes.bar(places, heights, width, color=f"C{at}", label=results.labels[name])
        axes.bar_label(
            bars, [MISSING if math.isnan(share) else f"{share:.2f}" for share in shares], rotation=90, padding=3, fontsize=7
        )
    axes.set_xticks(range(len(results.shapes)), [str(shape).replace(", ", "\n") for shape in results.shapes])
    axes.set_ylabel(f"share of the {FLOOR}'s messages per second")
    axes.set_title("Echo throughput (more is better)")
    axes.margins(y=0.15)
    axes.legend(fontsize=8)


def _draw_memory(axes: Any, results: Results, names: Sequence[str]) -> None:
    for at, name in enumerate(names):
        if name in results.idle:
            bars = axes.barh(results.labels[name], results.idle[name], color=f"C{at}")
            axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("bytes of resident memory")
    axes.set_title("An idle connection (less is better)")
