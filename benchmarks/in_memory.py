"""Hold idle connections of gws_gevent in one process, without sockets: python -m benchmarks.in_memory CONNECTIONS.

Each is a pair of memory streams; one end is upgraded and runs its read loop, the other has sent a request and one message and
is left alone. So there may be more of them than a process may have descriptors. Prints JSON: seconds of a full collection, and how
many objects the collector sees and how many bytes there are for each connection, the other end included.

Belongs here: that process. Does not belong here: what its figures are compared with.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

import gevent
from greenlet import greenlet

from benchmarks.idle import ECHO, FRAME, HEADERS, resident
from gws_gevent import Connection, EventHandler, Message, Upgrader
from gws_gevent.transports.memory import memory_pair

__all__ = ["hold"]

#: Connections before the first look: what is made once is not the price of a connection.
WARM_UP = 10
REQUEST = f"GET / HTTP/1.1\r\n{HEADERS}".encode()


class Echo(EventHandler):
    """Sends each message back."""

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)


def hold(count: int) -> dict[str, float]:
    """Open `count` connections and return what they and a collection cost."""
    upgrader, held = Upgrader(Echo()), list[Any]()
    _fill(held, upgrader, WARM_UP)
    gc.collect()
    objects, memory = len(gc.get_objects()), resident(os.getpid())
    _fill(held, upgrader, WARM_UP + count)
    gc.collect()
    started = time.perf_counter()
    gc.collect()
    seconds = time.perf_counter() - started
    return {
        "connections": count,
        "seconds": seconds,
        "objects": (len(gc.get_objects()) - objects) / count,
        "bytes": (resident(os.getpid()) - memory) / count,
    }


def _fill(held: list[Any], upgrader: Upgrader, count: int) -> None:
    hub, scratch = gevent.get_hub(), bytearray(4096)
    while len(held) < count:
        theirs, ours = memory_pair()
        ours.send_all(REQUEST + FRAME)
        serving = greenlet(lambda stream: upgrader.upgrade_stream(stream).read_loop(), hub)
        hub.loop.run_callback(serving.switch, theirs)
        answer = b""
        while not answer.endswith(ECHO):
            answer += scratch[: ours.recv_into(scratch)]
        held.append(ours)


if __name__ == "__main__":
    print(json.dumps(hold(int(sys.argv[1]))))
