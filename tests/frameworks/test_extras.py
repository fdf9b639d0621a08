"""A framework that is not installed is asked for in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import ROOT, run_program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "package", "said"),
    [
        ("flask_sock", "flask", "Sock needs an extra: pip install 'gws_gevent[flask]'"),
        ("engineio", "engineio", "Engine.IO needs an extra: pip install 'gws_gevent[engineio]'"),
        ("locust", "locust", "the Locust user needs an extra: pip install 'gws_gevent[locust]'"),
    ],
)
def test_what_is_missing_is_said(module: str, package: str, said: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('kept away by a test')\n")
    code = f"import gws_gevent.integrations.{module}"
    finished = run_program([sys.executable, "-c", code], env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert finished.status == 1
    assert finished.errors.splitlines()[-1].endswith(said)
