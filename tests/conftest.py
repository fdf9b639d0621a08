"""Rules for every test: a bound on its time, and nothing left behind.

Belongs here: what holds for all tests. Fixtures for one subject stand in its test module, shared functions in tests/support.py.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Generator, Iterator

import gevent
import greenlet
import pytest

from gws_gevent import runtime
from gws_gevent.transports.tcp import SocketStream

#: Seconds a test may take, by its marks.
TIME_LIMITS = {"soak": 1800.0, "slow": 240.0, "peer": 240.0}
TIME_LIMIT = 30.0
#: Seconds in which what a test started has to come to its end after the test.
SETTLE_LIMIT = 2.0

DESCRIPTORS = "/proc/self/fd"

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes is slow as well: an `-m` on the command line takes the place of `-m "not soak"` in pyproject.toml."""
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    _make_what_lasts()


@pytest.fixture(autouse=True, scope="module")
def what_exists_stays() -> None:
    """Freeze what came before this module: frozen objects are not walked by each collection, nor by _greenlets().

    Reports, rewritten modules and the like pile up, and would make each test slower than the one before.
    """
    gc.collect()
    gc.freeze()


def _make_what_lasts() -> None:
    """Make what lasts as long as the hub, so that it is not the first test to use it that seems to leak."""
    runtime.current()
    for sock in socket.socketpair():
        SocketStream.adopt(sock).close()  # the first one makes the hub's poller
    hub = gevent.get_hub()
    hub.threadpool.apply(int)
    with hub.loop.async_() as watcher:
        watcher.start(int)
        watcher.send()
        gevent.sleep(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    seconds = next((limit for mark, limit in TIME_LIMITS.items() if item.get_closest_marker(mark)), TIME_LIMIT)
    with gevent.Timeout(seconds, AssertionError(f"the test took longer than its {seconds:g} s")):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a greenlet or a descriptor behind. The traceback of a failed test keeps some: not looked at."""
    greenlets, descriptors = _greenlets(), _descriptors()
    yield
    if FAILED in request.node.stash:
        return
    deadline = time.monotonic() + SETTLE_LIMIT
    while left := _left(greenlets, descriptors):
        if time.monotonic() > deadline:
            pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)
        gc.collect()
        gevent.sleep(0.01)


def _left(greenlets: list[greenlet.greenlet], descriptors: dict[int, str]) -> list[str]:
    known = {id(one) for one in greenlets}
    left = [f"  greenlet {_describe(one)}" for one in _greenlets() if id(one) not in known]
    now = _descriptors()
    if len(now) > len(descriptors):
        left += [f"  descriptor {number}: {target}" for number, target in now.items() if descriptors.get(number) != target]
    return left


def _greenlets() -> list[greenlet.greenlet]:
    """All greenlets that have not ended, without hubs, the mains of threads, this one, and gevent's own worker threads."""
    this = greenlet.getcurrent()
    return [
        one
        for one in gc.get_objects()
        if issubclass(type(one), greenlet.greenlet)
        and not one.dead
        and one is not this
        and one.parent is not None
        and not isinstance(one, gevent.hub.Hub)
        and type(one).__module__ != "gevent.threadpool"
    ]


def _describe(one: greenlet.greenlet) -> str:
    frame = one.gr_frame
    if frame is None:
        return f"{one!r}, without a Python frame"
    return f"{one!r}, in {frame.f_code.co_qualname} at {frame.f_code.co_filename}:{frame.f_lineno}"


def _descriptors() -> dict[int, str]:
    """What /proc says of each open descriptor; empty where there is no such folder."""
    found: dict[int, str] = {}
    if not os.path.isdir(DESCRIPTORS):
        return found
    for name in os.listdir(DESCRIPTORS):
        try:
            found[int(name)] = os.readlink(f"{DESCRIPTORS}/{name}")
        except FileNotFoundError:
            continue  # the listing's own
    return found
