"""`gws-gevent serve`: a server from the command line.

Belongs here: arguments, the line that tells the addresses. Does not belong here: the default handlers (demo.py), reading
`--option` (option_texts.py), importing what the user names (loading.py), what `bridge` has as well (listening.py).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import gevent.monkey

from gws_gevent.cli.demo import Demo
from gws_gevent.cli.errors import UsageError, describe, positive_seconds, writing_output
from gws_gevent.cli.listening import add_listening_arguments, check_certificates, listening_endpoint, tls_files, until_stopped
from gws_gevent.cli.loading import load_app, load_handler
from gws_gevent.cli.option_texts import describe_options, server_options
from gws_gevent.exceptions import EndpointError, GwsError
from gws_gevent.options import ServerOptions
from gws_gevent.patching import report_early_imports
from gws_gevent.server import Server
from gws_gevent.transports.base import Endpoint, ListenSettings
from gws_gevent.watchdog import Watchdog

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "serve"
SUMMARY = "run a WebSocket server"

DEFAULT_ENDPOINT = "127.0.0.1:3001"

_EPILOG = """\
endpoints:
  127.0.0.1:3001, :3001        TCP on one address, or on all of them; TLS if there is --cert. Port 0 is any free port
  tcp://HOST:PORT              TCP, also if there is --cert; an IPv6 address stands in brackets, as in tcp://[::1]:3001
  tls://HOST:PORT              TLS, with --cert or "tls://HOST:PORT?cert=FILE&key=FILE"
  unix:/path/of/socket         a Unix socket; "unix:/path?mode=660&group=www-data" sets its rights
  unix:@name                   a Linux abstract socket

The addresses that were bound are printed in one line on stdout, separated by spaces. SIGINT (Ctrl-C) and SIGTERM close every
connection with 1001 and end the server with exit status 0; a second one ends it at once. SIGHUP reads the certificate files
again; without certificates it stops the server like SIGTERM.

options for --option NAME=VALUE, with their defaults (numbers, sizes such as 16MiB, true and false, none, comma-separated lists):
{options}

examples:
  gws-gevent serve
  gws-gevent serve --bind :3001 unix:/run/app.sock --handler app:handler --option max_connections=1000
  gws-gevent serve --wsgi app:app --patch --handler chat:Chat
  gws-gevent serve --bind :443 --cert fullchain.pem --key privkey.pem --option origins=https://example.org
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    add = parser.add_argument
    add("--bind", nargs="+", action="extend", metavar="ENDPOINT", help=f"where to listen (default {DEFAULT_ENDPOINT})")
    add(
        "--handler",
        metavar="MODULE:OBJECT",
        help="an EventHandler, a subclass of it, or a function that takes a connection, also from the current folder; it serves "
        "every path (default: an echo on /echo, a chat room on /chat, and a page that uses both on /)",
    )
    add(
        "--wsgi",
        metavar="MODULE:APP",
        help="a WSGI app, as of Flask, Django or Bottle, also from the current folder, or MODULE:FACTORY() for what that returns; "
        "it gets every request that does not ask for WebSocket, and without --handler those too",
    )
    add("--patch", action="store_true", help="call gevent.monkey.patch_all() before the app and the handler are imported")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="set a server option, see below; may be repeated")
    add("--compress", action="store_true", help="compress messages where the client agrees (permessage-deflate)")
    add_listening_arguments(parser)
    add(
        "--watchdog",
        type=positive_seconds,
        metavar="SECONDS",
        help="log, with the stack, what keeps the server from everything else for so long (default: off; it slows a little)",
    )
    parser.epilog = _EPILOG.format(options=describe_options())


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    if args.patch:
        # Nothing of the user's has been imported yet, and what is imported of ours does not care.
        gevent.monkey.patch_all()
    settings = ListenSettings(backlog=args.backlog, tls=tls_files(args))
    endpoints = [listening_endpoint("--bind", text, settings.tls is not None) for text in args.bind or [DEFAULT_ENDPOINT]]
    check_certificates("--bind", endpoints, settings.tls is not None)
    options = server_options(args.option, args.compress)
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = _make_server(args, options)
    # By an app that patches too late, or before us by what the interpreter loads at its start.
    report_early_imports()
    # Before the addresses are printed: whoever reads them may send a signal at once.
    with until_stopped(server, endpoints, settings, args.stop_timeout) as stopping:
        try:
            server.start(*endpoints, settings=settings)
        except EndpointError as error:
            raise UsageError(f"--bind {error}") from error
        except (GwsError, OSError) as error:
            raise UsageError(describe(error)) from error
        with writing_output():
            print("serving on", *server.addresses, flush=True)
        if args.handler is None and args.wsgi is None:
            _show_the_page(server.addresses)
        with Watchdog(args.watchdog) if args.watchdog is not None else nullcontext():
            stopping.wait()
    return 0


def _show_the_page(addresses: Sequence[str]) -> None:
    """Tell a person where the demonstration's page is, if a browser can reach it."""
    for address in map(Endpoint.parse, addresses):
        scheme = {"tcp": "http", "tls": "https"}.get(address.scheme)
        if scheme is not None:
            host = "localhost" if address.host in ("0.0.0.0", "::") else address.host
            print(f"open {Endpoint(scheme, host, address.port)}/ in a browser", file=sys.stderr, flush=True)
            return


def hint_at(argument: str) -> str:
    """What somebody may have meant by an argument that does not belong to an option."""
    endpoint = f":{argument}" if argument.isdecimal() else argument
    try:
        Endpoint.parse(endpoint)
    except GwsError:
        return ""
    return f"; did you mean --bind {endpoint}?"


def _make_server(args: argparse.Namespace, options: ServerOptions) -> Server:
    handler = load_handler(args.handler) if args.handler is not None else None
    app = load_app(args.wsgi) if args.wsgi is not None else None
    try:
        if handler is None and app is None:
            return Server(options=options, on_request=Demo())
        return Server(handler, options, wsgi=app)
    except ValueError as error:  # an option that this handler cannot have
        raise UsageError(f"--option {error}") from error
