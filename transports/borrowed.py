"""A socket object for callers, on a descriptor that a stream owns.

Belongs here: that. Does not belong here: streams.
"""

from __future__ import annotations

import gevent.socket

__all__ = ["BorrowedSocket"]


class BorrowedSocket(gevent.socket.socket):  # type: ignore[misc]
    """A gevent socket on a descriptor that a stream owns: to close it is to let go of the descriptor."""

    def close(self) -> None:
        self._closed = True
        if self.fileno() >= 0:
            self.detach()

    def __del__(self) -> None:
        self.close()
