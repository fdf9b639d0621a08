"""One program in gevent-websocket's API, which knows nothing of which package answers for it.

`python -m tests.legacy.apps old` serves it with gevent-websocket, `... ours` with gws_gevent put into its place by `install()`.
It prints a TCP and a Unix endpoint. Each path is the application of one test.
"""

from __future__ import annotations

import gevent.monkey

if __name__ == "__main__":
    gevent.monkey.patch_all()  # flask-sock waits for a thread

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import gevent.event
import gevent.socket

PACKAGE = sys.argv[1] if __name__ == "__main__" else ""
if PACKAGE == "ours":
    from gws_gevent import PermessageDeflate, ServerOptions
    from gws_gevent.integrations.geventwebsocket import install

    install(ServerOptions(permessage_deflate=PermessageDeflate(), ping_interval=0.5, write_max_payload_size=1 << 25))

from geventwebsocket import Resource, WebSocketApplication, WebSocketServer  # noqa: E402

StartResponse = Callable[..., Any]
#: What an application has to tell its test, which asks for it at /notes.
notes: list[Any] = []


def echo(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    ws = environ["wsgi.websocket"]
    while True:
        message = ws.receive()
        if message is None:
            return []
        ws.send(message)


def sizes(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    ws = environ["wsgi.websocket"]
    while (message := ws.receive()) is not None:
        ws.send(str(len(message)))
    return []


def two_senders(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Two greenlets send to one client, which does not read until it is told to."""
    ws = environ["wsgi.websocket"]
    notes.clear()

    def send(text: str) -> None:
        try:
            ws.send(text * 8_000_000)
            notes.append(f"{text} sent")
        except Exception as error:
            notes.append(f"{text}: {type(error).__name__}")

    ws.receive()
    senders = [gevent.spawn(send, text) for text in "ab"]
    gevent.sleep(0)
    notes.append("sending")
    gevent.joinall(senders)
    ws.send("done")
    return []


def timed_out(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Gives up waiting in the middle of a message, and waits again."""
    ws = environ["wsgi.websocket"]
    ws.send("begin")
    with gevent.Timeout(0.2, False):
        ws.receive()
    ws.send("end")
    ws.send(str(ws.receive()))
    return []


def close_with_reason(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    environ["wsgi.websocket"].close(4001, b"why")
    return []


def members_only(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    ws = environ["wsgi.websocket"]
    if ws.path != "/members/ann":
        start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("X-Asked-By", str(ws.origin))])
        return [b"members only"]
    ws.send("welcome")
    return []


class Default(WebSocketApplication):
    """Sends each message back, by the default of `on_message`."""

    def on_close(self, reason: Any) -> None:
        notes.append(f"closed {reason}")


class Remembering(WebSocketApplication):
    def on_message(self, message: Any) -> None:
        notes.append(message)

    def on_close(self, reason: Any) -> None:
        notes.append(f"closed {reason}")


class Shout(WebSocketApplication):
    """Passes each message on to everybody, in the way of gevent-websocket's own example."""

    def on_open(self) -> None:
        self.ws.send("open")

    def on_message(self, message: Any) -> None:
        if message is None:
            return
        for client in self.ws.handler.server.clients.values():
            client.ws.send(message)
            gevent.sleep(0.1)


def plain(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    if environ["PATH_INFO"] == "/notes":
        return [json.dumps(notes).encode()]
    if environ["PATH_INFO"] == "/clear":
        notes.clear()
    return [b"[]"]


def flask_app() -> Any:
    """Plain routes of Flask that use `wsgi.websocket`, beside routes of flask-sock."""
    import flask
    from flask_sock import Sock

    app = flask.Flask(__name__)
    sock = Sock(app)

    @app.route("/flask/echo/<name>")
    def echo_view(name: str) -> str:
        ws = flask.request.environ["wsgi.websocket"]
        ws.send(f"hello {name}")
        while (message := ws.receive()) is not None:
            ws.send(message)
        return ""

    @sock.route("/flask/sock")  # type: ignore[untyped-decorator]
    def sock_view(ws: Any) -> None:
        while True:
            ws.send(ws.receive())

    @app.route("/flask/login")
    def login() -> tuple[str, int]:
        return "log in first", 401

    @app.route("/flask/page")
    def page() -> str:
        return "a page"

    return app


def socketio_app() -> Any:
    """python-engineio in its gevent mode, which takes `wsgi.websocket` where geventwebsocket can be imported."""
    import engineio

    server = engineio.Server(async_mode="gevent")
    server.on("message", lambda sid, data: server.send(sid, data))
    return engineio.WSGIApp(server)


def sockets_app() -> Any:
    """Flask-Sockets."""
    import flask
    from flask_sockets import Sockets

    app = flask.Flask(__name__)
    sockets = Sockets(app)

    @sockets.route("/sockets/echo/<name>")  # type: ignore[untyped-decorator]
    def echo_socket(ws: Any, name: str) -> None:
        ws.send(f"hello {name}")
        while not ws.closed:
            message = ws.receive()
            if message is not None:
                ws.send(message)

    @app.route("/sockets/page")
    def page() -> str:
        return "a page"

    return app


def bottle_app() -> Any:
    """Bottle with the plugin of bottle-websocket: the view gets the WebSocket as its argument."""
    import bottle

    app = bottle.Bottle()

    def websocket(view: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            ws = bottle.request.environ.get("wsgi.websocket")
            return view(ws, *args, **kwargs)

        return wrapper

    @app.get("/bottle/echo", apply=[websocket])  # type: ignore[untyped-decorator]
    def echo_view(ws: Any) -> Any:
        if ws is None:
            return "a page"
        while (message := ws.receive()) is not None:
            ws.send(message)
        return None

    return app


def application() -> Callable[..., Iterable[bytes]]:
    """The application of all tests: the first path that begins like the request's is taken."""
    resource = Resource(
        [
            ("^/default", Default),
            ("^/remembering", Remembering),
            ("^/shout", Shout),
            ("^/", plain),
        ]
    )
    apps: dict[str, Any] = {
        "/echo": echo,
        "/sizes": sizes,
        "/two": two_senders,
        "/timeout": timed_out,
        "/close": close_with_reason,
        "/members": members_only,
        "/flask": flask_app(),
        "/engine.io": socketio_app(),
        "/sockets": sockets_app(),
        "/bottle": bottle_app(),
    }

    def choose(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        app = next((app for prefix, app in apps.items() if environ["PATH_INFO"].startswith(prefix)), resource)
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    return choose


def main() -> None:
    app = application()
    tcp = WebSocketServer(("127.0.0.1", 0), app)
    tcp.start()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "socket")
        listener = gevent.socket.socket(gevent.socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)
        unix = WebSocketServer(listener, app)
        unix.start()
        done = gevent.event.Event()
        gevent.signal_handler(15, done.set)
        print(f"tcp://127.0.0.1:{tcp.server_port} unix:{path}", flush=True)
        done.wait()
        unix.stop(timeout=1)
        tcp.stop(timeout=1)


if __name__ == "__main__":
    main()
