"""Rooms by path: what one client says, everyone else at the same path hears.

    python examples/rooms.py [HOST:PORT]

Try it from two terminals:

    python -m gws_gevent connect ws://127.0.0.1:3001/garden

A client that sends "/join NAME" is in that room as well, "/leave NAME" takes it out, "/rooms" tells where it is.
"""

import argparse
import signal

import gevent

from gws_gevent import CloseInfo, Connection, EventHandler, Message, Opcode, Rooms, Server, ServerOptions

#: Rooms that one connection may be in.
MAX_ROOMS = 20


class Speakers(EventHandler):
    def __init__(self) -> None:
        self.rooms = Rooms()

    def on_open(self, conn: Connection) -> None:
        assert conn.request is not None  # it is there until the first read
        self.rooms.join(conn.request.path, conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode != Opcode.TEXT:
            conn.write_close(1003, "text only")
            return
        command, _, name = message.data.partition(" ")
        if command == "/join":
            if len(self.rooms.rooms_of(conn)) < MAX_ROOMS:
                self.rooms.join(f"/{name}", conn)
        elif command == "/leave":
            self.rooms.leave(f"/{name}", conn)
        elif command == "/rooms":
            conn.send(" ".join(sorted(self.rooms.rooms_of(conn))))
        else:
            self.say(conn, message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        # It is still in its rooms, and will be out of them when this returns.
        self.say(conn, "bye")

    def say(self, conn: Connection, text: str) -> None:
        for room in self.rooms.rooms_of(conn):
            self.rooms.broadcast(room, Opcode.TEXT, f"{room} {conn.id}: {text}", sender=conn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", nargs="?", default="127.0.0.1:3001")
    endpoint = parser.parse_args().endpoint

    server = Server(Speakers(), ServerOptions(read_max_payload_size=16 * 1024))
    server.start(endpoint)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.stop)
    print("listening on", server.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
