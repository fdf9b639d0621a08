"""What is installed is what is in the tree.

GWS_GEVENT_DIST may name a folder with one wheel and one sdist to look at; without it both are built here, without Cython, which
takes a second. Only what was built with Cython has to hold the compiled modules.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

import gws_gevent
from tests.support import ROOT

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION: str = PYPROJECT["project"]["version"]
EXTENSIONS = [extension["name"] for extension in PYPROJECT["tool"]["setuptools"]["ext-modules"]]
BUILT_BY_CI = os.environ.get("GWS_GEVENT_DIST", "")
IN_PACKAGE = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.c")


def test_the_extra_for_gunicorn_brings_what_its_gevent_workers_import() -> None:
    """`gunicorn` alone does not: ours builds on its worker `gevent`, which needs `packaging`."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    for name in ("gunicorn", "test"):
        assert [need for need in extras[name] if need.startswith("gunicorn")] == ["gunicorn[gevent]>=23"]


def package_files() -> dict[str, Path]:
    """Every file of the tree that has to be installed, by its place in the wheel."""
    found = {}
    for folder, place in ((ROOT / "gws_gevent", "gws_gevent"), (ROOT / "transports", "gws_gevent/transports")):
        for path in folder.rglob("*"):
            inner = path.relative_to(folder)
            built = path.suffix in (".so", ".pyd", ".c") or "__pycache__" in inner.parts
            if path.is_file() and not built and not (place == "gws_gevent" and inner.parts[0] == "transports"):
                found[f"{place}/{inner.as_posix()}"] = path
    return found


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one wheel and one sdist."""
    if BUILT_BY_CI:
        return Path(BUILT_BY_CI).resolve()
    tree = tmp_path_factory.mktemp("tree")
    for name in ("gws_gevent", "transports"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=IN_PACKAGE)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tree / name)
    no_cython = tmp_path_factory.mktemp("no_cython")
    (no_cython / "Cython.py").write_text("raise ImportError('kept away by a test')\n")
    result = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "sdist", "-d", "dist", "bdist_wheel", "-d", "dist"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(no_cython)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout
    return tree / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> list[str]:
    """The names in the wheel."""
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def sdist(dist: Path) -> list[str]:
    """The names of the files in the sdist, without its top folder."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return [member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()]


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_tree(wheel: list[str]) -> None:
    inside = {name for name in wheel if name.startswith("gws_gevent/") and not name.endswith((".so", ".pyd"))}
    assert inside == set(package_files())


@pytest.mark.slow
def test_wheel_puts_one_name_into_site_packages(wheel: list[str]) -> None:
    assert {name.partition("/")[0] for name in wheel} == {"gws_gevent", f"gws_gevent-{VERSION}.dist-info"}


@pytest.mark.slow
def test_wheel_holds_the_compiled_modules(wheel: list[str]) -> None:
    compiled = {name.partition(".")[0].replace("/", ".") for name in wheel if name.endswith((".so", ".pyd"))}
    assert compiled == (set(EXTENSIONS) if BUILT_BY_CI else set())


@pytest.mark.slow
def test_sdist_holds_every_file_once(sdist: list[str]) -> None:
    expected = {path.relative_to(ROOT).as_posix() for path in package_files().values()}
    assert {name for name in sdist if name.startswith(("gws_gevent/", "transports/")) and not name.endswith(".c")} == expected
    assert len(sdist) == len(set(sdist))
    assert {"LICENSE", "README.md", "pyproject.toml"} <= set(sdist)


@pytest.mark.slow
def test_versions_agree(dist: Path) -> None:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        metadata = Parser().parsestr(archive.read(f"gws_gevent-{VERSION}.dist-info/METADATA").decode())
    assert metadata["Version"] == gws_gevent.__version__ == VERSION
    assert metadata["Requires-Python"] == ">=3.11"


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    folders = {str(Path(name).parent).replace("/", ".") for name in package_files() if name.endswith(".py")}
    assert folders == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_requirement_has_a_lower_bound() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    requirements = [*PYPROJECT["project"]["dependencies"], *(one for extra in extras.values() for one in extra)]
    assert [one for one in requirements if ">=" not in one and "==" not in one] == []


def test_transports_is_linked_into_the_package() -> None:
    link = ROOT / "gws_gevent" / "transports"
    assert link.is_symlink()
    assert os.readlink(link) == "../transports"


def test_transports_has_no_second_name() -> None:
    result = subprocess.run([sys.executable, "-c", "import transports"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "ImportError: import gws_gevent.transports, not transports" in result.stderr
