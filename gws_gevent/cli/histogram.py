"""A histogram of durations in bounded memory.

Belongs here: counting durations, and what can be asked of the counts. Does not belong here: what is timed, how it is shown.

Buckets are linear inside of each power of two, as in HdrHistogram: what is read back is at most 0.8 % above what was recorded,
whatever its size, and there are 4,608 of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from math import ceil
from operator import sub
from typing import Final, NamedTuple

__all__ = ["Bucket", "Histogram"]

#: Each power of two is divided into 2 ** PRECISION buckets.
PRECISION: Final = 7
#: Nanoseconds of the longest duration that is told apart (73 minutes); longer ones count as this.
HIGHEST: Final = 2**42 - 1
BUCKETS: Final = (HIGHEST.bit_length() - PRECISION + 1) << PRECISION

_NANOSECONDS = 1e9
_HALF = 1 << PRECISION


class Bucket(NamedTuple):
    """How many durations lay from `lower` up to, not including, `upper` seconds."""

    lower: float
    upper: float
    inside: int


class Histogram:
    """Counts durations.

    Attributes:
        longest: seconds of the longest one, exactly.
    """

    __slots__ = ("_counts", "longest")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.longest = 0.0

    def record(self, seconds: float) -> None:
        """Count a duration; a negative one counts as 0."""
        value = int(seconds * _NANOSECONDS)
        if not 0 <= value <= HIGHEST:
            value = 0 if value < 0 else HIGHEST
        shift = value.bit_length() - PRECISION - 1
        self._counts[value if shift <= 0 else (shift << PRECISION) + (value >> shift)] += 1
        if seconds > self.longest:
            self.longest = seconds

    def record_series(self, longest: float, step: float, count: int) -> None:
        """Count `count` durations: `longest`, `longest - step`, `longest - 2 * step` and so on, by buckets and not one by one.

        Args:
            step: seconds, above 0.
        """
        self.longest = max(self.longest, longest) if count else self.longest
        value, width = longest * _NANOSECONDS, step * _NANOSECONDS
        while count > 0:
            index = _index(min(max(int(value), 0), HIGHEST))
            inside = count if index == 0 else min(count, int((value - _lower(index)) / width) + 1)
            self._counts[index] += inside
            value -= inside * width
            count -= inside

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self._counts)

    @property
    def shortest(self) -> float:
        """Seconds of the shortest one, rounded down to its bucket; 0 if there is none."""
        return next((bucket.lower for bucket in self), 0.0)

    @property
    def mean(self) -> float:
        """Seconds on average, as if each lay in the middle of its bucket; 0 if there is none."""
        count = self.count
        return sum((bucket.lower + bucket.upper) / 2 * bucket.inside for bucket in self) / count if count else 0.0

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of a hundred durations do not exceed, rounded up to the bucket; 0 if there is none."""
        return self.percentiles([percent])[0]

    def percentiles(self, percents: list[float]) -> list[float]:
        """`percentile` of each; in one pass."""
        running = list(accumulate(self._counts))
        count = running[-1]
        return [self._at(running, max(ceil(percent / 100 * count - 1e-6), 1)) if count else 0.0 for percent in percents]

    def _at(self, running: list[int], rank: int) -> float:
        return min((_lower(bisect_left(running, rank) + 1) - 1) / _NANOSECONDS, self.longest)

    def __iter__(self) -> Iterator[Bucket]:
        """The buckets that are not empty, from the shortest durations to the longest."""
        for index, count in enumerate(self._counts):
            if count:
                yield Bucket(_lower(index) / _NANOSECONDS, _lower(index + 1) / _NANOSECONDS, count)

    def copy(self) -> Histogram:
        """One that does not change with this one."""
        twin = Histogram()
        twin._counts[:] = self._counts
        twin.longest = self.longest
        return twin

    def since(self, earlier: Histogram) -> Histogram:
        """What was recorded since `earlier`, a copy of this one, was made. Its `longest` is that of all."""
        recent = self.copy()
        recent._counts[:] = map(sub, self._counts, earlier._counts)
        return recent


def _index(value: int) -> int:
    shift = value.bit_length() - PRECISION - 1
    return value if shift <= 0 else (shift << PRECISION) + (value >> shift)


def _lower(index: int) -> int:
    """The least number of nanoseconds that counts in a bucket."""
    shift = (index >> PRECISION) - 1
    return index if shift <= 0 else ((index & (_HALF - 1)) + _HALF) << shift
