"""The object in `environ['wsgi.websocket']`: gevent-websocket's, on one of our connections.

Belongs here: its methods and properties, and the translation of our exceptions. Does not belong here: the handshake and the
end of the request (handler.py), frames and limits (the connection's).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent.lock import BoundedSemaphore

from gws_gevent.exceptions import ConnectionClosed, GwsError, MessageTooLarge, TransportError
from gws_gevent.frames import CloseCode, CloseInfo, Opcode, State
from gws_gevent.integrations.geventwebsocket.exceptions import FrameTooLargeException, WebSocketError

if TYPE_CHECKING:
    import logging

    from gws_gevent.connection import Connection

__all__ = ["MSG_ALREADY_CLOSED", "MSG_CLOSED", "MSG_SOCKET_DEAD", "WebSocket", "WebSocketError"]

MSG_SOCKET_DEAD = "Socket is dead"
MSG_ALREADY_CLOSED = "Connection is already closed"
MSG_CLOSED = "Connection closed"

Data = str | bytes | bytearray | memoryview


class _NoApplication:
    """Stands for `current_app` where the application has none."""

    def on_close(self, *args: Any) -> None:
        pass


class WebSocket:
    """A WebSocket that opens when it is first used.

    The 101 is sent by the first `receive`, `send`, `send_frame`, `close` or `accept`. Until then the application may answer the
    request with HTTP instead. Any greenlet may send; one at a time receives.

    Attributes:
        environ: of the request; also when the WebSocket has closed.
        handler: the WSGI handler of the request.
    """

    __slots__ = ("__weakref__", "_conn", "_open", "_opening", "_over", "environ", "handler")

    OPCODE_CONTINUATION = int(Opcode.CONTINUATION)
    OPCODE_TEXT = int(Opcode.TEXT)
    OPCODE_BINARY = int(Opcode.BINARY)
    OPCODE_CLOSE = int(Opcode.CLOSE)
    OPCODE_PING = int(Opcode.PING)
    OPCODE_PONG = int(Opcode.PONG)

    def __init__(self, environ: dict[str, Any], handler: Any, open_connection: Callable[[], Connection]) -> None:
        """Use `open_connection` for the handshake; it raises a GwsError where there will be none."""
        self.environ = environ
        self.handler = handler
        self._conn: Connection | None = None
        self._open = open_connection
        self._opening = BoundedSemaphore()
        # Why it will never be opened; "" while it may be.
        self._over = ""

    # The handshake

    def accept(self) -> None:
        """Send the 101 now. Nothing if it has been sent.

        Raises:
            WebSocketError: the application has answered with HTTP, the request is refused, or the peer is gone.
        """
        self._connection()

    @property
    def connection(self) -> Connection:
        """The connection below, which has everything else that this package can do. Opens the WebSocket; raises as `accept`."""
        return self._connection()

    @property
    def is_open(self) -> bool:
        """True once the 101 has been sent, also when it has been closed since."""
        return self._conn is not None

    def give_up(self, why: str) -> None:
        """Never open it: the request has been answered otherwise."""
        self._over = why

    def _connection(self) -> Connection:
        if self._conn is None:
            # Another greenlet of the application may be at it.
            with self._opening:
                if self._conn is None:
                    self._conn = self._open_now()
        return self._conn

    def _open_now(self) -> Connection:
        if self._over:
            raise WebSocketError(self._over)
        try:
            return self._open()
        except GwsError as error:
            self._over = MSG_SOCKET_DEAD if isinstance(error, TransportError) else str(error)
            raise WebSocketError(self._over) from error

    # What the request says

    @property
    def origin(self) -> str | None:
        """The Origin header."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def protocol(self) -> str | None:
        """The Sec-WebSocket-Protocol header: all that the client offers. The one that was chosen is `connection.subprotocol`."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    @property
    def version(self) -> str | None:
        """The Sec-WebSocket-Version header: "13"."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def path(self) -> str | None:
        """The path, percent-decoded."""
        return self.environ.get("PATH_INFO")

    @property
    def logger(self) -> logging.Logger:
        """The server's logger."""
        logger: logging.Logger = self.handler.logger
        return logger

    @property
    def current_app(self) -> Any:
        """What the server's application has as `current_app`; else something whose `on_close` does nothing."""
        return getattr(self.handler.server.application, "current_app", None) or _NoApplication()

    # Receiving and sending

    @property
    def closed(self) -> bool:
        """True once closing has begun, or the request was answered with HTTP."""
        return bool(self._over) if self._conn is None else self._conn.state is not State.OPEN

    def receive(self) -> str | bytearray | None:
        """Return the next message, `str` for text and `bytearray` for binary; None when the WebSocket has closed.

        A `gevent.Timeout` that ends the wait loses nothing.

        Raises:
            WebSocketError: it had closed already, or was never opened.
        """
        conn = self._connection()
        if self.closed:
            raise WebSocketError(MSG_ALREADY_CLOSED)
        try:
            message = conn.receive()
        except ConnectionClosed:
            return None
        return message if isinstance(message, str) else bytearray(message)

    def send(self, message: Data, binary: bool | None = None) -> None:
        """Send a `str` as a text message and bytes as a binary one, unless `binary` says otherwise (text as UTF-8).

        Waits while the peer is too slow, at most `write_timeout`.

        Raises:
            WebSocketError: it has closed, or was never opened.
            FrameTooLargeException: the message is larger than `write_max_payload_size`.
            TypeError, ValueError: no text, no bytes, or bytes as text that are not UTF-8.
        """
        if binary is None:
            binary = not isinstance(message, str)
        self.send_frame(message, self.OPCODE_BINARY if binary else self.OPCODE_TEXT)

    def send_frame(self, message: Data, opcode: int) -> None:
        """Send a text or binary message, a ping, a pong or a close frame (with its payload as RFC 6455 section 5.5.1 has it).

        Raises as `send`.
        """
        conn = self._connection()
        if self.closed:
            raise WebSocketError(MSG_SOCKET_DEAD)
        if opcode == Opcode.BINARY and isinstance(message, str):
            message = message.encode()
        try:
            if opcode in (Opcode.TEXT, Opcode.BINARY):
                conn.write_message(Opcode(opcode), message)
            else:
                self._send_control(conn, message.encode() if isinstance(message, str) else message, opcode)
        except MessageTooLarge as error:
            raise FrameTooLargeException(str(error)) from error
        except (ConnectionClosed, TransportError) as error:
            raise WebSocketError(MSG_SOCKET_DEAD) from error

    def _send_control(self, conn: Connection, message: Data, opcode: int) -> None:
        if not isinstance(message, (bytes, bytearray, memoryview)):
            raise TypeError(f"the payload of a control frame is bytes, not {type(message).__name__}")
        payload = bytes(message)
        if opcode == Opcode.PING:
            conn.write_ping(payload)
        elif opcode == Opcode.PONG:
            conn.write_pong(payload)
        elif opcode == Opcode.CLOSE:
            code = int.from_bytes(payload[:2], "big") if payload else CloseCode.NO_STATUS
            conn.write_close(code, payload[2:].decode())
        else:
            raise ValueError(f"opcode: must be one of OPCODE_TEXT, _BINARY, _PING, _PONG and _CLOSE, not {opcode!r}")

    def close(self, code: int = CloseCode.NORMAL, message: str | bytes | None = b"") -> None:
        """Send a close frame with this code and reason; nothing if closing has begun. Opens the WebSocket if need be.

        Returns at once. The closing handshake is finished by `receive`, or at the end of the request, which closes the transport.

        Raises:
            ValueError: a code that may not be sent, or a reason of more than 123 bytes; nothing is sent.
        """
        if self.closed:
            return
        reason = bytes(message or b"").decode() if not isinstance(message, str) else message
        try:
            self._connection().write_close(code, reason)
        except (WebSocketError, TransportError, ConnectionClosed):
            pass  # there is nobody left to tell

    @property
    def close_info(self) -> CloseInfo | None:
        """How it was closed: the codes and reasons of both sides. None while it is open."""
        return None if self._conn is None else self._conn.close_info

    @property
    def close_reason(self) -> str | None:
        """The reason that the peer's close frame gave, if any."""
        info = self.close_info
        return (info.reason or None) if info is not None else None

    def __repr__(self) -> str:
        return f"<WebSocket {self.path} {'closed' if self.closed else 'open' if self.is_open else 'not yet open'}>"
