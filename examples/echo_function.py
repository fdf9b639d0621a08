"""Echo with a plain function: it reads its connection like any iterable, and the connection is closed when it returns.

    python examples/echo_function.py [HOST:PORT]

It serves on 127.0.0.1:3001 unless told otherwise, until Ctrl-C.
"""

import argparse

from gws_gevent import Connection, serve


def echo(conn: Connection) -> None:
    for message in conn:  # str for text, bytes for binary
        conn.send(message)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", nargs="?", default="127.0.0.1:3001")
    serve(echo, parser.parse_args().endpoint)
