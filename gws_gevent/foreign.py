"""The connection below a request that a WSGI server which knows nothing of us serves.

Belongs here: where each server keeps its socket, and what it has read ahead. Does not belong here: our own handlers' requests.

Known are gevent's pywsgi, gunicorn's workers `gevent` and `gevent_pywsgi`, Werkzeug's development server, and wsgiref's. The read
loop runs inside the call of the app there, and everything below it stays alive.
"""

from __future__ import annotations

import io
import os
import socket as _socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gevent._hub_local import get_hub_if_exists
from gevent.hub import get_hub
from gevent.monkey import get_original

from gws_gevent.exceptions import GwsError, Refusal, TransportError
from gws_gevent.handshake import Headers, refusal_response
from gws_gevent.http_head import Request
from gws_gevent.integrations.pywsgi import new_connection
from gws_gevent.socket_streams import ObjectStream, stream_of
from gws_gevent.takeover import Accepted, Answer, StartResponse, Takeover, switched

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.opening import ServerService
    from gws_gevent.transports.base import Stream

__all__ = ["ForeignTakeover", "foreign_takeover"]

#: Where the Takeover of a request of theirs stands, once it has one.
KEY = "gws_gevent.foreign"


def foreign_takeover(environ: MutableMapping[str, Any]) -> Takeover:
    """Return the Takeover of a request that none of our handlers serves.

    Raises:
        GwsError: its server keeps its socket where we do not know.
    """
    takeover = environ.get(KEY)
    if takeover is None:
        _see_to_the_hub()
        sock = _find_socket(environ)
        takeover = environ[KEY] = ForeignTakeover(SocketOfOthers(sock, environ), _request_of(environ))
    return takeover


class _Hub:
    """Destroys a thread's hub, with its descriptors, at the end of the thread."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub

    def __del__(self) -> None:
        self._hub.destroy(destroy_loop=True)


#: A real thread-local: what stands in it goes when its thread does.
_at_thread_end = get_original("_thread", "_local")()


def _see_to_the_hub() -> None:
    """A server with a thread for each request, as Werkzeug's, leaves each of them the hub that waiting in it has made."""
    if get_hub_if_exists() is None:
        _at_thread_end.hub = _Hub(get_hub())


def _find_socket(environ: MutableMapping[str, Any]) -> Any:
    for key in ("werkzeug.socket", "gunicorn.socket", "gunicorn.sock"):
        if key in environ:
            return environ[key]
    raw = _raw_input(environ)
    if raw is not None:
        return raw._sock
    software = environ.get("SERVER_SOFTWARE", "")
    raise GwsError(
        f"the connection of this request cannot be found: its WSGI server ({software}) is none of those that are known, "
        "such as python -m gws_gevent serve --wsgi"
    )


def _raw_input(environ: MutableMapping[str, Any]) -> Any:
    """The raw file below wsgi.input, as gevent's pywsgi and Werkzeug have it; None where there is none."""
    file = environ.get("wsgi.input")
    file = getattr(file, "rfile", file)
    raw = getattr(file, "raw", None)
    return raw if hasattr(raw, "_sock") else None


def _request_of(environ: MutableMapping[str, Any]) -> Request | None:
    """The request as the environ tells it: what stood in several lines is one value there, separated by commas."""
    lines = [(key[5:].replace("_", "-"), value) for key, value in environ.items() if key.startswith("HTTP_")]
    if environ.get("CONTENT_LENGTH"):
        lines.append(("content-length", environ["CONTENT_LENGTH"]))
    target = environ.get("RAW_URI") or environ.get("REQUEST_URI") or _target_of(environ)
    version = str(environ.get("SERVER_PROTOCOL", "")).removeprefix("HTTP/")
    return Request(environ["REQUEST_METHOD"], target, Headers(lines), version)


def _target_of(environ: MutableMapping[str, Any]) -> str:
    path = quote(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), encoding="latin-1") or "/"
    query = environ.get("QUERY_STRING", "")
    return f"{path}?{query}" if query else path


class ForeignTakeover(Takeover):
    """Whoever takes the connection has it inside of the app's call, for the server would go on with it after that."""

    __slots__ = ()

    def refuse(self, refusal: Refusal, start_response: StartResponse | None) -> Answer:
        """See Takeover. Without `start_response` the refusal is sent here, and the connection is over."""
        if start_response is None:
            self.by = "a refusal"
            stream = self.carrier.stream  # type: ignore[attr-defined]
            with suppress(TransportError):  # the peer may have left
                stream.send_all(refusal_response(refusal))
            stream.close()
            return Answer()
        return Takeover.refuse(self, refusal, start_response)

    def unwind(self, accepted: Accepted, start_response: StartResponse | None) -> Answer:
        """See Takeover: the read loop runs now."""
        assert accepted.handler is not None
        try:
            conn = self.open(accepted)
        except TransportError:
            pass  # the peer has left
        else:
            self.conn = None
            conn.attach(accepted.handler)
            conn.read_loop()
        # The connection is closed by now, but the server wants an answer before it looks.
        return switched(start_response)


class SocketOfOthers:
    """A server's socket, and its environ."""

    stopping = False

    def __init__(self, sock: Any, environ: MutableMapping[str, Any]) -> None:
        self._socket = sock
        self._environ = environ
        self._stream: Stream | None = None

    @property
    def stream(self) -> Stream:
        """The stream, made when it is first needed. The server keeps its socket, and finds it shut down."""
        if self._stream is None:
            tls = hasattr(self._socket, "do_handshake")
            self._stream = ObjectStream(self._socket) if tls else stream_of(_duplicate(self._socket))
        return self._stream

    def service_of(self, own: Callable[[], ServerService], upgrader: object) -> ServerService:
        """See Carrier."""
        return own()

    def connection(self, service: ServerService, session: MutableMapping[Any, Any] | None) -> Connection:
        """See Carrier."""
        return new_connection(self.stream, service, session)

    def remote(self, service: ServerService, request: Request) -> Any:
        """See Carrier."""
        return service.remote(request, self.stream.info("peername"))

    def socket(self, takeover: Takeover) -> Any:
        """See Carrier."""
        return self._socket

    def rest(self) -> bytes:
        """See Carrier. What the server has read ahead is in its buffer, if it is one that lets itself be looked into."""
        unreader = getattr(getattr(getattr(self._environ.get("wsgi.input"), "reader", None), "unreader", None), "buf", None)
        if isinstance(unreader, io.BytesIO):
            return unreader.getvalue()
        file = self._environ.get("wsgi.input")
        file = getattr(file, "rfile", file)
        if isinstance(file, io.BufferedReader) and not file.closed and self._stream is not None:
            return _buffered(file)
        return b""


def _buffered(file: io.BufferedReader) -> bytes:
    """What a reader holds, without reading below it: that does not block, for its descriptor does not by now."""
    raw: Any = file.raw
    sock = getattr(raw, "_sock", None)
    timeout = sock.gettimeout() if sock is not None else None
    if sock is None:
        return b""
    blocking = os.get_blocking(sock.fileno())
    sock.settimeout(0.0)
    try:
        return file.peek()
    except (OSError, ValueError):
        return b""
    finally:
        sock.settimeout(timeout)
        # The line above may have made the descriptor block, and our stream shares that: to receive would stop every thread.
        os.set_blocking(sock.fileno(), blocking)


def _duplicate(sock: Any) -> Any:
    return _socket.socket(fileno=os.dup(sock.fileno()))
