"""A chat beside ordinary pages, in Flask. Who is not logged in gets no WebSocket.

Needs Flask. In this folder, either of

    python -m gws_gevent serve --wsgi app:app --patch
    gunicorn -k gws_gevent.integrations.gunicorn.GwsWorker app:app

then open the address it prints. The users are ann, bo and cleo, and their password is sesame.
"""

import json
import os
import secrets
from collections import deque

from flask import Flask, abort, flash, get_flashed_messages, redirect, render_template, request, session, url_for
from werkzeug.security import check_password_hash, generate_password_hash

from gws_gevent import Broadcaster, CloseInfo, Connection, EventHandler, Message, Opcode, ServerOptions, Upgrader

app = Flask(__name__, static_folder="../chat_static")
app.config.update(
    # Several processes have to know the same key, or nobody stays logged in.
    SECRET_KEY=os.environ.get("CHAT_SECRET") or secrets.token_hex(),
    # Another site's form is sent without our cookie, and so nobody is logged out, or made to speak, by it.
    SESSION_COOKIE_SAMESITE="Lax",
)
users = dict.fromkeys(("ann", "bo", "cleo"), generate_password_hash("sesame"))


class Room(EventHandler):
    """Everybody hears everybody. `conn.session` is what `chat_socket` put there, not Flask's session."""

    def __init__(self) -> None:
        self.members: set[Connection] = set()
        self.said: deque[tuple[str, str]] = deque(maxlen=50)

    def on_open(self, conn: Connection) -> None:
        self.members.add(conn)
        self.tell("", "")

    def on_message(self, conn: Connection, message: Message) -> None:
        if message.opcode != Opcode.TEXT:
            conn.write_close(1003, "text only")
            return
        self.said.append((conn.session["name"], message.data))
        self.tell(*self.said[-1])

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.members.discard(conn)
        self.tell("", "")

    def tell(self, name: str, text: str) -> None:
        line = json.dumps({"from": name, "text": text, "here": len(self.members)})
        Broadcaster(Opcode.TEXT, line).broadcast(self.members)

    def log_out(self, name: str) -> None:
        for conn in [conn for conn in self.members if conn.session["name"] == name]:
            conn.write_close(1008, "logged out")


room = Room()
upgrader = Upgrader(room, ServerOptions(read_max_payload_size=4096))


@app.get("/")
def chat():
    if "name" not in session:
        return redirect(url_for("login"))
    return render_template("chat.html")


@app.route("/chat/socket", websocket=True)
def chat_socket():
    # Browsers send cookies along with any page's WebSocket: only the Origin tells that it was a page of ours.
    if request.headers.get("Origin") != request.host_url.rstrip("/"):
        abort(403)
    if "name" not in session:
        abort(401)
    return upgrader.upgrade(request.environ, session={"name": session["name"]})


@app.get("/history")
def history():
    if "name" not in session:
        return redirect(url_for("login"))
    return render_template("history.html", said=room.said)


@app.route("/login", methods=["GET", "POST"])
def login():
    if request.method == "GET":
        return render_template("login.html", error="".join(get_flashed_messages()))
    name = request.form.get("name", "")
    if not check_password_hash(users.get(name, ""), request.form.get("password", "")):
        flash("That is not right.")
        return redirect(url_for("login"))
    session["name"] = name
    return redirect(url_for("chat"))


@app.post("/logout")
def logout():
    room.log_out(session.pop("name", ""))
    return redirect(url_for("login"))
