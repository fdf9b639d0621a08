"""Errors of the user and of the output: what they are, and how others' errors are put into words.

Belongs here: what every subcommand needs to tell what is wrong. Does not belong here: printing it (the package does).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from gws_gevent.transports.registry import known_schemes

__all__ = ["OutputError", "UsageError", "describe", "positive_seconds", "problem_of_scheme", "writing_output"]

#: Schemes that lead nowhere outside of the process.
INSIDE = frozenset({"memory"})


class UsageError(Exception):
    """The user has to change something. The text is told in one line, and the exit status is 2."""


class OutputError(Exception):
    """stdout cannot be written. The text is told in one line, and the exit status is 1."""


@contextmanager
def writing_output() -> Iterator[None]:
    """Turn errors of stdout into OutputError, except that nobody reads it any more, which needs no words."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout: {describe(error)}") from error


def problem_of_scheme(scheme: str) -> str | None:
    """Say why a transport is of no use on the command line; None if it is."""
    if scheme in INSIDE:
        return f"{scheme} stays inside of one process: it is for tests"
    known = [name for name in known_schemes() if name not in INSIDE]
    return None if scheme in known else f"no transport serves {scheme!r}; known are {', '.join(known)}"


def describe(error: BaseException) -> str:
    """Put an error into words without an errno in front."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return str(error) or type(error).__name__


def positive_seconds(text: str) -> float:
    """Read an argument as a number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds
