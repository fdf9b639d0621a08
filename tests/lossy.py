"""A relay of datagrams that loses, delays, doubles and damages them, between real sockets.

Belongs here: that. Does not belong here: simulated time (gws_gevent.transports.simulated).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import gevent
from gevent import socket

from gws_gevent.transports.simulated import Impairment

__all__ = ["lossy_relay"]


@contextmanager
def lossy_relay(target: tuple[str, int], impairment: Impairment, seed: int = 0) -> Iterator[tuple[str, int]]:
    """Give an address that leads to `target` and back over a bad network, for any number of clients."""
    random = Random(seed)
    front = _bound()
    backs: dict[Any, Any] = {}
    readers: list[gevent.Greenlet] = []
    pending: set[Any] = set()

    def later(seconds: float, sock: Any, data: bytes, address: Any) -> None:
        def send() -> None:
            pending.discard(timer)
            timer.close()
            try:
                sock.sendto(data, address)
            except OSError:
                pass

        timer = gevent.get_hub().loop.timer(seconds)
        pending.add(timer)
        timer.start(send)

    def come_back(back: Any, client: Any) -> None:
        while True:
            data, _ = back.recvfrom(65536)
            for late, copy in impairment.copies(data, random):
                later(late, front, copy, client)

    def go() -> None:
        while True:
            data, client = front.recvfrom(65536)
            if client not in backs:
                backs[client] = _bound()
                readers.append(gevent.spawn(come_back, backs[client], client))
            for late, copy in impairment.copies(data, random):
                later(late, backs[client], copy, target)

    readers.append(gevent.spawn(go))
    try:
        yield front.getsockname()
    finally:
        gevent.killall(readers)
        for timer in pending:
            timer.close()
        for sock in (front, *backs.values()):
            sock.close()


def _bound() -> Any:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock
