"""TLS: certificates by name and reloaded, clients that prove who they are, ends of all kinds, bytes kept in order."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent.event import AsyncResult, Event

from gws_gevent import _tls_stream
from gws_gevent._accel import build_of
from gws_gevent.exceptions import EndpointError, StreamClosed, TransportError
from gws_gevent.runtime import current
from gws_gevent.transports import registry, tls
from gws_gevent.transports.base import DialSettings, ListenSettings, TlsFiles
from gws_gevent.transports.tcp import SocketStream
from gws_gevent.transports.tls import TlsListener, TlsStream
from gws_gevent.transports.tls_contexts import client_context, server_context
from tests.support import require_tool, wait_until
from tests.transports.conftest import Certificates


@pytest.fixture
def files(certificates: Certificates) -> TlsFiles:
    return TlsFiles(certificates.cert, certificates.key)


@pytest.fixture
def tls_pair(certificates: Certificates, files: TlsFiles, connected: Any) -> Iterator[Any]:
    """Return `make(version)`: (dialled, accepted) over that version of TLS."""
    open_now: list[Any] = []

    def make(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Any:
        context = client_context(certificates.ca)
        context.maximum_version = version
        listener = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=files))
        dialer = lambda: registry.dialer(listener.address, DialSettings(ssl_context=context)).dial()  # noqa: E731
        open_now.append(connected(listener, dialer))
        return open_now[-1].__enter__()

    yield make
    for one in open_now:
        one.__exit__(None, None, None)


def receive(stream: Any, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        buffer = bytearray(min(65536, count - len(received)))
        got = stream.recv_into(buffer)
        if not got:
            break
        received += buffer[:got]
    return bytes(received)


def serve(listener: Any, answers: list[Any]) -> None:
    """Start `listener`; each stream's handshake, then its peer's certificate or the error, goes to `answers`; then it is closed."""

    def on_stream(stream: Any) -> None:
        try:
            stream.handshake()
            answers.append(stream.info("tls").getpeercert())
        except TransportError as error:
            answers.append(error)
        finally:
            stream.close()

    listener.start(on_stream)


def as_tls_client(sock: Any, certificates: Certificates, name: str | None = "localhost", *, check: bool = True) -> Any:
    """Do a TLS handshake on a gevent socket with gevent's own TLS, an implementation that is not ours."""
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.ca)
    context.check_hostname = check
    return context.wrap_socket(sock, server_hostname=name)


def name_shown(listener: Any, certificates: Certificates, name: str | None) -> tuple[str, ...]:
    """The DNS names in the certificate that a client who asks for `name` is shown."""
    with gevent.socket.create_connection(("127.0.0.1", listener.server_port)) as sock:
        with as_tls_client(sock, certificates, name, check=False) as wrapped:
            names = wrapped.getpeercert()["subjectAltName"]
            assert wrapped.recv(1) == b""
    return tuple(value for kind, value in names if kind == "DNS")


# --- Facts


def test_versions_alpn_and_facts(tls_pair: Any) -> None:
    ours, theirs = tls_pair()
    for stream in (ours, theirs):
        assert stream.info("tls").selected_alpn_protocol() == "http/1.1"
        assert stream.info("tls").version() == "TLSv1.3"
        assert stream.info("scheme") == "tls"
        assert isinstance(stream.info("carrier"), SocketStream)
        assert not hasattr(stream, "fileno")  # or somebody would write around the encryption
    assert ours.info("peername") == theirs.info("sockname")


def test_nothing_older_than_tls_1_2(files: TlsFiles) -> None:
    for context in (server_context(files), client_context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
    assert client_context().verify_mode == ssl.CERT_REQUIRED
    assert client_context(verify=False).verify_mode == ssl.CERT_NONE


def test_another_implementation_talks_to_it(certificates: Certificates, files: TlsFiles) -> None:
    listener: Any = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=files))

    def echo(stream: Any) -> None:
        stream.handshake()
        while data := receive(stream, 100_000):
            stream.send_all(data)
        stream.close()

    listener.start(echo)
    data = os.urandom(100_000)
    with gevent.socket.create_connection(("127.0.0.1", listener.server_port)) as sock:
        with as_tls_client(sock, certificates) as wrapped:
            sender = gevent.spawn(wrapped.sendall, data)
            assert wrapped.makefile("rb").read(100_000) == data
            sender.get()
            wrapped.unwrap()
    listener.close()


# --- Certificates by name


def test_the_name_decides_about_the_certificate(certificates: Certificates, files: TlsFiles) -> None:
    other = TlsFiles(certificates.other, certificates.other_key)
    settings = ListenSettings(tls=files, sni={"WWW.example.com": other, "*.apps.example.com": other, "bücher.example": other})
    listener = registry.listen("tls://127.0.0.1:0", settings)
    serve(listener, [])
    ours, others = ("localhost",), ("www.example.com", "*.apps.example.com")
    for name, expected in {
        "www.example.com": others,
        "www.EXAMPLE.com": others,
        "one.apps.example.com": others,
        "xn--bcher-kva.example": others,
        "one.two.apps.example.com": ours,
        "apps.example.com": ours,
        "example.com": ours,
        "localhost": ours,
        None: ours,
    }.items():
        assert name_shown(listener, certificates, name) == expected, name
    listener.close()


def test_a_client_checks_the_name_and_the_authority(certificates: Certificates, files: TlsFiles) -> None:
    listener = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=files))
    answers: list[Any] = []
    serve(listener, answers)
    trusting = client_context(certificates.ca)
    for settings, problem in (
        (DialSettings(), "unable to get local issuer certificate"),
        (DialSettings(ssl_context=trusting, server_name="www.example.com"), "Hostname mismatch.*www.example.com.*"),
    ):
        with pytest.raises(
            TransportError,
            match=rf"^connect to {listener.address}: TLS handshake: the certificate of the peer is not accepted: .*{problem}",
        ):
            registry.dialer(listener.address, settings).dial()
    wait_until(lambda: len(answers) == 2)
    assert "TLS handshake: tlsv1 alert unknown ca" in str(answers[0])  # the alert was not overtaken by a reset
    for settings in (
        DialSettings(ssl_context=trusting),  # by the address in the certificate
        DialSettings(ssl_context=trusting, server_name="localhost"),
        DialSettings(ssl_context=client_context(verify=False)),
    ):
        registry.dialer(listener.address, settings).dial().close()
    listener.close()


# --- Client certificates


def test_clients_without_a_certificate_are_refused(certificates: Certificates) -> None:
    endpoint = f"tls://127.0.0.1:0?cert={certificates.both}&client_ca={certificates.ca}"
    listener = registry.listen(endpoint)
    answers: list[Any] = []
    serve(listener, answers)
    context = client_context(certificates.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where the client's own handshake waits for the server's verdict
    with pytest.raises(TransportError, match="handshake failure"):
        registry.dialer(listener.address, DialSettings(ssl_context=context)).dial()
    context.load_cert_chain(certificates.client)
    registry.dialer(listener.address, DialSettings(ssl_context=context)).dial().close()
    wait_until(lambda: len(answers) == 2)
    assert "TLS handshake: peer did not return a certificate" in str(answers[0])
    assert ("email", "client@example.com") in answers[1]["subjectAltName"]
    listener.close()


# --- Reload


def test_reload_changes_what_new_connections_get(certificates: Certificates, connected: Any, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(certificates.cert, cert)
    shutil.copy(certificates.key, key)
    listener: Any = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=TlsFiles(str(cert), str(key))))
    trusting = DialSettings(ssl_context=client_context(certificates.ca))
    with connected(listener, lambda: registry.dialer(listener.address, trusting).dial()) as (old, old_there):
        serve(listener, [])
        assert name_shown(listener, certificates, None) == ("localhost",)

        shutil.copy(certificates.other, cert)
        with pytest.raises(TransportError, match=rf"^{key}: this key does not belong to the certificate in {cert}$"):
            listener.reload()
        assert name_shown(listener, certificates, None) == ("localhost",)  # all files or none

        shutil.copy(certificates.other_key, key)
        assert name_shown(listener, certificates, None) == ("localhost",)  # only when it is asked for
        listener.reload()
        assert name_shown(listener, certificates, None) == ("www.example.com", "*.apps.example.com")

        old.send_all(b"unimpressed")
        assert receive(old_there, 11) == b"unimpressed"


def test_reload_of_a_context_and_of_no_tls_does_nothing(files: TlsFiles) -> None:
    registry.listen("tcp://127.0.0.1:0").reload()
    context = server_context(files)
    listener = TlsListener("127.0.0.1:0", settings=ListenSettings(ssl_context=context))
    listener.reload()
    assert listener._context is context


# --- Files that cannot be used


def encrypted_key(certificates: Certificates, folder: Path) -> str:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(Path(certificates.key).read_bytes(), None)
    form = serialization.BestAvailableEncryption(b"secret")
    path = folder / "encrypted.pem"
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form))
    return str(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing cert", "FOLDER/nothing.pem: No such file or directory"),
        ("missing key", "FOLDER/nothing.pem: No such file or directory"),
        ("missing ca", "FOLDER/nothing.pem: No such file or directory"),
        ("folder", "FOLDER: Is a directory"),
        ("no cert", "FOLDER/empty.pem: no certificate in PEM form"),
        ("no key", "CERT: no private key in PEM form"),
        ("no ca", "FOLDER/empty.pem: no certificate in PEM form"),
        ("bad cert", "FOLDER/bad.pem and KEY: cannot be used as certificate and key (damaged PEM data)"),
        ("bad ca", "FOLDER/bad.pem: cannot be used as authority for clients (damaged PEM data)"),
        ("mismatch", "OTHERKEY: this key does not belong to the certificate in CERT"),
        ("encrypted", "FOLDER/encrypted.pem: the private key is encrypted; an unencrypted one is needed"),
        ("sni", "www.example.com: client certificates are asked for under every name or none; set client_ca in `tls`"),
        ("sni missing", "FOLDER/nothing.pem: No such file or directory"),
    ],
)
def test_files_that_cannot_be_used_are_named(name: str, message: str, certificates: Certificates, tmp_path: Path) -> None:
    nothing, empty, bad = (str(tmp_path / f"{stem}.pem") for stem in ("nothing", "empty", "bad"))
    Path(empty).write_text("")
    Path(bad).write_text("-----BEGIN CERTIFICATE-----\nbad\n-----END CERTIFICATE-----\n")
    cert, key = certificates.cert, certificates.key
    good = TlsFiles(cert, key)
    tls_files, sni = {
        "missing cert": (TlsFiles(nothing, key), {}),
        "missing key": (TlsFiles(cert, nothing), {}),
        "missing ca": (TlsFiles(cert, key, nothing), {}),
        "folder": (TlsFiles(str(tmp_path), key), {}),
        "no cert": (TlsFiles(empty, key), {}),
        "no key": (TlsFiles(cert), {}),
        "no ca": (TlsFiles(cert, key, empty), {}),
        "bad cert": (TlsFiles(bad, key), {}),
        "bad ca": (TlsFiles(cert, key, bad), {}),
        "mismatch": (TlsFiles(cert, certificates.other_key), {}),
        "encrypted": (TlsFiles(cert, encrypted_key(certificates, tmp_path)), {}),
        "sni": (good, {"www.example.com": TlsFiles(cert, key, certificates.ca)}),
        "sni missing": (good, {"www.example.com": TlsFiles(nothing)}),
    }[name]
    for short, long in (("FOLDER", str(tmp_path)), ("OTHERKEY", certificates.other_key), ("CERT", cert), ("KEY", key)):
        message = message.replace(short, long)
    with pytest.raises(TransportError) as caught:
        registry.listen("tls://127.0.0.1:0", ListenSettings(tls=tls_files, sni=sni))
    assert str(caught.value).removeprefix("[Errno 2] ").removeprefix("[Errno 21] ") == message


def test_authorities_of_a_client_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"nothing\.pem: No such file"):
        client_context(str(tmp_path / "nothing.pem"))
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nbad\n-----END CERTIFICATE-----\n")
    with pytest.raises(TransportError, match=r"bad\.pem: cannot be used as authority"):
        client_context(str(tmp_path / "bad.pem"))


def test_a_name_that_is_none_is_refused(files: TlsFiles) -> None:
    with pytest.raises(TransportError, match=r"not a host name"):
        server_context(files, {"a..b": files})


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("tls://127.0.0.1:0", "TLS needs a certificate"),
        ("tls://127.0.0.1:0?key=k.pem", "key without cert"),
        ("tls://127.0.0.1:0?certificate=c.pem", "tls has no parameter certificate; it knows cert, client_ca, key"),
    ],
)
def test_endpoints_that_are_not_complete(endpoint: str, message: str) -> None:
    with pytest.raises(EndpointError, match=message):
        registry.listen(endpoint)


def test_an_existing_socket_speaks_tls(certificates: Certificates, files: TlsFiles) -> None:
    sock = gevent.socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    listener = registry.listen_on_socket(sock, ListenSettings(tls=files))
    assert isinstance(listener, TlsListener)
    serve(listener, [])
    assert name_shown(listener, certificates, None) == ("localhost",)
    assert listener.address.startswith("tls://127.0.0.1:")
    listener.close()


# --- Handshakes that do not come to their end


@pytest.fixture
def half_open(files: TlsFiles) -> Iterator[Callable[[], tuple[Any, TlsStream, Any]]]:
    """Return a function that gives (a client's bare socket, the accepted stream, the greenlet in its handshake)."""
    made: list[Any] = []

    def make(received: bytes = b"") -> tuple[Any, TlsStream, Any]:
        listener: Any = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=files))
        accepted = AsyncResult()
        listener.start(accepted.set)
        client = gevent.socket.create_connection(("127.0.0.1", listener.server_port))
        stream = accepted.get(timeout=5)
        made.extend((listener, client, stream))

        def shake() -> Any:
            try:
                stream.handshake(received)
            except TransportError as error:
                return error
            return None

        started = gevent.spawn(shake)
        gevent.sleep(0.01)
        return client, stream, started

    yield make
    for one in made:
        one.close()


def test_abort_wakes_a_handshake(half_open: Any) -> None:
    for method in ("abort", "close"):
        _, stream, shaking = half_open()
        assert not shaking.dead
        getattr(stream, method)()
        shaking.join(timeout=5)
        assert isinstance(shaking.value, StreamClosed)


def test_a_plain_request_gets_a_plain_answer(half_open: Any) -> None:
    client, stream, shaking = half_open()
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    shaking.join(timeout=5)
    assert str(shaking.value) == "TLS handshake: the peer speaks plain HTTP"
    stream.close()
    answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    head, body = answer.split(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
    assert b"speaks TLS" in body


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x00" * 50, "the peer does not speak TLS|unsupported protocol|http request"),
        (b"\x16\x03\x01\x00\x05hello", "unexpected message|length|bad"),
        (b"", "the peer closed the connection"),
    ],
)
def test_what_is_no_handshake_is_refused(sent: bytes, reason: str, half_open: Any) -> None:
    client, stream, shaking = half_open()
    if sent:
        client.sendall(sent)
    else:
        client.shutdown(gevent.socket.SHUT_WR)
    shaking.join(timeout=5)
    assert type(shaking.value) is TransportError
    assert str(shaking.value).startswith("TLS handshake: ")
    assert any(part in str(shaking.value) for part in reason.split("|")), shaking.value
    if sent:
        for use in (lambda: stream.recv_into(bytearray(1)), lambda: stream.try_send(b"x")):
            with pytest.raises(TransportError):
                use()


