"""QUIC over real sockets: certificates, sharing of connections, tickets, moving, ends, floods, the command line."""

from __future__ import annotations

import gc
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import gevent
import pytest
from aioquic.quic import events

from benchmarks.flooding import whole_initial
from gws_gevent import ClientOptions, Connection, Server, ServerOptions, client_context, connect
from gws_gevent.exceptions import EndpointError, MissingExtra, TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import DialSettings, Endpoint, Listener, ListenSettings, Stream, TlsFiles
from gws_gevent.transports.quic.dialer import ClientConnection, _pool
from gws_gevent.transports.quic.session import _why
from gws_gevent.transports.simulated import Impairment
from tests.lossy import lossy_relay
from tests.pairs import EchoHandler
from tests.support import ROOT, run_program, run_server_process, wait_until
from tests.transports.conftest import Certificates

HERE = "quic://127.0.0.1:0"


@pytest.fixture
def settings(certificates: Certificates) -> tuple[ListenSettings, DialSettings]:
    return (
        ListenSettings(tls=TlsFiles(certificates.cert, certificates.key)),
        DialSettings(ssl_context=client_context(certificates.ca), server_name="localhost"),
    )


@pytest.fixture
def serve(settings: tuple[ListenSettings, DialSettings]) -> Any:
    """Return `serve(handler, endpoint)`: a context manager that gives a server and a function that connects to it."""

    @contextmanager
    def serving(handler: Any = None, endpoint: str = HERE, **options: Any) -> Iterator[tuple[Server, Callable[..., Connection]]]:
        server = Server(handler or EchoHandler(), ServerOptions(**options))
        server.start(endpoint, settings=settings[0])

        def dial(port: int | None = None, **options: Any) -> Connection:
            url = f"ws+quic://127.0.0.1:{port or Endpoint.parse(server.address).port}/"
            return connect(url, options=ClientOptions(**options), ssl_context=settings[1].ssl_context)

        try:
            yield server, dial
        finally:
            server.stop(1.0)

    return serving


def quic_of(server: Server) -> Any:
    """What the listener of a server has: connections, admission."""
    return server._listeners[0].server  # type: ignore[attr-defined]


def clients() -> list[ClientConnection]:
    """The connections of this process, without those that are being closed."""
    return [one for found in _pool().connections.values() for one in found if one.session.error is None]


@contextmanager
def listening(listener: Listener, on_stream: Callable[[Stream], object] = lambda stream: stream.close()) -> Iterator[Listener]:
    listener.start(on_stream)
    try:
        yield listener
    finally:
        listener.close()


# --- Certificates ---------------------------------------------------------------------------------------------------------------


def test_a_certificate_that_nobody_vouches_for_is_refused(certificates: Certificates, settings: Any) -> None:
    with listening(registry.listen(HERE, settings[0])) as listener:
        with pytest.raises(TransportError, match=rf"^connect to {listener.address}: TLS failed: .*certificate"):
            registry.dialer(listener.address).dial()
        for name in ("www.example.com", "127.0.0.2"):
            with pytest.raises(TransportError, match="TLS failed: hostname"):
                registry.dialer(listener.address, replace(settings[1], server_name=name)).dial()
        anything = DialSettings(ssl_context=client_context(verify=False), server_name="x.example")
        registry.dialer(listener.address, anything).dial().close()
        registry.dialer(listener.address, replace(settings[1], server_name=None)).dial().close()  # 127.0.0.1


