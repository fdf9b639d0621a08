"""Lines in gunicorn's access log, also for WebSocket: one at the handshake and one at the close.

Belongs here: what gunicorn's logger is told, in the forms it asks for. Does not belong here: when (gunicorn.py).

The logger is the one of gunicorn's setting `logger_class`, and the format its `access_log_format`.
"""

from __future__ import annotations

import re
import time
from datetime import timedelta
from functools import partial
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.hub import get_hub
from greenlet import getcurrent

from gws_gevent.frames import CloseCode

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.http_head import Request

__all__ = ["AccessLog", "as_text"]

#: What a line of the log is made of besides headers: keys of an environ.
_KEYS = ("REMOTE_ADDR", "REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL", "HTTP_REFERER", "HTTP_USER_AGENT", "HTTP_AUTHORIZATION")
#: A request's header in a format.
_HEADER = re.compile(r"%\(\{([^}]+)\}i\)")
SWITCHING = "101 Switching Protocols"


class LoggedResponse(NamedTuple):
    """What gunicorn's logger asks a response for."""

    status: str
    headers: list[tuple[str, str]]
    sent: int | None


class Followed(NamedTuple):
    """What the last line of a connection needs of its request: nothing else of that is kept.

    Attributes:
        values: of _KEYS.
        headers: those of the request that the format names.
        began: monotonic time.
    """

    values: tuple[str | None, ...]
    headers: tuple[tuple[str, str], ...]
    began: float


class AccessLog:
    """gunicorn's access log.

    Attributes:
        enabled: anybody reads it.
    """

    def __init__(self, log: Any, cfg: Any) -> None:
        self._log = log
        self._named = {name.lower() for name in _HEADER.findall(cfg.access_log_format)}
        to_syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
        self.enabled = bool(cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json or to_syslog)

    def request(self, handler: Any) -> None:
        """A request has been answered by the app, or refused; `handler` is a WSGIHandler."""
        seconds = max((handler.time_finish or time.time()) - handler.time_start, 0.0)
        headers = [(as_text(name), as_text(value)) for name, value in handler.response_headers or ()]
        status = as_text(handler._orig_status or handler.status or "000")
        self._write(handler, LoggedResponse(status, headers, handler.response_length), seconds)

    def library_began(self, handler: Any) -> None:
        """A library of the app's has taken the connection of a request, which it will answer with 101."""
        _count_bytes(handler.carrier.conn.stream)
        self._write(handler, LoggedResponse(SWITCHING, [], None), max(time.time() - handler.time_start, 0.0))

    def library_ended(self, handler: Any) -> None:
        """It has come to its end. How, it knows and we do not."""
        received, sent = handler.carrier.conn.stream.info("bytes") or (None, None)
        seconds = max((handler.time_finish or time.time()) - handler.time_start, 0.0)
        self._write(handler, LoggedResponse("101 closed", [], sent), seconds, {"gws_gevent.received": received})

    def _write(self, handler: Any, response: LoggedResponse, seconds: float, more: dict[str, Any] | None = None) -> None:
        environ = {**(handler.environ or _least_environ(handler)), **(more or {})}
        headers = handler.headers.items() if getattr(handler, "headers", None) is not None else []
        self._log.access(response, headers, environ, timedelta(seconds=seconds))

    def answered(self, conn: Connection, request: Request | None, answer: bytes) -> None:
        """A request, which may have been unreadable, has been answered without the app: refused, or by `on_request`."""
        head = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:])]
        status = head[0].partition(" ")[2]
        self._log_followed(self._facts(conn, request), LoggedResponse(status, headers, len(answer)), 0.0, {})

    def follow(self, conn: Connection, request: Request) -> None:
        """A connection has been upgraded: log that, and its end once it comes."""
        followed = self._facts(conn, request)
        _count_bytes(conn.stream)
        conn.add_close_callback(partial(self._closed, followed))
        self._log_followed(followed, LoggedResponse(SWITCHING, [], None), 0.0, {})

    def _facts(self, conn: Connection, request: Request | None) -> Followed:
        peer = conn.stream.info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else "-"
        if request is None:
            return Followed((address, "", "", "", None, None, None), (), time.monotonic())
        get = request.headers.get
        # Many connections have the same of these: one copy does for all.
        method, version, agent = intern(request.method), intern(f"HTTP/{request.version}"), intern(get("user-agent") or "-")
        values = (address, method, request.target, version, get("referer"), agent, get("authorization"))
        headers = tuple((name, value) for name in self._named if (value := get(name)) is not None)
        return Followed(values, headers, time.monotonic())

    def _closed(self, followed: Followed, conn: Connection) -> None:
        if getcurrent() is get_hub():
            # A handler of the log may wait, and the hub may not.
            gevent.spawn(self._log_closed, followed, conn)
        else:
            self._log_closed(followed, conn)

    def _log_closed(self, followed: Followed, conn: Connection) -> None:
        code = conn.close_info.code if conn.close_info is not None else CloseCode.ABNORMAL
        received, sent = conn.stream.info("bytes") or (None, None)
        seconds = time.monotonic() - followed.began
        more = {"gws_gevent.received": received, "gws_gevent.sent": sent}
        self._log_followed(followed, LoggedResponse(f"{int(code)} closed", [], sent), seconds, more)

    def _log_followed(self, followed: Followed, response: LoggedResponse, seconds: float, more: dict[str, Any]) -> None:
        environ = {key: value for key, value in zip(_KEYS, followed.values, strict=True) if value is not None}
        environ["PATH_INFO"], _, environ["QUERY_STRING"] = environ["RAW_URI"].partition("?")
        self._log.access(response, followed.headers, {**environ, **more}, timedelta(seconds=seconds))


def _least_environ(handler: Any) -> dict[str, str]:
    """For a request that could not be read: gunicorn's logger does not do without."""
    words: list[str] = (handler.requestline or "").split(" ")
    method, target, version, *_ = [*words, "", "", ""]
    address = handler.client_address
    found = {"REQUEST_METHOD": method, "RAW_URI": target, "SERVER_PROTOCOL": version}
    return found | ({"REMOTE_ADDR": address[0]} if isinstance(address, tuple) else {})


def _count_bytes(stream: Any) -> None:
    carrier = stream.info("carrier") or stream
    if hasattr(carrier, "count_bytes"):
        carrier.count_bytes()


def as_text(value: Any) -> str:
    """What gevent's handler has as bytes at times, and gunicorn as text."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