def test_bytes_that_were_read_before_the_handshake(certificates: Certificates, files: TlsFiles) -> None:
    listener: Any = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=files))
    got = AsyncResult()

    def on_stream(stream: Any) -> None:
        start = bytearray(16)
        carrier = stream.info("carrier")
        count = carrier.recv_into(start)  # such as a PROXY header and the first bytes of TLS behind it
        assert start.startswith(b"PROXY\r\n")
        stream.handshake(bytes(start[7:count]))
        got.set(receive(stream, 5))
        stream.close()

    listener.start(on_stream)
    with gevent.socket.create_connection(("127.0.0.1", listener.server_port)) as sock:
        sock.sendall(b"PROXY\r\n")
        with as_tls_client(sock, certificates) as wrapped:
            wrapped.sendall(b"hello")
            assert got.get(timeout=5) == b"hello"
    listener.close()


# --- One pair of BIOs for all


def test_what_one_stream_leaves_unread_is_not_in_anothers_way(tls_pair: Any) -> None:
    pairs = [tls_pair(), tls_pair(ssl.TLSVersion.TLSv1_2)]
    sent = [os.urandom(60_000) for _ in pairs]
    received = [bytearray(), bytearray()]
    buffer = bytearray(700)  # records have 16 KiB: of each read most stays behind, decrypted or not
    for (ours, theirs), data in zip(pairs, sent, strict=True):
        sender = gevent.spawn(theirs.send_all, data)
        sender.get(timeout=5)
        assert ours is not theirs
    while min(map(len, received)) < 60_000:
        for (ours, theirs), got in zip(pairs, received, strict=True):
            count = ours.recv_into(buffer)
            got += buffer[:count]
            ours.send_all(b"x")
            assert receive(theirs, 1) == b"x"
    assert received == sent


def test_a_callback_that_switches_harms_no_other_handshake(certificates: Certificates, files: TlsFiles) -> None:
    context = server_context(files)
    waiting: list[str | None] = []
    all_wait = Event()

    def look_up(_tls: Any, name: str | None, _context: Any) -> None:
        waiting.append(name)
        if len(waiting) == 5:
            all_wait.set()
        assert all_wait.wait(5)

    context.sni_callback = look_up
    listener: Any = registry.listen("tls://127.0.0.1:0", ListenSettings(ssl_context=context))

    def echo(stream: Any) -> None:
        stream.handshake()
        stream.send_all(receive(stream, 5))
        stream.close()

    def talk(number: int) -> bytes:
        settings = DialSettings(ssl_context=client_context(certificates.ca), server_name="localhost")
        stream: Any = registry.dialer(listener.address, settings).dial()
        stream.send_all(b"%05d" % number)
        answer = receive(stream, 5)
        stream.close()
        return answer

    listener.start(echo)
    talks = [gevent.spawn(talk, number) for number in range(5)]
    assert [one.get(timeout=5) for one in talks] == [b"%05d" % number for number in range(5)]
    listener.close()


def test_a_call_in_the_middle_of_another_leaves_its_bytes_alone(tls_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "TlsStream", _tls_stream.TlsStream)  # the plain build can be looked into
    monkeypatch.setattr(current(), "tls_buffers", None)
    ours, theirs = tls_pair()
    buffers = current().tls_buffers
    assert not buffers.busy
    buffers.busy = True  # as a finalizer or a signal handler would find it
    buffers.incoming.write(b"received by another")
    buffers.outgoing.write(b"made by another")
    ours.send_all(b"hello")
    assert receive(theirs, 5) == b"hello"
    theirs.close()
    assert ours.recv_into(bytearray(1)) == 0
    assert buffers.busy
    assert buffers.incoming.read() == b"received by another"
    assert buffers.outgoing.read() == b"made by another"
    buffers.busy = False


def test_a_handshake_waits_for_a_call_under_way(
    half_open: Any, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "TlsStream", _tls_stream.TlsStream)
    monkeypatch.setattr(current(), "tls_buffers", None)
    client, _, shaking = half_open()
    current().tls_buffers.busy = True
    ours = gevent.spawn(as_tls_client, client, certificates)
    gevent.sleep(3 * _tls_stream.RETRY_DELAY)
    assert not shaking.dead
    assert current().tls_buffers.incoming.pending == 0
    current().tls_buffers.busy = False
    assert shaking.get(timeout=5) is None
    ours.get(timeout=5).close()


