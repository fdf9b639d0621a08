"""How late a deadline of the datagram transports is, beside the least that this machine and Python can do.

    python -m benchmarks.lateness --count 2000

Belongs here: the pump's timer (transports/fine_timer.py, datagram.py), and a bare loop over epoll and timerfd in the same minute.
Does not belong here: what a protocol makes of it. Linux only.
"""

from __future__ import annotations

import argparse
import os
import select
import time
from random import Random

from gevent.event import Event

from gws_gevent.transports import fine_timer
from gws_gevent.transports.base import Endpoint
from gws_gevent.transports.datagram import listening_port
from gws_gevent.transports.schedule import DatagramSession

__all__ = ["main"]


class _Sleeper(DatagramSession):
    """Has one deadline after another, and notes how late it was asked."""

    def __init__(self, waits: list[float]) -> None:
        super().__init__()
        self.late: list[float] = []
        self.done = Event()
        self._waits = iter(waits)
        self._when = 0.0

    def flush(self, now: float) -> float | None:
        wait = next(self._waits, None)
        if wait is None:
            self.done.set()
            return None
        self._when = time.monotonic() + wait
        return self._when

    def on_deadline(self, now: float) -> None:
        self.late.append(time.monotonic() - self._when)

    def on_failure(self, error: Exception) -> None:
        raise error


def ours(waits: list[float]) -> list[float]:
    port = listening_port(Endpoint("kcp", "127.0.0.1", 0))
    sleeper = _Sleeper(waits)
    port.touch(sleeper)
    sleeper.done.wait()
    port.forget(sleeper)
    port.close()
    return sleeper.late


def bare(waits: list[float]) -> list[float]:
    late, descriptor = [], fine_timer._create()
    with select.epoll() as poll:
        poll.register(descriptor, select.EPOLLIN)
        for wait in waits:
            when = time.monotonic() + wait
            fine_timer._set(descriptor, int(when * 1e9))
            poll.poll()
            late.append(time.monotonic() - when)
            os.read(descriptor, 8)
    os.close(descriptor)
    return late


def main(args: list[str] | None = None) -> None:
    """Print both, in milliseconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lateness", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    count = parser.parse_args(args).count
    random = Random(1)
    waits = [random.uniform(0.001, 0.006) for _ in range(count)]
    for name, measure in (("epoll and timerfd", bare), ("a session's deadline", ours)):
        late = sorted(measure(waits))
        figures = (f"{share} of 100 {late[count * share // 100] * 1000:.3f}" for share in (50, 90, 99))
        print(f"{name}, ms late: {', '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
