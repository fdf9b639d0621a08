"""What `serve` runs without a handler: an echo, a chat room, and one page that uses both.

Belongs here: the routes and their handlers. Does not belong here: listening.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final
from urllib.parse import parse_qs

from gws_gevent.broadcast import Broadcaster
from gws_gevent.connection import Connection
from gws_gevent.frames import CloseCode, CloseInfo, Opcode
from gws_gevent.handler import EventHandler, Message
from gws_gevent.handshake import Request, Response

__all__ = ["ChatRoom", "Demo", "Echo"]

#: Characters of a name in the chat room; what is longer is cut.
MAX_NAME: Final = 32
#: Characters of one chat message; the sender of a longer one is told and nobody gets it.
MAX_TEXT: Final = 4096

PAGE_HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-cache",
    # The page loads nothing. Older browsers do not count WebSockets of the same origin as 'self'.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self' ws: wss:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


class Echo(EventHandler):
    """Sends each message back as it came."""

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)


class ChatRoom(EventHandler):
    """One room: what anyone writes goes to everyone, and who comes and goes is announced.

    A message is a text "name: what was written"; an announcement begins with "* ". The name is asked for in the URL, `?name=Ada`.
    One member who does not read stops nobody: his unsent messages are bounded by `write_queue_size`, and `slow_consumer`
    says what happens above it.
    """

    def __init__(self) -> None:
        self._members: dict[Connection, str] = {}

    def on_open(self, conn: Connection) -> None:
        query = conn.request.query if conn.request is not None else ""
        wanted = parse_qs(query).get("name", [""])[0]
        name = _one_line(wanted)[:MAX_NAME].strip() or f"guest {conn.id}"
        self._members[conn] = name
        self._tell_everyone(f"* {name} joined, {len(self._members)} here")

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode is not Opcode.TEXT:
            conn.write_close(CloseCode.UNSUPPORTED_DATA, "the chat is text")
        elif len(message.data) > MAX_TEXT:
            conn.write_text(f"* too long: at most {MAX_TEXT} characters")
        else:
            self._tell_everyone(f"{self._members[conn]}: {_one_line(message.data)}")

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        name = self._members.pop(conn)
        self._tell_everyone(f"* {name} left, {len(self._members)} here")

    def _tell_everyone(self, text: str) -> None:
        # Who did not take it is closing, or too slow and closed for it: its own on_close says so to the others.
        Broadcaster(Opcode.TEXT, text).broadcast(self._members)


def _one_line(text: str) -> str:
    """A line break in a name or message could pass for a message of somebody else."""
    return " ".join(text.splitlines())


class Demo:
    """Routes requests: `/echo`, `/chat`, and the page on `/`. It is the `on_request` of a Server."""

    def __init__(self) -> None:
        self._page = files(__package__).joinpath("page.html").read_bytes()
        self._routes = {"/echo": Echo(), "/chat": ChatRoom()}

    def __call__(self, request: Request) -> EventHandler | Response | None:
        if request.path != "/":
            return self._routes.get(request.path)
        if request.method not in ("GET", "HEAD"):
            return Response(405, "Only GET and HEAD are possible here.\n", {"Allow": "GET, HEAD"})
        return Response(200, self._page, PAGE_HEADERS)
