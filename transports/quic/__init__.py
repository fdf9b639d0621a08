"""WebSocket over QUIC: `quic://host:port`, one WebSocket per stream, TLS 1.3 always (RFC 9000, RFC 9001; ALPN `ws`).

Belongs here: the endpoints and their parameters. The parts: core.py (aioquic and its private parts), session.py (one connection),
stream.py, admission.py (who is let in), listener.py, dialer.py, credentials.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gws_gevent.exceptions import EndpointError
from gws_gevent.transports.base import (
    Dialer,
    DialSettings,
    Endpoint,
    Listener,
    ListenSettings,
    Stream,
    TlsFiles,
    refuse_unknown_params,
)
from gws_gevent.transports.quic.admission import Limits
from gws_gevent.transports.quic.dialer import QuicDialer
from gws_gevent.transports.quic.listener import QuicListener
from gws_gevent.transports.quic.session import QuicSession
from gws_gevent.transports.quic.stream import StreamTable

__all__ = ["CERTIFICATES", "NUMBERS", "dialer", "listen", "numbers_of", "with_certificates"]

#: The ALPN name of one WebSocket per stream. It is ours: no standard has one.
ALPN: Final = "ws"
KiB: Final = 1024

CERTIFICATES: Final = ("cert", "key")
#: Parameters that are numbers: (default, least, most).
NUMBERS: Final[dict[str, tuple[int, int, int]]] = {
    "idle": (60, 1, 600),
    "streams": (100, 1, 10_000),
    "window": (256 * KiB, 4 * KiB, 16 * 1024 * KiB),
    "connections": (100_000, 1, 10_000_000),
    "per_address": (1000, 1, 10_000_000),
    "half_open": (1000, 1, 1_000_000),
    "retry": (50, 0, 1_000_000),
}
_OF_DIALER: Final = ("idle", "window")


def listen(endpoint: Endpoint, settings: ListenSettings) -> Listener:
    """Make a listener on `quic://host:port`. Parameters:

    cert, key: files in PEM form, in place of `tls` in the settings.
    idle: seconds of silence after which a connection is given up (60).
    streams: WebSockets that one connection may have open at the same time (100).
    window: bytes that a client may send on one stream before they are read (262144); a connection has four times as much.
    connections, per_address, half_open, retry: see `admission.Limits`.
    """
    refuse_unknown_params(endpoint, (*CERTIFICATES, *NUMBERS))
    numbers = numbers_of(endpoint)
    return QuicListener(
        replace(endpoint, params={}),
        with_certificates(endpoint, settings),
        alpn=[ALPN],
        make_application=_streams_of,
        limits=Limits(numbers["connections"], numbers["per_address"], numbers["half_open"], numbers["retry"]),
        streams=numbers["streams"],
        window=numbers["window"],
        idle=numbers["idle"],
    )


def dialer(endpoint: Endpoint, settings: DialSettings) -> Dialer:
    """Make a dialer to `quic://host:port`. Parameters: idle and window, as for `listen`."""
    refuse_unknown_params(endpoint, _OF_DIALER)
    numbers = numbers_of(endpoint)
    return QuicDialer(replace(endpoint, params={}), settings, alpn=ALPN, window=numbers["window"], idle=numbers["idle"])


def _streams_of(session: QuicSession, on_stream: Callable[[Stream], object], on_change: Callable[[], object]) -> StreamTable:
    return StreamTable(session, on_stream=on_stream, on_change=on_change)


def with_certificates(endpoint: Endpoint, settings: ListenSettings) -> ListenSettings:
    """Return the settings with the certificate files that an endpoint names, if it does."""
    params = endpoint.params
    if "cert" not in params:
        if "key" in params:
            raise EndpointError(f"{str(endpoint)!r}: key without cert")
        return settings
    return replace(settings, tls=TlsFiles(params["cert"], params.get("key")), ssl_context=None)


def numbers_of(endpoint: Endpoint) -> dict[str, int]:
    """Return the parameters that are numbers, and the defaults of the others; an EndpointError for one out of range."""
    found = {}
    for name, (default, least, most) in NUMBERS.items():
        text = endpoint.params.get(name)
        if text is None:
            found[name] = default
        elif not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
            raise EndpointError(f"{str(endpoint)!r}: {name} is a whole number from {least} to {most}, not {text!r}")
        else:
            found[name] = int(text)
    return found
