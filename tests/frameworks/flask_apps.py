"""A Flask app with pages, and WebSocket routes of whichever extensions a test wants beside each other."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from typing import Any

import gevent
import greenlet
from flask import Flask, Response, jsonify, request, session

#: What /big sends, in bytes.
BIG = 8 * 1024 * 1024


def make(parts: Sequence[str]) -> Flask:
    """Make an app with ordinary pages and these parts: "flask_sock", "sock" (ours, under /ours), "socketio", "install".

    The route /old is one for gevent-websocket.
    """
    app = Flask(__name__)
    app.secret_key = "for tests"
    app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": ["chat"]}

    @app.get("/")
    def page() -> str:
        session["name"] = "Ann"
        return "a page"

    @app.post("/upload")
    def upload() -> str:
        return f"{len(request.data)} bytes"

    @app.get("/facts")
    def facts() -> Response:
        gc.collect()
        return jsonify(
            greenlets=sum(isinstance(one, greenlet.greenlet) and not one.dead for one in gc.get_objects()),
            descriptors=len(os.listdir("/proc/self/fd")),
            app=app.config.get("FACTS"),
            queued=queued_bytes(app),
        )

    @app.get("/old")
    def old() -> str:
        ws = request.environ["wsgi.websocket"]
        while (message := ws.receive()) is not None:
            ws.send(message)
        return ""

    if "flask_sock" in parts:
        from flask_sock import Sock

        add_routes(Sock(app), "")
    if "sock" in parts:
        from gws_gevent.integrations.flask_sock import Sock as OurSock

        add_routes(OurSock(app), "/ours")
    if "socketio" in parts:
        add_socketio(app, "install" in parts)
    return app


def add_routes(sock: Any, prefix: str) -> None:
    """What flask-sock's documentation does, and what is known to go wrong with it."""

    @sock.route(f"{prefix}/echo", endpoint=f"echo{len(prefix)}")
    def echo(ws: Any) -> None:
        while True:
            ws.send(ws.receive())

    @sock.route(f"{prefix}/big", endpoint=f"big{len(prefix)}")
    def big(ws: Any) -> None:
        ws.send(b"x" * BIG)
        ws.receive()

    @sock.route(f"{prefix}/bye", endpoint=f"bye{len(prefix)}")
    def bye(ws: Any) -> None:
        ws.close(4001, "enough")

    @sock.route(f"{prefix}/return", endpoint=f"return{len(prefix)}")
    def returns(ws: Any) -> None:
        ws.send(session.get("name", "nobody"))

    @sock.route(f"{prefix}/error", endpoint=f"error{len(prefix)}")
    def error(ws: Any) -> None:
        ws.send("now")
        raise ZeroDivisionError


def add_socketio(app: Flask, install: bool) -> None:
    """Events both ways, and one that floods."""
    from flask_socketio import SocketIO, disconnect, emit, join_room

    socketio = SocketIO(app, async_mode="gevent", cors_allowed_origins="*")
    app.config["SOCKETIO"] = socketio
    seen = app.config["FACTS"] = []
    if install:
        from gws_gevent import ServerOptions
        from gws_gevent.integrations.engineio import install as install_ours

        install_ours(socketio, ServerOptions(close_timeout=0.5))

    @socketio.on("connect")
    def connected(auth: Any = None) -> Any:
        seen.append(["connect", session.get("name")])
        return auth != {"token": "wrong"}

    @socketio.on("echo")
    def echo(data: Any) -> Any:
        emit("echoed", data)
        return "got it"

    @socketio.on("join")
    def join(room: str) -> None:
        join_room(room)
        emit("joined", room, to=room)

    @socketio.on("flood")
    def flood(megabytes: int) -> None:
        for _ in range(megabytes):
            emit("data", b"x" * 1024 * 1024)
            gevent.sleep(0.001)
        seen.append(["flooded"])

    @socketio.on("throw me out")
    def throw_out() -> None:
        disconnect()

    @socketio.on("disconnect")
    def disconnected(reason: Any = None) -> None:
        seen.append(["disconnect", str(reason)])


def queued_bytes(app: Flask) -> int:
    """Bytes that wait in Engine.IO's queues."""
    if "SOCKETIO" not in app.config:
        return 0
    sockets = app.config["SOCKETIO"].server.eio.sockets.values()
    return sum(len(packet.data or "") for one in sockets for packet in one.queue.queue if packet is not None)
