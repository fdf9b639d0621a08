"""The histogram of `gws-gevent bench`: what is read back is what was recorded, to 0.8 %."""

from __future__ import annotations

import math
import random

import pytest

from gws_gevent.cli.histogram import BUCKETS, HIGHEST, Histogram, _index, _lower

ERROR = 1 / 128


def filled(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def counts(histogram: Histogram) -> list[tuple[float, float, int]]:
    return [tuple(bucket) for bucket in histogram]


def test_buckets_follow_each_other_without_gap() -> None:
    for index in range(BUCKETS):
        assert _index(_lower(index)) == index
        assert _index(_lower(index + 1) - 1) == index
    assert _lower(BUCKETS) == HIGHEST + 1


@pytest.mark.parametrize("value", [0.0, 1e-9, 127e-9, 128e-9, 255e-9, 256e-9, 1e-6, 0.000_123_456, 0.01, 0.999, 1.0, 59.9, 4000.0])
def test_a_duration_lies_in_its_bucket(value: float) -> None:
    (bucket,) = filled([value])
    assert bucket.inside == 1
    # A float holds no exact nanoseconds: one of them more or less.
    assert bucket.lower - 1e-9 <= value <= bucket.upper + 1e-9
    assert bucket.upper - bucket.lower <= max(1.01e-9, value * ERROR)


def test_what_is_out_of_bounds_counts_at_the_bounds() -> None:
    histogram = filled([-1.0, 1e9])
    assert counts(histogram) == [(0.0, 1e-9, 1), (_lower(BUCKETS - 1) / 1e9, (HIGHEST + 1) / 1e9, 1)]
    assert histogram.longest == 1e9


def test_an_empty_one_has_no_figures() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.shortest, histogram.mean, histogram.longest) == (0, 0.0, 0.0, 0.0)
    assert histogram.percentiles([50.0, 100.0]) == [0.0, 0.0]
    assert counts(histogram) == []


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_those_of_the_sorted_durations(seed: int) -> None:
    chance = random.Random(seed)
    values = sorted(chance.lognormvariate(-7, 2) for _ in range(chance.choice([1, 7, 1000])))
    histogram = filled(values)
    assert histogram.count == len(values)
    for percent in (0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0):
        exact = values[max(math.ceil(percent / 100 * len(values) - 1e-6), 1) - 1]
        assert exact - 2e-9 <= histogram.percentile(percent) <= exact * (1 + ERROR) + 2e-9
    assert histogram.percentile(100.0) == histogram.longest == values[-1]
    assert histogram.mean == pytest.approx(sum(values) / len(values), rel=ERROR)
    assert values[0] * (1 - ERROR) - 2e-9 <= histogram.shortest <= values[0]


def test_percentiles_meet_the_edges_of_counts() -> None:
    histogram = filled([0.001] * 999 + [1.0])
    assert histogram.percentile(99.9) < 0.0011
    assert histogram.percentile(99.91) == 1.0


@pytest.mark.parametrize(
    ("longest", "step", "count"),
    [(1.0, 0.001, 1000), (0.5, 0.001, 700), (0.000_003, 1e-9, 3000), (5000.0, 0.5, 9000), (2.0, 0.7, 3), (1.0, 1.0, 1), (1, 1, 0)],
)
def test_a_series_counts_as_its_members_do(longest: float, step: float, count: int) -> None:
    series = Histogram()
    series.record_series(longest, step, count)
    members = filled([longest - number * step for number in range(count)])
    assert (series.count, series.longest) == (members.count, members.longest)
    # A member on the very edge of a bucket may lie on either side of it.
    for percent in (1.0, 10.0, 50.0, 90.0, 99.0):
        assert series.percentile(percent) == pytest.approx(members.percentile(percent), rel=2 * ERROR, abs=2e-9)


def test_a_long_series_takes_no_longer_than_there_are_buckets() -> None:
    histogram = Histogram()
    histogram.record_series(1000.0, 1e-9, 10**12)
    assert histogram.count == 10**12
    assert histogram.percentile(50.0) == pytest.approx(500.0, rel=ERROR)


def test_since_is_what_came_after_the_copy() -> None:
    histogram = filled([0.001, 0.002])
    before = histogram.copy()
    histogram.record(0.003)
    recent = histogram.since(before)
    assert (recent.count, before.count, histogram.count) == (1, 2, 3)
    assert recent.percentile(50.0) == pytest.approx(0.003, rel=ERROR)
