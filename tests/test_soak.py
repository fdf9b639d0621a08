"""The soak (soak.py), short and long."""

from __future__ import annotations

import sys

import pytest

from tests.support import run_program


def check(minutes: float, seed: int) -> None:
    ended = run_program(
        [sys.executable, "tests/soak.py", "--minutes", str(minutes), "--seed", str(seed)], timeout=minutes * 60 + 60
    )
    assert ended.errors == ""
    assert ended.status == 0, ended.output
    assert ended.output.endswith("nothing lost, nothing doubled, nothing left\n")


@pytest.mark.slow
def test_twenty_seconds_of_everything_at_once() -> None:
    check(1 / 3, 1)


@pytest.mark.soak
def test_ten_minutes_of_everything_at_once() -> None:
    check(10, 2)
