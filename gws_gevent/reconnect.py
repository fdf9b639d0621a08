"""A connection that comes back: opened again whenever it is lost, with pauses at random.

Belongs here: when to try again, and when to give up. Does not belong here: opening a connection (client.py).

Nothing is sent again: a message that was not answered when the connection was lost may have arrived or not, and only the program
knows whether it may be said twice.
"""

from __future__ import annotations

import logging
import random
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent.event import Event
from gevent.hub import get_hub
from greenlet import getcurrent

from gws_gevent._accel import build_of
from gws_gevent.client import shared_client
from gws_gevent.dialing import Route
from gws_gevent.exceptions import EndpointError, GwsError, HandshakeRefused, MissingExtra, ProxyError, ReconnectFailed
from gws_gevent.handler import EventHandler, as_handler, refuse_parking
from gws_gevent.option_names import names_options
from gws_gevent.options import ClientOptions, options_or_default
from gws_gevent.urls import parse_url

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
else:
    Connection = build_of("connection").Connection

__all__ = ["Reconnect"]

#: Refusals below 500 that another attempt may change: too slow, too early, too many.
_TEMPORARY: Final = frozenset({408, 425, 429})
#: Answers of a proxy that will be the same the next time: it wants a password, or has another rule against us.
_FORBIDDEN_BY_PROXY: Final = frozenset({401, 403, 407})
#: Seconds that a Retry-After header may make us wait at most.
MAX_RETRY_AFTER: Final = 300.0
#: Doublings of the first pause; with more of them floats would overflow at last.
_MAX_DOUBLINGS: Final = 32


