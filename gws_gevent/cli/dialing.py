"""Arguments that say how to connect to a server: headers, subprotocols, compression, TLS, a proxy.

Belongs here: what every subcommand that is a client takes. Does not belong here: connecting.
"""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Sequence
from typing import Any

from gws_gevent.cli.errors import UsageError, describe, problem_of_scheme
from gws_gevent.dialing import Tunnel
from gws_gevent.exceptions import GwsError
from gws_gevent.options import ClientOptions, PermessageDeflate
from gws_gevent.proxies import choose_proxy
from gws_gevent.transports.base import Endpoint, TlsFiles
from gws_gevent.transports.registry import dialer
from gws_gevent.transports.tls_contexts import client_context, server_context
from gws_gevent.urls import parse_url, without_login

__all__ = ["add_dialing_arguments", "client_options", "proxy_of", "tls_context"]


def add_dialing_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the URL and the arguments that the functions below read."""
    add = parser.add_argument
    add("url", metavar="URL", help="the server, see below")
    add("--header", action="append", default=[], metavar="NAME:VALUE", help="another header of the request; may be repeated")
    add("--subprotocol", action="append", default=[], metavar="NAME", help="a subprotocol to offer, best first; may be repeated")
    add("--compress", action="store_true", help="compress messages if the server agrees (permessage-deflate)")
    add(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the transport, as behind the ? of an endpoint: --param mode=fast3 with ws+kcp; may be repeated",
    )
    add("--insecure", action="store_true", help="with TLS: accept any certificate; anyone in between can then read and change all")
    add("--ca", metavar="FILE", help="with TLS: trust these authorities (PEM) instead of the system's")
    add("--cert", metavar="FILE", help="with TLS over TCP: show the server this certificate (PEM)")
    add("--key", metavar="FILE", help="its private key (PEM; default: in the certificate's file)")
    add(
        "--proxy",
        metavar="URL",
        help="go through http://HOST:PORT, https://HOST:PORT, socks5://HOST:PORT or socks5h://HOST:PORT (default: as the "
        "environment says, as in https_proxy and no_proxy); none goes straight",
    )


def client_options(args: argparse.Namespace, **others: Any) -> ClientOptions:
    """Return ClientOptions with the headers, subprotocols and compression of the arguments, and with `others`.

    Raises:
        UsageError: one of the arguments is wrong; it names it.
    """
    try:
        compression = PermessageDeflate() if args.compress else None
        return ClientOptions(
            headers=_headers(args.header),
            subprotocols=args.subprotocol,
            permessage_deflate=compression,
            transport_params=_params(args.param),
            **others,
        )
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('headers', 'header', 1).replace('subprotocols', 'subprotocol', 1)}") from error


def _headers(texts: Sequence[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition(":")
        if not separator:
            raise UsageError(f"--header {text!r}: must be NAME: VALUE")
        if name.strip().lower() in map(str.lower, headers):
            raise UsageError(f"--header {text!r}: {name.strip()} is given twice")
        headers[name.strip()] = value.strip()
    return headers


def _params(texts: Sequence[str]) -> dict[str, str]:
    params: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"--param {text!r}: must be NAME=VALUE")
        if name in params:
            raise UsageError(f"--param {text!r}: {name} is given twice")
        params[name] = value
    return params


def tls_context(args: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the context for a `wss` URL, or for a proxy that is spoken to inside of TLS; None where there is neither.

    Raises:
        UsageError: the URL is malformed or leads nowhere, or an argument does not fit it.
    """
    try:
        url = parse_url(args.url)
        problem = problem_of_scheme(url.scheme.rpartition("+")[2]) if "+" in url.scheme else None
        if problem is not None:
            raise UsageError(f"{without_login(args.url)}: {problem}")
        proxy = choose_proxy(url, _proxy(args))
        secure = url.secure or (proxy is not None and proxy.scheme == "https")
        _check_flags(args, secure)
        if args.param:
            # Said once and before all else: a load of many connections would say it for each of them.
            scheme = {"ws": "tcp", "wss": "tls"}.get(url.scheme, url.scheme.rpartition("+")[2])
            dialer(Endpoint(scheme, url.host, url.port, url.path, _params(args.param)))
        if not secure:
            return None
        context = client_context(args.ca, verify=not args.insecure)
        if args.cert is not None:
            if "+" in url.scheme:
                raise UsageError(f"--cert: {url.scheme} shows no certificates")
            server_context(TlsFiles(args.cert, args.key))  # says which of the files is wrong, if one is
            context.load_cert_chain(args.cert, args.key)
        return context
    except GwsError as error:
        raise UsageError(describe(error)) from error


def proxy_of(args: argparse.Namespace) -> str | bool | None:
    """Return what `connect` takes as its proxy.

    Raises:
        UsageError: it, or that of the environment, cannot be used for this URL.
    """
    proxy = _proxy(args)
    try:
        url = parse_url(args.url)
        chosen = choose_proxy(url, proxy)
        if chosen is not None:
            Tunnel(chosen, url, ClientOptions())
    except (GwsError, ImportError) as error:
        raise UsageError(f"{without_login(args.url)}: {describe(error)}") from error
    return proxy


def _proxy(args: argparse.Namespace) -> str | bool | None:
    return True if args.proxy is None else None if args.proxy == "none" else str(args.proxy)


def _check_flags(args: argparse.Namespace, secure: bool) -> None:
    for flag, given in (("--insecure", args.insecure), ("--ca", args.ca), ("--cert", args.cert), ("--key", args.key)):
        if given and not secure:
            raise UsageError(f"{flag}: {without_login(args.url)} uses no TLS")
    if args.insecure and args.ca is not None:
        raise UsageError("--insecure and --ca exclude each other")
    if args.key is not None and args.cert is None:
        raise UsageError("--key: needs --cert")
