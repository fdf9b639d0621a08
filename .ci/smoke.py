"""Start a server command, fetch its page once, echo one message, stop it. Standard library only.

python smoke.py [--url URL] [--accelerated yes|no] -- COMMAND...

Without --url the address is the one that the command prints. With --accelerated the command's first word is a Python, whose
gws_gevent has to be installed outside this checkout and in the build that was named.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

LIMIT = 600.0  # seconds until the server answers: `make serve` makes an environment and compiles first
CHECKOUT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--accelerated", choices=["yes", "no"])
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.accelerated:
        check_build(arguments.command[0], arguments.accelerated == "yes")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        with output.open("wb") as sink:
            # A group of its own: the signal has to reach what make started.
            process = subprocess.Popen(
                arguments.command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            check_server(process, output, arguments.url)
        except Exception as error:
            sys.exit(f"{type(error).__name__}: {error}\n{output.read_text(errors='replace')}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def check_build(python: str, accelerated: bool) -> None:
    code = "import gws_gevent, gws_gevent.transports.tcp as tcp; print(gws_gevent.ACCELERATED, gws_gevent.__file__, tcp.__file__)"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    print(found, end="")
    if str(CHECKOUT) in found:
        sys.exit("that is the checkout, not the installed package")
    if found.split()[0] != str(accelerated):
        sys.exit(f"ACCELERATED should be {accelerated}")


def check_server(process: subprocess.Popen[bytes], output: Path, url: str | None) -> None:
    page, url = fetch(process, output, url)
    if "<html" not in page.lower():
        raise AssertionError(f"{url} is not a page: {page[:200]!r}")
    host, _, port = url.partition("://")[2].strip("/").rpartition(":")
    echo(host, int(port))
    print(f"{url} gave a page of {len(page)} characters and /echo echoed")
    os.killpg(process.pid, signal.SIGTERM)
    status = process.wait(30)
    if Path(process.args[0]).name != "make" and status != 0:
        raise AssertionError(f"ended with status {status} on SIGTERM")


def fetch(process: subprocess.Popen[bytes], output: Path, url: str | None) -> tuple[str, str]:
    deadline = time.monotonic() + LIMIT
    while True:
        printed = re.search(r"tcp://(\S+:\d+)\s", output.read_text(errors="replace"))
        target = url or (f"http://{printed[1]}/" if printed else None)
        if target is not None:
            try:
                with urllib.request.urlopen(target, timeout=10) as response:
                    return response.read().decode(), target
            except urllib.error.HTTPError:
                raise
            except OSError:
                pass  # not listening yet
        if process.poll() is not None:
            raise AssertionError(f"ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise AssertionError(f"does not answer after {LIMIT:g} s")
        time.sleep(0.1)


def echo(host: str, port: int) -> None:
    """One text message there and back (RFC 6455 sections 4.1 and 5.7, with their example key and frame)."""
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(
            f"GET /echo HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        connection.sendall(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
        received = b""
        while not received.endswith(b"\x81\x05Hello"):
            data = connection.recv(4096)
            received += data
            if not data:
                raise AssertionError(f"no echo, but {received!r}")
        if not received.startswith(b"HTTP/1.1 101 ") or b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" not in received:
            raise AssertionError(f"no 101, but {received!r}")


if __name__ == "__main__":
    main()
