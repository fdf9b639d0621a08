"""An echo server with gws_gevent's event handler on 127.0.0.1: python echo_gws_gevent.py PORT."""

from __future__ import annotations

import sys

from gws_gevent import Connection, EventHandler, Message, Server


class Echo(EventHandler):
    """Sends each message back as it came."""

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)


if __name__ == "__main__":
    Server(Echo()).run(f"tcp://127.0.0.1:{int(sys.argv[1])}")
