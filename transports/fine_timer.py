"""A timer that is at most about a tenth of a millisecond late, where the system has timerfd.

Belongs here: one absolute deadline at a time. Does not belong here: what is due (schedule.py).

libev rounds the waits of its own timers up to a millisecond, which stalls protocols that pace datagrams. A descriptor that becomes
readable wakes the loop when it does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable
from math import ceil
from typing import Any, Final

__all__ = ["FineTimer"]

_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME


class FineTimer:
    """Calls a function in the hub when `time.monotonic()` has reached a given time.

    Attributes:
        is_fine: it is a timerfd and not a timer of the loop.
    """

    __slots__ = ("_armed", "_callback", "_descriptor", "_loop", "_watcher", "is_fine")

    def __init__(self, loop: Any, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._callback = callback
        self._armed: float | None = None
        self._watcher: Any = None
        self._descriptor = _create()
        self.is_fine = self._descriptor >= 0
        if self.is_fine:
            self._watcher = loop.io(self._descriptor, 1)
            self._watcher.start(self._fired)

    def set(self, when: float | None) -> None:
        """Call at the time `when` instead of any earlier arrangement, at once if it has passed; None: do not call."""
        if when == self._armed:
            return
        self._armed = when
        if self.is_fine:
            # 0 disarms. Rounded up: what is called too early finds nothing due.
            _set(self._descriptor, 0 if when is None else max(1, ceil(when * 1e9)))
            return
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if when is not None:
            self._watcher = self._loop.timer(max(0.0, when - time.monotonic()))
            # Counted from now, not from when the loop last looked at the clock: it would fire too early by the difference.
            self._watcher.start(self._fired, update=True)

    def _fired(self) -> None:
        if self.is_fine:
            try:
                os.read(self._descriptor, 8)
            except BlockingIOError:
                return  # it was set anew after the loop had seen it
        self._armed = None
        self._callback()

    def close(self) -> None:
        """Give the descriptor back."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


if sys.version_info >= (3, 13) and hasattr(os, "timerfd_create"):

    def _create() -> int:
        try:
            return os.timerfd_create(time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC)
        except OSError:
            return -1

    def _set(descriptor: int, nanoseconds: int) -> None:
        os.timerfd_settime_ns(descriptor, flags=_ABSOLUTE, initial=nanoseconds)

else:

    class _Itimerspec(ctypes.Structure):
        _fields_ = (
            ("interval_seconds", ctypes.c_long),
            ("interval_nanoseconds", ctypes.c_long),
            ("seconds", ctypes.c_long),
            ("nanoseconds", ctypes.c_long),
        )

    def _library() -> Any:
        if sys.platform != "linux":
            return None
        try:
            library = ctypes.CDLL(None, use_errno=True)
            library.timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Itimerspec), ctypes.c_void_p)
            return library
        except (OSError, AttributeError):
            return None

    _libc = _library()

    def _create() -> int:
        if _libc is None:
            return -1
        # timerfd_create(2): TFD_NONBLOCK and TFD_CLOEXEC are O_NONBLOCK and O_CLOEXEC.
        return int(_libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))

    def _set(descriptor: int, nanoseconds: int) -> None:
        seconds, rest = divmod(nanoseconds, 1_000_000_000)
        if _libc.timerfd_settime(descriptor, _ABSOLUTE, _Itimerspec(0, 0, seconds, rest), None):
            number = ctypes.get_errno() or errno.EINVAL
            raise OSError(number, os.strerror(number))
