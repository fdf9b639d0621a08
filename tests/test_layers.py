"""Imports point down: the table of layers, and what each layer may import from outside."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from gws_gevent._accel import BUILT_TWICE
from tests.support import ROOT

#: Layer of each module of gws_gevent; a folder stands for all that is in it. The package itself ("") only re-exports.
LAYERS = {
    **dict.fromkeys(("exceptions", "frames", "option_names", "options", "_compiled"), 0),
    **dict.fromkeys(("_accel", "_frame_parser", "_masking", "extensions"), 1),
    **dict.fromkeys(("forwarding", "handshake", "http_body", "http_head", "message", "partial_message", "protocol"), 2),
    **dict.fromkeys(("closing", "extended_connect", "protocol_rules", "proxies", "proxy_headers", "redirects", "urls"), 2),
    **dict.fromkeys(("_fdio", "_tls_engine", "_tls_stream", "patching", "runtime", "timers", "transports", "watchdog"), 3),
    **dict.fromkeys(
        ("broadcast", "connection", "deadlines", "handler", "incoming", "outgoing", "service", "session", "streamed", "writer"), 4
    ),
    **dict.fromkeys(("carrying", "concurrent_map", "frame_output", "message_queue", "payloads", "reading", "rooms"), 4),
    **dict.fromkeys(("answers", "client", "dialing", "integrations", "opening", "reconnect", "server", "upgrader"), 5),
    **dict.fromkeys(("bridge", "foreign", "http_front", "raw_bridge", "socket_streams", "stream_socket", "takeover"), 5),
    **dict.fromkeys(("", "__main__", "cli"), 6),
}

#: Highest layer of the core, which can be used alone: no I/O, no clock, no threads, no log.
CORE = 2
BANNED_IN_CORE = {
    "_socket", "_ssl", "_thread", "asyncio", "concurrent", "gevent", "greenlet", "http.client", "http.server", "logging",
    "multiprocessing", "select", "selectors", "signal", "socket", "socketserver", "ssl", "subprocess", "threading", "time",
    "urllib.request",
}  # fmt: skip
#: (module, import): the exceptions, each with its reason.
ALLOWED_IN_CORE = {
    ("options", "logging"),  # an option holds a logger, and its type is checked; nothing is logged there
}

#: Third-party packages by layer; everywhere else the standard library has to do.
GREENLETS = {"gevent", "greenlet"}
THIRD_PARTY = {0: set[str](), 1: set[str](), 2: {"httptools"}, 3: GREENLETS, 4: GREENLETS, 5: GREENLETS, 6: GREENLETS}
#: What one module, or one folder, may import besides.
OWN_LIBRARY = {
    "dialing": {"python_socks"},
    "extensions": {"isal", "zlib_ng"},
    "transports.quic": {"aioquic"},
    "transports.h3": {"aioquic", "pylsqpack"},
    "transports.kcp": {"cryptography", "kcp", "siokcp"},
    "integrations": {"engineio", "flask", "flask_sock", "geventwebsocket", "gunicorn", "locust", "simple_websocket"},
    "cli": {"rich"},
}

#: Modules that import others by a name they compute.
BY_NAME = {"_accel", "transports.registry", "cli"}


@dataclass(frozen=True)
class Import:
    """One import that happens when the program runs. The target is one of our modules, or a full name from another package."""

    target: str
    line: int
    relative: bool

    @property
    def ours(self) -> str | None:
        """Our module, relative to the package; None for another package's."""
        head, _, rest = self.target.partition(".")
        return rest if head == "gws_gevent" else None


