"""Any message is answered with SIZE bytes to every connection, encoded once.

python broadcast_gws_gevent.py PORT SIZE
"""

from __future__ import annotations

import sys

from gws_gevent import CloseInfo, Connection, EventHandler, Message, Opcode, PreparedMessage, Server


class Room(EventHandler):
    """Keeps its members."""

    def __init__(self, size: int) -> None:
        self._members: set[Connection] = set()
        self._size = size

    def on_open(self, conn: Connection) -> None:
        self._members.add(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        prepared = PreparedMessage(Opcode.BINARY, bytes(self._size))
        for member in self._members:
            member.write_prepared(prepared)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self._members.discard(conn)


if __name__ == "__main__":
    Server(Room(int(sys.argv[2]))).run(f"tcp://127.0.0.1:{int(sys.argv[1])}")
