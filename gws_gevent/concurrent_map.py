"""A map for several threads, with the methods that those who come from gws know.

Belongs here: the map. Does not belong here: connections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, overload

from gws_gevent.runtime import allocate_lock

__all__ = ["ConcurrentMap"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")


class ConcurrentMap(Generic[K, V]):
    """A dict in several parts, each with a lock of its own. Every method is safe in any greenlet, the hub and any thread.

    Within one thread a plain dict does: greenlets switch only where they block.

    Args:
        shards: the number of parts.

    Raises:
        ValueError: fewer than one part.
    """

    __slots__ = ("_shards",)

    def __init__(self, shards: int = 16) -> None:
        if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
            raise ValueError(f"shards: must be a whole number of at least 1, not {shards!r}")
        self._shards: list[_Shard[K, V]] = [_Shard() for _ in range(shards)]

    def __len__(self) -> int:
        """How many keys there are; while other threads write, how many there were in each part when it was looked at."""
        return sum(len(shard.items) for shard in self._shards)

    def len(self) -> int:
        """As `len(map)`."""
        return len(self)

    def __contains__(self, key: K) -> bool:
        return key in self._shard(key).items

    @overload
    def load(self, key: K) -> V | None: ...

    @overload
    def load(self, key: K, default: D) -> V | D: ...

    def load(self, key: K, default: D | None = None) -> V | D | None:
        """Return the value of a key, or `default`."""
        shard = self._shard(key)
        with shard.lock:
            return shard.items.get(key, default)

    def store(self, key: K, value: V) -> None:
        """Set the value of a key."""
        shard = self._shard(key)
        with shard.lock:
            shard.items[key] = value

    def delete(self, key: K) -> bool:
        """Remove a key; False if it was not there."""
        shard = self._shard(key)
        with shard.lock:
            if key not in shard.items:
                return False
            del shard.items[key]
            return True

    def range(self, function: Callable[[K, V], object]) -> None:
        """Call `function(key, value)` for each key until it returns False.

        It may block, and change the map: no lock is held. What changes meanwhile may be seen or not.
        """
        for shard in self._shards:
            with shard.lock:
                items = list(shard.items.items())
            for key, value in items:
                if function(key, value) is False:
                    return

    def _shard(self, key: K) -> _Shard[K, V]:
        return self._shards[hash(key) % len(self._shards)]


class _Shard(Generic[K, V]):
    """One part."""

    __slots__ = ("items", "lock")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.items: dict[K, V] = {}