@cache
def modules() -> dict[str, Path]:
    """Our modules by their names relative to the package: "" the package, "transports.tcp"."""
    found = {}
    for folder, prefix in ((ROOT / "gws_gevent", ""), (ROOT / "transports", "transports.")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if prefix or parts[0] != "transports":
                found[(prefix + ".".join(parts)).removesuffix("__init__").removesuffix(".")] = path
    return found


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    """Every import of a module, wherever it stands, except those for type checkers."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(_imports(ast.parse(path.read_text()), f"gws_gevent.{package}".rstrip(".")))


def _imports(tree: ast.AST, package: str) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.orelse:
                yield from _imports(ast.Module([statement], []), package)
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.rsplit(".", node.level - 1)[0]
                base = f"{parent}.{base}".rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                ours = base.partition(".")[0] == "gws_gevent"
                is_a_name = ours and inner.removeprefix("gws_gevent.") not in modules()
                yield Import(base if is_a_name else inner, node.lineno, node.level > 0)
        else:
            yield from _imports(node, package)


def find_layer(name: str) -> int | None:
    return LAYERS.get(name, LAYERS.get(name.partition(".")[0]))


def layer(name: str) -> int:
    found = find_layer(name)
    if found is None:
        pytest.fail(f"{name} is in no layer: add it to the table LAYERS in tests/test_layers.py", pytrace=False)
    return found


def where(name: str, found: Import) -> str:
    return f"{modules()[name].relative_to(ROOT)}:{found.line}: {name or '__init__'} imports {found.target}"


def reaches(target: str, banned: set[str]) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in banned)


EVERY_MODULE = pytest.mark.parametrize("name", modules(), ids=lambda name: name or "__init__")


@EVERY_MODULE
def test_imports_point_down(name: str) -> None:
    own = layer(name)  # fails for a module that is not in the table
    wrong = [where(name, found) for found in imports_of(name) if found.ours is not None and layer(found.ours) > own]
    assert not wrong, f"layer {own} may not import what stands above it:\n" + "\n".join(wrong)


def test_imports_make_no_cycle() -> None:
    # A module and the package it stands in are no cycle: importing the module runs the package first in any case.
    graph = {
        name: {found.ours for found in imports_of(name) if found.ours and not f"{name}.".startswith(f"{found.ours}.")}
        for name in modules()
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("a cycle of imports: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("name", [name for name in modules() if find_layer(name) in range(CORE + 1)])
def test_core_does_no_io(name: str) -> None:
    wrong = [
        where(name, found)
        for found in imports_of(name)
        if reaches(found.target, BANNED_IN_CORE) and (name, found.target) not in ALLOWED_IN_CORE
    ]
    assert not wrong, "the core does no I/O and has no clock, threads or log:\n" + "\n".join(wrong)


@EVERY_MODULE
def test_third_party_imports_are_those_of_the_layer(name: str) -> None:
    allowed = set(sys.stdlib_module_names) | THIRD_PARTY[layer(name)]
    for owner, libraries in OWN_LIBRARY.items():
        if name == owner or name.startswith(f"{owner}."):
            allowed |= libraries
    outside = [found for found in imports_of(name) if found.ours is None]
    wrong = [where(name, found) for found in outside if found.target.partition(".")[0] not in allowed]
    assert not wrong, "\n".join(wrong)


@EVERY_MODULE
def test_modules_are_imported_by_name_only_where_that_is_the_purpose(name: str) -> None:
    if name in BY_NAME or name.partition(".")[0] in BY_NAME:
        return
    wrong = [where(name, found) for found in imports_of(name) if reaches(found.target, {"importlib"})]
    assert not wrong, "an import by a computed name escapes this test:\n" + "\n".join(wrong)


@pytest.mark.parametrize("name", BUILT_TWICE)
def test_relative_imports_are_those_of_the_same_build(name: str) -> None:
    wrong = [
        where(name, found) for found in imports_of(name) if found.ours is not None and found.relative != (found.ours in BUILT_TWICE)
    ]
    assert not wrong, "relative for what is built twice, absolute for what exists once:\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", sorted((ROOT / "gws_gevent" / "_compiled").glob("*.p[xy][xd]")), ids=lambda path: path.name)
def test_compiled_sources_obey_the_same_table(path: Path) -> None:
    if path.stem == "__init__":
        return
    own = layer(path.stem)
    for target in re.findall(r"^\s*(?:from|c?import)\s+([\w.]+)", path.read_text(), re.MULTILINE):
        sibling = target.removeprefix("gws_gevent.").removeprefix("_compiled.")
        assert sibling not in LAYERS or layer(sibling) <= own, f"{path.name} imports {target}"
        assert own > CORE or not reaches(target, BANNED_IN_CORE), f"{path.name} imports {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_leave_child_processes_to_the_standard_library(path: Path) -> None:
    found = [one.line for one in _imports(ast.parse(path.read_text()), "tests") if reaches(one.target, {"gevent.subprocess"})]
    assert not found, f"{path.name}:{found}: gevent.subprocess spoils every exit status, see tests/support.py"


def test_the_check_sees_every_form_of_import() -> None:
    source = """
from __future__ import annotations
import socket as s, zlib
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from gws_gevent.options import ServerOptions
else:
    import gevent.event
def later():
    from . import frames
    from .frames import Opcode
    from gws_gevent import exceptions, __version__
"""
    found = [(one.target, one.relative) for one in _imports(ast.parse(source), "gws_gevent")]
    assert found == [
        ("__future__.annotations", False),
        ("socket", False),
        ("zlib", False),
        ("typing.TYPE_CHECKING", False),
        ("gevent.event", False),
        ("gws_gevent.frames", True),
        ("gws_gevent.frames", True),
        ("gws_gevent.exceptions", False),
        ("gws_gevent", False),
    ]
