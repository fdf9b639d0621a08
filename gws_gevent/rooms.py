"""Rooms: named groups of connections, each of which hears what is said in it.

Belongs here: who is in which room. Does not belong here: how a message reaches them (broadcast.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gevent.event import Event

from gws_gevent.broadcast import Broadcaster, ConnectionCallback, Run
from gws_gevent.exceptions import ConnectionClosed
from gws_gevent.runtime import allocate_lock, get_ident, may_wait

if TYPE_CHECKING:
    from gws_gevent.connection import Connection

__all__ = ["Rooms"]


class _Room:
    """One room.

    Attributes:
        members: a dict used as a set, in the order in which they came.
        speakers: the greenlets of `thread` that broadcast: the first does, the others wait for their event, so that all members
            hear the same order, and nobody speaks twice while somebody waits.
    """

    __slots__ = ("members", "speakers", "thread")

    def __init__(self) -> None:
        self.members: dict[Connection, None] = {}
        self.speakers: deque[Event] = deque()
        self.thread = get_ident()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for this greenlet's turn; the next one's begins when the block ends."""
        mine = Event()
        self.speakers.append(mine)
        try:
            if self.speakers[0] is not mine:
                mine.wait()
            yield
        finally:
            was_first = self.speakers[0] is mine
            self.speakers.remove(mine)
            if was_first and self.speakers:
                self.speakers[0].set()


class Rooms:
    """Which connections are in which rooms. Safe across threads.

    A room is any hashable value: it comes into being with its first member and is gone with its last. A connection leaves all its
    rooms when it has closed, once its `on_close` has been called; a connection in no room costs nothing here.
    """

    __slots__ = ("_lock", "_rooms", "_rooms_of")

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._rooms: dict[Hashable, _Room] = {}
        self._rooms_of: dict[Connection, dict[Hashable, None]] = {}

    def join(self, room: Hashable, conn: Connection) -> bool:
        """Let a connection in; False if it was there already.

        Raises:
            ConnectionClosed: the connection has closed.
            TypeError: something else than a connection.
        """
        if not hasattr(conn, "add_close_callback"):
            raise TypeError(f"a connection joins a room as join(room, conn), and {conn!r} is none")
        if conn.closed and conn.close_info is not None:
            raise ConnectionClosed(conn.close_info)
        with self._lock:
            joined = self._rooms_of.setdefault(conn, {})
            if room in joined:
                return False
            first = not joined
            joined[room] = None
            if room not in self._rooms:
                self._rooms[room] = _Room()
            self._rooms[room].members[conn] = None
            if not first:
                return True
            try:
                conn.add_close_callback(self._drop)
            except ConnectionClosed:
                self._leave_all(conn)
                raise
            return True

    def leave(self, room: Hashable, conn: Connection) -> bool:
        """Let a connection out; False if it was not there."""
        with self._lock:
            joined = self._rooms_of.get(conn)
            if joined is None or room not in joined:
                return False
            self._leave(room, conn, joined)
            if not joined:
                del self._rooms_of[conn]
                conn.remove_close_callback(self._drop)
            return True

    def leave_all(self, conn: Connection) -> list[Hashable]:
        """Let a connection out of every room; return those that it was in, in the order in which it joined them."""
        with self._lock:
            left = self._leave_all(conn)
            if left:
                conn.remove_close_callback(self._drop)
            return left

    def members(self, room: Hashable) -> list[Connection]:
        """Who is in a room, in the order in which they joined; nobody if there is no such room."""
        with self._lock:
            found = self._rooms.get(room)
            return list(found.members) if found is not None else []

    def rooms_of(self, conn: Connection) -> list[Hashable]:
        """The rooms that a connection is in, in the order in which it joined them. Its `on_close` may still ask."""
        with self._lock:
            return list(self._rooms_of.get(conn, ()))

    def rooms(self) -> list[Hashable]:
        """Every room that has a member."""
        with self._lock:
            return list(self._rooms)

    def count(self, room: Hashable) -> int:
        """How many members a room has."""
        with self._lock:
            found = self._rooms.get(room)
            return len(found.members) if found is not None else 0

    def broadcast(
        self,
        room: Hashable,
        opcode: int,
        data: str | bytes | bytearray | memoryview,
        *,
        sender: Connection | None = None,
        callback: ConnectionCallback | None = None,
        compress: bool | None = None,
    ) -> dict[Connection, Exception]:
        """Send one message to everyone in a room; see `Broadcaster.broadcast` for what it promises.

        Broadcasts of several greenlets to one room are made one after the other, so that all members hear the same order. In the
        hub and from another thread nothing waits, for that neither.

        Args:
            sender: a member that doesn't get it.
            compress: as for `conn.write_message`.

        Returns:
            the members that did not take the message, each with its error.

        Raises:
            ValueError, TypeError: data that doesn't fit the opcode.
        """
        run = Run(Broadcaster(opcode, data, compress).message, callback)
        with self._lock:
            found = self._rooms.get(room)
        if found is None:
            return run.failed
        if may_wait() and found.thread == get_ident():
            with found.turn():
                run.write_to(self._listeners(found, sender))
        else:
            run.write_to(self._listeners(found, sender))
        run.wait_for_the_slow()
        return run.failed

    def _listeners(self, room: _Room, sender: Connection | None) -> list[Connection]:
        with self._lock:
            listeners = dict(room.members)
        listeners.pop(sender, None)  # type: ignore[arg-type]  # None is in no room
        return list(listeners)

    def _leave(self, room: Hashable, conn: Connection, joined: dict[Hashable, None]) -> None:
        del joined[room]
        members = self._rooms[room].members
        del members[conn]
        if not members:
            del self._rooms[room]

    def _leave_all(self, conn: Connection) -> list[Hashable]:
        joined = self._rooms_of.pop(conn, None)
        if joined is None:
            return []
        left = list(joined)
        for room in left:
            self._leave(room, conn, joined)
        return left

    def _drop(self, conn: Connection) -> None:
        """It has closed."""
        with self._lock:
            self._leave_all(conn)
