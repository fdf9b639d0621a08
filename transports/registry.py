"""From an endpoint's scheme to the transport that serves it.

Belongs here: the table of our own transports, those registered in code, those that installed packages offer. Does not belong here:
anything about a particular transport; each is imported when its scheme is first asked for.

A transport is a module or object with `listen(endpoint, settings)` and `dialer(endpoint, settings)` (see base.Transport). It is
looked for in this order: `register`, our own table, the entry points of the group `gws_gevent.transports`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, cast

from gws_gevent.exceptions import EndpointError, MissingExtra
from gws_gevent.transports.base import Dialer, DialSettings, Endpoint, EndpointLike, Listener, ListenSettings, Transport

__all__ = ["dialer", "known_schemes", "listen", "listen_on_socket", "register", "transport_for"]

#: Entry points of this group name transports: `example = "package.module"`, or `"package.module:object"`.
GROUP: Final = "gws_gevent.transports"


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    module: str
    #: What to install if a library that it needs is missing.
    extra: str | None = None


_BUILT_IN: Final = {
    "tcp": _BuiltIn("gws_gevent.transports.tcp"),
    "tls": _BuiltIn("gws_gevent.transports.tls"),
    "unix": _BuiltIn("gws_gevent.transports.unix"),
    "memory": _BuiltIn("gws_gevent.transports.memory"),
    "quic": _BuiltIn("gws_gevent.transports.quic", "quic"),
    "kcp": _BuiltIn("gws_gevent.transports.kcp", "kcp"),
    "h3": _BuiltIn("gws_gevent.transports.h3", "quic"),
}

#: Transports registered in code: the one thing here that changes.
_registered: dict[str, Transport] = {}


def register(scheme: str, transport: Transport | None) -> None:
    """Serve `scheme` with `transport` in this process, before any other that claims it. None takes the registration back."""
    if transport is None:
        _registered.pop(scheme, None)
    else:
        _registered[scheme] = _checked(transport, f"the transport registered for {scheme!r}")


def transport_for(scheme: str) -> Transport:
    """Return the transport that serves `scheme`.

    Raises:
        EndpointError: nobody does, or the package that claims it cannot be loaded.
        MissingExtra: it is one of ours, and a library it needs is not installed.
    """
    if scheme in _registered:
        return _registered[scheme]
    if scheme in _BUILT_IN:
        return _load(scheme, _BUILT_IN[scheme])
    for entry in entry_points(group=GROUP, name=scheme):
        try:
            loaded = entry.load()
        except Exception as error:
            raise EndpointError(f"the transport for {scheme!r}, {entry.value}, cannot be loaded: {error}") from error
        return _checked(loaded, f"the transport for {scheme!r}, {entry.value},")
    raise EndpointError(f"no transport serves {scheme!r}; known are {', '.join(known_schemes())}")


def known_schemes() -> list[str]:
    """Return every scheme that `transport_for` knows of, sorted."""
    return sorted({*_registered, *_BUILT_IN, *entry_points(group=GROUP).names})


def listen(endpoint: EndpointLike, settings: ListenSettings | None = None) -> Listener:
    """Make a listener on an endpoint such as `tcp://127.0.0.1:3001`; it binds when it is started."""
    parsed = Endpoint.of(endpoint)
    return transport_for(parsed.scheme).listen(parsed, settings or ListenSettings())


def listen_on_socket(sock: Any, settings: ListenSettings | None = None) -> Listener:
    """Make a listener on a socket that already listens, such as one inherited from a supervisor; it owns the socket from now on.

    It speaks TLS if `settings` has a certificate.
    """
    settings = settings or ListenSettings()
    if settings.tls is not None or settings.ssl_context is not None:
        from gws_gevent.transports.tls import TlsListener

        return TlsListener(sock, settings=settings)
    if isinstance(sock.getsockname(), tuple):
        from gws_gevent.transports.tcp import TcpListener

        return TcpListener(sock, settings=settings)
    from gws_gevent.transports.unix import UnixListener

    return UnixListener(sock, settings=settings)


def dialer(endpoint: EndpointLike, settings: DialSettings | None = None) -> Dialer:
    """Make a dialer to an endpoint such as `tcp://127.0.0.1:3001`; it connects when it is asked to."""
    parsed = Endpoint.of(endpoint)
    return transport_for(parsed.scheme).dialer(parsed, settings or DialSettings())


def _load(scheme: str, built_in: _BuiltIn) -> Transport:
    try:
        # A module is a Transport by its two functions, which mypy cannot see through a computed name.
        return cast(Transport, import_module(built_in.module))
    except ImportError as error:
        if built_in.extra is None:
            raise
        raise MissingExtra(f"the transport {scheme!r}", built_in.extra) from error


def _checked(transport: Any, what: str) -> Transport:
    for name in ("listen", "dialer"):
        if not callable(getattr(transport, name, None)):
            raise EndpointError(f"{what} has no function {name}")
    return cast(Transport, transport)
