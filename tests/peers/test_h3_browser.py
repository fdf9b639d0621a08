"""Chromium over HTTP/3: a page from our port, and a WebSocket of that page, where there is no TCP at all."""

from __future__ import annotations

import base64
import hashlib
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.peers.programs import browser
from tests.support import require_module, require_tool, run_server_process

pytestmark = [pytest.mark.slow, pytest.mark.peer]

ASK = """
const done = arguments[arguments.length - 1];
const hop = performance.getEntriesByType("navigation")[0].nextHopProtocol;
const socket = new WebSocket("wss://" + location.host + "/echo");
socket.onopen = () => socket.send("hello");
socket.onmessage = (event) => { socket.onclose = (end) => done([hop, event.data, end.code, end.wasClean]); socket.close(4001); };
socket.onerror = () => done([hop, "error"]);
"""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    ours = trustme.CA().issue_cert("127.0.0.1")
    ours.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert.pem"))
    return tmp_path / "cert.pem"


def fingerprint(certificate: Path) -> str:
    """What Chromium is to trust: the hash of the public key (SPKI), the only way to have it speak QUIC to a test server."""
    first = certificate.read_text().split("-----END CERTIFICATE-----")[0].partition("-----BEGIN CERTIFICATE-----")[2]
    pem = ssl.DER_cert_to_PEM_cert(base64.b64decode(first))
    args = [require_tool("openssl"), "x509", "-pubkey", "-noout"]
    public = subprocess.run(args, input=pem.encode(), capture_output=True, check=True).stdout
    key = base64.b64decode(b"".join(public.splitlines()[1:-1]))
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


def asked(driver: Any, url: str) -> list[Any]:
    driver.get(url)
    found: list[Any] = driver.execute_async_script(ASK)
    return found


def test_a_page_opens_a_websocket_over_http_3(certificate: Path, tmp_path: Path) -> None:
    require_module("aioquic")
    args = ["-m", "gws_gevent", "serve", "--bind", "h3://127.0.0.1:0", "--cert", str(certificate)]
    with run_server_process(args) as server:
        place = f"127.0.0.1:{server.port}"
        flags = (
            "--enable-quic", "--enable-features=EnableWebsocketsOverHttp3", f"--origin-to-force-quic-on={place}",
            f"--ignore-certificate-errors-spki-list={fingerprint(certificate)}",
        )  # fmt: skip
        with browser(tmp_path, flags) as driver:
            # Nobody listens on this port with TCP: what arrives has come over HTTP/3.
            assert asked(driver, f"https://{place}/") == ["h3", "hello", 4001, True]
