"""Errors of the user: what they are, and how others' errors are put into words.

Belongs here: what every subcommand needs to tell what is wrong. Does not belong here: printing it (the package does).
"""

from __future__ import annotations

import argparse

__all__ = ["UsageError", "describe", "positive_seconds"]


class UsageError(Exception):
    """The user has to change something. The text is told in one line, and the exit status is 2."""


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
