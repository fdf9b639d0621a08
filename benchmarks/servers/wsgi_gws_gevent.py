"""An echo server with gws_gevent's event handler, whose connections were upgraded inside of a WSGI app.

python wsgi_gws_gevent.py PORT wsgi|flask|blocking|stock
"""

from __future__ import annotations

import argparse
from typing import Any

from gws_gevent import Connection, EventHandler, Message, Server, Upgrader, WsgiSettings


class Echo(EventHandler):
    """Sends each message back as it came."""

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)


upgrader = Upgrader(Echo())


def bare(environ: Any, start_response: Any) -> Any:
    """An app without a framework."""
    return upgrader.upgrade(environ, start_response)


def blocking(environ: Any, start_response: Any) -> Any:
    """An app that keeps its frames: what upgrading costs where they do not unwind."""
    with upgrader.accept(environ, start_response) as conn:
        for message in conn:
            conn.send(message)
    return []


def flask() -> Any:
    """An app with Flask."""
    from flask import Flask, request

    app = Flask("echo")
    app.add_url_rule("/echo", "echo", lambda: upgrader.upgrade(request.environ), websocket=True)
    return app


def main() -> None:
    cli = argparse.ArgumentParser()
    cli.add_argument("port", type=int)
    cli.add_argument("app", choices=["wsgi", "flask", "blocking", "stock"])
    args = cli.parse_args()
    app = flask() if args.app == "flask" else blocking if args.app == "blocking" else bare
    if args.app == "stock":
        from gevent.pywsgi import WSGIServer

        from gws_gevent.integrations.pywsgi import WSGIHandler

        WSGIServer(("127.0.0.1", args.port), bare, log=None, handler_class=WSGIHandler).serve_forever()
    else:
        Server(wsgi=app, wsgi_settings=WsgiSettings(log=None)).run(f"127.0.0.1:{args.port}")


if __name__ == "__main__":
    main()
