"""A client: sends each argument as a text message and prints the answers.

    python examples/client.py URL TEXT [TEXT ...]

URL is ws://HOST:PORT/..., wss://HOST:PORT/..., or ws+unix:/path/of/socket:/target. Try it with `python examples/echo_handler.py`.
"""

import argparse
import sys

from gws_gevent import ClientOptions, ConnectionClosed, GwsError, connect


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("text", nargs="+")
    args = parser.parse_args()
    try:
        # Leaving the block does the closing handshake.
        with connect(args.url, options=ClientOptions(headers={"User-Agent": "gws-gevent-example"})) as conn:
            for text in args.text:
                conn.send(text)
                print(conn.receive(timeout=10))
    except ConnectionClosed as error:
        print(f"the server closed: {error}", file=sys.stderr)
        return 1
    except (GwsError, TimeoutError) as error:  # not reached, refused, or silent
        print(error, file=sys.stderr)
        return 1
    print("closed:", conn.close_info)
    return 0


if __name__ == "__main__":
    sys.exit(main())
