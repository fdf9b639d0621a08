"""`gws-gevent connect`: a client for people and pipes.

Belongs here: arguments, and when the connection is to be closed. Does not belong here: stdin and stdout (terminal.py).
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.event import Event
from greenlet import getcurrent

from gws_gevent.cli.dialing import add_dialing_arguments, client_options, proxy_of, tls_context
from gws_gevent.cli.errors import OutputError, UsageError, describe, positive_seconds
from gws_gevent.cli.terminal import Input, Screen, harmless, standard_streams
from gws_gevent.client import connect
from gws_gevent.connection import Connection
from gws_gevent.exceptions import ConnectionClosed, GwsError, ReconnectFailed, TransportError
from gws_gevent.frames import Close, CloseCode, CloseInfo
from gws_gevent.handler import EventHandler, Message
from gws_gevent.reconnect import Reconnect
from gws_gevent.urls import without_login

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "connect"
SUMMARY = "talk to a WebSocket server: lines in, messages out"

#: Codes with which a server ends what is in order (RFC 6455 section 7.4.1): done, going away, and none.
IN_ORDER = (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS)
#: Seconds in which an input that has ended is seen to have ended, where the server closes at the same time.
END_SEEN = 0.2
#: Payload of the ping that asks the server whether it has read all we sent.
END_OF_INPUT = b"end of input"

_EPILOG = """\
URLs:
  ws://HOST[:PORT]/PATH, wss://HOST[:PORT]/PATH, ws+unix:/path/of/socket:/PATH
  ws+quic://HOST[:PORT]/PATH and wss+h3://HOST[:PORT]/PATH with the extra quic, ws+kcp://HOST[:PORT]/PATH with the extra kcp

Each line of stdin is sent as a text message. On a terminal each message is shown behind "< ", and pings, pongs and the close are
shown too. Otherwise stdout gets the messages alone, one a line, and stderr is told if the server closes. Binary messages are shown
in hexadecimal, as 0x00ff.

When stdin ends, the server is sent a ping, to learn that it has read everything; once that is answered and nothing has come for
--wait seconds, the connection is closed with 1000. Ctrl-D on a terminal closes it at once, and so does Ctrl-C anywhere.

