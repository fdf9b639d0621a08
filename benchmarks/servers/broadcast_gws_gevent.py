"""Any message is answered with SIZE bytes to every connection, encoded once.

python broadcast_gws_gevent.py PORT SIZE
"""

from __future__ import annotations

import sys

from gws_gevent import Broadcaster, CloseInfo, Connection, EventHandler, Message, Opcode, Server


class Room(EventHandler):
    """Keeps its members."""

    def __init__(self, size: int) -> None:
        self._members: set[Connection] = set()
        self._size = size

    def on_open(self, conn: Connection) -> None:
        self._members.add(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        Broadcaster(Opcode.BINARY, bytes(self._size)).broadcast(self._members)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self._members.discard(conn)


if __name__ == "__main__":
    Server(Room(int(sys.argv[2]))).run(f"tcp://127.0.0.1:{int(sys.argv[1])}")
