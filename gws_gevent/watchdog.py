"""A watchdog for the hub: who blocks it is logged with the stack, while it does.

Belongs here: gevent's monitor thread, put to work and its findings into the log. Does not belong here: doing anything about it.

Everything in a gevent process stands still while one greenlet computes, or sits in a C extension that waits without gevent's
knowledge (a database driver, an unpatched `time.sleep`). Only a real thread can see that, and gevent has one.
"""

from __future__ import annotations

import logging
import sys
import traceback
from time import monotonic
from typing import Any

import gevent
from gevent import events

__all__ = ["Watchdog"]


class Watchdog:
    """Logs, at warning level and with the stack, a greenlet that has kept this thread's hub from running for `seconds`.

    It runs until `stop`, or the end of a `with`. One block is reported when it is found, which is after one to two times
    `seconds`, and again each time it has lasted twice as long. An extension that keeps the interpreter's lock all the while is
    reported when it lets go. Each switch between greenlets costs a little while this runs, so it is for finding a fault rather
    than for always.

    gevent has one such thread in a hub and one setting in a process: a second watchdog, or gevent's own `monitor_thread`, shares
    the time that was set last.

    Args:
        seconds: how long is too long.
        logger: None is logging.getLogger("gws_gevent").

    Raises:
        ValueError: `seconds` is not a positive number.
    """

    def __init__(self, seconds: float, logger: logging.Logger | logging.LoggerAdapter[Any] | None = None) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            raise ValueError(f"seconds: must be a positive number of seconds, not {seconds!r}")
        self.seconds = float(seconds)
        self._logger = logger or logging.getLogger("gws_gevent")
        self._hub = gevent.get_hub()
        if not self._hub:
            gevent.sleep(0)  # gevent's monitor ends for good when it finds a hub that has not run yet
        # Of the block that goes on: periods it has lasted, at how many to report next, and whether this period is one of them.
        self._periods, self._report_at, self._blocked = 0, 1, False
        self._looked_at: float | None = None
        config = gevent.config
        self._before = (config.monitor_thread, config.max_blocking_time, config.print_blocking_reports)
        config.monitor_thread, config.max_blocking_time, config.print_blocking_reports = True, self.seconds, False
        events.subscribers.append(self._on_event)
        self._hub.start_periodic_monitoring_thread().add_monitoring_function(self._look, self.seconds)

    def stop(self) -> None:
        """End it, and with it the monitor thread of the hub. Idempotent. In the thread that began it."""
        if self._on_event not in events.subscribers:
            return
        events.subscribers.remove(self._on_event)
        config = gevent.config
        config.monitor_thread, config.max_blocking_time, config.print_blocking_reports = self._before
        monitor, self._hub.periodic_monitoring_thread = self._hub.periodic_monitoring_thread, None
        if monitor is not None:
            monitor.kill()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _on_event(self, event: Any) -> None:
        """In the monitor thread: no greenlet has been switched to for a while."""
        if not isinstance(event, events.EventLoopBlocked) or event.hub is not self._hub:
            return
        self._blocked = True
        self._periods += 1
        if self._periods >= self._report_at:
            self._report(f"the hub has been blocked for about {self._periods * self.seconds:g} s by {event.greenlet!r}")
            self._report_at *= 2

    def _look(self, _hub: Any) -> None:
        """In the monitor thread, every `seconds` if it comes to run: if it does not, whoever held it up stands where it let go."""
        now = monotonic()
        late = now - self._looked_at - self.seconds if self._looked_at is not None else 0.0
        self._looked_at = now
        if not self._blocked:
            self._periods, self._report_at = 0, 1
            if late > self.seconds:
                why = "an extension kept its lock, or the process had no processor"
                self._report(f"the interpreter stood still for about {late:.3g} s: {why}")
        self._blocked = False

    def _report(self, text: str) -> None:
        frame = sys._current_frames().get(self._hub.thread_ident)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "  a thread that has ended"
        self._logger.warning("%s; it is in\n%s", text, stack.rstrip())