exit status:
  0  the connection ended with a closing handshake: closed here, or by the server with 1000, 1001 or no code
  1  it ended otherwise, the server closed before the end of the input (a terminal's excepted), --once got no message, or the
     output could not be written
  2  it could not be opened, or an argument or the input was wrong

examples:
  gws-gevent connect "ws://127.0.0.1:3001/chat?name=Ada"
  echo hello | gws-gevent connect ws://127.0.0.1:3001/echo --once
  gws-gevent connect wss://example.org/chat --proxy socks5h://127.0.0.1:1080 --reconnect
  gws-gevent connect wss://example.org/feed --header "Authorization: Bearer TOKEN" --wait inf </dev/null >feed.txt
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    add_dialing_arguments(parser)
    add = parser.add_argument
    add("--reconnect", action="store_true", help="open the connection again whenever it is lost, until the end of the input")
    add(
        "--timeout",
        type=positive_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for the opening handshake, for the closing one, and for the answer after the end of the input (default 10)",
    )
    add("--once", action="store_true", help="print one message and close, once all of stdin (a terminal: any of it) has been sent")
    add(
        "--wait",
        type=_wait,
        default=1.0,
        metavar="SECONDS",
        help="after the end of the input: close when nothing has come for so long (default 1; inf stays until the server closes)",
    )
    parser.epilog = _EPILOG


def _wait(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, nor inf")
    return None if seconds == float("inf") else seconds


def run(args: argparse.Namespace) -> int:
    """Talk to the server until the connection ends."""
    source, screen = standard_streams()
    talk = Talk(source, screen, args)
    options = client_options(args, handshake_timeout=args.timeout, close_timeout=args.timeout, logger=talk.logger)
    context = tls_context(args)
    proxy = proxy_of(args)
    watcher = gevent.signal_handler(signal.SIGINT, talk.interrupt)
    try:
        if args.reconnect:
            return talk.keep(Reconnect(args.url, talk, options, ssl_context=context, proxy=proxy, on_give_up=talk.give_up))
        conn = connect(args.url, talk, options, ssl_context=context, proxy=proxy)
        return talk.finish(conn)
    except BrokenPipeError:
        raise
    except (GwsError, OSError) as error:
        raise UsageError(f"{without_login(args.url)}: {describe(error)}") from error
    finally:
        watcher.cancel()


class Talk(EventHandler):
    """One connection after the other, and mostly just one, between stdin, stdout and the server.

    Attributes:
        logger: shows what Reconnect tells; all else goes where records of the library go.
    """

    def __init__(self, source: Input, screen: Screen, args: argparse.Namespace) -> None:
        self._source = source
        self._screen = screen
        self._url = without_login(args.url)
        self._once: bool = args.once
        self._wait: float | None = args.wait
        self._timeout: float = args.timeout
        self._shown = 0
        self._open = Event()
        self._ended = Event()
        self._news = Event()
        self._all_read = Event()
        self._input_done = Event()
        self._input_ended = source.terminal  # a person may type until the connection ends
        self._problem: Exception | None = None
        self._interrupted = False
        self._leaving = False
        self._conn: Connection | None = None
        self._again: Reconnect | None = None
        self._main = getcurrent()
        self.logger = logging.Logger("gws_gevent.connect", logging.INFO)
        self.logger.addHandler(_Notes(self._note))

    def keep(self, again: Reconnect) -> int:
        """Open the connection, and again when it is lost, feed it from stdin until its end, and return the exit status."""
        self._again = again
        again.start()
        try:
            return self._talk()
        finally:
            again.stop()

    def finish(self, conn: Connection) -> int:
        """Feed the connection from stdin until it has ended, and return the exit status."""
        self._conn = conn
        self._open.set()
        return self._talk()

    def give_up(self, failure: ReconnectFailed) -> None:
        """Reconnect has given up."""
        self._problem = UsageError(str(failure))
        self._ended.set()

    def _talk(self) -> int:
        feeder = gevent.spawn(self._feed)
        try:
            self._ended.wait()
            if not self._leaving and not self._input_ended:
                self._input_done.wait(END_SEEN)
        finally:
            feeder.kill()
        if self._problem is not None:
            raise self._problem
        info = (self._conn.close_info if self._conn is not None else None) or CloseInfo()
        self._screen.note(f"closed: {_describe(info)}")
        self._screen.leave()
        return self._judge(info)

    def _judge(self, info: CloseInfo) -> int:
        """Tell what went wrong, where it was not shown, and return the exit status."""
        missing = self._once and not self._shown and not self._interrupted
        if not info.clean:
            if not self._screen.terminal:
                self._note(f"{self._url}: connection lost: {_describe(info)}")
            return 1
        if self._leaving or info.received is None:
            if missing:
                print(f"gws-gevent: {self._url}: no message within {self._timeout:g} seconds (--timeout)", file=sys.stderr)
            return 1 if missing else 0
        if self._once and not missing:
            return 0
        early = " before a message came" if missing else "" if self._input_ended else " before the end of the input"
        if early or not self._screen.terminal:
            print(f"gws-gevent: {self._url}: the server closed with {_said(info.received)}{early}", file=sys.stderr)
        return 1 if early or info.received.code not in IN_ORDER else 0

    def interrupt(self) -> None:
        """Ctrl-C: close the connection; the second time, or before it is open, drop everything."""
        if self._conn is None:
            gevent.kill(self._main, KeyboardInterrupt)
        elif self._interrupted:
            self._conn.abort()
        else:
            self._interrupted = True
            self._close()

    def _close(self) -> None:
        """Close the connection, and open no other."""
        self._leaving = True
        if self._again is not None:
            self._again.stop()
        if self._conn is not None:
            self._conn.close()
        if not self._open.is_set():
            self._ended.set()  # no on_close is to come

    # Events of the connection

    def on_open(self, conn: Connection) -> None:
        self._conn = conn
        self._open.set()
        spoken = f", subprotocol {conn.subprotocol}" if conn.subprotocol is not None else ""
        spoken += ", compressed" if conn.extensions else ""
        hint = "; Ctrl-D or Ctrl-C closes" if self._source.terminal else ""
        self._show(conn, self._screen.note, f"connected to {self._url}{spoken}{hint}")

    def on_message(self, conn: Connection, message: Message) -> None:
        if self._once and self._shown:
            return
        self._shown += 1
        self._show(conn, self._screen.message, message.data)
        self._news.set()

    def on_ping(self, conn: Connection, payload: bytes) -> None:
        conn.write_pong(payload)
        self._show(conn, self._screen.note, f"< ping{_payload(payload)}")

    def on_pong(self, conn: Connection, payload: bytes) -> None:
        if payload == END_OF_INPUT:
            self._all_read.set()
        else:
            self._show(conn, self._screen.note, f"< pong{_payload(payload)}")

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self._open.clear()
        if self._again is None or self._leaving:
            self._ended.set()

    # What this side does

    def _feed(self) -> None:
        """Send stdin, and close when it is time to."""
        try:
            if self._once and self._source.terminal:
                gevent.spawn(self._close_after_one)
            for line in self._source.lines():
                self._say(partial(Connection.send, data=line))
                self._screen.ask()
            self._input_ended = True
            self._input_done.set()
            self._await_answers()
        except ConnectionClosed:
            self._input_done.set()
            return
        except (UsageError, OutputError, BrokenPipeError) as error:
            self._problem = error
        except (GwsError, OSError) as error:
            self._problem = UsageError(describe(error))
        self._close()

    def _say(self, say: Callable[[Connection], object]) -> None:
        """Write to the connection; if it is lost, to the next one, where there will be one."""
        while True:
            self._open.wait()
            conn = self._conn
            assert conn is not None
            try:
                say(conn)
                return
            except ConnectionClosed:
                if self._again is None or self._leaving:
                    raise
                if conn is self._conn:
                    self._open.clear()

    def _close_after_one(self) -> None:
        self._news.wait()
        self._close()

    def _await_answers(self) -> None:
        if self._once:
            self._news.wait(self._timeout)
            return
        if self._source.terminal:
            return
        self._say(lambda conn: conn.write_ping(END_OF_INPUT))
        self._all_read.wait(self._timeout)
        while True:
            self._news.clear()
            if not self._news.wait(self._wait):
                return

    def _note(self, text: str) -> None:
        """Tell what happens besides messages, also where nobody types."""
        if self._screen.terminal:
            self._screen.note(text)
        else:
            print(f"gws-gevent: {text}", file=sys.stderr)

    def _show(self, conn: Connection, show: Callable[[Any], None], what: str | bytes) -> None:
        """Show something; if that cannot be done any more, end the connection."""
        try:
            show(what)
        except (BrokenPipeError, OutputError) as error:
            self._problem = error
            self._leaving = True
            conn.write_close()


class _Notes(logging.Handler):
    """Hands what Reconnect tells to a function, and all other records on to where they belong."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            self._note(record.getMessage())
        else:
            logging.getLogger("gws_gevent").handle(record)


def _payload(payload: bytes) -> str:
    return f" 0x{payload.hex()}" if payload else ""


def _describe(info: CloseInfo) -> str:
    """What ended the connection, in words."""
    parts = []
    if info.received is not None:
        parts.append(f"server said {_said(info.received)}")
    if info.sent is not None and (info.received is None or info.sent.code != info.received.code):
        parts.append(f"we said {_said(info.sent)}")
    if info.error is not None:
        parts.append(describe(info.error) if isinstance(info.error, TransportError) else str(info.error))
    if info.received is None and info.error is None:
        parts.append("the server ended it without a close frame (1006)")
    return ", ".join(parts)


def _said(close: Close) -> str:
    if close.code == CloseCode.NO_STATUS:
        return "no code"
    return harmless(f"{close.code} {close.reason}".rstrip())
