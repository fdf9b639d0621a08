"""Two builds of one source: which one is used, and that there is nothing in one that is not in the other."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest

from gws_gevent import _accel
from gws_gevent._accel import ACCELERATED, BUILT_TWICE, build_of
from tests.support import CI, ROOT

COMPILED = ROOT / "gws_gevent" / "_compiled"
EXTENSIONS = {
    extension["name"].removeprefix("gws_gevent._compiled."): extension
    for extension in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
}
FORCED_PLAIN = os.environ.get("GWS_GEVENT_PURE_PYTHON", "") not in ("", "0")
ON_CPYTHON = platform.python_implementation() == "CPython"

EACH = pytest.mark.parametrize("name", BUILT_TWICE)


def compiled(name: str) -> ModuleType:
    """Import a compiled module; a skip where there is none, a failure in CI on CPython."""
    try:
        return import_module(f"gws_gevent._compiled.{name}")
    except ImportError as error:
        if CI and ON_CPYTHON:
            pytest.fail(f"the compiled build is missing: {error}", pytrace=False)
        pytest.skip(f"there is no compiled build here: {error}")


def report(setting: str | None) -> list[str]:
    """In a new process with GWS_GEVENT_PURE_PYTHON as given: ACCELERATED, and where each module that is built twice comes from."""
    code = (
        "from gws_gevent import _accel\n"
        "print(_accel.ACCELERATED, *(_accel.build_of(name).__name__ for name in _accel.BUILT_TWICE))\n"
        "import sys; print(*(name for name in sys.modules if name.startswith('gws_gevent._compiled.')))\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "GWS_GEVENT_PURE_PYTHON"}
    if setting is not None:
        env["GWS_GEVENT_PURE_PYTHON"] = setting
    result = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_compiled_build_is_used_where_it_exists() -> None:
    for name in BUILT_TWICE:
        compiled(name)
    assert ACCELERATED is not FORCED_PLAIN


@EACH
def test_build_of_gives_the_chosen_build(name: str) -> None:
    module = build_of(name)
    assert module.__name__ == (f"gws_gevent._compiled.{name}" if ACCELERATED else f"gws_gevent.{name}")
    assert str(module.__file__).endswith(tuple(EXTENSION_SUFFIXES)) == ACCELERATED


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["1", "yes"])
def test_the_variable_forces_the_plain_build(setting: str) -> None:
    assert report(setting) == [" ".join(["False", *(f"gws_gevent.{name}" for name in BUILT_TWICE)]), ""]


@pytest.mark.slow
@pytest.mark.parametrize("setting", [None, "", "0"])
def test_without_the_variable_the_compiled_build_is_used(setting: str | None) -> None:
    for name in BUILT_TWICE:
        compiled(name)
    assert report(setting)[0] == " ".join(["True", *(f"gws_gevent._compiled.{name}" for name in BUILT_TWICE)])


def test_one_missing_module_means_plain_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GWS_GEVENT_PURE_PYTHON", raising=False)
    monkeypatch.setitem(sys.modules, f"gws_gevent._compiled.{BUILT_TWICE[-1]}", None)
    assert _accel._compiled_is_usable() is False


@EACH
def test_both_builds_have_the_same_public_names(name: str) -> None:
    plain, fast = import_module(f"gws_gevent.{name}"), compiled(name)
    assert plain is not fast
    assert _public(fast) == set(plain.__all__)
    for public in plain.__all__:
        ours, theirs = getattr(plain, public), getattr(fast, public)
        assert isinstance(ours, type) == isinstance(theirs, type), public
        if isinstance(ours, type):
            assert _methods(theirs) == _methods(ours), public


def _public(module: ModuleType) -> set[str]:
    """Its __all__, or what it defines: a `.pyx` leaves the list to its twin."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    }


def _methods(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}


@EACH
def test_exceptions_exist_once(name: str) -> None:
    for module in (import_module(f"gws_gevent.{name}"), compiled(name)):
        own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
        twice = [value for value in own if issubclass(value, BaseException)]
        assert not twice, "an exception that exists twice slips through `except`"


def test_everything_that_is_built_twice_is_in_pyproject() -> None:
    assert set(EXTENSIONS) == set(BUILT_TWICE)
    assert all(extension["optional"] for extension in EXTENSIONS.values())


@pytest.mark.parametrize("name", EXTENSIONS)
def test_types_stand_beside_the_source(name: str) -> None:
    (source,) = EXTENSIONS[name]["sources"]
    assert source in (f"gws_gevent/{name}.py", f"gws_gevent/_compiled/{name}.pyx")
    first_line = (ROOT / source).read_text().partition("\n")[0]
    assert first_line.startswith("# cython: language_level=3")
    if source.endswith(".py"):
        assert "annotation_typing=False" in first_line
        assert (COMPILED / f"{name}.pxd").is_file()


@EACH
def test_compiled_modules_are_newer_than_their_sources(name: str) -> None:
    file = compiled(name).__file__
    assert file is not None
    sources = [ROOT / path for path in (*EXTENSIONS[name]["sources"], *EXTENSIONS[name].get("depends", []))]
    stale = [str(path.relative_to(ROOT)) for path in sources if path.stat().st_mtime > Path(file).stat().st_mtime]
    assert not stale, f"{', '.join(stale)} changed since {Path(file).name} was built: run `make test`"
