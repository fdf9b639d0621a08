"""Measures what an idle WebSocket of each framework costs its server: `python -m tests.frameworks.memory`.

For docs/frameworks.md. No test: its figures are those of the machine.
"""

from __future__ import annotations

import gevent

from gws_gevent import ClientOptions, Connection, connect
from tests.frameworks.apps import App, serving_app

ENGINE = "/socket.io/?EIO=4&transport=websocket"
STACKS = {
    "flask-sock on gevent's own server": ("/echo", "pywsgi", "flask_sock"),
    "flask-sock on ours": ("/echo", "ours", "flask_sock"),
    "our Sock on ours": ("/ours/echo", "ours", "sock"),
    "Flask-SocketIO on gevent's own server": (ENGINE, "pywsgi", "socketio"),
    "Flask-SocketIO with gevent-websocket": (ENGINE, "geventwebsocket", "socketio"),
    "Flask-SocketIO with install on ours": (ENGINE, "ours", "socketio", "install"),
}
OPTIONS = ClientOptions(ping_interval=None)
WARM_UP, MEASURED = 100, 900


def opened(app: App, target: str, count: int) -> list[Connection]:
    """Open connections, and exchange a message on each."""
    conns = []
    for _ in range(count):
        conn = connect(app.url(target), options=OPTIONS)
        if target == ENGINE:
            conn.receive(timeout=5)
        conn.send("40" if target == ENGINE else "x" * 64)
        conn.receive(timeout=5)
        conns.append(conn)
    gevent.sleep(0.3)
    return conns


def resident(app: App) -> int:
    """Bytes."""
    with open(f"/proc/{app.server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def main() -> None:
    for name, (target, *stack) in STACKS.items():
        with serving_app(*stack) as app:
            conns = opened(app, target, WARM_UP)
            before = resident(app)
            conns += opened(app, target, MEASURED)
            print(f"{name:40} {(resident(app) - before) / MEASURED:8,.0f} bytes", flush=True)
            for conn in conns:
                conn.abort()


if __name__ == "__main__":
    main()
