"""Serves the Flask app of flask_apps.py until it is told to stop: `serve_app.py SERVER PART...`.

Servers: "pywsgi" is gevent's own, "geventwebsocket" the same with the handler of the old package, "ours" is ours, and "successor"
is ours with the handler of our successor of geventwebsocket, installed. With "pywsgi" and "ours" geventwebsocket cannot be imported
unless one of the parts is "geventwebsocket". Parts: see flask_apps.make.
"""

from __future__ import annotations

import sys

import gevent.monkey

gevent.monkey.patch_all()

import gevent  # noqa: E402


def main(server_name: str, *parts: str) -> None:
    if server_name == "successor":
        from gws_gevent.integrations import geventwebsocket

        geventwebsocket.install()
    elif server_name != "geventwebsocket" and "geventwebsocket" not in parts:
        sys.modules["geventwebsocket"] = None  # type: ignore[assignment]  # "cannot be imported"
    from tests.frameworks.flask_apps import make

    app = make([part for part in parts if part != "geventwebsocket"])
    if server_name in ("ours", "successor"):
        from gws_gevent import Server, ServerOptions, WsgiSettings
        from gws_gevent.integrations.geventwebsocket.handler import WebSocketHandler

        settings = WsgiSettings(handler_class=WebSocketHandler) if server_name == "successor" else None
        ours = Server(options=ServerOptions(ping_interval=None), wsgi=app, wsgi_settings=settings)
        ours.start("127.0.0.1:0")
        gevent.signal_handler(15, ours.stop)
        print("serving on", ours.address, flush=True)
        ours.serve_forever()
        return
    from gevent.pywsgi import WSGIServer

    handler_class = None
    if server_name == "geventwebsocket":
        from geventwebsocket.handler import WebSocketHandler as OldHandler

        handler_class = OldHandler
    server = WSGIServer(("127.0.0.1", 0), app, handler_class=handler_class)
    server.start()
    gevent.signal_handler(15, server.stop, 1)
    print(f"serving on tcp://127.0.0.1:{server.server_port}", flush=True)
    server._stop_event.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
