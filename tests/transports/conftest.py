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

from gws_gevent.exceptions import TransportError
from gws_gevent.handshake import accept_response, judge_upgrade, make_key, request_head
from gws_gevent.http_head import parse_request
from gws_gevent.options import ServerOptions
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


class HandshakenListener(Listener):
    """Hands out streams of HTTP/3 that have been upgraded: before that they carry no bytes."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    @property
    def address(self) -> str:  # type: ignore[override]
        return self._listener.address

    def start(self, on_stream: Callable[[Stream], object]) -> None:
        def serve(stream: Stream) -> None:
            try:
                request = parse_request(read_head(stream))
                stream.send_all(accept_response(judge_upgrade(request, ServerOptions())))
            except TransportError:
                stream.abort()
            else:
                on_stream(stream)

        self._listener.start(serve)

    def stop_accepting(self) -> None:
        self._listener.stop_accepting()

    def close(self) -> None:
        self._listener.close()


class HandshakingDialer(Dialer):
    """Dials such streams."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    def dial(self) -> Stream:
        stream = self._dialer.dial()
        try:
            stream.send_all(request_head("/", "localhost", make_key()))
            assert b" 101 " in read_head(stream)
        except BaseException:
            stream.abort()
            raise
        return stream


def read_head(stream: Stream) -> bytes:
    """Read a head, and not a byte more."""
    head, one = b"", bytearray(1)
    while not head.endswith(b"\r\n\r\n"):
        if not stream.recv_into(one):
            raise TransportError("the stream ended")
        head += one
    return head


class HandshakenSetting(Setting):
    """HTTP/3, behind the opening handshake."""

    def listen(self, endpoint: str) -> Listener:
        return HandshakenListener(super().listen(endpoint))

    def dialer(self, endpoint: str) -> Dialer:
        return HandshakingDialer(super().dialer(endpoint))


@pytest.fixture
def set_up(certificates: Certificates, tmp_path: Path) -> Callable[[str], Setting]:
    """Return a function that sets up a transport by a name of `endpoints` or `params`."""
    endpoints = {
        "memory": "memory:conformance",
        "tcp": "tcp://127.0.0.1:0",
        "tcp6": "tcp://[::1]:0",
        "tls": "tls://127.0.0.1:0",
        "unix": f"unix:{tmp_path}/socket?mode=600",
        "quic": "quic://127.0.0.1:0",
        "h3": "h3://127.0.0.1:0",
        "kcp": "kcp://127.0.0.1:0",
        "abstract": f"unix:@gws_gevent_test_of_transports_{os.getpid()}",
    }

    params = {
        "kcp-messages": {"stream": "0"},
        "kcp-stock": {"cookie": "0", "linger": "0.5"},
        "kcp-key": {"key-file": str(tmp_path / "kcp.key")},
    }
    (tmp_path / "kcp.key").write_text(os.urandom(32).hex())

    def make(name: str) -> Setting:
        listen_settings = ListenSettings(tls=TlsFiles(certificates.cert, certificates.key))
        dial_settings = DialSettings(ssl_context=client_context(certificates.ca), server_name="localhost")
        kind = HandshakenSetting if name == "h3" else Setting
        return kind(endpoints[name.partition("-")[0]], listen_settings, dial_settings, params.get(name, {}))

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
