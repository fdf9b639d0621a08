"""A chat room and its page, on one port.

    python examples/chat.py [HOST:PORT]

Then open the address it prints in two browser windows. The page is examples/chat.html.

Everybody gets every message through a `Broadcaster`, which waits for nobody: who reads too slowly is closed with 1008 once
`write_queue_size` bytes wait for them, and the others notice nothing.
"""

import argparse
import json
import signal
from pathlib import Path

import gevent

from gws_gevent import (
    Broadcaster,
    CloseInfo,
    Connection,
    EventHandler,
    Message,
    Opcode,
    Request,
    Response,
    Server,
    ServerOptions,
)

PAGE = Path(__file__).with_name("chat.html").read_text()
PAGE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'",
}
#: Characters of a name, and of what one message says.
MAX_NAME, MAX_TEXT = 30, 1000


class Room(EventHandler):
    """The first message of a connection is a name, every other one is said to the room."""

    def __init__(self) -> None:
        self.members: dict[Connection, str] = {}

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode != Opcode.TEXT:
            conn.write_close(1003, "text only")
        elif conn in self.members:
            self.tell(self.members[conn], message.data[:MAX_TEXT])
        else:
            self.members[conn] = message.data[:MAX_NAME]
            self.tell(self.members[conn], "has come")

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        name = self.members.pop(conn, None)
        if name is not None:
            self.tell(name, "has left")

    def tell(self, name: str, text: str) -> None:
        line = json.dumps({"from": name, "text": text, "here": len(self.members)})
        Broadcaster(Opcode.TEXT, line).broadcast(self.members)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", nargs="?", default="127.0.0.1:3001")
    endpoint = parser.parse_args().endpoint
    room = Room()

    def route(request: Request) -> EventHandler | Response | None:
        if request.path == "/chat":
            return room
        return Response(200, PAGE, PAGE_HEADERS) if request.path == "/" else None

    server = Server(on_request=route, options=ServerOptions(read_max_payload_size=16 * 1024))
    server.start(endpoint)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.stop)
    print("listening on", server.address.replace("tcp:", "http:"), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
