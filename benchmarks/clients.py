"""Measure what an idle WebSocket connection costs the client that opened it, in resident memory.

python -m benchmarks.clients [--connections 5000] [--settle 3] [--reconnect]

Starts an echo server of this library, and opens the connections to it from this process: each with an event handler exchanges one
message of 64 bytes. Prints by how much VmRSS of this process has grown, per connection. More seconds than the ping interval measure
after a round of keepalive. What the same connection costs the server is what `python -m benchmarks.idle` prints.

Belongs here: the client's side. Does not belong here: servers, other libraries.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import Any

import gevent

from benchmarks.idle import MESSAGE, WARM_UP, resident_alone
from benchmarks.libraries import LIBRARIES, OURS, server_of
from benchmarks.processes import BenchmarkError, running, set_up
from gws_gevent import ClientOptions, Connection, EventHandler, Message, Reconnect, connect

#: Seconds in which all connections must have had their echo.
ECHO_TIMEOUT = 60.0
#: Connections that are opened at once.
AT_ONCE = 50


class Counting(EventHandler):
    """Says hello and counts the answers."""

    def __init__(self) -> None:
        self.echoes = 0

    def on_open(self, conn: Connection) -> None:
        conn.send(MESSAGE)

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.data != MESSAGE:
            raise BenchmarkError(f"the server sent {message.data[:80]!r} as the echo")
        self.echoes += 1


def measure(url: str, counts: list[int], settle: float, reconnect: bool) -> dict[int, float]:
    """Return, by number of connections, the bytes by which this process has grown since the first WARM_UP."""
    handler, options, held = Counting(), ClientOptions(), list[Any]()

    def open_one(_: int) -> None:
        if reconnect:
            one = Reconnect(url, handler, options)
            one.start()
            held.append(one)
        else:
            connect(url, handler, options)

    def grow(count: int) -> None:
        while handler.echoes < count:
            wanted = min(handler.echoes + AT_ONCE, count)
            for number in range(handler.echoes, wanted):
                open_one(number)
            with gevent.Timeout(ECHO_TIMEOUT, BenchmarkError(f"{count} connections, and only {handler.echoes} echoes")):
                while handler.echoes < wanted:
                    gevent.sleep(0.001)

    grow(WARM_UP)
    gc.collect()
    before, growth = resident_alone(os.getpid()), dict[int, float]()
    for count in sorted(counts):
        grow(WARM_UP + count)
        gevent.sleep(settle)
        growth[count] = resident_alone(os.getpid()) - before
    return growth


def main() -> int:
    cli = argparse.ArgumentParser(
        prog="python -m benchmarks.clients", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--connections", type=_counts, default=[5000], metavar="N[,N...]", help="(default: 5000)")
    cli.add_argument("--settle", type=float, default=3.0, help="seconds of idleness (default: 3)")
    cli.add_argument("--reconnect", action="store_true", help="open them with Reconnect")
    args = cli.parse_args()
    most = set_up() - WARM_UP
    if max(args.connections) > most:
        cli.error(f"--connections: at most {most} here, or raise the limit of open files (ulimit -H -n)")
    (library,) = [one for one in LIBRARIES if one.name == OURS]
    server = server_of(library)
    try:
        with running(server):
            growth = measure(f"ws://{server.address}{server.target}", args.connections, args.settle, args.reconnect)
    except (BenchmarkError, OSError) as error:
        sys.exit(str(error))
    for count, grown in growth.items():
        print(f"{grown / count:,.0f} bytes for each of {count:,} connections")
    return 0


def _counts(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