@pytest.mark.parametrize(
    "sizes", [(4, 100), (10, 16_380), (4, 16_384), (10, 65_000), (10, 65_526), (10, 200_000), (5, 5, 40_000), (0, 9)]
)
def test_parts_arrive_as_one_text(sizes: tuple[int, ...], tls_pair: Any) -> None:
    ours, theirs = tls_pair()
    parts = [os.urandom(size) for size in sizes]
    whole = b"".join(parts)
    reader = gevent.spawn(receive, theirs, len(whole))
    taken = ours.try_send_parts([memoryview(part) for part in parts])
    ours.send_all(whole[taken:])
    assert reader.get(timeout=5) == whole


def test_parts_wait_while_records_do(tls_pair: Any) -> None:
    ours, theirs = tls_pair()
    taken = choke(ours)
    for sizes in ((4, 100), (4, 40_000), (4, 100_000)):
        assert ours.try_send_parts([bytes(size) for size in sizes]) == 0
    ours.close()
    assert len(receive(theirs, taken + 1)) == taken
    with pytest.raises(StreamClosed):
        ours.try_send_parts([b"head", bytes(40_000)])


# --- Ends


def test_an_end_without_a_goodbye_reads_as_an_end(tls_pair: Any) -> None:
    ours, theirs = tls_pair()
    theirs.send_all(b"cut o")
    theirs.info("carrier").close()
    assert receive(ours, 100) == b"cut o"
    assert ours.recv_into(bytearray(1)) == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_half_close_loses_nothing_that_has_arrived(version: ssl.TLSVersion, tls_pair: Any) -> None:
    ours, theirs = tls_pair(version)
    sent = os.urandom(50_000)
    theirs.send_all(sent)
    first = bytearray(10)
    assert ours.recv_into(first) == 10  # the rest is decrypted already, or on its way
    ours.shutdown_write()
    theirs.send_all(b"and more")
    assert theirs.recv_into(bytearray(1)) == 0
    assert bytes(first) + receive(ours, 50_000 - 10 + 8) == sent + b"and more"
    with pytest.raises(TransportError, match="shutdown"):
        ours.try_send(b"x")


