"""The connection below one WSGI request, for whoever is to have it instead of an HTTP answer.

Belongs here: who may take it, and that exactly one party does; what a request refused or accepted leaves behind for the server.
Does not belong here: serving HTTP (integrations/pywsgi.py), the rules of the handshake, the API for apps (upgrader.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from gws_gevent.exceptions import GwsError, Refusal
from gws_gevent.frames import CloseCode
from gws_gevent.handshake import Acceptance, accept_response, refusal_response

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
    from gws_gevent.handler import EventHandler
    from gws_gevent.http_head import Request
    from gws_gevent.opening import ServerService

__all__ = ["KEY", "Accepted", "Answer", "Carrier", "Takeover"]

#: Where a request's Takeover stands in its environ.
KEY = "gws_gevent.takeover"

StartResponse = Callable[..., Any]


class Carrier(Protocol):
    """What is below a request, as its server knows it."""

    @property
    def stopping(self) -> bool:
        """The server is stopping: new connections are closed with 1001."""

    def service_of(self, own: Callable[[], ServerService], upgrader: object) -> ServerService:
        """Return the service whose options hold for connections that `upgrader` opens here.

        Args:
            own: returns the upgrader's own service, for where no Server of ours is.
        """

    def connection(self, service: ServerService, session: MutableMapping[Any, Any] | None) -> Connection:
        """Return the connection, not yet open, as one of that service."""

    def remote(self, service: ServerService, request: Request) -> Any:
        """Return what a trusted proxy says of the client's address; None if nothing does."""

    def rest(self) -> bytes:
        """Return, once, what has been read behind the request's head; the app reads no more from here on."""

    def socket(self, takeover: Takeover) -> Any:
        """Return a socket for libraries that speak WebSocket themselves; its first use takes the connection."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that is to be upgraded.

    Attributes:
        service: whose connection it will be.
        session: of the connection; None: made on first use.
        variables: context variables that the connection's greenlet is to have, with their values.
        rest: what had been read behind the request's head when it was accepted.
    """

    service: ServerService
    acceptance: Acceptance
    request: Request
    session: MutableMapping[Any, Any] | None
    handler: EventHandler | None
    variables: Sequence[tuple[ContextVar[Any], Any]] = ()
    rest: bytes = b""


class Answer:
    """What an app returns once its request needs no answer, or has one: a WSGI iterable, and a WSGI app for frameworks."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self, status: str = "200 OK", headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> None:
        self._status = status
        self._headers = list(headers)
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter([self._body] if self._body else [])

    def __call__(self, environ: Any, start_response: StartResponse) -> Answer:
        start_response(self._status, self._headers)
        return self

    @classmethod
    def of(cls, refusal: Refusal, head_only: bool = False) -> Answer:
        """The answer that refuses a request, as this package always writes it."""
        head, _, body = refusal_response(refusal, head_only).partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        # Hop by hop, which is a server's affair and not an app's (PEP 3333).
        headers = [header for header in headers if header[0].lower() not in ("connection", "upgrade")]
        return cls(lines[0].partition(" ")[2], headers, body)


class Takeover:
    """Stands in the environ of each request that one of our handlers serves, under KEY.

    Attributes:
        request: its head, strictly parsed; None if it is not fit for that, and so for no upgrade either.
        answered: the app has begun to answer over HTTP.
        by: who has taken the connection, in words; None while nobody has.
        accepted: what is to be done once the app has returned.
        conn: the connection that the app reads itself.
        refusal: sent once the app has returned, whatever it answers.
        refused: an upgrade was refused: the connection is closed, for what stands between may believe that it has become another.
        on_take: told when somebody takes the connection, before anything else happens.
    """

    __slots__ = ("accepted", "answered", "by", "carrier", "conn", "on_take", "over", "refusal", "refused", "request", "socket")

    def __init__(self, carrier: Carrier, request: Request | None) -> None:
        self.carrier = carrier
        self.request = request
        self.answered = False
        self.over = False
        self.refused = False
        self.by: str | None = None
        self.accepted: Accepted | None = None
        self.conn: Connection | None = None
        self.refusal: Refusal | None = None
        self.socket: Any = None
        self.on_take: Callable[[Takeover], object] | None = None

    def check_free(self, by: str) -> None:
        """Raise GwsError unless `by` may take the connection."""
        if self.over:
            raise GwsError(f"{by}: the request is over")
        if self.by is not None:
            raise GwsError(f"{by}: the connection of this request has been taken by {self.by}")
        if self.answered:
            raise GwsError(f"{by}: start_response has been called, so this request is being answered over HTTP")

    def take(self, by: str) -> None:
        """Take the connection; a GwsError if somebody has, or if the request is being answered."""
        self.check_free(by)
        self.by = by
        if self.on_take is not None:
            self.on_take(self)

    def refuse(self, refusal: Refusal, start_response: StartResponse | None) -> Answer:
        """Refuse the request: through `start_response`, or, where a view has none, in place of whatever it answers."""
        self.refused = True
        if start_response is not None:
            return Answer.of(refusal, self.request is not None and self.request.method == "HEAD")({}, start_response)
        self.by = "a refusal"
        self.refusal = refusal
        return Answer()

    def unwind(self, accepted: Accepted, start_response: StartResponse | None) -> Answer:
        """Upgrade once the app has returned. What else it reads, or middleware does, is not taken from the connection."""
        self.accepted = replace(accepted, rest=self.carrier.rest())
        return switched(start_response)

    def open(self, accepted: Accepted) -> Connection:
        """Upgrade now."""
        carrier = self.carrier
        conn = carrier.connection(accepted.service, accepted.session)
        try:
            switch(conn, accepted, carrier)
        except BaseException:
            conn.abort()
            raise
        self.conn = conn
        return conn

    def drop(self) -> None:
        """The connection is to end at once, whatever it was to become."""
        self.accepted = None
        if self.conn is not None:
            self.conn.abort()

    def end(self) -> None:
        """The request is over: whoever still holds this has nothing any more."""
        self.over = True
        self.accepted = self.conn = self.refusal = self.socket = self.on_take = None


def switched(start_response: StartResponse | None) -> Answer:
    """What an app returns for a request that is upgraded. It goes nowhere, but what stands between wants an answer that is one."""
    answer = Answer("101 Switching Protocols", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return answer({}, start_response) if start_response is not None else answer


def switch(conn: Connection, accepted: Accepted, carrier: Carrier) -> None:
    """Send the 101 and open the connection, which belongs to `accepted.service` already. In the connection's greenlet.

    Raises:
        TransportError: the stream failed.
    """
    for variable, value in accepted.variables:
        variable.set(value)
    options, acceptance = accepted.service.options, accepted.acceptance
    conn.allow(options.write_timeout)
    conn.stream.send_all(accept_response(acceptance, options.response_headers))
    remote = carrier.remote(accepted.service, accepted.request)
    conn.accepted(acceptance.subprotocol, acceptance.deflate, accepted.request, remote, accepted.rest or carrier.rest())
    accepted.service.upgraded(conn, accepted.request)
    if carrier.stopping:
        conn.write_close(CloseCode.GOING_AWAY)
