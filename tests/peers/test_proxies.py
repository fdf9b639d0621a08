"""Behind a real HAProxy and a real nginx `remote_address` is the client's, and nobody can forge it.

Clients come from 127.0.0.7, which no server here trusts; both proxies come from 127.0.0.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from gws_gevent import Connection, HandshakeRefused, Server, ServerOptions
from gws_gevent.transports.base import Endpoint
from gws_gevent.transports.tls_contexts import client_context
from tests.pairs import serving
from tests.peers.programs import accepts, connect_from, nginx, running
from tests.support import free_port, require_tool

pytestmark = [pytest.mark.slow, pytest.mark.peer]

CLIENT = "127.0.0.7"
PROXY = "127.0.0.1"
FORGED = "203.0.113.9"
FORGED_XFF = {"X-Forwarded-For": FORGED}

HAPROXY = """
global
    maxconn 100
defaults
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    timeout tunnel 60s
"""

HAPROXY_LISTENER = """
listen {name}
    bind 127.0.0.1:{port}
    mode {mode}
    {forwarding}
    server gws 127.0.0.1:{server}{sending}
"""

NGINX = """
daemon off;
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path temp-body;
    proxy_temp_path temp-proxy;
    fastcgi_temp_path temp-fastcgi;
    uwsgi_temp_path temp-uwsgi;
    scgi_temp_path temp-scgi;
    server {
        listen 127.0.0.1:8080;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection upgrade;
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        location /trusting/ { proxy_pass http://127.0.0.1:TRUSTING; }
        location /wary/ { proxy_pass http://127.0.0.1:WARY; }
    }
}
"""


class Servers(NamedTuple):
    """The ports of two servers: one trusts the proxy, the other nobody."""

    trusting: int
    wary: int


class HAProxy(NamedTuple):
    """The port of each listener: what is told to which server, and how."""

    trusting_v1: int
    trusting_v2: int
    trusting_xff: int
    wary_v1: int
    wary_v2: int
    wary_xff: int


def tell_address(conn: Connection) -> None:
    """Say whom the server takes the client for, then echo."""
    host, port = conn.remote_address
    conn.send(f"{host} {'a port' if port else 'no port'}")
    for message in conn:
        conn.send(message)


def port_of(server: Server) -> int:
    return Endpoint.parse(server.address).port


@pytest.fixture
def servers() -> Iterator[Servers]:
    with (
        serving(tell_address, ServerOptions(trusted_proxies=(f"{PROXY}/32",))) as trusting,
        serving(tell_address, ServerOptions()) as wary,
    ):
        yield Servers(port_of(trusting), port_of(wary))


@pytest.fixture
def haproxy(servers: Servers, tmp_path: Path) -> Iterator[HAProxy]:
    ports = HAProxy(*(free_port() for _ in HAProxy._fields))
    listeners = []
    for name, port in ports._asdict().items():
        who, _, how = name.partition("_")
        listeners.append(listener(name, port, getattr(servers, who), how))
    with running_haproxy(tmp_path, listeners, ports.wary_xff):
        yield ports


def listener(name: str, port: int, server: int, how: str) -> str:
    sending = {"v1": " send-proxy", "v2": " send-proxy-v2", "xff": ""}[how]
    mode, forwarding = ("http", "option forwardfor") if how == "xff" else ("tcp", "")
    return HAPROXY_LISTENER.format(name=name, port=port, mode=mode, forwarding=forwarding, server=server, sending=sending)


@contextmanager
def running_haproxy(folder: Path, listeners: list[str], probe: int) -> Iterator[None]:
    """Run HAProxy. All its listeners listen before any accepts; `probe` is a port where an empty connection does no harm."""
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY + "".join(listeners))
    with running([require_tool("haproxy"), "-db", "-f", str(config)], folder, lambda _: accepts(probe)):
        yield


@pytest.fixture
def nginx_port(servers: Servers, tmp_path: Path) -> Iterator[int]:
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.replace("TRUSTING", str(servers.trusting)).replace("WARY", str(servers.wary)))
    with nginx(config) as port:
        yield port


def taken_for(port: int, headers: dict[str, str] | None = None, source: str = CLIENT, **more: Any) -> str:
    """Connect, check that messages pass, and return whom the server takes the client for."""
    with connect_from(source, port, headers, **more) as conn:
        found: str = conn.receive(timeout=10)
        for message in ("text", b"\x00" * 200_000):
            conn.send(message)
            assert conn.receive(timeout=10) == message
        return found


def refused_with(port: int, headers: dict[str, str] | None = None, **more: Any) -> int:
    with pytest.raises(HandshakeRefused) as refused:
        connect_from(CLIENT, port, headers, **more)
    return refused.value.status


def v1_line(source: str) -> bytes:
    return f"PROXY TCP4 {source} 127.0.0.1 4711 80\r\n".encode()


def test_haproxy_tells_the_client_with_proxy_headers(haproxy: HAProxy) -> None:
    assert taken_for(haproxy.trusting_v1) == f"{CLIENT} a port"
    assert taken_for(haproxy.trusting_v2) == f"{CLIENT} a port"


def test_haproxy_passes_tls_through_behind_a_proxy_header(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    endpoint = f"tls://127.0.0.1:0?cert={tmp_path}/both.pem"
    with serving(tell_address, ServerOptions(trusted_proxies=(PROXY,)), endpoint) as server:
        v1, v2 = free_port(), free_port()
        listeners = [listener("v1", v1, port_of(server), "v1"), listener("v2", v2, port_of(server), "v2")]
        with running_haproxy(tmp_path, listeners, v1):
            context = client_context(str(tmp_path / "ca.pem"))
            assert taken_for(v1, tls=context) == f"{CLIENT} a port"
            assert taken_for(v2, FORGED_XFF, tls=context) == f"{CLIENT} a port"


def test_proxy_headers_are_refused_where_no_proxy_is_trusted(haproxy: HAProxy, servers: Servers) -> None:
    assert refused_with(haproxy.wary_v1) == 400
    assert refused_with(haproxy.wary_v2) == 400
    assert taken_for(servers.wary) == f"{CLIENT} a port"


def test_a_client_of_haproxy_cannot_forge_its_address(haproxy: HAProxy) -> None:
    for port in (haproxy.trusting_v1, haproxy.trusting_v2):
        assert taken_for(port, FORGED_XFF) == f"{CLIENT} a port"
        assert taken_for(port, {"Forwarded": f"for={FORGED}"}) == f"{CLIENT} a port"
        # A second header is part of the request.
        assert refused_with(port, prefix=v1_line(FORGED)) == 400


def test_a_direct_client_cannot_forge_its_address(servers: Servers) -> None:
    for port in servers:
        assert taken_for(port, FORGED_XFF) == f"{CLIENT} a port"
        assert taken_for(port, {"Forwarded": f"for={FORGED}"}) == f"{CLIENT} a port"
        assert refused_with(port, prefix=v1_line(FORGED)) == 400
    # The same bytes from the proxy's address are believed: the test above has something to refuse.
    assert taken_for(servers.trusting, FORGED_XFF, source=PROXY) == f"{FORGED} no port"
    assert taken_for(servers.trusting, prefix=v1_line(FORGED), source=PROXY) == f"{FORGED} a port"


def test_haproxy_tells_the_client_with_x_forwarded_for(haproxy: HAProxy) -> None:
    assert taken_for(haproxy.trusting_xff) == f"{CLIENT} no port"
    assert taken_for(haproxy.trusting_xff, FORGED_XFF) == f"{CLIENT} no port"
    assert taken_for(haproxy.wary_xff) == f"{PROXY} a port"
    assert taken_for(haproxy.wary_xff, FORGED_XFF) == f"{PROXY} a port"
    # HAProxy passes on the header that it does not write: the two disagree.
    assert refused_with(haproxy.trusting_xff, {"Forwarded": f"for={FORGED}"}) == 400


def test_nginx_tells_the_client_with_x_forwarded_for(nginx_port: int) -> None:
    assert taken_for(nginx_port, target="/trusting/") == f"{CLIENT} no port"
    assert taken_for(nginx_port, FORGED_XFF, target="/trusting/") == f"{CLIENT} no port"
    assert taken_for(nginx_port, target="/wary/") == f"{PROXY} a port"
    assert taken_for(nginx_port, FORGED_XFF, target="/wary/") == f"{PROXY} a port"
    assert refused_with(nginx_port, {"Forwarded": f"for={FORGED}"}, target="/trusting/") == 400