def test_altered_records_are_an_error(tls_pair: Any) -> None:
    ours, theirs = tls_pair()
    ours.info("carrier").send_all(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    for _ in range(2):
        with pytest.raises(TransportError, match="receive: TLS: decryption failed or bad record mac"):
            theirs.recv_into(bytearray(100))
    with pytest.raises(TransportError, match="bad record mac"):
        theirs.try_send(b"x")


# --- What the carrier does not take at once


def choke(stream: Any) -> int:
    """Write until nothing is taken any more; return how many bytes were."""
    taken = 0
    while count := stream.try_send(b"x" * 65536):
        taken += count
    return taken


def test_close_delivers_what_was_taken(tls_pair: Any) -> None:
    ours, theirs = tls_pair()
    taken = choke(ours)
    assert ours.unsent > 0
    ours.close()
    with pytest.raises(StreamClosed):
        ours.try_send(b"x")
    assert ours.info("carrier").fileno() != -1
    assert len(receive(theirs, taken + 1)) == taken
    wait_until(lambda: ours.info("carrier").fileno() == -1)


def test_close_wakes_reader_and_writer_although_it_lingers(tls_pair: Any) -> None:
    ours, theirs = tls_pair()

    def outcome(function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            return error

    choke(ours)
    waiting = [gevent.spawn(outcome, ours.recv_into, bytearray(1)), gevent.spawn(outcome, ours.send_all, b"x")]
    gevent.sleep(0.01)
    ours.close()
    gevent.joinall(waiting, timeout=5)
    assert [type(one.value) for one in waiting] == [StreamClosed, StreamClosed]
    assert ours.info("carrier").fileno() != -1
    ours.abort()
    assert ours.info("carrier").fileno() == -1
    assert theirs is not None


def test_a_peer_that_never_reads_does_not_keep_a_closed_stream(tls_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_of("_tls_stream"), "CLOSE_LINGER", 0.02)
    ours, theirs = tls_pair()
    choke(ours)
    ours.close()
    wait_until(lambda: ours.info("carrier").fileno() == -1)
    with pytest.raises(TransportError, match="Connection reset"):
        receive(theirs, 1 << 30)


def test_a_peer_that_vanishes_ends_the_wait(tls_pair: Any) -> None:
    ours, theirs = tls_pair()
    choke(ours)
    called: list[bool] = []
    ours.call_when_writable(lambda: called.append(True))
    theirs.abort()
    wait_until(lambda: called)
    with pytest.raises(TransportError, match="Connection reset"):
        ours.try_send(b"x")


def test_a_peer_cannot_make_us_pile_up_answers(tls_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "TlsStream", _tls_stream.TlsStream)  # the plain build can be looked into
    monkeypatch.setattr(current(), "tls_buffers", None)
    ours, _ = tls_pair()
    choke(ours)
    with pytest.raises(TransportError, match="asks for answers that it does not read"):
        for _ in range(200):
            ours._ssl.write(b"x" * 1000)  # in place of the answers that OpenSSL makes by itself
            ours._push(ours._buffers.outgoing.read())
    assert _tls_stream.MAX_PENDING < ours.unsent < _tls_stream.MAX_PENDING + 2_000
    with pytest.raises(TransportError, match="asks for answers"):
        ours.recv_into(bytearray(1))


@pytest.mark.peer
def test_key_updates_are_answered(certificates: Certificates, files: TlsFiles) -> None:
    openssl = require_tool("openssl")
    listener: Any = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=files))
    received = bytearray()

    def on_stream(stream: Any) -> None:
        stream.handshake()
        buffer = bytearray(1000)
        while got := stream.recv_into(buffer):
            received.extend(buffer[:got])
            stream.send_all(b"heard " + buffer[:got])
        stream.close()

    listener.start(on_stream)
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{listener.server_port}", "-CAfile", certificates.ca, "-tls1_3"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert client.stdin is not None
    assert client.stdout is not None
    os.set_blocking(client.stdout.fileno(), False)

    def say(line: bytes, until: bytes) -> None:
        output = bytearray()
        client.stdin.write(line + b"\n")  # type: ignore[union-attr]
        client.stdin.flush()  # type: ignore[union-attr]
        wait_until(lambda: output.extend(client.stdout.read() or b"") or until in output, what=repr(until))  # type: ignore[union-attr]

    try:
        say(b"one", b"heard one")
        say(b"K", b"KEYUPDATE")  # update, and ask us to update too
        say(b"two", b"heard two")
        say(b"k", b"KEYUPDATE")
        say(b"three", b"heard three")
    finally:
        client.kill()
        client.communicate()
        listener.close()
    assert received == b"one\ntwo\nthree\n"


PATCH = "import gevent.monkey; gevent.monkey.patch_all()"
IMPORT = "import gws_gevent.transports.tls"


@pytest.mark.slow
@pytest.mark.parametrize("order", [f"{IMPORT}; {PATCH}", f"{PATCH}; {IMPORT}"], ids=["import first", "patch first"])
def test_it_works_on_both_sides_of_monkey_patching(order: str, certificates: Certificates) -> None:
    program = order + """
import sys
from gws_gevent.transports import registry
from gws_gevent.transports.base import DialSettings, ListenSettings, TlsFiles
from gws_gevent.transports.tls_contexts import client_context
cert, key, ca = sys.argv[1:]
listener = registry.listen("tls://127.0.0.1:0", ListenSettings(tls=TlsFiles(cert, key)))
def on_stream(stream):
    stream.handshake()
    buffer = bytearray(10)
    stream.send_all(buffer[: stream.recv_into(buffer)])
    stream.close()
listener.start(on_stream)
stream = registry.dialer(listener.address, DialSettings(ssl_context=client_context(ca), server_name="localhost")).dial()
stream.send_all(b"hello")
buffer = bytearray(10)
print(buffer[: stream.recv_into(buffer)].decode())
stream.close()
listener.close()
"""
    arguments = [certificates.cert, certificates.key, certificates.ca]
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, "hello\n"), result.stderr
