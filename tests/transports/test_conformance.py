"""The conformance kit run on every transport of ours, and on one that another package brings."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gws_gevent.exceptions import EndpointError
from gws_gevent.transports import checks, registry
from tests.support import ROOT

TRANSPORTS = ["memory", "tcp", "tcp6", "tls", "unix", "abstract", "quic", "h3", "kcp"]


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("role", ["dialled", "accepted"])
@pytest.mark.parametrize("check", checks.STREAM_CHECKS, ids=lambda check: check.__name__)
def test_stream(check: Callable[..., None], role: str, name: str, set_up: Any) -> None:
    setting = set_up(name)
    make_pair = checks.pair_factory(setting.listen, setting.dialer, setting.endpoint)
    checks.run_check(check, make_pair if role == "dialled" else checks.swapped(make_pair))


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("check", checks.TRANSPORT_CHECKS, ids=lambda check: check.__name__)
def test_listener_and_dialer(check: Callable[..., None], name: str, set_up: Any) -> None:
    setting = set_up(name)
    checks.run_check(check, setting.listen, setting.dialer, setting.endpoint)


@pytest.mark.slow
def test_a_transport_of_another_package_is_found_and_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EndpointError, match="no transport serves 'inverted'; known are h3, kcp, memory, quic, tcp, tls, unix"):
        registry.listen("inverted://127.0.0.1:0")
    source, target = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(ROOT / "tests" / "plugin_transport", source)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*install, str(source)], check=True, capture_output=True)
    monkeypatch.syspath_prepend(target)
    importlib.invalidate_caches()
    try:
        assert "inverted" in registry.known_schemes()
        assert Path(str(registry.transport_for("inverted").__file__)).parent == target  # type: ignore[attr-defined]
        checks.check_transport(registry.listen, registry.dialer, "inverted://127.0.0.1:0")
        with pytest.raises(EndpointError, match="inverted has no parameter color"):
            registry.listen("inverted://127.0.0.1:0?color=red")
    finally:
        sys.modules.pop("example_transport", None)


@pytest.mark.slow
def test_the_whole_kit_in_one_call() -> None:
    checks.check_stream_pair(checks.pair_factory(registry.listen, registry.dialer, "memory:whole-kit"))
