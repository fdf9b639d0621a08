"""What subcommands that listen share: certificates, endpoints, signals.

Belongs here: arguments of `serve` and `bridge` alike, and what is wrong with them. Does not belong here: what is served.
"""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import gevent
from gevent.event import Event

from gws_gevent.cli.errors import UsageError, describe, positive_seconds, problem_of_scheme
from gws_gevent.exceptions import GwsError
from gws_gevent.transports.base import ENCRYPTED, Endpoint, ListenSettings, TlsFiles

__all__ = [
    "add_listening_arguments", "check_certificates", "listening_endpoint", "parse_endpoint", "tls_files", "until_stopped",
]  # fmt: skip

#: Endpoints of these schemes have no use for a certificate; those of the encrypted ones cannot do without.
PLAIN_SCHEMES = frozenset({"tcp", "unix", "kcp"})
LEVELS = ("debug", "info", "warning", "error", "critical")


class Stoppable(Protocol):
    """A Server or a bridge."""

    def reload(self) -> None: ...

    def stop(self, timeout: float | None = ...) -> None: ...


def add_listening_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments that the functions below read."""
    add = parser.add_argument
    add("--cert", metavar="FILE", help="certificate chain in PEM form")
    add("--key", metavar="FILE", help="its private key in PEM form (default: in the certificate's file)")
    add("--client-ca", metavar="FILE", help="accept only clients with a certificate that one of these authorities signed")
    add("--log-level", choices=LEVELS, default="info", help="least level of what is logged on stderr (default info)")
    add("--backlog", type=_backlog, default=1024, metavar="N", help="connections the system queues for accept (default 1024)")
    add(
        "--stop-timeout",
        type=positive_seconds,
        default=5.0,
        metavar="SECONDS",
        help="how long connections have to end when the program is stopped (default 5)",
    )


def _backlog(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def tls_files(args: argparse.Namespace) -> TlsFiles | None:
    """Return the certificate files of the arguments, None if there are none."""
    if args.cert is not None:
        return TlsFiles(args.cert, args.key, args.client_ca)
    for flag, value in (("--key", args.key), ("--client-ca", args.client_ca)):
        if value is not None:
            raise UsageError(f"{flag}: needs --cert")
    return None


def parse_endpoint(flag: str, text: str) -> Endpoint:
    """Return the endpoint that an argument names; a UsageError with the argument's name for one that is of no use."""
    try:
        endpoint = Endpoint.parse(text)
    except GwsError as error:
        raise UsageError(f"{flag} {error}") from error
    problem = problem_of_scheme(endpoint.scheme)
    if problem is not None:
        raise UsageError(f"{flag} {text}: {problem}")
    return endpoint


def listening_endpoint(flag: str, text: str, tls: bool) -> Endpoint:
    """Return the endpoint to listen on: what names no scheme is TLS if there are certificates."""
    endpoint = parse_endpoint(flag, text)
    bare = endpoint.scheme == "tcp" and "://" not in text.partition("?")[0]
    return replace(endpoint, scheme="tls") if bare and tls else endpoint


def check_certificates(flag: str, endpoints: Sequence[Endpoint], tls: bool) -> None:
    """Raise a UsageError for certificates that nobody uses, and for an endpoint that has none and needs one."""
    if tls and all(endpoint.scheme in PLAIN_SCHEMES for endpoint in endpoints):
        raise UsageError(f"--cert: no endpoint uses TLS: {' '.join(map(str, endpoints))}")
    for endpoint in endpoints:
        if endpoint.scheme in ENCRYPTED and not tls and "cert" not in endpoint.params:
            raise UsageError(f"{flag} {endpoint}: needs --cert, or ?cert=FILE&key=FILE behind the port")


@contextmanager
def until_stopped(
    server: Stoppable, endpoints: Sequence[Endpoint], settings: ListenSettings, stop_timeout: float
) -> Iterator[Event]:
    """The context is an event that SIGINT and SIGTERM set. SIGHUP reloads certificates, or sets it where there are none.

    At the end of the block signals do again what they do to any program, and the server is stopped.
    """
    has_certificates = settings.tls is not None or any("cert" in endpoint.params for endpoint in endpoints)
    stopping = Event()
    watchers = [gevent.signal_handler(number, stopping.set) for number in (signal.SIGINT, signal.SIGTERM)]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None:
        watchers.append(gevent.signal_handler(hangup, lambda: _reload(server) if has_certificates else stopping.set()))
    try:
        yield stopping
    finally:
        for watcher in watchers:
            watcher.cancel()
        server.stop(stop_timeout)


def _reload(server: Stoppable) -> None:
    log = logging.getLogger("gws_gevent")
    try:
        server.reload()
    except GwsError as error:
        log.error("certificates were not reloaded: %s", describe(error))
    else:
        log.info("certificates reloaded")