def test_certificates_by_name_and_reloaded(certificates: Certificates, settings: Any, tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    shutil.copy(certificates.cert, cert)
    shutil.copy(certificates.key, key)
    other = TlsFiles(certificates.other, certificates.other_key)
    tls = replace(settings[0], tls=TlsFiles(cert, key), sni={"www.example.com": other, "*.apps.example.com": other})
    with listening(registry.listen(HERE, tls)) as listener:

        def works_as(name: str) -> bool:
            try:
                registry.dialer(listener.address, replace(settings[1], server_name=name)).dial().close()
            except TransportError:
                return False
            return True

        names = ("localhost", "www.example.com", "one.apps.example.com", "apps.example.com")
        assert [works_as(name) for name in names] == [True, True, True, False]
        Path(cert).write_text("damaged")
        with pytest.raises(TransportError, match=f"{cert}: no certificate in PEM form"):
            listener.reload()
        assert works_as("localhost"), "it keeps what it had"
        wait_until(lambda: not clients())
        shutil.copy(certificates.other, cert)
        shutil.copy(certificates.other_key, key)
        listener.reload()
        assert not works_as("localhost")


@pytest.mark.parametrize(
    ("endpoint", "changes", "error", "message"),
    [
        (HERE, {"tls": None}, EndpointError, r"QUIC needs a certificate: `tls` in the settings, or \?cert=FILE&key=FILE"),
        (f"{HERE}?key=x", {"tls": None}, EndpointError, "key without cert"),
        (f"{HERE}?cert=/no/such/file", {}, TransportError, "/no/such/file: No such file or directory"),
        (HERE, {"ssl_context": client_context(verify=False)}, EndpointError, "QUIC takes certificate files"),
        (f"{HERE}?colour=red", {}, EndpointError, "quic has no parameter colour; it knows cert, connections, half_open, idle, key"),
        (f"{HERE}?idle=0", {}, EndpointError, "idle is a whole number from 1 to 600, not '0'"),
        (f"{HERE}?streams=many", {}, EndpointError, "streams is a whole number from 1 to 10000, not 'many'"),
        ("quic://192.0.2.1:0", {}, TransportError, "listen on quic://192.0.2.1:0: Cannot assign requested address"),
    ],
)
def test_what_cannot_be_listened_on_is_one_clear_line(
    endpoint: str, changes: dict[str, Any], error: type[Exception], message: str, settings: Any
) -> None:
    with pytest.raises(error, match=message) as caught:
        registry.listen(endpoint, replace(settings[0], **changes)).start(print)
    assert "\n" not in str(caught.value)


def test_a_client_certificate_cannot_be_asked_for(certificates: Certificates, settings: Any) -> None:
    files = TlsFiles(certificates.cert, certificates.key, certificates.ca)
    with pytest.raises(EndpointError, match="client_ca: quic cannot ask clients for certificates"):
        registry.listen(HERE, replace(settings[0], tls=files))


def test_what_cannot_be_dialled_is_one_clear_line(settings: Any) -> None:
    with pytest.raises(EndpointError, match="a host and a port are needed"):
        registry.dialer("quic://:4433", settings[1])
    with pytest.raises(EndpointError, match="quic has no parameter streams; it knows idle, window"):
        registry.dialer("quic://127.0.0.1:4433?streams=3", settings[1])
    with pytest.raises(TransportError, match=r"connect to quic://no-such-host\.invalid:4433: "):
        registry.dialer("quic://no-such-host.invalid:4433", settings[1]).dial()
    with listening(registry.listen(HERE, settings[0])) as listener:
        address = listener.address
    with pytest.raises(TransportError, match=f"connect to {address}: Connection refused"):
        registry.dialer(address, settings[1]).dial()


def test_without_aioquic_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "aioquic" or name.startswith("gws_gevent.transports.quic")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aioquic", None)
    with pytest.raises(MissingExtra, match=r"the transport 'quic' needs an extra: pip install 'gws_gevent\[quic\]'"):
        registry.listen(HERE)


# --- Sharing --------------------------------------------------------------------------------------------------------------------


def test_connections_to_one_place_share_one(serve: Any) -> None:
    with serve() as (server, dial):
        options = ClientOptions()
        url = f"ws+quic://127.0.0.1:{Endpoint.parse(server.address).port}/"
        context = client_context(verify=False)
        found = [gevent.spawn(connect, url, options=options, ssl_context=context) for _ in range(20)]
        gevent.joinall(found, timeout=5, raise_error=True)
        assert len(quic_of(server).sessions) == 1
        assert len(server.connections) == 20
        other = dial()
        assert len(quic_of(server).sessions) == 2, "another trust is another connection"
        for one in found:
            one.value.close()
        other.close()
        wait_until(lambda: not quic_of(server).sessions)


def test_a_pool_option_says_how_many_share(serve: Any) -> None:
    with serve() as (_, dial):
        conns = [dial(streams_per_connection=3) for _ in range(7)]
        assert sorted(one.load for one in clients()) == [1, 3, 3]
        conns.pop(0).close()
        wait_until(lambda: sorted(one.load for one in clients()) == [1, 2, 3])
        conns.append(dial(streams_per_connection=3))
        assert sorted(one.load for one in clients()) == [1, 3, 3], "the fullest one that has room"
        for conn in conns:
            conn.close()


def test_ipv6_and_a_name_with_two_addresses(settings: Any) -> None:
    with listening(registry.listen("quic://[::1]:0", settings[0])) as listener:
        registry.dialer(listener.address, settings[1]).dial().close()
    with listening(registry.listen(HERE, settings[0])) as listener:
        # ::1 comes first, and nobody listens there.
        stream = registry.dialer(listener.address.replace("127.0.0.1", "localhost"), settings[1]).dial()
        assert stream.info("peername")[0] == "127.0.0.1"
        assert (stream.info("scheme"), stream.info("tls"), stream.info("socket")) == ("quic", None, None)
        stream.close()
    with listening(registry.listen("quic://:0", settings[0])) as listener:
        port = Endpoint.parse(listener.address).port
        for host in ("127.0.0.1", "[::1]"):
            registry.dialer(f"quic://{host}:{port}", settings[1]).dial().close()


def test_a_pool_of_greenlets_bounds_what_is_served_at_once(settings: Any) -> None:
    served: list[Stream] = []

    def serve(stream: Stream) -> None:
        served.append(stream)
        stream.recv_into(bytearray(1))
        stream.close()

    with listening(registry.listen(HERE, replace(settings[0], spawn=2)), serve) as listener:
        streams = [registry.dialer(listener.address, settings[1]).dial() for _ in range(3)]
        wait_until(lambda: len(served) == 2)
        gevent.sleep(0.02)
        assert len(served) == 2
        for stream in streams:
            stream.send_all(b"x")
        wait_until(lambda: len(served) == 3)
        for stream in streams:
            stream.close()


def test_a_server_that_allows_fewer_streams_gets_more_connections(serve: Any) -> None:
    with serve(endpoint=f"{HERE}?streams=2") as (server, dial):
        conns = [dial() for _ in range(5)]
        assert len(quic_of(server).sessions) == 3
        for conn in conns:
            conn.send("x")
            assert conn.receive(timeout=5) == "x"
            conn.close()


def test_a_connection_that_is_closed_during_the_handshake_is_told_in_words() -> None:
    event = events.ConnectionTerminated(error_code=0xC, frame_type=0, reason_phrase="")
    assert str(_why(event, "connect", 0)).endswith(": the peer has closed the connection before the handshake was complete")
    event = events.ConnectionTerminated(error_code=0x101, frame_type=None, reason_phrase="oh")
    assert str(_why(event, "connect", 0x100)) == "connect: application error 0x101 (oh)"
    event = events.ConnectionTerminated(error_code=0x100, frame_type=None, reason_phrase="")
    assert str(_why(event, "connect", 0x100)) == "connect: the peer has closed the connection"


def test_a_dial_that_is_given_up_leaves_nothing_behind(settings: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        dialer = registry.dialer(f"quic://127.0.0.1:{silent.getsockname()[1]}", settings[1])
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            dialer.dial()
        assert not clients()
        wait_until(lambda: not _pool().connections)


def test_a_ticket_saves_the_next_handshake_its_certificate_and_early_data_is_off(serve: Any) -> None:
    with serve() as (server, dial):
        resumed = []
        for _ in range(3):
            conn = dial()
            tls = clients()[0].session.core.tls
            resumed.append((tls.session_resumed, tls.early_data_accepted))
            conn.send("x")
            assert conn.receive(timeout=5) == "x"
            conn.close()
            wait_until(lambda: not quic_of(server).sessions and not clients())
        assert resumed == [(False, False), (True, False), (True, False)]
        server.reload()
        conn = dial()
        assert not clients()[0].session.core.tls.session_resumed, "a reload makes tickets worthless"
        conn.close()


# --- Ends -----------------------------------------------------------------------------------------------------------------------


def test_a_client_goes_on_from_another_socket(serve: Any) -> None:
    with serve() as (server, dial), dial() as conn:
        conn.send("here")
        assert conn.receive(timeout=5) == "here"
        before = next(iter(server.connections)).remote_address
        clients()[0].migrate()
        conn.send("there")
        assert conn.receive(timeout=5) == "there"
        after = next(iter(server.connections)).remote_address
        assert before != after


def test_a_network_that_has_gone_makes_a_client_move(serve: Any) -> None:
    with serve() as (_, dial), dial() as conn:
        (client,) = clients()
        port = client._port
        client.on_error(OSError(101, "Network is unreachable"))
        assert client._port is not port
        moved = client._port
        client.on_error(OSError(101, "Network is unreachable"))
        assert client._port is moved, "not more than once per second"
        conn.send("x")
        assert conn.receive(timeout=5) == "x"


def test_streams_live_on_after_the_listener_and_its_address_is_free(settings: Any) -> None:
    def echo(stream: Stream) -> None:
        buffer = bytearray(100)
        while got := stream.recv_into(buffer):
            stream.send_all(bytes(buffer[:got]))
        stream.close()

    first = registry.listen(HERE, settings[0])
    first.start(echo)
    stream = registry.dialer(first.address, settings[1]).dial()
    stream.send_all(b"x")
    assert stream.recv_into(bytearray(1)) == 1
    first.close()
    stream.send_all(b"still")
    assert stream.recv_into(bytearray(5)) == 5
    stream.close()
    with listening(registry.listen(first.address, settings[0]), echo) as again:
        assert again.address == first.address


def test_a_process_that_ends_says_goodbye(serve: Any, certificates: Certificates) -> None:
    script = (
        "import sys; from gws_gevent import connect, client_context\n"
        "conn = connect(sys.argv[1], ssl_context=client_context(sys.argv[2])); conn.send('x'); conn.receive()"
    )
    with serve() as (server, _):
        url = f"ws+quic://127.0.0.1:{Endpoint.parse(server.address).port}/"
        ended = run_program([sys.executable, "-c", script, url, certificates.ca])
        assert ended.status == 0, ended.errors
        wait_until(lambda: not quic_of(server).sessions)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_real_sockets_over_a_bad_network(seed: int, serve: Any) -> None:
    bad = Impairment(loss=0.2, duplicate=0.05, flip=0.02, jitter=0.05)
    data = Random(seed).randbytes(30_000)
    with serve(endpoint=f"{HERE}?idle=5") as (server, dial):
        port = Endpoint.parse(server.address).port
        with lossy_relay(("127.0.0.1", port), bad, seed) as (_, front):
            with gevent.Timeout(60), dial(front, handshake_timeout=30.0, close_timeout=20.0) as conn:
                conn.send(data)
                assert conn.receive() == data
            wait_until(lambda: not _pool().connections and not quic_of(server).sessions, 20)


# --- Floods ---------------------------------------------------------------------------------------------------------------------


def _latency(conn: Connection, seconds: float) -> list[float]:
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.monotonic()
        conn.send("x" * 64)
        assert conn.receive(timeout=5) == "x" * 64
        found.append((time.monotonic() - begun) * 1000)
        gevent.sleep(0.002)
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["noise", "damaged", "genuine"])
def test_a_flood_of_20000_leaves_nothing_and_others_go_on(kind: str, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    random = Random(1)
    with serve() as (server, dial), dial() as conn, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        port = Endpoint.parse(server.address).port
        quic = quic_of(server)
        quiet = _latency(conn, 0.5)
        flood = []
        for _ in range(20_000 if kind != "genuine" else 200):
            if kind == "noise":
                flood.append(random.randbytes(random.choice((1, 20, 100, 1200))))
            elif kind == "damaged":
                head = bytes([0xC3, 0, 0, 0, 1, 8]) + random.randbytes(8) + bytes([0, 0, 0x44, 0x9D])
                flood.append(head + random.randbytes(1182))
            else:
                flood.append(whole_initial("ws"))
        flood *= 20_000 // len(flood)
        gc.collect()
        before, cpu = _rss(), time.process_time()

        begun = time.monotonic()

        def send() -> None:
            for number, data in enumerate(flood):
                sock.sendto(data, ("127.0.0.1", port))
                if number % 5 == 4:  # 5,000 a second, which is within what a process can look at
                    gevent.sleep(max(0.0, begun + number / 5000 - time.monotonic()))

        flooding = gevent.spawn(send)
        busy = []
        while not flooding.dead:
            busy += _latency(conn, 0.2)
        cpu = time.process_time() - cpu
        gc.collect()
        grown = _rss() - before
        busy.sort()
        with capsys.disabled():
            ping = f"ping p50 {quiet[len(quiet) // 2]:.2f} -> {busy[len(busy) // 2]:.2f} ms, p99 {busy[len(busy) * 99 // 100]:.2f}"
            print(f"\n{kind}: {len(quic.sessions)} connections, {grown / 1e6:.1f} MB more, {cpu / 0.02:.0f} us CPU each, {ping}")
        assert len(quic.sessions) <= 1 + (quic.admission.limits.retry if kind == "genuine" else 0)
        assert grown < 20e6


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


_IDLE_SERVER = """
import gc, sys, time, gevent
from gevent.fileobject import FileObjectThread
from gws_gevent import EventHandler, Server, ServerOptions
from gws_gevent.transports.base import ListenSettings, TlsFiles
server = Server(EventHandler(), ServerOptions(ping_interval=None))
server.start("quic://127.0.0.1:0?per_address=5000", settings=ListenSettings(tls=TlsFiles(sys.argv[1])))
print(server.address, flush=True)
for _ in FileObjectThread(sys.stdin):
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        rss = next(int(line.split()[1]) for line in file if line.startswith("Rss:"))
    print(rss, time.process_time(), len(server.connections), flush=True)
"""


def _idle(count: int, certificates: Certificates) -> tuple[float, float]:
    """Return (kB of a server for each idle connection, share of a processor that all of them take)."""
    with subprocess.Popen(
        [sys.executable, "-c", _IDLE_SERVER, certificates.both], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = f"ws+{process.stdout.readline().strip()}/"
            context, options = client_context(certificates.ca), ClientOptions(streams_per_connection=1, ping_interval=None)

            def ask() -> tuple[int, float, int]:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                memory, cpu, connections = process.stdout.readline().split()
                return int(memory), float(cpu), int(connections)

            conns = [connect(url, options=options, ssl_context=context) for _ in range(10)]
            gevent.sleep(0.3)
            first = ask()
            conns += [connect(url, options=options, ssl_context=context) for _ in range(count)]
            gevent.sleep(1.0)
            full = ask()
            assert full[2] == count + 10
            begun = ask()[1]
            gevent.sleep(5.0)
            again = ask()
            for conn in conns:
                conn.abort()
            wait_until(lambda: not clients(), 20)
            return (full[0] - first[0]) / count, (again[1] - begun) / 5.0
        finally:
            process.kill()


@pytest.mark.slow
def test_an_idle_connection_costs_less_than_100_kb(certificates: Certificates) -> None:
    memory, processor = _idle(200, certificates)
    assert memory <= 100
    assert processor < 0.2  # the collection of garbage by `ask` included


@pytest.mark.soak
def test_a_thousand_idle_connections(certificates: Certificates) -> None:
    memory, processor = _idle(1000, certificates)
    print(f"1000 idle connections: {memory:.1f} kB each, {processor:.2%} of a processor")
    assert memory <= 100


# --- The command line -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_serve_connect_and_bench(certificates: Certificates) -> None:
    args = ["-m", "gws_gevent", "serve", "--bind", HERE, "127.0.0.1:0", "--cert", certificates.cert, "--key", certificates.key]
    with run_server_process(args) as server:
        url = f"ws+{server.address}/echo"
        program = [sys.executable, "-m", "gws_gevent"]
        ended = run_program([*program, "connect", url, "--ca", certificates.ca, "--once"], stdin="hello\n")
        assert (ended.status, ended.output) == (0, "hello\n"), ended.errors
        ended = run_program([*program, "connect", url, "--once"], stdin="hello\n")
        assert ended.status != 0
        assert "TLS failed" in ended.errors
        assert ended.errors.count("\n") == 1
        ended = run_program([*program, "bench", url, "--insecure", "--connections", "5", "--duration", "0.5"])
        assert ended.status == 0, ended.errors + ended.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["serve", "--bind", HERE], f"--bind {HERE}: needs --cert, or ?cert=FILE&key=FILE behind the port"),
        (["serve", "--bind", f"{HERE}?cert=/no/such"], "/no/such: No such file or directory"),
        (["serve", "--bind", f"{HERE}?cert=x&colour=1"], "quic has no parameter colour"),
        (["connect", "ws+quic://127.0.0.1:1/", "--cert", "x"], "--cert: ws+quic shows no certificates"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args: list[str], message: str) -> None:
    ended = run_program([sys.executable, "-m", "gws_gevent", *args])
    assert ended.status == 2
    assert message in ended.errors
    assert ended.errors.count("\n") == 1


FORK = """
import os, sys
import gevent.os
from gws_gevent import EventHandler, ListenSettings, Server, TlsFiles, client_context, connect

class Echo(EventHandler):
    def on_message(self, conn, message):
        conn.write_message(message.opcode, message.data)

cert, key, ca = sys.argv[1:]
context = client_context(ca)

def start():
    server = Server(Echo())
    server.start("quic://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(cert, key)))
    return server, server.address.replace("quic:", "wss+quic:")

def echoes(conn, text):
    conn.send(text)
    assert conn.receive(timeout=5) == text

server, url = start()
conn = connect(url, ssl_context=context)
echoes(conn, "before")
child = gevent.os.fork()
if not child:
    try:
        conn.send("of the parent, which alone may send it")
        own, own_url = start()
        for place in (own_url, url):
            with connect(place, ssl_context=context) as other:
                echoes(other, "in the child")
    except BaseException as error:
        print("child:", repr(error), flush=True)
        os._exit(1)
    os._exit(0)
while (ended := gevent.os.waitpid(child, os.WNOHANG)) == (0, 0):
    gevent.sleep(0.01)
assert os.waitstatus_to_exitcode(ended[1]) == 0
echoes(conn, "after")
conn.close()
server.stop()
"""


@pytest.mark.slow
def test_a_forked_child_leaves_its_parents_connections_alone_and_makes_its_own(certificates: Certificates) -> None:
    """The timer, the socket and the keys of a connection would be shared, and both sides would use the same nonces."""
    program = run_program([sys.executable, "-c", FORK, certificates.cert, certificates.key, certificates.ca])
    assert (program.status, program.output, program.errors) == (0, "", "")
