"""Echo with an event handler: one object serves every connection, each in a greenlet of its own.

    python examples/echo_handler.py [ENDPOINT ...]

An endpoint is HOST:PORT, :PORT, or unix:/path/of/socket; 127.0.0.1:3001 if none is given. Ctrl-C stops the server: each client is
told with close code 1001.
"""

import argparse
import signal

import gevent

from gws_gevent import CloseInfo, Connection, EventHandler, Message, Server


class Echo(EventHandler):
    def on_open(self, conn: Connection) -> None:
        print(f"{conn.id}: open from {conn.remote_address}", flush=True)

    def on_message(self, conn: Connection, message: Message) -> None:
        conn.write_message(message.opcode, message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        print(f"{conn.id}: {info}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", nargs="*", default=["127.0.0.1:3001"])
    endpoints = parser.parse_args().endpoint

    server = Server(Echo())
    server.start(*endpoints)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.stop)
    print("listening on", *server.addresses, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
