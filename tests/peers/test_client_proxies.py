"""Through a real tinyproxy and a real microsocks, with and without TLS inside, and with a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from gws_gevent import Connection, ListenSettings, ProxyError, Server, TlsFiles, client_context, connect
from tests.pairs import EchoHandler
from tests.peers.programs import accepts, running
from tests.support import free_port, require_module, require_tool

pytestmark = [pytest.mark.slow, pytest.mark.peer]

TINYPROXY = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 20
{login}
"""


@contextmanager
def tinyproxy(folder: Path, login: bool) -> Iterator[str]:
    program, port = require_tool("tinyproxy"), free_port()
    config = folder / "tinyproxy.conf"
    config.write_text(TINYPROXY.format(port=port, login="BasicAuth anna secret" if login else ""))
    with running([program, "-d", "-c", str(config)], folder, lambda _: accepts(port)):
        yield f"http://{'anna:secret@' * login}127.0.0.1:{port}"


@contextmanager
def microsocks(folder: Path, login: bool) -> Iterator[str]:
    require_module("python_socks")
    program, port = require_tool("microsocks"), free_port()
    args = ["-u", "anna", "-P", "secret"] if login else []
    with running([program, "-i", "127.0.0.1", "-p", str(port), *args], folder, lambda _: accepts(port)):
        yield f"socks5h://{'anna:secret@' * login}127.0.0.1:{port}"


PROXIES = {"tinyproxy": tinyproxy, "microsocks": microsocks}
EACH = pytest.mark.parametrize("name", PROXIES)


def assert_echo(conn: Connection) -> None:
    with conn:
        for data in ("hello", b"x" * 1_000_000):
            conn.send(data)
            assert conn.receive(timeout=10) == data
    assert conn.close_info is not None
    assert conn.close_info.clean


@EACH
@pytest.mark.parametrize("login", [False, True], ids=["open", "password"])
def test_both_schemes(name: str, login: bool, tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ca, both = str(tmp_path / "ca.pem"), str(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA).private_key_and_cert_chain_pem.write_to_path(both)
    with Server(EchoHandler()) as server, PROXIES[name](tmp_path, login) as proxy:
        server.start("127.0.0.1:0", "tls://127.0.0.1:0", settings=ListenSettings(tls=TlsFiles(both)))
        plain, secure = (address.rpartition(":")[2] for address in server.addresses)
        assert_echo(connect(f"ws://localhost:{plain}/", proxy=proxy))
        assert_echo(connect(f"wss://localhost:{secure}/", proxy=proxy, ssl_context=client_context(ca)))


@EACH
def test_a_password_that_is_wrong_or_missing(name: str, tmp_path: Path) -> None:
    with PROXIES[name](tmp_path, True) as proxy:
        for other in (proxy.replace("secret", "guess"), proxy.replace("anna:secret@", "")):
            with pytest.raises(ProxyError):
                connect("ws://localhost:1/", proxy=other)


@EACH
def test_a_server_that_is_not_there(name: str, tmp_path: Path) -> None:
    with PROXIES[name](tmp_path, False) as proxy, pytest.raises(ProxyError) as refused:
        connect(f"ws://127.0.0.1:{free_port()}/", proxy=proxy)
    assert refused.value.status is not None
