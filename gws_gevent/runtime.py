"""What the connections of one hub share: buffers, the wheel, the poller, calls from other threads.

Belongs here: mutable state that belongs to no single connection. Nothing mutable is global: each thread's hub has its own
Runtime, and a forked child makes a new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from gevent.hub import get_hub
from gevent.monkey import get_original
from greenlet import getcurrent

from gws_gevent._accel import build_of
from gws_gevent.exceptions import WriteQueueFull
from gws_gevent.extensions.deflate import Compression

if TYPE_CHECKING:
    from gws_gevent.frames import Side
    from gws_gevent.options import PermessageDeflate
    from gws_gevent.timers import Wheel
else:
    Wheel = build_of("timers").Wheel


__all__ = ["RECEIVE_SIZE", "YIELD", "Runtime", "current", "may_wait"]

#: Bytes of the receive buffer that all connections of a hub share.
RECEIVE_SIZE = 256 * 1024
#: Bytes of the scratch buffer, for transports that decode what they read.
SCRATCH_SIZE = 64 * 1024
#: Seconds of a sleep, or of a timer, that lets everybody else run. Not 0: gevent runs fifty callbacks before it looks at anything
#: else, and would have this one among them again and again; a timer that is due at once comes after everything that is ready.
YIELD = 0.000001
#: Keepalive pings sent in one tick of the wheel, so that a round of them does not hold the loop up.
PINGS_PER_TICK = 500

#: Connections parked after which the heap is trimmed.
TRIM_AFTER = 1000

get_ident = get_original("threading", "get_ident")
allocate_lock = get_original("_thread", "allocate_lock")


class Runtime:
    """One per hub; get it with `current()`.

    Attributes:
        buffer: the receive buffer. Valid until the next switch: whoever fills it empties it before anything can switch.
        scratch: the same for a transport's raw bytes.
        wheel: all deadlines.
        poller: what descriptors are waited for with, where the compiled build is in use; made by the first stream.
        tls_buffers: the memory BIOs that TLS streams share; made by the first of them.
        clients: the Client of each ClientOptions in use, by the identity of the options.
    """

    __slots__ = (
        "_compressions",
        "_given_back",
        "_lock",
        "_pings",
        "_reserved",
        "_trim_timer",
        "buffer",
        "clients",
        "hub",
        "poller",
        "scratch",
        "thread",
        "tls_buffers",
        "wheel",
    )

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        self.thread = get_ident()
        self.buffer = bytearray(RECEIVE_SIZE)
        self.scratch = bytearray(SCRATCH_SIZE)
        self.wheel = Wheel(hub.loop)
        self.poller: Any = None
        self.tls_buffers: Any = None
        self.clients: dict[int, Any] = {}
        self._compressions: WeakValueDictionary[tuple[PermessageDeflate, Side], Compression] = WeakValueDictionary()
        self._pings = (0.0, 0)
        self._lock = allocate_lock()
        self._reserved: dict[Any, int] = {}
        self._given_back = 0
        self._trim_timer: Any = None

    def call_from_thread(self, function: Callable[..., object], *args: object) -> None:
        """Run `function(*args)` in this runtime's hub, from any thread. It may not block or raise."""
        self.hub.loop.run_callback_threadsafe(function, *args)

    def compression(self, options: PermessageDeflate | None, side: Side) -> Compression | None:
        """Return what all servers, or all clients, with the same options share; else each client would hold a compressor.

        Raises:
            MissingExtra: the codec is not installed.
        """
        if options is None:
            return None
        compression = self._compressions.get((options, side))
        if compression is None:
            compression = self._compressions[options, side] = Compression(options, side)
        return compression

    def greenlet_given_back(self) -> None:
        """A connection was parked. Once many were, the C library, which keeps what they gave back, is asked for it."""
        self._given_back += 1
        if self._given_back == TRIM_AFTER:
            self._trim_timer = self.hub.loop.timer(1.0, ref=False)
            self._trim_timer.start(self._trim_heap)

    def _trim_heap(self) -> None:
        self._trim_timer.close()
        self._trim_timer = None
        self._given_back = 0
        # Looked up when it is needed: _fdio imports this module.
        build_of("_fdio").trim_heap()

    def may_ping(self, now: float) -> bool:
        """Grant at most PINGS_PER_TICK keepalive pings at the same `now`."""
        at, count = self._pings
        if at != now:
            count = 0
        self._pings = (now, count + 1)
        return count < PINGS_PER_TICK

    def reserve(self, owner: object, count: int, limit: int) -> None:
        """Count bytes another thread has on their way to `owner`; a WriteQueueFull above `limit`."""
        with self._lock:
            underway = self._reserved.get(owner, 0)
            if underway and underway + count > limit:
                raise WriteQueueFull(f"{underway} bytes from other threads are on their way")
            self._reserved[owner] = underway + count

    def unreserve(self, owner: object, count: int) -> None:
        """They have arrived."""
        with self._lock:
            underway = self._reserved.pop(owner) - count
            if underway:
                self._reserved[owner] = underway


class _PerThread(get_original("_thread", "_local")):  # type: ignore[misc]
    """A real thread-local even where gevent has patched threading.local into a greenlet-local."""

    runtime: Runtime | None = None


_per_thread = _PerThread()


def _forked() -> None:
    # The only thread of a forked child is the one that forked.
    _per_thread.runtime = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def current() -> Runtime:
    """Return the runtime of this thread's hub; made on first use, and anew for a new hub or after a fork."""
    runtime: Runtime | None = _per_thread.runtime
    hub = get_hub()
    if runtime is None or runtime.hub is not hub:
        runtime = _per_thread.runtime = Runtime(hub)
    return runtime


def may_wait() -> bool:
    """True in a greenlet of a thread that has a runtime; False in its hub, and in a thread that only calls in."""
    runtime: Runtime | None = _per_thread.runtime
    return runtime is not None and getcurrent() is not runtime.hub
