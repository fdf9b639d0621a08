"""Routes, authorisation and allowed origins.

    python examples/routing.py [HOST:PORT]

/echo is open to everybody; /clock/SECONDS tells the time; /private wants the header `Authorization: Bearer sesame`; /health answers
plain HTTP; anything else is 404. Every upgrade must come with the Origin http://localhost:8000 or https://*.example.com, so
that no other site can use a visitor's browser. Leave `origins` out if your clients are not browsers.
"""

import argparse
import hmac
import re
import signal
from collections.abc import Callable, MutableMapping
from time import strftime
from typing import Any

import gevent

from gws_gevent import Connection, Refusal, Request, Response, Server, ServerOptions

TOKENS = {"sesame": "Ali"}


def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def clock(seconds: int) -> Callable[[Connection], None]:
    def tick(conn: Connection) -> None:
        while True:
            conn.send(strftime("%H:%M:%S"))
            try:
                conn.receive(timeout=seconds)
            except TimeoutError:
                pass  # nothing was said, which is what we waited for

    return tick


def private(conn: Connection) -> None:
    conn.send(f"hello {conn.session['user']}")
    echo(conn)


def route(request: Request) -> Callable[[Connection], None] | Response | None:
    if request.path == "/health":
        return Response(200, "fine\n")
    if found := re.fullmatch(r"/clock/([1-9][0-9]?)", request.path):
        return clock(int(found[1]))
    return {"/echo": echo, "/private": private}.get(request.path)


def authorize(request: Request, session: MutableMapping[Any, Any]) -> bool:
    """Runs for every upgrade, after the route is found and the origin is allowed. Only True lets the client in."""
    if request.path != "/private":
        return True
    scheme, _, token = (request.headers.get("authorization") or "").partition(" ")
    for known, user in TOKENS.items():
        if scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), known.encode()):
            session["user"] = user
            return True
    raise Refusal(401, "A token is required.\n", {"WWW-Authenticate": "Bearer"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", nargs="?", default="127.0.0.1:3001")
    endpoint = parser.parse_args().endpoint

    origins: list[str | re.Pattern[str]] = ["http://localhost:8000", re.compile(r"https://([a-z0-9-]+\.)*example\.com")]
    server = Server(on_request=route, options=ServerOptions(authorize=authorize, origins=origins))
    server.start(endpoint)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.stop)
    print("listening on", *server.addresses, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
