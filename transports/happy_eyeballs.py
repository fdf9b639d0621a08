"""Connecting to the first of several addresses that answers (RFC 8305, "Happy Eyeballs").

Belongs here: the order of addresses, attempts beside each other. Does not belong here: resolving names, what becomes of the
socket.

The system's resolver gives the addresses of both families in one answer, so nothing is begun while one of them is still asked
for, and the Resolution Delay of section 3 has no place here.
"""

from __future__ import annotations

import _socket
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any, Final, TypeVar, cast

import gevent
from gevent import Greenlet
from gevent.event import Event
from gevent.hub import get_hub

from gws_gevent.exceptions import TransportError

__all__ = ["ATTEMPT_DELAY", "connect_to_first", "first_to_answer", "interleaved"]

T = TypeVar("T")

#: Seconds that an attempt has for itself before the next address is tried beside it (section 5 recommends this).
ATTEMPT_DELAY: Final = 0.25

_WRITABLE: Final = 2
#: What connect says of an attempt that is under way.
_UNDER_WAY: Final = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN}

#: An address family and an address of it.
Address = tuple[int, Any]


def interleaved(addresses: Iterable[Address]) -> list[Address]:
    """Return addresses, each once, so that the families take turns, the first one's beginning (section 4)."""
    by_family: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        by_family.setdefault(address[0], []).append(address)
    return [address for address in chain.from_iterable(zip_longest(*by_family.values())) if address is not None]


def connect_to_first(addresses: Iterable[Address]) -> _socket.socket:
    """Return a socket, which does not block, connected to the first address that answers. Blocks this greenlet only.

    Each address but the first is tried when the one before it has failed, or has not answered within ATTEMPT_DELAY. What is thrown
    in leaves nothing behind.

    Raises:
        OSError: of the attempt that failed last.
    """
    attempts = _Attempts(addresses)
    try:
        return attempts.run()
    finally:
        attempts.drop()


def first_to_answer(addresses: Iterable[Address], attempt: Callable[[Address], T], discard: Callable[[T], object]) -> T:
    """Return the first result of `attempt(address)`, each in a greenlet of its own: for transports that are more than a socket.

    What is thrown in, or a TransportError without `errno` (somebody has answered, and there is no point in asking elsewhere), ends
    all attempts.

    Args:
        discard: called with the result of an attempt that came too late.

    Raises:
        TransportError: of the attempt that failed last.
    """
    left = deque(addresses)
    if len(left) == 1:
        return attempt(left[0])
    running: list[Greenlet] = []
    news = Event()
    failure: BaseException = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    try:
        while left or running:
            if left:
                running.append(gevent.spawn(_outcome, attempt, left.popleft()))
                running[-1].rawlink(lambda _: news.set())
            news.wait(ATTEMPT_DELAY if left else None)
            news.clear()
            for one in [one for one in running if one.dead]:
                running.remove(one)
                result, error = one.value
                if error is None:
                    return cast(T, result)
                if not isinstance(error, TransportError) or error.errno is None:
                    raise error
                failure = error
        raise failure
    finally:
        gevent.killall(running)
        for one in running:
            if isinstance(one.value, tuple) and one.value[1] is None:
                discard(one.value[0])


def _outcome(attempt: Callable[[Address], T], address: Address) -> tuple[T | None, Exception | None]:
    try:
        return attempt(address), None
    except Exception as error:
        return None, error


class _Attempts:
    """Those that are under way, and the addresses that are left."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        self._left = deque(addresses)
        self._watchers: dict[_socket.socket, Any] = {}
        self._answered: list[_socket.socket] = []
        self._news = Event()
        self._failure = OSError(errno.EADDRNOTAVAIL, "the name has no address")

    def run(self) -> _socket.socket:
        while self._left or self._watchers:
            winner = self._begin(*self._left.popleft()) if self._left else None
            if winner is None and self._watchers:
                self._news.wait(ATTEMPT_DELAY if self._left else None)
                self._news.clear()
                winner = self._judge()
            if winner is not None:
                return winner
        raise self._failure

    def _begin(self, family: int, address: Any) -> _socket.socket | None:
        """Begin an attempt; the socket if that was all."""
        try:
            sock = _socket.socket(family, _socket.SOCK_STREAM)
        except OSError as error:  # this machine does not have the family
            self._failure = error
            return None
        # Known from here on, so that it is closed whatever comes.
        self._watchers[sock] = None
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code in _UNDER_WAY:
            watcher = self._watchers[sock] = get_hub().loop.io(sock.fileno(), _WRITABLE)
            watcher.start(self._tell, sock)
            return None
        return self._judge_one(sock, code)

    def _tell(self, sock: _socket.socket) -> None:
        """In the hub: an attempt has come to its end."""
        self._watchers[sock].stop()
        self._answered.append(sock)
        self._news.set()

    def _judge(self) -> _socket.socket | None:
        while self._answered:
            sock = self._answered.pop(0)
            if self._judge_one(sock, sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)) is not None:
                return sock
        return None

    def _judge_one(self, sock: _socket.socket, code: int) -> _socket.socket | None:
        watcher = self._watchers.pop(sock)
        if watcher is not None:
            watcher.close()
        if code == 0:
            return sock
        sock.close()
        self._failure = OSError(code, os.strerror(code))
        return None

    def drop(self) -> None:
        """Give up what is still under way."""
        for sock, watcher in self._watchers.items():
            if watcher is not None:
                watcher.stop()
                watcher.close()
            sock.close()
        self._watchers.clear()
