"""What became of a load, for people, for programs, and as a picture.

Belongs here: how figures look. Does not belong here: counting, arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib import import_module
from math import floor, log10
from typing import Any, Final

from gws_gevent import __version__
from gws_gevent.cli.histogram import Histogram
from gws_gevent.cli.load_plan import Counts, Plan
from gws_gevent.exceptions import MissingExtra
from gws_gevent.frames import Opcode
from gws_gevent.urls import without_login

__all__ = ["as_data", "as_text", "check_plotting", "draw", "progress"]

PERCENTS: Final = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 99.999)
#: Characters of the longest bar, and of the column of names.
BAR: Final = 40
NAMES: Final = 13
#: Bars of a picture for each power of ten, and seconds of the first of them.
BARS: Final = 20
SHORTEST_DRAWN: Final = 1e-6


# In a line, while it runs


def progress(plan: Plan, counts: Counts, seconds: float, interval: float, before: Counts) -> str:
    """One line about how it goes.

    Args:
        seconds: since messages are sent, or connections held.
        interval: seconds since `before`, of which `answered` and `latency` are read.
    """
    failed = sum(counts.errors.values())
    tail = f", {_count(failed, 'error')}" if failed else ""
    if counts.phase == "opening":
        return f"opening: {counts.opened:,} of {plan.connections:,}{tail}"
    if counts.phase == "draining":
        return f"waiting for the last replies{tail}"
    if counts.phase == "closing":
        return f"closing: {counts.alive:,} left{tail}"
    if plan.hold:
        return f"{seconds:.0f} s: {counts.alive:,} of {plan.connections:,} alive{tail}"
    rate = (counts.answered - before.answered) / interval
    median, slow = counts.latency.since(before.latency).percentiles([50.0, 99.0])
    return f"{seconds:.0f} s: {counts.alive:,} open, {rate:,.0f} replies/s, 50 % {duration(median)}, 99 % {duration(slow)}{tail}"


# For people


def as_text(plan: Plan, counts: Counts) -> str:
    """The result in some lines."""
    return "\n".join(_lines(plan, counts))


def _lines(plan: Plan, counts: Counts) -> Iterator[str]:
    yield _row("server", without_login(plan.url))
    yield _row("opened", _opened(plan, counts))
    if plan.hold:
        yield _row("alive", f"{counts.alive_at_end:,} of {plan.connections:,} after {counts.seconds:.1f} s{_interrupted(counts)}")
    else:
        yield from _load_lines(plan, counts)
    if not counts.errors:
        yield _row("errors", "none")
    for number, (kind, count) in enumerate(sorted(counts.errors.items(), key=lambda item: -item[1])):
        yield _row("errors" if not number else "", f"{count:,} x {kind}")


def _load_lines(plan: Plan, counts: Counts) -> Iterator[str]:
    what = {Opcode.TEXT: "text messages", Opcode.BINARY: "binary messages", Opcode.PING: "pings"}[plan.opcode]
    asked = f"{plan.rate:,.6g}/s" if plan.rate is not None else "as fast as replies come"
    took = f"{counts.seconds:.1f} s{_interrupted(counts)}"
    yield _row("load", f"{what} of {len(plan.payload):,} bytes, {asked}, depth {plan.depth:,}, {took}")
    yield _row("messages", f"{counts.sent:,} sent, {counts.answered:,} answered{_left_over(counts)}")
    rate = _rate(counts)
    yield _row("replies", f"{rate:,.0f}/s, {rate * len(plan.payload) / 1e6:,.2f} MB/s")
    if counts.lateness.count:
        percent, most = counts.lateness.percentile(99.0), counts.lateness.longest
        yield _row("lateness", f"of this program itself: 99 % below {duration(percent)}, at most {duration(most)}")
    if counts.latency.count:
        since = "it was due" if plan.rate is not None else "it was sent"
        yield _row("latency", f"of a message since {since}: mean {duration(counts.latency.mean)}")
        for name, seconds in _percentiles(counts.latency):
            yield _row("", f"{name:>8} {duration(seconds):>9}")
        yield ""
        yield from _bars(counts.latency)
        yield ""


def _opened(plan: Plan, counts: Counts) -> str:
    text = f"{counts.opened:,} of {plan.connections:,} connections in {counts.opening_took:.2f} s"
    if counts.tried < plan.connections:
        text += f" ({counts.tried:,} tried)"
    if counts.opened:
        median, slow = counts.opening.percentiles([50.0, 99.0])
        text += f"; one takes: 50 % {duration(median)}, 99 % {duration(slow)}"
    return text


def _interrupted(counts: Counts) -> str:
    return " (interrupted)" if counts.interrupted else ""


def _left_over(counts: Counts) -> str:
    text = ""
    if counts.unanswered:
        text += f", {counts.unanswered:,} not"
    if counts.unsent:
        text += f"; {counts.unsent:,} due and never sent"
    if counts.unasked:
        text += f"; {counts.unasked:,} other messages received"
    return text


def _percentiles(latency: Histogram) -> list[tuple[str, float]]:
    """Those that enough was counted for, and the longest."""
    count = latency.count
    percents = [percent for percent in PERCENTS if count * (100 - percent) >= 100 or percent == PERCENTS[0]]
    return [
        *((f"{percent:g} %", seconds) for percent, seconds in zip(percents, latency.percentiles(percents), strict=True)),
        ("longest", latency.longest),
    ]


def _bars(latency: Histogram) -> Iterator[str]:
    rows = _coarse(latency)
    count, most = latency.count, max(count for _, _, count in rows)
    for lower, upper, inside in rows:
        bar = "#" * max(round(BAR * inside / most), 1 if inside else 0)
        yield f"{duration(lower):>9} - {duration(upper):<9}{bar:<{BAR}} {inside:>11,} {100 * inside / count:6.2f} %"


def _coarse(latency: Histogram) -> list[tuple[float, float, int]]:
    """Rows from 1, 2, 5, 10, ... to the next, from the first that is not empty to the last."""
    rows: dict[int, int] = {}
    for bucket in latency:
        row = _edge_below(bucket.lower)
        rows[row] = rows.get(row, 0) + bucket.inside
    return [(_edge(row), _edge(row + 1), rows.get(row, 0)) for row in range(min(rows), max(rows) + 1)]


def _edge(row: int) -> float:
    """The edges 1, 2, 5, 10, 20, ... microseconds by number; 0 below them."""
    return (1, 2, 5)[row % 3] * 10.0 ** (row // 3) / 1e6 if row >= 0 else 0.0


def _edge_below(seconds: float) -> int:
    row = -1
    while _edge(row + 1) <= seconds * (1 + 1e-9):
        row += 1
    return row


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds < 0.000_999_5:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 0.999_5:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _row(name: str, text: str) -> str:
    return f"{name:<{NAMES}}{text}"


def _rate(counts: Counts) -> float:
    return counts.answered_in_time / counts.seconds if counts.seconds else 0.0


# For programs


def as_data(plan: Plan, counts: Counts) -> dict[str, Any]:
    """The result for JSON: times in seconds, all else in numbers."""
    data: dict[str, Any] = {
        "program": f"gws_gevent {__version__}",
        "url": without_login(plan.url),
        "mode": "hold" if plan.hold else "load",
        "interrupted": counts.interrupted,
        "seconds": round(counts.seconds, 6),
        "connections": {
            "asked": plan.connections,
            "tried": counts.tried,
            "opened": counts.opened,
            "alive_at_end": counts.alive_at_end,
            "ramp": plan.ramp,
            "opening_took": round(counts.opening_took, 6),
            "opening": _histogram_data(counts.opening),
        },
        "errors": dict(counts.errors),
        "other_messages": counts.unasked,
    }
    if not plan.hold:
        data["messages"] = {
            "kind": plan.opcode.name.lower(),
            "size": len(plan.payload),
            "depth": plan.depth,
            "rate": plan.rate,
            "sent": counts.sent,
            "answered": counts.answered,
            "unanswered": counts.unanswered,
            "never_sent": counts.unsent,
            "replies_per_second": round(_rate(counts), 3),
        }
        data["latency"] = {"since": "due" if plan.rate is not None else "sent", **_histogram_data(counts.latency)}
        data["lateness"] = _histogram_data(counts.lateness)
    return data


def _histogram_data(histogram: Histogram) -> dict[str, Any]:
    seconds = histogram.percentiles(list(PERCENTS))
    return {
        "count": histogram.count,
        "shortest": histogram.shortest,
        "mean": round(histogram.mean, 9),
        "longest": round(histogram.longest, 9),
        "percentiles": {f"{percent:g}": value for percent, value in zip(PERCENTS, seconds, strict=True)},
        "histogram": [list(bucket) for bucket in histogram],
    }


# As a picture


def check_plotting(suffix: str) -> None:
    """Find out before the run whether `draw` will work.

    Args:
        suffix: of the picture's file, without the dot.

    Raises:
        MissingExtra: matplotlib is not installed.
        ValueError: matplotlib does not write such files.
    """
    known = sorted(_new_figure().canvas.get_supported_filetypes())
    if suffix.lower() not in known:
        raise ValueError(f"the file's name must end in one of .{' .'.join(known)}")


def draw(plan: Plan, counts: Counts, path: str) -> None:
    """Draw the latencies: how many of each, and the percentiles.

    Raises:
        OSError: the file cannot be written.
    """
    histogram = counts.latency if not plan.hold else counts.opening
    since = "due" if plan.rate is not None else "sent"
    what, of = ("opening handshake", "connections") if plan.hold else (f"latency since a message was {since}", "messages")
    figure = _new_figure()
    rate = "" if plan.hold else f", {_rate(counts):,.0f} replies/s"
    figure.suptitle(f"{without_login(plan.url)}: {counts.opened:,} connections{rate}", parse_math=False)
    left, right = figure.subplots(1, 2)
    if histogram.count:
        _draw_counts(left, histogram)
        _draw_percentiles(right, histogram)
    left.set(xlabel=f"{what}, ms", ylabel=of)
    right.set(xlabel="percentile", ylabel=f"{what}, ms")
    figure.savefig(path, dpi=150)


def _new_figure() -> Any:
    # Where it keeps its caches, and that it makes them anew, is nothing to whoever wants a plot.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        return import_module("matplotlib.figure").Figure(figsize=(13, 5), layout="constrained")
    except ImportError as error:
        raise MissingExtra("--plot", "plot") from error


def _draw_counts(axes: Any, histogram: Histogram) -> None:
    bars: dict[int, int] = {}
    for bucket in histogram:
        bar = floor(log10(max(bucket.lower, SHORTEST_DRAWN)) * BARS)
        bars[bar] = bars.get(bar, 0) + bucket.inside
    edges = [10 ** (bar / BARS) * 1e3 for bar in bars]
    axes.bar(edges, bars.values(), [edge * (10 ** (1 / BARS) - 1) for edge in edges], align="edge")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def _draw_percentiles(axes: Any, histogram: Histogram) -> None:
    points = _curve(histogram)
    axes.plot([1 / (1 - share) for share, _ in points], [seconds * 1e3 for _, seconds in points])
    names = ["0", "90", "99", "99.9", "99.99", "99.999", "99.9999"]
    used = [name for name in names if 1 / (1 - float(name) / 100) <= 10 / (1 - points[-1][0])]
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - float(name) / 100) for name in used], used)
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(True)


def _curve(histogram: Histogram) -> Sequence[tuple[float, float]]:
    """Shares below 1, and the seconds that so many do not exceed."""
    count, below = histogram.count, 0
    points = []
    for bucket in histogram:
        points.append((below / count, min(bucket.upper, histogram.longest)))
        below += bucket.inside
    return points
