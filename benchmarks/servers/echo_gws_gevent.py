"""An echo server with gws_gevent's event handler.

python echo_gws_gevent.py ENDPOINT|PORT [CERTIFICATE] [--option NAME=VALUE] ..
"""

from __future__ import annotations

import argparse

from gws_gevent import Connection, EventHandler, Message, Server
from gws_gevent.cli.option_texts import server_options


class Echo(EventHandler):
    """Sends each message back as it came."""

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)


def main() -> None:
    cli = argparse.ArgumentParser()
    cli.add_argument("endpoint")
    cli.add_argument("certificate", nargs="?", help="file with certificate and key: speak TLS")
    cli.add_argument("--option", action="append", default=[])
    args = cli.parse_args()
    endpoint = f"tcp://127.0.0.1:{args.endpoint}" if args.endpoint.isdecimal() else args.endpoint
    server = Server(Echo(), server_options(args.option))
    if args.certificate:
        server.run_tls(endpoint, args.certificate)
    else:
        server.run(endpoint)


if __name__ == "__main__":
    main()
