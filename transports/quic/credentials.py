"""Certificates for QUIC: files as aioquic wants them, and what a client trusts.

Belongs here: from TlsFiles and SSLContext to QuicConfiguration. Does not belong here: checking that files are usable, which is done
as for `tls` (tls_contexts.py).
"""

from __future__ import annotations

import os
import re
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import SessionTicket, load_pem_private_key, load_pem_x509_certificates

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports.base import TlsFiles
from gws_gevent.transports.tls_contexts import look_up, normalise, server_context

__all__ = ["Credentials", "ServerCredentials", "trust"]

#: (certificate, chain, private key)
Credentials = tuple[Any, list[Any], Any]

#: Tickets that a server remembers, about 2 KiB each. A client whose ticket is forgotten does a full handshake.
MAX_TICKETS: Final = 1000

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


class ServerCredentials:
    """What one reading of the certificate files gave, and the session tickets given out under it."""

    def __init__(self, files: TlsFiles, sni: Mapping[str, TlsFiles]) -> None:
        """Read the files; a TransportError names one that cannot be used."""
        if files.client_ca is not None:
            raise EndpointError("client_ca: quic cannot ask clients for certificates")
        server_context(files, sni)  # says what is wrong with a file, as for tls
        self.default = _load(files)
        self._by_name = {normalise(name): _load(more) for name, more in sni.items()}
        self._tickets: OrderedDict[bytes, SessionTicket] = OrderedDict()

    def apply(self, configuration: QuicConfiguration) -> None:
        configuration.certificate, configuration.certificate_chain, configuration.private_key = self.default

    def for_name(self, name: str | None) -> Credentials | None:
        """Return the credentials for the name a client asks for; None: the default ones."""
        return look_up(self._by_name, name)

    @property
    def has_names(self) -> bool:
        return bool(self._by_name)

    def keep_ticket(self, ticket: SessionTicket) -> None:
        self._tickets[ticket.ticket] = ticket
        if len(self._tickets) > MAX_TICKETS:
            self._tickets.popitem(last=False)

    def take_ticket(self, name: bytes) -> SessionTicket | None:
        """Return a ticket and forget it: each is good for one connection."""
        return self._tickets.pop(name, None)


def _load(files: TlsFiles) -> Credentials:
    certificates = b"\n".join(_CERTIFICATE.findall(_bytes_of(files.cert)))
    key_path = files.key if files.key is not None else files.cert
    key = _KEY.search(_bytes_of(key_path))
    try:
        assert key is not None  # or server_context would have complained
        first, *chain = load_pem_x509_certificates(certificates + b"\n")
        return first, chain, load_pem_private_key(key[0] + b"\n")
    except ValueError as error:
        raise TransportError(f"{files.cert} and {key_path}: cannot be used as certificate and key ({error})") from error


def _bytes_of(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def trust(configuration: QuicConfiguration, context: ssl.SSLContext | None) -> None:
    """Have a client check certificates as `context` would: its authorities, or no check at all. None: the system's authorities.

    If certificates are checked, then against the name, too. A client certificate of the context is not shown.
    """
    configuration.verify_mode = ssl.CERT_REQUIRED
    if context is not None:
        if context.verify_mode == ssl.CERT_NONE:
            configuration.verify_mode = ssl.CERT_NONE
            return
        authorities = context.get_ca_certs(binary_form=True)
        if authorities:
            configuration.cadata = "".join(map(ssl.DER_cert_to_PEM_cert, authorities)).encode()
            return
    paths = ssl.get_default_verify_paths()
    # Without any of them aioquic takes the authorities of the package certifi.
    configuration.cafile = paths.cafile
    configuration.capath = paths.capath if paths.capath and os.listdir(paths.capath) else None
