"""Hostile peers of a TLS endpoint over real sockets: silence, nonsense and resets, inside the TLS handshake and behind it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent.ssl import SSLContext

from gws_gevent import Server
from gws_gevent.transports.base import TlsFiles
from tests.raw import Frame, RawClient, RawTlsClient, Recorder, frame, request, running, server_side, spawn_drip
from tests.support import wait_until

Serving = Callable[..., Any]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    path: Path = tmp_path_factory.mktemp("hostile") / "both.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
    return TlsFiles(str(path), None)


@pytest.fixture(scope="module")
def context(authority: trustme.CA) -> SSLContext:
    context = SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.fixture
def serving(files: TlsFiles, context: SSLContext) -> Serving:
    """`running`, with TLS; in the end a fresh connection still echoes."""

    @contextmanager
    def serve(handler: Recorder | None = None, **options: Any) -> Iterator[tuple[Server, int]]:
        with running(handler, tls=files, **options) as (server, port):
            yield server, port
            wait_until(lambda: not server.connections)
            with RawTlsClient(port, context) as client:
                client.upgrade()
                client.echo()
                client.send(frame(8, b"\x03\xe8"))
                assert client.read_close() == (1000, b"")
                client.read_end()

    return serve


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.slow
@pytest.mark.parametrize("said", [b"", client_hello(), client_hello()[:50]], ids=["nothing", "ClientHello", "half of it"])
def test_a_tls_handshake_that_is_not_finished_is_cut_at_handshake_timeout(said: bytes, serving: Serving) -> None:
    handler = Recorder()
    with serving(handler, handshake_timeout=0.4) as (server, port):
        with RawClient(port) as client:
            client.send(said)
            server_side(server, client)
            with gevent.Timeout(3.0):
                client.read_to_the_end()
            wait_until(lambda: not server.connections)
        assert not handler.opened


@pytest.mark.slow
def test_a_client_hello_of_a_byte_now_and_then_is_cut_at_handshake_timeout(serving: Serving) -> None:
    with serving(handshake_timeout=0.4) as (server, port):
        with RawClient(port) as client:
            drip = spawn_drip(client, client_hello(), 0.01)
            server_side(server, client)
            with gevent.Timeout(3.0):
                client.read_to_the_end()
            drip.get(timeout=3.0)


@pytest.mark.slow
def test_a_head_that_takes_too_long_inside_tls_is_answered_408(serving: Serving, context: SSLContext) -> None:
    with serving(handshake_timeout=0.5) as (_, port):
        with RawTlsClient(port, context) as client:
            client.send(request()[:50])
            with gevent.Timeout(3.0):
                assert client.read_answer().status == 408


def test_plain_http_on_a_tls_port_is_dropped(serving: Serving) -> None:
    with serving() as (server, port):
        with RawClient(port) as client:
            client.send(request())
            assert b"101" not in client.read_to_the_end()
            wait_until(lambda: not server.connections)


def test_a_refusal_arrives_inside_tls(serving: Serving, context: SSLContext) -> None:
    with serving() as (_, port):
        with RawTlsClient(port, context) as client:
            client.send(request(method="POST"))
            assert client.read_answer().status == 405
            client.read_end()


@pytest.mark.parametrize(("data", "code"), [(frame(3), 1002), (frame(1, b"\xff"), 1007), (frame(2, b"", length=1 << 62), 1009)])
def test_close_codes_arrive_inside_tls(data: bytes, code: int, serving: Serving, context: SSLContext) -> None:
    with serving() as (_, port):
        with RawTlsClient(port, context) as client:
            client.upgrade()
            client.send(data)
            assert client.read_close()[0] == code
            client.read_end()


@pytest.mark.parametrize("leave", [RawClient.reset, RawClient.close], ids=["RST", "FIN"])
@pytest.mark.parametrize("stage", ["connected", "ClientHello", "TLS", "head", "open", "frame", "closing"])
def test_a_peer_that_leaves_in_any_state_leaks_nothing(
    stage: str, leave: Callable[[RawClient], None], serving: Serving, context: SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Recorder()
    with serving(handler) as (server, port):
        with RawClient(port) if stage in ("connected", "ClientHello") else RawTlsClient(port, context) as client:
            server_side(server, client)
            if stage == "ClientHello":
                client.send(client_hello())
                assert client.sock.recv(10)
            elif stage == "head":
                client.send(request()[:50])
            elif stage in ("open", "frame", "closing"):
                client.upgrade()
                client.echo()
                if stage == "frame":
                    client.send(frame(2, bytes(1000))[:500])
                    wait_until(lambda: handler.opened[0].held)
                elif stage == "closing":
                    handler.opened[0].write_close(1001)
                    assert client.read_frame() == Frame(8, b"\x03\xe9")
            leave(client)
        wait_until(lambda: not server.connections)
        handler.check_all_closed_once()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
