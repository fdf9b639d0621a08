"""Upgrading what somebody else accepted: a stream, or a request inside of a WSGI app.

Belongs here: the API, and the decision about one request. Does not belong here: who has the connection of a request (takeover.py),
where other servers keep it (foreign.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from gws_gevent import runtime
from gws_gevent._accel import build_of
from gws_gevent.exceptions import HandshakeError, Refusal
from gws_gevent.handler import EventHandler, as_handler, refuse_parking
from gws_gevent.handshake import judge_upgrade
from gws_gevent.opening import ServerService
from gws_gevent.options import ServerOptions, options_or_default
from gws_gevent.takeover import KEY, Accepted, Answer, StartResponse, Takeover
from gws_gevent.transports.base import Stream

if TYPE_CHECKING:
    from gws_gevent.connection import Connection
else:
    Connection = build_of("connection").Connection

__all__ = ["Upgrader"]


class Upgrader:
    """Does the server's opening handshake on a stream, or for a request inside of a WSGI app.

    Args:
        handler: an EventHandler, or a function that takes a connection. None: for `accept` only.
        options: see ServerOptions. Inside of the WSGI app of a Server, those of the Server count for what concerns it as a whole:
            `max_connections`, `max_buffered`, `trusted_proxies`, and all that comes before the app is called.

    Raises:
        TypeError: an argument of another kind.
        ValueError: `park_after` with a function.
    """

    def __init__(
        self, handler: EventHandler | Callable[[Connection], object] | None = None, options: ServerOptions | None = None
    ) -> None:
        self.options = options_or_default(options, ServerOptions)
        self._handler = as_handler(handler) if handler is not None else None
        if self._handler is not None:
            refuse_parking(self._handler, self.options)
        # One for each hub: an app is often imported where it does not run. That of the main thread is kept; those of threads of a
        # server that has one for each request live as long as their connections.
        self._services: WeakValueDictionary[int, ServerService] = WeakValueDictionary()
        self._main: ServerService | None = None
        self._failed: dict[Stream | None, Exception] = {}

    def upgrade(
        self,
        environ: MutableMapping[str, Any],
        start_response: StartResponse | None = None,
        *,
        session: Mapping[Any, Any] | None = None,
    ) -> Answer:
        """Upgrade the request of a WSGI app: `return upgrader.upgrade(environ, start_response)`.

        Under our own servers the app returns first. Whatever it answers, an exception included, goes nowhere; then the 101 is sent,
        and the read loop runs in the same greenlet. Under other servers all of that happens inside of this call. A request that
        cannot be upgraded is answered with a refusal: through `start_response`, or, where a view has none, in place of what the
        view answers.

        Args:
            environ: of the request. Flask: `request.environ`; Django: `request.environ`.
            start_response: the app's. None in views that do not see it.
            session: put into `conn.session`, for the handler.

        Returns:
            what the app may return.

        Raises:
            GwsError: the connection was taken before, or the request is being answered, or its server keeps it where we do not
                know. TypeError: the Upgrader has no handler.
        """
        if self._handler is None:
            raise TypeError("upgrade needs a handler: Upgrader(handler)")
        takeover = _takeover_of(environ)
        takeover.check_free("Upgrader.upgrade")
        try:
            accepted = self._decide(takeover, session)
        except Refusal as refusal:
            return takeover.refuse(refusal, start_response)
        takeover.take("Upgrader.upgrade")
        return takeover.unwind(accepted, start_response)

    def accept(
        self,
        environ: MutableMapping[str, Any],
        start_response: StartResponse | None = None,
        *,
        session: Mapping[Any, Any] | None = None,
    ) -> Connection:
        """Upgrade the request of a WSGI app now, and return the open connection: `with upgrader.accept(environ) as conn`.

        It is read with `receive()` or iteration, in the app's greenlet, and closed at the end of the block; under our servers when
        the app returns at the latest, or with 1011 when it raises. Its answer goes nowhere. `upgrade` costs less memory.

        Raises:
            Refusal: the request cannot be upgraded. It is answered, whatever the app makes of this.
            GwsError: as `upgrade`.
            TransportError: the stream failed.
            ValueError: `park_after` is set.
        """
        refuse_parking(None, self.options)
        takeover = _takeover_of(environ)
        takeover.check_free("Upgrader.accept")
        try:
            accepted = self._decide(takeover, session)
        except Refusal as refusal:
            # The app has nothing to return for it: it is answered whatever the app does.
            takeover.refuse(refusal, None)
            raise
        takeover.take("Upgrader.accept")
        return takeover.open(accepted)

    def _decide(self, takeover: Takeover, session: Mapping[Any, Any] | None) -> Accepted:
        """Accept a request, or raise a Refusal."""
        service = takeover.carrier.service_of(self._service, self)
        request = takeover.request
        if takeover.carrier.stopping or service.is_full():
            raise Refusal(503)
        if request is None:
            raise Refusal(400, "A WebSocket handshake is a request that can be read in one way only.\n")
        acceptance = judge_upgrade(request, self.options)
        storage: MutableMapping[Any, Any] | None = None
        if session is not None or self.options.authorize is not None:
            storage = service.new_session()
            storage.update(session or {})
        if self.options.authorize is not None:
            assert storage is not None
            try:
                service.authorize(None, request, storage)
            except Refusal:
                raise
            except Exception as error:
                service.log(logging.ERROR, None, "a callback failed during the opening handshake", error=error)
                raise Refusal(500) from error
        return Accepted(service, acceptance, request, storage, self._handler, _named(self.options.context_vars))

    def upgrade_stream(self, stream: Stream) -> Connection:
        """Read the request off `stream`, answer it, and return the open connection; call its `read_loop()` in this greenlet.

        Raises:
            HandshakeError: the request was refused, and the peer has been told; or the stream failed (`__cause__`).
            TypeError: the Upgrader has no handler.
        """
        if self._handler is None:
            raise TypeError("upgrade_stream needs a handler: Upgrader(handler)")
        service = self._service()
        conn = Connection(stream, service)
        service.connections[conn] = None
        handler = None
        try:
            handler = service.open(conn)
        finally:
            if handler is None:
                conn.abort()
                service.closed(conn)
        if handler is None:
            raise HandshakeError("the request was not upgraded") from self._failed.pop(stream, None)
        conn.attach(handler)
        return conn

    @property
    def connections(self) -> Collection[Connection]:
        """Every connection that no Server of ours has, from its first byte to its end; a copy."""
        return frozenset(conn for service in list(self._services.values()) for conn in list(service.connections))

    def _service(self) -> ServerService:
        here = runtime.current()
        service = self._services.get(id(here))
        if service is None:
            service = self._services[id(here)] = ServerService(self._handler, self.options, None, self._remember)
            if here.hub.main_hub:
                self._main = service
        return service

    def _remember(self, stream: Stream | None, error: Exception) -> None:
        self._failed[stream] = error


def _named(names: Sequence[ContextVar[Any] | str]) -> tuple[tuple[ContextVar[Any], Any], ...]:
    """The context variables of these names that are set here, with their values."""
    if not names:
        return ()
    return tuple((variable, value) for variable, value in copy_context().items() if variable in names or variable.name in names)


def _takeover_of(environ: MutableMapping[str, Any]) -> Takeover:
    takeover = environ.get(KEY)
    if takeover is None:
        # Who upgrades streams only needs none of it.
        from gws_gevent.foreign import foreign_takeover

        takeover = foreign_takeover(environ)
    return takeover
