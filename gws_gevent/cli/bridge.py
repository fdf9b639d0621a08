"""`gws-gevent bridge`: WebSocket from any transport to any other, or to bytes.

Belongs here: arguments, signals, the line that tells the addresses. Does not belong here: the bridges themselves.
"""

from __future__ import annotations

import argparse
import logging
import ssl
from dataclasses import replace
from typing import Any

from gws_gevent.bridge import Bridge
from gws_gevent.cli.errors import UsageError, describe, positive_seconds, writing_output
from gws_gevent.cli.listening import (
    add_listening_arguments,
    check_certificates,
    listening_endpoint,
    parse_endpoint,
    tls_files,
    until_stopped,
)
from gws_gevent.exceptions import EndpointError, GwsError
from gws_gevent.options import BridgeOptions
from gws_gevent.raw_bridge import RawBridge
from gws_gevent.transports.base import ENCRYPTED, DialSettings, Endpoint, ListenSettings, TlsFiles
from gws_gevent.transports.tls_contexts import client_context, server_context

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "bridge"
SUMMARY = "carry WebSocket connections from one transport to another, or to a TCP server"

_EPILOG = """\
Without --raw there is a WebSocket server behind the bridge: opening handshakes are passed on, and everything behind them is
carried byte by byte. With --raw there is any server behind it: binary messages become bytes, and bytes binary messages, as
websockify does.

endpoints are those of 'gws-gevent serve'; --to needs a host or a path. The addresses that were bound are printed in one line on
stdout. SIGINT (Ctrl-C) and SIGTERM stop the bridge: it accepts no more, connections have --stop-timeout seconds to end (with --raw
they are closed with 1001), and the exit status is 0; a second signal ends it at once. SIGHUP reads the certificate files again;
without certificates it stops the bridge like SIGTERM.

examples:
  gws-gevent bridge --listen h3://:443 quic://:4433 --cert fullchain.pem --key privkey.pem --to 127.0.0.1:8080
  gws-gevent bridge --listen :443 --cert fullchain.pem --key privkey.pem --to unix:/run/app.sock --forwarded
  gws-gevent bridge --listen 127.0.0.1:8080 --to tls://ws.example.org:443
  gws-gevent bridge --raw --listen :6080 --to 127.0.0.1:5900 --origin https://vnc.example.org
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    add = parser.add_argument
    add("--listen", nargs="+", action="extend", required=True, metavar="ENDPOINT", help="where to listen; may be repeated")
    add("--to", required=True, metavar="ENDPOINT", help="the server that every connection is carried to")
    add("--raw", action="store_true", help="carry the payload of binary messages to any server, and its bytes back")
    add_listening_arguments(parser)
    add("--to-ca", metavar="FILE", help="trust these authorities (PEM) with the target's certificate instead of the system's")
    add("--to-insecure", action="store_true", help="accept any certificate of the target")
    add("--to-name", metavar="NAME", help="the name in the target's certificate (default: its host)")
    add("--to-cert", metavar="FILE", help="show the target this certificate (PEM)")
    add("--to-key", metavar="FILE", help="its private key (PEM; default: in the certificate's file)")
    add("--forwarded", action="store_true", help="tell the target who the client is, in X-Forwarded-For and X-Forwarded-Proto")
    add(
        "--trust",
        action="append",
        default=[],
        metavar="NETWORK",
        help="believe what these peers say about the client, as in 10.0.0.0/8, or unix for all on Unix sockets; may be repeated",
    )
    add("--origin", action="append", default=[], metavar="ORIGIN", help="let in pages of this origin only; may be repeated")
    add("--max-connections", type=_count, metavar="N", help="connections carried at once (default: no bound)")
    for flag, field, what in (
        ("--handshake-timeout", "handshake_timeout", "for a client to send its request"),
        ("--to-timeout", "target_timeout", "to connect to the target and get its answer"),
        ("--write-timeout", "write_timeout", "a side may take no bytes while there are some for it"),
        ("--close-timeout", "close_timeout", "without a byte after one side has ended"),
    ):
        default = getattr(BridgeOptions(), field)
        add(flag, type=positive_seconds, default=default, metavar="SECONDS", help=f"{what} (default {default:g})")
    add(
        "--idle-timeout",
        type=_seconds_or_none,
        default=BridgeOptions().idle_timeout,
        metavar="SECONDS",
        help="without a byte either way; none for ever (default 3600)",
    )
    parser.epilog = _EPILOG


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds_or_none(text: str) -> float | None:
    return None if text == "none" else positive_seconds(text)


def run(args: argparse.Namespace) -> int:
    """Carry connections until a signal ends it."""
    settings = ListenSettings(backlog=args.backlog, tls=tls_files(args))
    endpoints = [listening_endpoint("--listen", text, settings.tls is not None) for text in args.listen]
    check_certificates("--listen", endpoints, settings.tls is not None)
    target = _target(args)
    if any(replace(one, params=target.params) == target for one in endpoints):
        raise UsageError(f"--to {target}: is where the bridge itself listens")
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    kind = RawBridge if args.raw else Bridge
    try:
        bridge = kind(target, _options(args), _dial_settings(args, target))
    except GwsError as error:
        raise UsageError(f"--to {describe(error)}") from error
    with until_stopped(bridge, endpoints, settings, args.stop_timeout) as stopping:
        try:
            bridge.start(*endpoints, settings=settings)
        except EndpointError as error:
            raise UsageError(f"--listen {error}") from error
        except (GwsError, OSError) as error:
            raise UsageError(describe(error)) from error
        with writing_output():
            print("listening on", *bridge.addresses, flush=True)
        stopping.wait()
    return 0


def _target(args: argparse.Namespace) -> Endpoint:
    target = parse_endpoint("--to", args.to)
    if target.scheme not in ("unix", "memory") and (not target.host or not target.port):
        raise UsageError(f"--to {args.to}: a host and a port are needed")
    for flag in ("--to-ca", "--to-insecure", "--to-name", "--to-cert", "--to-key"):
        if getattr(args, flag[2:].replace("-", "_")) and target.scheme not in ENCRYPTED:
            raise UsageError(f"{flag}: {args.to} uses no TLS; did you mean --to tls://{target.host}:{target.port}?")
    if args.to_insecure and args.to_ca is not None:
        raise UsageError("--to-insecure and --to-ca exclude each other")
    if args.to_cert is not None and target.scheme != "tls":
        raise UsageError(f"--to-cert: {target.scheme} shows no certificates")
    if args.to_key is not None and args.to_cert is None:
        raise UsageError("--to-key: needs --to-cert")
    if args.raw and args.forwarded:
        raise UsageError("--forwarded: with --raw no request is passed on")
    return target


def _options(args: argparse.Namespace) -> BridgeOptions:
    names = (
        "handshake_timeout", "idle_timeout", "write_timeout", "close_timeout", "max_connections", "forwarded",
    )  # fmt: skip
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    given |= {"target_timeout": args.to_timeout, "trusted_proxies": args.trust, "origins": args.origin or None}
    try:
        return BridgeOptions(**given)
    except ValueError as error:
        said = str(error).replace("trusted_proxies", "trust", 1).replace("origins", "origin", 1)
        raise UsageError(f"--{said}") from error


def _dial_settings(args: argparse.Namespace, target: Endpoint) -> DialSettings:
    if target.scheme not in ENCRYPTED:
        return DialSettings()
    try:
        context: ssl.SSLContext = client_context(args.to_ca, verify=not args.to_insecure)
        if args.to_cert is not None:
            server_context(TlsFiles(args.to_cert, args.to_key))  # says which of the files is wrong, if one is
            context.load_cert_chain(args.to_cert, args.to_key)
    except GwsError as error:
        raise UsageError(describe(error)) from error
    return DialSettings(ssl_context=context, server_name=args.to_name)
