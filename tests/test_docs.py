"""The README and docs/: every Python block runs and prints what stands below it, every link leads somewhere, every option is there.

A block marked `<!-- test: serves -->` runs in a greenlet of its own until the next one so marked, or the end of the page. The one
marked `<!-- test: certificates -->` makes the certificate files that the pages name. No page is left out.
"""

from __future__ import annotations

import inspect
import io
import re
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import gevent.socket
import pytest

from gws_gevent import (
    ClientOptions,
    Connection,
    HandshakeRefused,
    Reconnect,
    Server,
    ServerOptions,
    State,
    client_context,
    connect,
    serve,
)
from tests.support import ROOT, free_port, require_tool, run_program, wait_until

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
#: The port that the pages use; a test takes a free one.
PORT = "3001"

CERTIFICATES = re.compile(r"^<!-- test: certificates -->\n```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^(?P<mark><!-- test: serves -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A Python block of a page.

    Attributes:
        line: where it begins.
        serves: it never ends by itself.
        output: what stands below it as its output, or None.
    """

    line: int
    source: str
    serves: bool
    output: str | None


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found: list[Block] = []
    for match in BLOCK.finditer(text):
        if match["language"] == "python":
            line = text.count("\n", 0, match.start("text")) + 1
            found.append(Block(line, match["text"], match["mark"] is not None, None))
        elif match["language"] == "text":
            assert found, f"{named(page)}: an output without a block above it"
            assert found[-1].output is None, f"{named(page)}: two outputs of the block at line {found[-1].line}"
            found[-1] = found[-1]._replace(output=match["text"])
    return found


@contextmanager
def running(code: Any, port: int) -> Iterator[None]:
    """Run a block that serves until the end of this one."""
    names: dict[str, Any] = {"__name__": "app"}
    greenlet = gevent.spawn(exec, code, names)
    try:
        wait_until(lambda: greenlet.ready() or accepts(port), what=f"{code.co_filename} to listen")
        assert not greenlet.ready(), f"{code.co_filename} has ended"
        yield
        assert not greenlet.ready(), f"{code.co_filename} has ended"
    finally:
        greenlet.kill()
        for value in names.values():
            if isinstance(value, gevent.signal_handler):
                value.cancel()


def accepts(port: int) -> bool:
    try:
        gevent.socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate files that the pages name, made as docs/transports.md says."""
    require_tool("openssl")
    folder = tmp_path_factory.mktemp("certificates")
    (command,) = CERTIFICATES.findall((ROOT / "docs" / "transports.md").read_text())
    made = run_program(["sh", "-e", "-c", command], cwd=folder)
    assert made.status == 0, made
    return folder


@pytest.fixture
def folder(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with the certificate files."""
    shutil.copytree(certificates, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_certificates_please_the_strictest_check(folder: None) -> None:
    # As newer versions of Python check by default.
    context = client_context("ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with Server(lambda conn: None) as server:
        server.start("tls://127.0.0.1:0?cert=cert.pem&key=key.pem")
        for name in (None, "localhost"):
            connect(server.address.replace("tls:", "wss:"), ssl_context=context, server_name=name).close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)], ids=named)
def test_blocks_run_and_print_what_stands_below_them(page: Path, folder: None) -> None:
    blocks = blocks_of(page)
    starts = [i for i, block in enumerate(blocks) if block.serves]
    # What stands before the first server, then each server with what follows it.
    for begin, end in pairwise(sorted({0, *starts, len(blocks)})):
        port = free_port()
        codes = [compiled(page, block, port) for block in blocks[begin:end]]
        if begin in starts:
            with running(codes[0], port):
                talk(blocks[begin].source, f"ws://127.0.0.1:{port}")
                run_all(blocks[begin + 1 : end], codes[1:])
        else:
            run_all(blocks[begin:end], codes)


def talk(source: str, url: str) -> None:
    """Talk to the server of a block, as far as the blocks below it do not."""
    if "class Counter" in source:
        with connect(url) as conn:
            assert [ask(conn, "a"), ask(conn, "b")] == ["1: a", "2: b"]
    elif "def quiz" in source:
        for answer, verdict in (("42", "right"), ("41", "wrong")):
            conn = connect(url)
            assert conn.receive() == "What is 6 times 7?"
            assert ask(conn, answer) == verdict
            assert list(conn) == []
            assert conn.close_info is not None
            assert conn.close_info.clean
            conn.close()
    elif "class Room" in source:
        with connect(url) as one, connect(url) as other:
            assert ask(one, "hello") == other.receive() == "hello"
    elif "def route" in source:
        talk_to_routes(url)


def talk_to_routes(url: str) -> None:
    allowed = {"Authorization": "Bearer sesame", "Origin": "https://www.example.org"}
    with connect(f"{url}/echo", options=ClientOptions(headers=allowed, subprotocols=["chat.v1", "chat.v2"])) as conn:
        assert conn.subprotocol == "chat.v2"
        assert ask(conn, "hello") == "hello"
    assert status_of(f"{url}/nowhere", allowed) == 404
    assert status_of(f"{url}/health", allowed) == 200
    assert status_of(f"{url}/echo", {**allowed, "Authorization": "Bearer rice"}) == 401
    assert status_of(f"{url}/echo", {**allowed, "Origin": "https://example.com"}) == 403
    assert status_of(f"{url}/echo", {"Authorization": "Bearer sesame"}) == 403


def ask(conn: Connection, text: str) -> Any:
    conn.send(text)
    return conn.receive(timeout=5)


def status_of(url: str, headers: dict[str, str]) -> int:
    with pytest.raises(HandshakeRefused) as refused:
        connect(url, options=ClientOptions(headers=headers))
    return refused.value.status


def compiled(page: Path, block: Block, port: int) -> Any:
    source = block.source.replace(PORT, str(port))
    return compile(source, f"{named(page)}, line {block.line}", "exec", dont_inherit=True)


def run_all(blocks: list[Block], codes: list[Any]) -> None:
    for block, code in zip(blocks, codes, strict=True):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(code, {"__name__": "__main__"})
        assert shown(printed.getvalue()) == shown(block.output or ""), code.co_filename


def shown(text: str) -> str:
    return text.replace("\r", "").rstrip()


def test_there_are_blocks_of_each_kind() -> None:
    readme = blocks_of(ROOT / "README.md")
    assert [block.serves for block in readme] == [True, False, True, True]
    assert sum(len(blocks_of(page)) for page in PAGES) > 10


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(BLOCK.sub("", page.read_text())):
        target, _, anchor = match["target"].partition("#")
        if target.startswith("https://"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), match["target"]
        if anchor:
            assert anchor in {slug(heading) for heading in HEADING.findall(file.read_text())}, match["target"]


def slug(heading: str) -> str:
    """The anchor that renderers make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_map_names_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    targets = {match["target"] for match in LINK.finditer(index)}
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name not in ("README.md", "index.md")}
    assert not pages - targets, "docs/index.md has a line for every page"


@pytest.mark.parametrize(
    ("page", "name", "function"),
    [
        ("server.md", "serve", serve),
        ("server.md", "Server", Server),
        ("server.md", "start", Server.start),
        ("server.md", "run", Server.run),
        ("server.md", "run_tls", Server.run_tls),
        ("server.md", "run_listener", Server.run_listener),
        ("server.md", "stop", Server.stop),
        ("client.md", "connect", connect),
        ("client.md", "Reconnect", Reconnect),
    ],
)
def test_signatures_stand_in_the_pages(page: str, name: str, function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    written = str(inspect.Signature([one.replace(annotation=one.empty) for one in parameters if one.name != "self"]))
    assert f"`{name}{written}`" in (ROOT / "docs" / page).read_text()


def test_the_states_are_named() -> None:
    text = (ROOT / "docs" / "server.md").read_text()
    assert re.findall(r"`([A-Z]{4,})`", text[text.index("a `State`") :])[: len(State)] == [state.name for state in State]


ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def value(text: str) -> Any:
    """What a default in a table means."""
    number, _, unit = text.partition(" ")
    if unit in UNITS:
        return int(number) * UNITS[unit]
    return eval(text.strip("`"), {})


def test_the_server_page_has_every_option_with_its_default() -> None:
    text = (ROOT / "docs" / "server.md").read_text()
    table = text[text.index("\n## Options") : text.index("\n## Starting")]
    defaults = ServerOptions()
    assert {name: value(default) for name, default in ROW.findall(table)} == {
        field.name: getattr(defaults, field.name) for field in fields(ServerOptions)
    }


def test_the_client_page_has_every_option() -> None:
    text = (ROOT / "docs" / "client.md").read_text()
    section = text[text.index("\n## Options") : text.index("\n## Any stream")]
    assert {field.name for field in fields(ClientOptions)} <= set(re.findall(r"`(\w+)`", section))
    defaults = ClientOptions()
    for name, default in ROW.findall(section):
        assert getattr(defaults, name) == value(default)
    shared = {field.name for field in fields(ClientOptions)} & {field.name for field in fields(ServerOptions)}
    assert all(getattr(defaults, name) == getattr(ServerOptions(), name) for name in shared)
