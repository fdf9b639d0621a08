"""A message that is being written in fragments, and what waits behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent.event import Event
from greenlet import getcurrent

if TYPE_CHECKING:
    from gws_gevent.extensions.deflate import Deflation

__all__ = ["StreamedMessage"]


class StreamedMessage:
    """Fragments of two messages may not interleave (RFC 6455 section 5.4): other messages wait for `done`.

    Attributes:
        greenlet: the one that writes the fragments.
        unfinished: a fragment has been queued, and not yet the last one.
        deflation: what compresses the fragments, or None.
        behind: opcode, payload and callback of each message that could not wait.
    """

    __slots__ = ("behind", "deflation", "done", "greenlet", "unfinished")

    def __init__(self) -> None:
        self.greenlet = getcurrent()
        self.done = Event()
        self.unfinished = False
        self.deflation: Deflation | None = None
        self.behind: list[tuple[int, bytes, Callable[[Exception | None], object] | None]] = []

    def size_behind(self) -> int:
        """Bytes that wait."""
        return sum(len(payload) for _, payload, _ in self.behind)
