"""Serves the Flask app of flask_apps.py until it is told to stop: `serve_app.py SERVER PART...`.

Servers: "pywsgi" is gevent's own, "geventwebsocket" the same with the handler of the old package, "ours" is ours. Where the server
is another one, geventwebsocket cannot be imported unless one of the parts is "geventwebsocket". Parts: see flask_apps.make.
"""

from __future__ import annotations

import sys

import gevent.monkey

gevent.monkey.patch_all()

import gevent  # noqa: E402


def main(server_name: str, *parts: str) -> None:
    if server_name != "geventwebsocket" and "geventwebsocket" not in parts:
        sys.modules["geventwebsocket"] = None  # type: ignore[assignment]  # "cannot be imported"
    from tests.frameworks.flask_apps import make

    app = make([part for part in parts if part != "geventwebsocket"])
    if server_name == "ours":
        from gws_gevent import Server, ServerOptions

        ours = Server(options=ServerOptions(ping_interval=None), wsgi=app)
        ours.start("127.0.0.1:0")
        gevent.signal_handler(15, ours.stop)
        print("serving on", ours.address, flush=True)
        ours.serve_forever()
        return
    from gevent.pywsgi import WSGIServer

    handler_class = None
    if server_name == "geventwebsocket":
        from geventwebsocket.handler import WebSocketHandler

        handler_class = WebSocketHandler
    server = WSGIServer(("127.0.0.1", 0), app, handler_class=handler_class)
    server.start()
    gevent.signal_handler(15, server.stop, 1)
    print(f"serving on tcp://127.0.0.1:{server.server_port}", flush=True)
    server._stop_event.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
