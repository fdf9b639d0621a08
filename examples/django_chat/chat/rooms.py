"""The WebSocket of a room: who is there, and what they say. Lines are kept in the database."""

import json

from django.contrib.auth.models import User
from django.db import connection

from chat.models import Line
from gws_gevent import CloseInfo, Connection, EventHandler, Message, Opcode, Rooms

#: Lines of the past that a newcomer sees.
HISTORY = 20


class Chat(EventHandler):
    """Serves every room. `conn.session` is what the view put there, not Django's session."""

    def __init__(self) -> None:
        self.rooms = Rooms()

    def on_open(self, conn: Connection) -> None:
        room = conn.session["room"]
        self.rooms.join(room, conn)
        self.rooms.join(("user", conn.session["user"]), conn)
        lines = list(Line.objects.filter(room=room).order_by("-pk").values_list("user__username", "text")[:HISTORY])
        connection.close()
        for name, text in reversed(lines):
            conn.send(self.line(room, name, text))
        self.tell(room)

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode != Opcode.TEXT:
            conn.write_close(1003, "text only")
            return
        session = conn.session
        Line.objects.create(room=session["room"], user_id=session["user"], text=message.data)
        # Django keeps a database connection for each thread, and so for each greenlet: an idle WebSocket has no use for one.
        connection.close()
        self.tell(session["room"], session["name"], message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.rooms.leave_all(conn)
        self.tell(conn.session["room"])

    def log_out(self, sender: type, user: User | None, **_: object) -> None:
        """Take the user_logged_out signal: close whatever WebSockets the user has open."""
        if user is not None:
            for conn in self.rooms.members(("user", user.pk)):
                conn.write_close(1008, "logged out")

    def tell(self, room: str, name: str = "", text: str = "") -> None:
        self.rooms.broadcast(room, Opcode.TEXT, self.line(room, name, text))

    def line(self, room: str, name: str, text: str) -> str:
        return json.dumps({"from": name, "text": text, "here": self.rooms.count(room)})
