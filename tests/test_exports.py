"""The public surface: what the package exports, that it is there, and that its examples are true."""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib import import_module

import pytest

import gws_gevent
from gws_gevent._accel import BUILT_TWICE, build_of
from tests.test_layers import modules

#: Modules whose public names are also names of the package.
EXPORTED = (
    "bridge", "broadcast", "client", "concurrent_map", "exceptions", "frames", "handler", "options", "raw_bridge", "reconnect",
    "rooms", "server", "session", "upgrader",
)  # fmt: skip
#: Modules of which the package has some names; the rest is for those who use the core, or a transport, alone.
EXPORTED_IN_PART = {"connection": {"Connection"},
    "handshake": {"Headers", "Request", "Response"},
    "streamed": {"MessageStream"},
    "transports.base": {"ListenSettings", "TlsFiles"},
    "transports.tls_contexts": {"client_context"},
}
#: Public modules that are imported by their own name.
UNDER_THEIR_OWN_NAME = {
    "answers", "carrying", "cli", "closing", "deadlines", "dialing", "extended_connect", "extensions", "foreign", "forwarding",
    "frame_output", "http_body", "http_front", "http_head", "incoming", "integrations", "message", "message_queue", "opening",
    "option_names", "outgoing", "partial_message", "patching", "payloads", "protocol", "protocol_rules", "proxies",
    "proxy_headers", "reading", "redirects", "runtime", "service", "socket_streams", "stream_socket", "takeover", "timers",
    "transports", "urls", "watchdog", "writer",
}  # fmt: skip

#: Modules that patch the process that imports them; their own tests look at what they export.
PATCHES = {"integrations.locust"}

PUBLIC = [name for name in modules() if name and not name.startswith("_") and name not in PATCHES]
EXISTING = [name for name in EXPORTED if name in PUBLIC]


def test_package_exports_what_its_modules_export() -> None:
    promised = [name for module in EXISTING for name in import_module(f"gws_gevent.{module}").__all__]
    promised += [name for names in EXPORTED_IN_PART.values() for name in names]
    assert len(promised) == len(set(promised)), "two modules export the same name"
    assert set(gws_gevent.__all__) == {*promised, "__version__", "ACCELERATED"}
    assert len(gws_gevent.__all__) == len(set(gws_gevent.__all__))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_written_down_and_exist(name: str) -> None:
    module = import_module(f"gws_gevent.{name}")
    is_package = hasattr(module, "__path__")
    assert is_package or hasattr(module, "__all__"), f"{name} has no __all__"
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public)
        assert not public.startswith("_")


@pytest.mark.parametrize("module", [*EXISTING, *EXPORTED_IN_PART])
def test_package_and_module_have_the_same_objects(module: str) -> None:
    origin = build_of(module) if module in BUILT_TWICE else import_module(f"gws_gevent.{module}")
    for name in EXPORTED_IN_PART.get(module, origin.__all__):
        assert getattr(gws_gevent, name) is getattr(origin, name)


def test_each_public_module_is_exported_or_has_its_own_name() -> None:
    heads = {name.partition(".")[0] for name in PUBLIC}
    assert heads - {*EXPORTED, *EXPORTED_IN_PART, *UNDER_THEIR_OWN_NAME} == set(), "say in tests/test_exports.py what it is"


@pytest.mark.parametrize("name", [name for name in modules() if name and name not in PATCHES | {"__main__"}])
def test_examples_in_docstrings_are_true(name: str) -> None:
    failed, _ = doctest.testmod(import_module(f"gws_gevent.{name}"))
    assert failed == 0


@pytest.mark.slow
def test_import_patches_nothing_and_starts_nothing() -> None:
    code = (
        "import gws_gevent, threading, gevent.monkey, gevent._hub_local\n"
        "assert not gevent.monkey.saved, gevent.monkey.saved\n"
        "assert gevent._hub_local.get_hub_if_exists() is None\n"
        "assert threading.active_count() == 1\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_import_after_patching_works() -> None:
    code = "import gevent.monkey; gevent.monkey.patch_all(); import gws_gevent; print(gws_gevent.__version__)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"{gws_gevent.__version__}\n"), result.stderr
