"""Echo over TLS, with a certificate that can be renewed while the server runs.

    python examples/tls.py --cert cert.pem --key key.pem [--client-ca ca.pem] [HOST:PORT]

docs/transports.md says how to make a certificate to try it with. Clients connect to wss://HOST:PORT/. After a renewal send SIGHUP:
new connections get the new certificate, open ones go on. With --client-ca only clients that show a certificate of that
authority get in.
"""

import argparse
import signal
import sys

import gevent

from gws_gevent import Connection, ListenSettings, Server, TlsFiles, TransportError


def echo(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def reload(server: Server) -> None:
    try:
        server.reload()
        print("certificates read again", flush=True)
    except TransportError as error:
        print(f"certificates kept: {error}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoint", nargs="?", default="127.0.0.1:3001", help="HOST:PORT (127.0.0.1:3001)")
    parser.add_argument("--cert", required=True, help="certificate chain, PEM")
    parser.add_argument("--key", help="private key, PEM; without it the certificate's file holds it")
    parser.add_argument("--client-ca", help="authority of client certificates, PEM")
    options = parser.parse_args()

    server = Server(echo)
    files = TlsFiles(options.cert, options.key, options.client_ca)
    server.start(f"tls://{options.endpoint}", settings=ListenSettings(tls=files))
    gevent.signal_handler(signal.SIGHUP, reload, server)
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, server.stop)
    print("listening on", server.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