class Reconnect:
    """Keeps a connection to a URL: opens it, and opens it again when it is lost.

    Two faces. With a handler, `start()` opens the connection in the background, and each new one begins with `on_open`. Without one
    it is an iterator: `for conn in Reconnect(url)` gives one connection after the other, the one before closed.

    Between attempts it waits for a random time from 0 up to a bound ("full jitter", so that a thousand clients do not come back in
    the same second). The bound begins with `first_delay`, doubles with each attempt up to `max_delay`, and is back at `first_delay`
    once a connection has lasted `healthy_after`. A Retry-After header of a refusal (RFC 9110 section 10.2.3) is waited for besides.

    It gives up, with a ReconnectFailed that says why, after `max_attempts` attempts in a row that failed, and at once when another
    attempt would end in the same way: a refusal such as 401 or 404, a redirect that may not be followed, a proxy that wants a
    password.

    Attributes:
        connection: the connection that is open, or None.
        failure: the ReconnectFailed it has given up with, or None.
    """

    __slots__ = (
        "_attempting",
        "_attempts",
        "_began",
        "_doublings",
        "_first_delay",
        "_handler",
        "_healthy_after",
        "_max_attempts",
        "_max_delay",
        "_on_give_up",
        "_options",
        "_over",
        "_pause",
        "_route",
        "_shown",
        "_started",
        "_url",
        "connection",
        "failure",
    )

    @names_options(ClientOptions)
    def __init__(
        self,
        url: str,
        handler: EventHandler | Callable[[Connection], object] | None = None,
        options: ClientOptions | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_name: str | None = None,
        proxy: str | bool | None = True,
        first_delay: float = 1.0,
        max_delay: float = 60.0,
        healthy_after: float = 60.0,
        max_attempts: int | None = None,
        on_give_up: Callable[[ReconnectFailed], object] | None = None,
    ) -> None:
        """Check the arguments; nothing is opened yet. Those up to `proxy` are those of `connect`.

        Args:
            first_delay: seconds below which the first pause is.
            max_delay: seconds below which every pause is.
            healthy_after: seconds after which a connection was a good one, and pauses are short again.
            max_attempts: failed attempts in a row after which to give up. None: never for that.
            on_give_up: called with the ReconnectFailed, where there is a handler. None: it is logged.

        Raises:
            EndpointError, TypeError, ValueError: an argument is wrong.
        """
        if not isinstance(url, str):
            raise TypeError(f"a URL is a text such as 'ws://127.0.0.1:3001/', not {url!r}")
        for name, seconds in (("first_delay", first_delay), ("max_delay", max_delay), ("healthy_after", healthy_after)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
                raise ValueError(f"{name}: must be a positive number of seconds, not {seconds!r}")
        if max_attempts is not None and (isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1):
            raise ValueError(f"max_attempts: must be a whole number of at least 1 or None, not {max_attempts!r}")
        self._url = parse_url(url)
        self._shown = f"{self._url.scheme}://{self._url.host_header}{self._url.path}"
        self._handler = as_handler(handler) if handler is not None else None
        # As it was given: options of its own would have no Client in common with anybody.
        self._options = options
        checked = options_or_default(options, ClientOptions)
        refuse_parking(self._handler, checked)
        self._route = Route(ssl_context, server_name, proxy)
        self._route.dialer_to(self._url, checked)
        self._first_delay = first_delay
        self._max_delay = max_delay
        self._healthy_after = healthy_after
        self._max_attempts = max_attempts
        self._on_give_up = on_give_up
        self._over = Event()
        self._started = False
        self._attempting: Any = None
        self._attempts = 0  # that failed since a connection was open
        self._doublings = 0
        self._pause = 0.0
        self._began = 0.0
        self.connection: Connection | None = None
        self.failure: ReconnectFailed | None = None

    # The face with a handler

    def start(self) -> None:
        """Begin; the first attempt is made at once, in a greenlet of its own. Its failure is one like any other.

        Raises:
            TypeError: there is no handler.
            GwsError: it was started before.
        """
        if self._handler is None:
            raise TypeError("without a handler a Reconnect is iterated over")
        if self._started:
            raise GwsError("it was started before")
        self._started = True
        gevent.spawn(self._come_back)

    def stop(self) -> None:
        """Close the connection, with a closing handshake, and open no other. Idempotent; also ends an iteration, from elsewhere."""
        self._over.set()
        if self._attempting is not None:
            get_hub().loop.run_callback(self._interrupt, self._attempting)
        conn = self.connection
        if conn is not None:
            conn.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; False if it is not after so many seconds.

        Raises:
            ReconnectFailed: it has given up.
        """
        ended = self._over.wait(timeout)
        if self.failure is not None:
            raise self.failure
        return bool(ended)

    def __enter__(self) -> Reconnect:
        if self._handler is not None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _come_back(self) -> None:
        try:
            self._open()
        except _Stopped:
            pass
        except ReconnectFailed as failure:
            if self._on_give_up is not None:
                self._on_give_up(failure)
            else:
                self._log(logging.ERROR, "%s", failure)

    def _ended(self) -> None:
        """In the greenlet of the connection, which has ended."""
        self._lost()
        if not self._over.is_set():
            gevent.spawn(self._come_back)

    # The other face

    def __iter__(self) -> Reconnect:
        if self._handler is not None:
            raise TypeError("a Reconnect with a handler is started, not iterated over")
        return self

    def __next__(self) -> Connection:
        """Close the last connection, if it is still open, and return the next one; waits until there is one. Ends with `stop()`.

        Raises:
            ReconnectFailed: it has given up.
        """
        conn = self.connection
        if conn is not None:
            conn.close()
            self._lost()
        try:
            return self._open()
        except _Stopped:
            raise StopIteration from None

    # Both

    def _open(self) -> Connection:
        """Return the next connection; tries until there is one."""
        while True:
            if self.failure is not None:
                raise self.failure
            if self._over.wait(self._pause):
                raise _Stopped
            try:
                conn = self._attempt()
            except (GwsError, OSError) as error:
                self._failed(error)
                continue
            if self._over.is_set():  # where it could not be interrupted any more
                conn.close()
                raise _Stopped
            return conn

    def _attempt(self) -> Connection:
        client = shared_client(self._options)
        self._attempting = getcurrent()
        try:
            conn = client.reach(self._url, self._route, self._handler, self._ended)
        finally:
            self._attempting = None
        self._attempts = 0
        self._began = monotonic()
        self.connection = conn
        return conn

    def _interrupt(self, attempting: Any) -> None:
        """In the hub: end an attempt, if it is still that greenlet's."""
        if self._attempting is attempting:
            attempting.throw(_Stopped)

    def _lost(self) -> None:
        conn, self.connection = self.connection, None
        if monotonic() - self._began >= self._healthy_after:
            self._doublings = 0
        self._wait_longer()
        if not self._over.is_set():
            said = conn.close_info if conn is not None else None
            self._log(logging.INFO, "%s: connection lost (%s), next attempt in %.1f s", self._shown, said, self._pause)

    def _failed(self, error: Exception) -> None:
        self._attempts += 1
        if self._attempts == self._max_attempts or _is_final(error):
            self.failure = ReconnectFailed(self._shown, self._attempts, error)
            self._over.set()
            raise self.failure
        self._wait_longer()
        self._pause += _retry_after(error)
        words = error.strerror if isinstance(error, OSError) and error.strerror else error  # without the errno in front
        self._log(logging.INFO, "%s: %s; next attempt in %.1f s", self._shown, words, self._pause)

    def _wait_longer(self) -> None:
        bound = min(self._max_delay, self._first_delay * 2**self._doublings)
        self._doublings = min(self._doublings + 1, _MAX_DOUBLINGS)
        self._pause = random.uniform(0, bound)

    def _log(self, level: int, text: str, *args: object) -> None:
        logger = self._options.logger if self._options is not None else None
        (logger if logger is not None else logging.getLogger("gws_gevent")).log(level, text, *args)


class _Stopped(BaseException):
    """Ends an attempt that is under way."""


def _is_final(error: Exception) -> bool:
    """Tell whether another attempt would end in the same way."""
    if isinstance(error, HandshakeRefused):
        return error.status < 500 and error.status not in _TEMPORARY
    if isinstance(error, ProxyError):
        return error.status in _FORBIDDEN_BY_PROXY
    return isinstance(error, EndpointError | MissingExtra)


def _retry_after(error: Exception) -> float:
    """Seconds that a refusal asks us to wait, at most MAX_RETRY_AFTER."""
    text = (error.headers.get("retry-after") or "").strip() if isinstance(error, HandshakeRefused) else ""
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER)
    try:
        return min(max(parsedate_to_datetime(text).timestamp() - time(), 0.0), MAX_RETRY_AFTER)
    except (ValueError, OverflowError):
        return 0.0
