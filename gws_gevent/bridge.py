"""The bridge: carries WebSocket streams from any transport to one server, on any other.

Belongs here: endpoints, the opening handshake on its way through, start and stop. Does not belong here: what is changed in a head
(forwarding.py), carrying the bytes (carrying.py), bytes without WebSocket behind the bridge (raw_bridge.py).

What follows the opening handshake is carried byte by byte: extensions, subprotocols and closing handshakes are the business of the
two ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
from gevent.event import Event
from greenlet import GreenletExit, getcurrent

from gws_gevent import runtime
from gws_gevent.answers import Answer, read_answer
from gws_gevent.carrying import Link, LinkLimits, bad_gateway, gateway_timeout, within, words_of
from gws_gevent.exceptions import HandshakeError, Refusal, TransportError
from gws_gevent.forwarding import check_may_pass, closing_head, forwarded_head, opens_websocket
from gws_gevent.handshake import parse_request, refusal_response
from gws_gevent.http_body import BodyEnd
from gws_gevent.http_head import HeadReader, Request
from gws_gevent.options import BridgeOptions, options_or_default
from gws_gevent.proxy_headers import TrustedProxies
from gws_gevent.transports.base import DialSettings, EndpointLike, Listener, ListenSettings, Stream, is_encrypted
from gws_gevent.transports.registry import dialer, listen

__all__ = ["Bridge"]

#: Bytes read and dropped behind a refused request, so that the answer isn't lost to a reset.
LINGER_BYTES = 256 * 1024
#: Connections above `max_connections` that wait for their 503; the next is dropped unanswered.
MAX_BEING_REFUSED = 100
#: Seconds that `stop` waits for greenlets after it has closed their streams.
GRACE = 1.0


class Bridge:
    """Listens on any number of endpoints, and carries each WebSocket connection to a connection of its own to the target.

    Args:
        target: the endpoint of a WebSocket server, such as `"tcp://127.0.0.1:8080"` or `"unix:/run/app.sock"`.
        options: see BridgeOptions.
        dial: how the target is reached, such as with which certificates.

    Raises:
        EndpointError: a target that cannot be understood.
        MissingExtra: a library is not installed.
    """

    def __init__(self, target: EndpointLike, options: BridgeOptions | None = None, dial: DialSettings | None = None) -> None:
        self.options = options_or_default(options, BridgeOptions)
        self.target = target
        self._dialer = dialer(target, dial or DialSettings())
        self._trusted = TrustedProxies(self.options.trusted_proxies)
        self._limits = LinkLimits(self.options.idle_timeout, self.options.write_timeout, self.options.close_timeout)
        self._log = self.options.logger or logging.getLogger("gws_gevent")
        self._listeners: list[Listener] = []
        self._crossings: dict[_Crossing, None] = {}
        # Our ends of the streams to the target that wait for its answer.
        self._asking: set[Any] = set()
        self._admitted = 0
        self._stopping = False
        self._empty: Event | None = None

    def start(self, *endpoints: EndpointLike, settings: ListenSettings | None = None) -> None:
        """Listen on endpoints, as `Server.start` does, and return.

        Raises:
            TypeError: no endpoint, or something that is none.
            EndpointError: an endpoint that cannot be understood.
            TransportError: one that cannot be listened on. Those before it are closed again.
        """
        if not endpoints:
            raise TypeError('at least one endpoint is needed, such as "127.0.0.1:3001"')
        self._stopping = False
        started: list[Listener] = []
        try:
            for listener in [listen(endpoint, settings) for endpoint in endpoints]:
                listener.start(self._serve)
                started.append(listener)
        except BaseException:
            for listener in started:
                listener.close()
            raise
        self._listeners += started

    @property
    def addresses(self) -> list[str]:
        """The bound endpoints as URLs, in the order given; port 0 is replaced by the real one."""
        return [listener.address for listener in self._listeners]

    @property
    def connections(self) -> int:
        """How many there are, from accept to the end of both sides."""
        return len(self._crossings)

    def reload(self) -> None:
        """Read certificate files again, for connections accepted from now on.

        Raises:
            TransportError: a file cannot be used; that listener keeps what it had.
        """
        for listener in self._listeners:
            listener.reload()

    def stop(self, timeout: float | None = 5.0) -> None:
        """Stop accepting, let what is open end by itself for `timeout` seconds, close what is left. Idempotent.

        A bridge carries bytes and cannot say 1001 between them: it is the server behind it that says goodbye.
        """
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for crossing in list(self._crossings):
            crossing.stop_awaiting()
        for end in (_Crossing.close, _Crossing.kill):
            if self._wait_empty(timeout):
                return
            for crossing in list(self._crossings):
                end(crossing)
            timeout = GRACE
        self._wait_empty(GRACE)

    def __enter__(self) -> Bridge:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _wait_empty(self, timeout: float | None) -> bool:
        if not self._crossings:
            return True
        self._empty = Event()
        return bool(self._empty.wait(timeout))

    def _serve(self, stream: Stream) -> None:
        """In a greenlet of the new stream."""
        limit = self.options.max_connections
        if self._stopping or (limit is not None and len(self._crossings) >= limit + MAX_BEING_REFUSED):
            stream.abort()
            return
        crossing = _Crossing(self, stream)
        self._crossings[crossing] = None
        try:
            crossing.run()
        except TransportError as error:
            self._log.debug("%s: %s", crossing.peer, error)
        except GreenletExit:
            pass  # `stop` does not wait for it any longer
        finally:
            crossing.close()
            del self._crossings[crossing]
            if not self._crossings and self._empty is not None:
                self._empty.set()

    @contextmanager
    def _admission(self) -> Iterator[None]:
        """One of `max_connections` places. Who has sent no request yet takes none."""
        limit = self.options.max_connections
        if self._stopping or (limit is not None and self._admitted >= limit):
            raise Refusal(503)
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1


class _Crossing:
    """One connection on its way to the target, from accept to the end of both sides.

    Attributes:
        peer: the client's address.
    """

    def __init__(self, bridge: Bridge, near: Stream) -> None:
        self._bridge = bridge
        self._options = bridge.options
        self._near = near
        self._far: Stream | None = None
        self._waits_for_head = True
        self._greenlet = getcurrent()
        self.peer = near.info("peername")

    def run(self) -> None:
        try:
            reader = self._read_request()
            if reader is None:
                return
            request = parse_request(reader.head)
            self._check_is_no_loop()
            check_may_pass(request, self._options)
            with self._bridge._admission():
                self._cross(reader, request)
        except HandshakeError as error:
            self._answer(refusal_response(error if isinstance(error, Refusal) else Refusal(400)))

    def stop_awaiting(self) -> None:
        """The bridge stops: who has not sent a whole request by now is not waited for."""
        if self._waits_for_head:
            self._near.close()

    def close(self) -> None:
        """Close both sides. Idempotent, never blocks."""
        self._near.close()
        if self._far is not None:
            self._far.close()

    def kill(self) -> None:
        """Close both sides, and wait for nothing else that may be going on."""
        self.close()
        gevent.kill(self._greenlet)

    def _read_request(self) -> HeadReader | None:
        """Collect the request head; None if the peer left before it began one."""
        reader = HeadReader(self._options.max_request_head)
        try:
            with within(self._options.handshake_timeout, Refusal(408)):
                self._near.handshake()
                while not reader.feed(piece := _read(self._near)):
                    if not piece:
                        if reader.pending:
                            raise Refusal(400)
                        return None
                return reader
        finally:
            self._waits_for_head = False

    def _check_is_no_loop(self) -> None:
        """A target that is the bridge itself would have it ask itself, again and again, until no descriptor is left."""
        if _place(self.peer) in self._bridge._asking:
            self._bridge._log.error("%s: this is the bridge itself", self._bridge.target)
            raise Refusal(508)

    def _cross(self, reader: HeadReader, request: Request) -> None:
        """Pass the request on, and what the target answers; carry what follows if that is an upgrade."""
        bridge = self._bridge
        tell = self._options.forwarded
        head = forwarded_head(reader.head, self.peer, is_encrypted(self._near), bridge._trusted, tell)
        answer = self._ask(head)
        if answer.head.status == 101 and not opens_websocket(request, answer.head):
            bridge._log.warning("%s: switched to another protocol than WebSocket", bridge.target)
            raise bad_gateway()
        if answer.head.status != 101:
            self._pass_refusal(answer)
            return
        assert self._far is not None
        with within(self._options.write_timeout or self._options.target_timeout, TransportError("the client does not read")):
            self._near.send_all(answer.raw + answer.rest)
            if reader.rest:
                self._far.send_all(reader.rest)
        link = Link(self._near, self._far, bridge._limits)
        link.carry()
        bridge._log.debug("%s: ended%s; carried %d bytes in, %d out", self.peer, link.why and f": {link.why}", *link.carried)

    def _ask(self, head: bytes) -> Answer:
        """Return the target's answer; a Refusal, 502 or 504, if there is none to be had."""
        bridge = self._bridge
        here = None
        try:
            with within(self._options.target_timeout, gateway_timeout()):
                self._far = bridge._dialer.dial()
                if (here := _place(self._far.info("sockname"))) is not None:
                    bridge._asking.add(here)
                self._far.send_all(head)
                return read_answer(self._far, self._options.max_response_head)
        except Refusal:
            bridge._log.warning("%s: no answer within %g s", bridge.target, self._options.target_timeout)
            raise
        except (TransportError, HandshakeError) as error:
            bridge._log.warning("%s: %s", bridge.target, words_of(error))
            raise bad_gateway() from error
        finally:
            bridge._asking.discard(here)

    def _pass_refusal(self, answer: Answer) -> None:
        """Pass on an answer that is no upgrade, to the end of its body."""
        assert self._far is not None
        body = BodyEnd(answer.raw + answer.rest)
        with within(self._options.target_timeout, TransportError("the answer's body takes too long")):
            self._near.send_all(closing_head(answer.raw) + answer.rest)
            while not body.complete and (piece := _read(self._far)):
                body.feed(piece)
                self._near.send_all(piece)
        self._far.close()
        self._leave()

    def _answer(self, answer: bytes) -> None:
        """Answer with HTTP instead of the target."""
        if self._far is not None:
            self._far.abort()
        with within(self._options.handshake_timeout, TransportError("the client does not read")):
            self._near.send_all(answer)
        self._leave()

    def _leave(self) -> None:
        """Read on for a while: closing with unread input would reset the connection and lose the answer."""
        buffer, left = runtime.current().buffer, LINGER_BYTES
        with suppress(TransportError), within(self._options.close_timeout, TransportError("the client does not close")):
            self._near.shutdown_write()
            while left > 0 and (count := self._near.recv_into(buffer)):
                left -= count


def _place(address: Any) -> tuple[str, int] | None:
    """An IP address and a port, by which one end's name of a connection can be told to be the other's; None for a Unix socket."""
    return (address[0].removeprefix("::ffff:"), address[1]) if isinstance(address, tuple) else None


def _read(stream: Stream) -> bytes:
    buffer = runtime.current().buffer
    count = stream.recv_into(buffer)
    return bytes(memoryview(buffer)[:count])
