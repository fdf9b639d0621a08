"""Certificates for the TLS tests, and transports set up with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent.event import AsyncResult

from gws_gevent.transports import registry
from gws_gevent.transports.base import Dialer, DialSettings, Listener, ListenSettings, Stream, TlsFiles
from gws_gevent.transports.tls_contexts import client_context


@dataclass
class Certificates:
    """PEM files.

    Attributes:
        ca: the authority that signed them all.
        cert, key: for localhost and 127.0.0.1, apart.
        both: the same pair in one file.
        other, other_key: for www.example.com and *.apps.example.com.
        client: certificate and key of a client.
    """

    ca: str
    cert: str
    key: str
    both: str
    other: str
    other_key: str
    client: str


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    here = authority.issue_cert("localhost", "127.0.0.1")
    other = authority.issue_cert("www.example.com", "*.apps.example.com")
    client = authority.issue_cert("client@example.com")

    def write(name: str, blob: trustme.Blob) -> str:
        blob.write_to_path(str(folder / name))
        return str(folder / name)

    return Certificates(
        ca=write("ca.pem", authority.cert_pem),
        cert=write("cert.pem", here.cert_chain_pems[0]),
        key=write("key.pem", here.private_key_pem),
        both=write("both.pem", here.private_key_and_cert_chain_pem),
        other=write("other.pem", other.cert_chain_pems[0]),
        other_key=write("other_key.pem", other.private_key_pem),
        client=write("client.pem", client.private_key_and_cert_chain_pem),
    )


@dataclass
class Setting:
    """A transport to test."""

    endpoint: str
    listen_settings: ListenSettings
    dial_settings: DialSettings
    params: dict[str, str] = field(default_factory=dict)
    """Parameters of the endpoints of both sides."""

    def listen(self, endpoint: str) -> Listener:
        return registry.listen(self.with_params(endpoint), self.listen_settings)

    def dialer(self, endpoint: str) -> Dialer:
        return registry.dialer(self.with_params(endpoint), self.dial_settings)

    def with_params(self, endpoint: str) -> str:
        query = "&".join(f"{name}={value}" for name, value in self.params.items())
        return f"{endpoint}?{query}" if query else endpoint


@pytest.fixture
def set_up(certificates: Certificates, tmp_path: Path) -> Callable[[str], Setting]:
    """Return a function that sets up a transport by name: memory, tcp, tcp6, tls, unix, abstract, quic, kcp or kcp-KIND."""
    endpoints = {
        "memory": "memory:conformance",
        "tcp": "tcp://127.0.0.1:0",
        "tcp6": "tcp://[::1]:0",
        "tls": "tls://127.0.0.1:0",
        "unix": f"unix:{tmp_path}/socket?mode=600",
        "kcp": "kcp://127.0.0.1:0",
        "quic": "quic://127.0.0.1:0",
        "abstract": f"unix:@gws_gevent_test_of_transports_{os.getpid()}",
    }

    kinds = {
        "kcp-messages": {"stream": "0"},
        "kcp-stock": {"cookie": "0", "linger": "0.5"},
        "kcp-key": {"key-file": str(tmp_path / "kcp.key")},
    }
    (tmp_path / "kcp.key").write_text(os.urandom(32).hex())

    def make(name: str) -> Setting:
        listen_settings = ListenSettings(tls=TlsFiles(certificates.cert, certificates.key))
        dial_settings = DialSettings(ssl_context=client_context(certificates.ca), server_name="localhost")
        return Setting(endpoints[name.partition("-")[0]], listen_settings, dial_settings, kinds.get(name, {}))

    return make


@pytest.fixture
def connected() -> Callable[..., AbstractContextManager[tuple[Any, Any]]]:
    """Return `connected(listener, dial)`: a context manager that gives the dialled stream and the accepted one, shaken hands."""

    @contextmanager
    def connect(listener: Listener, dial: Callable[[], Stream]) -> Iterator[tuple[Any, Any]]:
        accepted = AsyncResult()

        def serve(stream: Stream) -> None:
            try:
                stream.handshake()
                accepted.set(stream)
            except Exception as error:
                stream.close()
                accepted.set_exception(error)

        listener.start(serve)
        streams: list[Stream] = []
        try:
            streams.append(dial())
            with gevent.Timeout(5):
                streams.append(accepted.get())
            yield streams[0], streams[1]
        finally:
            listener.close()
            for stream in streams:
                stream.close()

    return connect
