"""At the end of the process: CONNECTION_CLOSE to every peer, as the kernel would do for TCP.

Belongs here: that. Without it a peer would learn of the end by its idle timeout.
"""

from __future__ import annotations

import atexit
import os
import time
from typing import Protocol
from weakref import WeakSet

__all__ = ["say_goodbye_at_exit"]


class _Polite(Protocol):
    def say_goodbye(self, now: float) -> None: ...


_polite: WeakSet[_Polite] = WeakSet()
_pid = os.getpid()


def say_goodbye_at_exit(owner: _Polite) -> None:
    """Have `owner.say_goodbye(now)` called when the process ends, if the owner lives until then."""
    global _pid
    if not _polite or _pid != os.getpid():
        _polite.clear()  # those of a parent are not ours
        _pid = os.getpid()
    _polite.add(owner)


@atexit.register
def _goodbye() -> None:
    if _pid == os.getpid():
        for owner in list(_polite):
            owner.say_goodbye(time.monotonic())
