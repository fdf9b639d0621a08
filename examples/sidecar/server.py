"""A server on a Unix socket, behind nginx on the same machine.

    cd examples/sidecar
    python server.py [ENDPOINT]
    nginx -p "$PWD" -c nginx.conf

Then connect to ws://127.0.0.1:8080/ws/. Without an endpoint the socket is ws.sock beside this file, where nginx.conf expects
it, open to its owner only: start both as the same user. For an nginx that runs under a user of its own it could be
unix:/run/app/ws.sock?mode=660&group=www-data.

Nobody but nginx can open the socket, so X-Forwarded-For, which nginx writes, can be believed: `trusted_proxies=("unix",)` makes it
`remote_address`.
"""

import argparse
import signal
from pathlib import Path

import gevent

from gws_gevent import Connection, Server, ServerOptions


def greet_and_echo(conn: Connection) -> None:
    conn.send(f"you are {conn.remote_address[0]}")
    for message in conn:
        conn.send(message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", nargs="?", default=f"unix:{Path(__file__).with_name('ws.sock')}?mode=600")
    endpoint = parser.parse_args().endpoint

    server = Server(greet_and_echo, ServerOptions(trusted_proxies=("unix",)))
    server.start(endpoint)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.stop)
    print("listening on", server.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
