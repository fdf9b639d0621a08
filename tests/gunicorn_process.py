"""gunicorn in a process of its own, with an app written for one test.

Belongs here: starting it, and where it listens. Does not belong here: anything about one feature.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT, require_module, run_server_process, wait_until

__all__ = ["GWS_WORKER", "Gunicorn", "run_gunicorn"]

GWS_WORKER = "gws_gevent.integrations.gunicorn.GwsWorker"


@dataclass(frozen=True)
class Gunicorn:
    """A running gunicorn.

    Attributes:
        process: the arbiter's subprocess.Popen.
        addresses: where it listens, such as "http://127.0.0.1:40123" and "unix:/path".
        output: returns its log so far, and the access log if that has been asked for.
    """

    process: subprocess.Popen[bytes]
    addresses: list[str]
    output: Callable[[], str]

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    def url(self, target: str, which: int = 0) -> str:
        """A WebSocket URL on one of its addresses, such as "http://127.0.0.1:40123" or "unix:/path"."""
        address = self.addresses[which]
        if address.startswith("unix:"):
            return f"ws+{address}:{target}"
        return address.replace("http", "ws", 1) + target

    def workers(self) -> list[int]:
        """Process ids of the workers that have been started so far and run."""
        found = [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", self.output())]
        return [pid for pid in found if _runs(pid)]

    def wait(self, timeout: float = 20.0) -> int:
        """Return its exit status once it has ended; fail after `timeout` seconds."""
        wait_until(lambda: self.process.poll() is not None, timeout, "the end of gunicorn")
        status: int = self.process.returncode
        return status

    def reload(self) -> None:
        """Ask for new workers and wait until they are there."""
        old = set(self.workers())
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(set(self.workers()) - old) >= len(old), 20, "new workers")


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or while it was read
        return False


@contextmanager
def run_gunicorn(
    folder: Path,
    app: str,
    *args: str,
    worker: str = GWS_WORKER,
    conf: str = "",
    bind: str = "127.0.0.1:0",
    env: dict[str, str] | None = None,
    status: int | None = 0,
) -> Iterator[Gunicorn]:
    """Run gunicorn with an app's source in `folder` until the end of the block.

    Args:
        app: source of the module `app`, which has an `app`.
        args: more arguments.
        conf: text of gunicorn.conf.py.
        status: see run_server_process.
    """
    require_module("gunicorn")
    (folder / "app.py").write_text(app)
    (folder / "gunicorn.conf.py").write_text(conf)
    path = os.pathsep.join((str(ROOT), str(folder)))
    command = ["-m", "gunicorn", "-k", worker, "--bind", bind, *args, "app:app"]
    with run_server_process(command, cwd=folder, env={"PYTHONPATH": path, **(env or {})}, status=status) as server:
        gunicorn = Gunicorn(server.process, server.addresses, server.output)
        wait_until(gunicorn.workers, 20, "a worker")
        yield gunicorn
