"""TLS sessions: the second connection to a server resumes the first one's, and nobody else does."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gws_gevent import EventHandler, connect
from gws_gevent.exceptions import TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import DialSettings, ListenSettings, TlsFiles
from gws_gevent.transports.tls_contexts import client_context
from gws_gevent.transports.tls_sessions import MAX_SESSIONS, Sessions, sessions_of
from tests.raw import running
from tests.transports.conftest import Certificates

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@pytest.fixture
def context(certificates: Certificates) -> ssl.SSLContext:
    return client_context(certificates.ca)


@contextmanager
def listening(settings: ListenSettings, endpoint: str = "tls://127.0.0.1:0") -> Iterator[tuple[Any, list[Any]]]:
    """A listener that sends each client "hello"; what the server's end of TLS says of each handshake is put into the list."""
    listener: Any = registry.listen(endpoint, settings)
    seen: list[Any] = []

    def on_stream(stream: Any) -> None:
        try:
            stream.handshake()
            seen.append(stream.info("tls"))
            stream.send_all(b"hello")
            stream.recv_into(bytearray(1))
        except TransportError:
            pass
        finally:
            stream.close()

    listener.start(on_stream)
    try:
        yield listener, seen
    finally:
        listener.close()


def resumes(address: str, context: ssl.SSLContext, name: str | None = "localhost", *, read: bool = True) -> bool | None:
    """Connect, read what the server says unless told otherwise, leave; whether an earlier session was resumed."""
    stream: Any = registry.dialer(address, DialSettings(ssl_context=context, server_name=name)).dial()
    try:
        if read:
            assert stream.recv_into(bytearray(10)) == 5
        reused: bool | None = stream.info("tls").session_reused
        return reused
    finally:
        stream.close()


@VERSIONS
def test_the_second_connection_resumes(version: ssl.TLSVersion, certificates: Certificates, context: ssl.SSLContext) -> None:
    context.maximum_version = version
    with listening(ListenSettings(tls=TlsFiles(certificates.both))) as (listener, seen):
        assert [resumes(listener.address, context) for _ in range(3)] == [False, True, True]
        assert [tls.session_reused for tls in seen] == [False, True, True]
        assert len(sessions_of(context)) == 1


def test_connect_resumes(certificates: Certificates, context: ssl.SSLContext) -> None:
    with running(EventHandler(), tls=TlsFiles(certificates.both)) as (_, port):
        reused = []
        for _ in range(2):
            with connect(f"wss://localhost:{port}/", ssl_context=context) as conn:
                reused.append(conn.stream.info("tls").session_reused)
    assert reused == [False, True]


def test_a_ticket_is_used_once(certificates: Certificates, context: ssl.SSLContext) -> None:
    with listening(ListenSettings(tls=TlsFiles(certificates.both))) as (listener, _):
        resumes(listener.address, context)
        dialer = registry.dialer(listener.address, DialSettings(ssl_context=context, server_name="localhost"))
        first, second = dialer.dial(), dialer.dial()
        assert [stream.info("tls").session_reused for stream in (first, second)] == [True, False]
        first.close()
        second.close()


def test_nothing_is_kept_before_a_ticket_has_come(certificates: Certificates, context: ssl.SSLContext) -> None:
    with listening(ListenSettings(tls=TlsFiles(certificates.both))) as (listener, _):
        resumes(listener.address, context, read=False)
        assert len(sessions_of(context)) == 0


def test_a_server_that_gives_no_tickets(certificates: Certificates, context: ssl.SSLContext) -> None:
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(certificates.both)
    of_server.num_tickets = 0
    with listening(ListenSettings(ssl_context=of_server)) as (listener, _):
        assert [resumes(listener.address, context) for _ in range(2)] == [False, False]
        assert len(sessions_of(context)) == 0


def test_a_session_stays_with_its_name_its_address_and_its_rules(certificates: Certificates, context: ssl.SSLContext) -> None:
    settings = ListenSettings(tls=TlsFiles(certificates.both))
    with listening(settings) as (listener, _), listening(settings) as (other, _):
        assert resumes(listener.address, context) is False
        assert resumes(listener.address, context, "127.0.0.1") is False  # another name
        assert resumes(other.address, context) is False  # another port
        assert resumes(listener.address, client_context(certificates.ca)) is False  # another context
        context.check_hostname = False
        assert resumes(listener.address, context) is False  # less is checked than before
        context.verify_mode = ssl.CERT_NONE
        assert resumes(listener.address, context) is False
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = True
        assert resumes(listener.address, context) is True


def test_an_unchecked_session_does_not_pass_a_later_check(certificates: Certificates) -> None:
    context = client_context(verify=False)  # and it trusts nobody that this server's certificate comes from
    with listening(ListenSettings(tls=TlsFiles(certificates.both))) as (listener, _):
        assert [resumes(listener.address, context) for _ in range(2)] == [False, True]
        context.verify_mode = ssl.CERT_REQUIRED
        with pytest.raises(TransportError, match="certificate of the peer is not accepted"):
            resumes(listener.address, context)


@VERSIONS
def test_a_server_that_knows_the_session_no_more_gets_a_full_handshake(
    version: ssl.TLSVersion, certificates: Certificates, context: ssl.SSLContext
) -> None:
    context.maximum_version = version
    with listening(ListenSettings(tls=TlsFiles(certificates.both))) as (listener, _):
        assert [resumes(listener.address, context) for _ in range(2)] == [False, True]
        listener.reload()  # other keys for tickets
        assert [resumes(listener.address, context) for _ in range(2)] == [False, True]


def test_a_certificate_chosen_by_name_is_resumed_too(certificates: Certificates, context: ssl.SSLContext) -> None:
    other = TlsFiles(certificates.other, certificates.other_key)
    with listening(ListenSettings(tls=TlsFiles(certificates.both), sni={"www.example.com": other})) as (listener, _):
        assert [resumes(listener.address, context, "www.example.com") for _ in range(2)] == [False, True]
        assert resumes(listener.address, context) is False


@VERSIONS
def test_a_clients_certificate_belongs_to_its_session(version: ssl.TLSVersion, certificates: Certificates) -> None:
    with_certificate, without = client_context(certificates.ca), client_context(certificates.ca)
    with_certificate.load_cert_chain(certificates.client)
    without.maximum_version = with_certificate.maximum_version = version
    with listening(ListenSettings(tls=TlsFiles(certificates.both, None, certificates.ca))) as (listener, seen):
        assert [resumes(listener.address, with_certificate) for _ in range(2)] == [False, True]
        assert [("email", "client@example.com") in tls.getpeercert()["subjectAltName"] for tls in seen] == [True, True]
        with pytest.raises(TransportError):
            resumes(listener.address, without)
        assert len(sessions_of(without)) == 0


def test_no_more_sessions_than_allowed() -> None:
    sessions = Sessions()
    made: list[Any] = [object() for _ in range(MAX_SESSIONS + 2)]
    for number, session in enumerate(made[:MAX_SESSIONS]):
        sessions.keep(number, session)
    sessions.keep(0, made[-1])  # no longer the oldest
    sessions.keep("one more", made[-2])
    assert len(sessions) == MAX_SESSIONS
    assert sessions.take(1) is None
    assert sessions.take(0) is made[-1]
    assert sessions.take(0) is None
    assert sessions.take(2) is made[2]


def test_without_a_context_there_is_one_for_all() -> None:
    first, second = (registry.dialer("tls://localhost:1", DialSettings()) for _ in range(2))
    assert first._context is second._context  # type: ignore[attr-defined]
    assert first._context.verify_mode == ssl.CERT_REQUIRED  # type: ignore[attr-defined]
