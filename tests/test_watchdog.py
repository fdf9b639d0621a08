"""The watchdog: in a process that really blocks, the log has who does it and where."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import gevent
import pytest
from gevent import events

from gws_gevent.watchdog import Watchdog
from tests.support import run_program, run_server_process, wait_until

PATCHING = "from gevent import monkey\nmonkey.patch_all()\n"
#: Blocks once as a database driver does, and once with the interpreter's lock kept, as some other extensions do.
BLOCKING = """
import ctypes
import logging
import sys

import gevent
from gevent.monkey import get_original
from gws_gevent.watchdog import Watchdog

sleep = get_original("time", "sleep")
sleep_with_the_lock = ctypes.PyDLL(None).usleep
said = []


class Sink(logging.StreamHandler):
    def emit(self, record):
        super().emit(record)
        said.append(record.getMessage())


sink = Sink(sys.stdout)
sink.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
logging.getLogger().addHandler(sink)


def waits():
    # However little of the processors the watching thread gets.
    for _ in range(200):
        if sum("waits" in text for text in said) >= 2:
            return
        sleep(0.05)


def waits_unseen():
    sleep(0.3)


def keeps_the_lock():
    sleep_with_the_lock(800_000)


with Watchdog(0.1):
    sleep(0.3)  # as an import may take
    gevent.sleep(0.35)
    print("quiet", flush=True)
    gevent.spawn(waits).join()
    gevent.sleep(0.25)
    print("second", flush=True)
    gevent.spawn(keeps_the_lock).join()
    with gevent.Timeout(10):
        while not any("stood still" in text and "keeps_the_lock" in text for text in said):
            gevent.sleep(0.02)
print("stopped", flush=True)
gevent.spawn(waits_unseen).join()
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["", PATCHING], ids=["unpatched", "patched"])
def test_who_blocks_is_logged_with_the_stack(first: str) -> None:
    finished = run_program([sys.executable, "-c", first + BLOCKING])
    assert finished.status == 0, finished
    assert finished.errors == ""
    quiet, _, rest = finished.output.partition("quiet\n")
    waited, _, rest = rest.partition("second\n")
    kept, _, after = rest.partition("stopped\n")
    assert "waits" not in quiet
    assert after == ""
    # While it lasts, and each time it has lasted twice as long; the last may not come to be.
    lasted = re.findall(r"WARNING gws_gevent: the hub has been blocked for about ([\d.]+) s by <Greenlet .*: waits>;", waited)
    assert lasted[:2] == ["0.1", "0.2"], waited
    assert len(lasted) <= 3, waited
    assert "in waits" in waited
    assert re.search(r"the interpreter stood still for about [\d.]+ s: an extension kept its lock", kept)
    assert "in keeps_the_lock" in kept


@pytest.mark.slow
def test_serve_has_one(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import time\nfrom gws_gevent import EventHandler\n\n\nclass Slow(EventHandler):\n"
        "    def on_message(self, conn, message):\n        time.sleep(1.5)\n        conn.send('done')\n"
    )
    command = ["-m", "gws_gevent", "serve", "--bind", "127.0.0.1:0", "--handler", "app:Slow", "--watchdog"]
    with run_server_process([*command, "0.1"], cwd=tmp_path, env={"PYTHONPATH": str(Path.cwd())}) as server:
        from gws_gevent import connect

        with connect(server.address.replace("tcp:", "ws:")) as conn:
            conn.send("go")
            assert conn.receive(timeout=5) == "done"
        wait_until(lambda: "has been blocked" in server.output(), what="a report")
        assert 'app.py", line 7, in on_message' in server.output()
    finished = run_program([sys.executable, *command, "0"])
    assert finished.status == 2
    assert "'0' is not a positive number of seconds" in finished.errors


@pytest.mark.parametrize("seconds", [0, -1, True, "1", float("inf")])
def test_a_wrong_time_is_named(seconds: object) -> None:
    with pytest.raises(ValueError, match="seconds: must be a positive number"):
        Watchdog(seconds)  # type: ignore[arg-type]


def test_it_leaves_gevent_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    config = gevent.config
    before = (config.monitor_thread, config.max_blocking_time, config.print_blocking_reports, len(events.subscribers))
    watchdog = Watchdog(5, logging.getLogger("mine"))
    assert gevent.get_hub().periodic_monitoring_thread is not None
    watchdog.stop()
    watchdog.stop()
    assert gevent.get_hub().periodic_monitoring_thread is None
    assert before == (config.monitor_thread, config.max_blocking_time, config.print_blocking_reports, len(events.subscribers))
