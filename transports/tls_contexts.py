"""TLS contexts from certificate files, with errors a person can act on.

Belongs here: files, names, protocol versions, ALPN. Does not belong here: connections.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final, TypeVar

from gws_gevent.exceptions import TransportError
from gws_gevent.transports.base import TlsFiles

__all__ = ["client_context", "look_up", "may_switch", "normalise", "server_context"]

T = TypeVar("T")

#: RFC 6455 runs on HTTP/1.1: a peer that could also speak HTTP/2 is told so.
ALPN: Final = ["http/1.1"]


def server_context(files: TlsFiles, sni: Mapping[str, TlsFiles] | None = None) -> ssl.SSLContext:
    """Return a context for a server, TLS 1.2 and newer, whose certificate depends on the name the client asks for.

    Args:
        files: the certificate for every name that is not in `sni`; its `client_ca` holds for all names.
        sni: more certificates by name; `"*.example.com"` stands for one label more.

    Raises:
        TransportError: a file cannot be read or used; the message names it.
    """
    context = _with_certificate(files)
    if files.client_ca is not None:
        _read(files.client_ca, "CERTIFICATE-----", "no certificate in PEM form")
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise TransportError(f"{files.client_ca}: cannot be used as authority for clients ({_reason(error)})") from error
        context.verify_mode = ssl.CERT_REQUIRED
    if sni:
        by_name = {normalise(name): _with_certificate(_without_client_ca(name, more)) for name, more in sni.items()}

        context.sni_callback = _Choose(by_name)
    # One ticket of TLS 1.3 and not two: each costs a tenth of a handshake, and a WebSocket client mostly has one connection.
    context.num_tickets = 1
    return context


def client_context(ca: str | None = None, *, verify: bool = True) -> ssl.SSLContext:
    """Return a context for a client, TLS 1.2 and newer.

    Args:
        ca: file of the authorities to trust instead of the system's.
        verify: False accepts every certificate, which lets anyone in between read and change everything.

    Raises:
        TransportError: `ca` cannot be read or used.
    """
    if ca is not None:
        _read(ca, "CERTIFICATE-----", "no certificate in PEM form")
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise TransportError(f"{ca}: cannot be used as authority ({_reason(error)})") from error
    _common(context)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def may_switch(context: ssl.SSLContext) -> bool:
    """True if the context has a callback that might switch greenlets in the middle of a handshake: one that is not ours."""
    return not isinstance(context.sni_callback, _Choose | None)


class _Choose:
    """Gives a handshake the context for the name that the client asks for."""

    __slots__ = ("_by_name",)

    def __init__(self, by_name: Mapping[str, ssl.SSLContext]) -> None:
        self._by_name = by_name

    def __call__(self, stream: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        chosen = look_up(self._by_name, name)
        if chosen is not None:
            stream.context = chosen


def _with_certificate(files: TlsFiles) -> ssl.SSLContext:
    key = files.key if files.key is not None else files.cert
    _read(files.cert, "CERTIFICATE-----", "no certificate in PEM form")
    _read(key, "PRIVATE KEY-----", "no private key in PEM form")

    def refuse() -> str:
        # Without this OpenSSL would ask for the pass phrase on the terminal.
        raise TransportError(f"{key}: the private key is encrypted; an unencrypted one is needed")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _common(context)
    try:
        context.load_cert_chain(files.cert, key, refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TransportError(f"{key}: this key does not belong to the certificate in {files.cert}") from error
        raise TransportError(f"{files.cert} and {key}: cannot be used as certificate and key ({_reason(error)})") from error
    return context


def _common(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(ALPN)
    context.options |= ssl.OP_NO_RENEGOTIATION


def _read(path: str, must_hold: str, otherwise: str) -> None:
    """Refuse a file that is no candidate: the ssl module's own errors do not say which file they mean."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise TransportError(error.errno, f"{path}: {error.strerror}") from error
    if must_hold not in text:
        raise TransportError(f"{path}: {otherwise}")


def _without_client_ca(name: str, files: TlsFiles) -> TlsFiles:
    if files.client_ca is not None:
        # OpenSSL decides whether to ask for a certificate before the name is known.
        raise TransportError(f"{name}: client certificates are asked for under every name or none; set client_ca in `tls`")
    return files


def normalise(name: str) -> str:
    """Return the name of a certificate in ASCII and lower case, with a "*." in front as it was; a TransportError if it is none."""
    stem = name.removeprefix("*.")
    try:
        return name[: len(name) - len(stem)] + stem.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise TransportError(f"{name!r}: not a host name ({error})") from error


def look_up(by_name: Mapping[str, T], name: str | None) -> T | None:
    """Return what stands under a name, or under "*." and its domain; None: nothing does."""
    if name is None:
        return None
    name = name.lower()
    return by_name.get(name) or by_name.get("*." + name.partition(".")[2])


def _reason(error: ssl.SSLError) -> str:
    # Without a reason OpenSSL has only a place in its source to tell, and it is always that of the PEM reader.
    return error.reason.lower().replace("_", " ") if error.reason else "damaged PEM data"
