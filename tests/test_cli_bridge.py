"""`gws-gevent bridge` as a process: addresses, signals, certificates, errors in one line."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
import trustme

from gws_gevent import ClientOptions, CloseCode, ConnectionClosed, HandshakeRefused, client_context, connect
from gws_gevent.cli import main
from tests.support import require_module, run_server_process, wait_until
from tests.test_bridge import target
from tests.test_raw_bridge import echo

BRIDGE = ["-m", "gws_gevent", "bridge"]
ANY_PORT = "127.0.0.1:0"
RAW = ClientOptions(subprotocols=["binary"])


def ws(address: str) -> str:
    return address.replace("tcp:", "ws:").replace("tls:", "wss:") + "/"


@pytest.mark.slow
def test_it_carries_from_several_endpoints_and_says_where_they_are(tmp_path: Path) -> None:
    behind = ["-m", "gws_gevent", "serve", "--bind", f"unix:{tmp_path}/behind"]
    listen = ["--listen", ANY_PORT, f"unix:{tmp_path}/near", "--listen", ANY_PORT]
    args = [*BRIDGE, *listen, "--to", f"unix:{tmp_path}/behind", "--forwarded"]
    with run_server_process(behind), run_server_process(args) as bridge:
        assert bridge.output().startswith("listening on tcp://127.0.0.1:")
        first, second, third = bridge.addresses
        for url in (ws(first) + "echo", f"ws+unix:{second.removeprefix('unix:')}:/echo", ws(third) + "echo"):
            with connect(url) as conn:
                conn.send("over here")
                assert conn.receive(timeout=5) == "over here"
        with pytest.raises(HandshakeRefused) as caught:
            connect(ws(first) + "nowhere")
        assert caught.value.status == 404
    assert not (tmp_path / "near").exists()


@pytest.mark.slow
def test_tls_on_both_sides_with_certificates_of_both(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = {name: str(tmp_path / name) for name in ("ca", "cert", "client")}
    authority.cert_pem.write_to_path(files["ca"])
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(files["cert"])
    authority.issue_cert("somebody@example.org").private_key_and_cert_chain_pem.write_to_path(files["client"])
    tls = ["--cert", files["cert"]]
    with run_server_process(["-m", "gws_gevent", "serve", "--bind", ANY_PORT, *tls, "--client-ca", files["ca"]]) as behind:
        to = ["--to", behind.address, "--to-ca", files["ca"], "--to-cert", files["client"]]
        with run_server_process([*BRIDGE, "--listen", ANY_PORT, *tls, *to]) as bridge:
            assert bridge.address.startswith("tls://")
            with connect(ws(bridge.address) + "echo", ssl_context=client_context(files["ca"])) as conn:
                conn.send("secret")
                assert conn.receive(timeout=5) == "secret"
            bridge.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "certificates reloaded" in bridge.output())
        # Without our certificate the target lets nobody in, and without its authority we do not believe it.
        for less, why in ((to[:4], "WARNING"), (to[:2], "the certificate of the peer is not accepted")):
            with run_server_process([*BRIDGE, "--listen", ANY_PORT, *less]) as bridge:
                with pytest.raises(HandshakeRefused) as caught:
                    connect(ws(bridge.address) + "echo")
                assert caught.value.status == 502
                assert why in bridge.output()


@pytest.mark.slow
def test_a_server_behind_tcp_gains_http_3_and_quic(tmp_path: Path) -> None:
    require_module("aioquic")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert"))
    context = client_context(str(tmp_path / "ca"))
    with run_server_process(["-m", "gws_gevent", "serve", "--bind", ANY_PORT]) as behind:
        listen = ["--listen", "h3://127.0.0.1:0", "quic://127.0.0.1:0", "--cert", str(tmp_path / "cert")]
        with run_server_process([*BRIDGE, *listen, "--to", behind.address]) as bridge:
            # And back to TCP.
            again = ["--listen", ANY_PORT, "--to", bridge.address, "--to-ca", str(tmp_path / "ca")]
            with run_server_process([*BRIDGE, *again]) as back:
                first, second = bridge.addresses
                urls = first.replace("h3:", "wss+h3:"), second.replace("quic:", "ws+quic:"), back.address.replace("tcp:", "ws:")
                for url in urls:
                    with connect(f"{url}/echo", ssl_context=None if url.startswith("ws:") else context) as conn:
                        conn.send("hello")
                        assert conn.receive(timeout=5) == "hello"
                    with pytest.raises(HandshakeRefused) as caught:
                        connect(f"{url}/nowhere", ssl_context=None if url.startswith("ws:") else context)
                    assert caught.value.status == 404


@pytest.mark.slow
def test_raw_to_a_tcp_server_and_a_signal_closes_with_1001() -> None:
    with target(echo) as place:
        args = [*BRIDGE, "--raw", "--listen", ANY_PORT, "--to", place.removeprefix("tcp://"), "--origin", "http://a.example"]
        with run_server_process(args) as bridge:
            with pytest.raises(HandshakeRefused) as caught:
                connect(ws(bridge.address), options=RAW)
            assert caught.value.status == 403
            allowed = ClientOptions(subprotocols=["binary"], headers={"Origin": "http://a.example"})
            conn = connect(ws(bridge.address), options=allowed)
            conn.send(b"\0\1")
            assert conn.receive(timeout=5) == b"\0\1"
            bridge.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as ended:
                conn.receive(timeout=5)
            assert ended.value.info.code == CloseCode.GOING_AWAY
            assert bridge.wait() == 0
            assert "Traceback" not in bridge.output()


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_connections() -> None:
    with run_server_process(["-m", "gws_gevent", "serve", "--bind", ANY_PORT]) as behind:
        args = [*BRIDGE, "--listen", ANY_PORT, "--to", behind.address, "--stop-timeout", "600"]
        with run_server_process(args, status=None) as bridge:
            conn = connect(ws(bridge.address) + "echo")
            bridge.process.send_signal(signal.SIGINT)

            def is_closed() -> bool:
                try:
                    connect(ws(bridge.address) + "echo").abort()
                except OSError:
                    return True
                return False

            wait_until(is_closed)
            conn.send("still")
            assert conn.receive(timeout=5) == "still"
            bridge.process.send_signal(signal.SIGINT)
            assert bridge.wait() == -signal.SIGINT
            conn.abort()


TO = ["--to", "127.0.0.1:1"]
LISTEN = ["--listen", ANY_PORT]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (TO, "the following arguments are required: --listen"),
        (LISTEN, "the following arguments are required: --to"),
        (["--listen", "127.0.0.1", *TO], "--listen '127.0.0.1': an endpoint is HOST:PORT"),
        (["--listen", "tcp://:0?what=1", *TO], "--listen 'tcp://:0?what=1': tcp has no parameter what"),
        (["--listen", "unix:/no/such/folder/s", *TO], "listen on unix:/no/such/folder/s: No such file or directory"),
        (["--listen", "tls://:0", *TO], "--listen tls://:0: needs --cert"),
        ([*LISTEN, "--to", ":3001"], "--to :3001: a host and a port are needed"),
        (["--listen", "127.0.0.1:1", *TO], "--to tcp://127.0.0.1:1: is where the bridge itself listens"),
        (["--listen", "unix:/run/x?mode=600", "--to", "unix:/run/x"], "--to unix:/run/x: is where the bridge itself listens"),
        ([*LISTEN, "--to", "ftp://a:1"], "--to ftp://a:1: no transport serves 'ftp'"),
        ([*LISTEN, "--to", "ws://a:1"], "--to 'ws://a:1': an endpoint begins with tcp://, not ws://"),
        ([*LISTEN, "--to", "memory:x"], "--to memory:x: memory stays inside of one process"),
        ([*LISTEN, "--to", "unix:/run/x?mode=600"], "--to 'unix:/run/x?mode=600': unix has no parameter mode"),
        ([*LISTEN, "--to", "a:1", "--to-ca", "x"], "--to-ca: a:1 uses no TLS; did you mean --to tls://a:1?"),
        ([*LISTEN, "--to", "tls://a:1", "--to-ca", "/no/such"], "/no/such: No such file or directory"),
        ([*LISTEN, "--to", "tls://a:1", "--to-key", "x"], "--to-key: needs --to-cert"),
        ([*LISTEN, "--to", "h3://a:1", "--to-cert", "x"], "--to-cert: h3 shows no certificates"),
        (["--listen", "h3://:0", *TO], "--listen h3://:0: needs --cert"),
        ([*LISTEN, "--to", "tls://a:1", "--to-ca", "x", "--to-insecure"], "--to-insecure and --to-ca exclude each other"),
        ([*LISTEN, *TO, "--raw", "--forwarded"], "--forwarded: with --raw no request is passed on"),
        ([*LISTEN, *TO, "--trust", "10.0.0.0/99"], "--trust: '10.0.0.0/99' does not appear to be"),
        ([*LISTEN, *TO, "--origin", "*"], "--origin: '*' is no origin"),
        ([*LISTEN, *TO, "--max-connections", "0"], "--max-connections: '0' is not a whole number from 1 on"),
        ([*LISTEN, *TO, "--idle-timeout", "never"], "--idle-timeout: 'never' is not a positive number of seconds"),
        ([*LISTEN, *TO, "--cert", "/no/such"], "/no/such: No such file or directory"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["bridge", *args])
    output = capsys.readouterr()
    assert (status, output.out) == (2, "")
    assert output.err.startswith("gws-gevent: ")
    assert output.err.count("\n") == 1
    assert said in output.err


def test_a_busy_port_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["bridge", "--listen", place, *TO]) == 2
    assert capsys.readouterr().err == f"gws-gevent: listen on tcp://{place}: Address already in use\n"


def test_help_names_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bridge", "--help"])
    text = capsys.readouterr().out
    for name in ("--listen", "--to ", "--raw", "--forwarded", "--trust", "--origin", "--to-ca", "--cert", "--idle-timeout"):
        assert name in text
