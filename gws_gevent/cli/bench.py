"""`gws-gevent bench`: put a server under load, or hold connections open.

Belongs here: arguments, the line that tells how it goes, signals, where the result goes. Does not belong here: the load (load.py),
how figures look (load_report.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable
from os.path import dirname, splitext
from pathlib import Path
from time import perf_counter as clock

import gevent

from gws_gevent.cli.dialing import add_dialing_arguments, client_options, proxy_of, tls_context
from gws_gevent.cli.errors import UsageError, describe, positive_seconds, writing_output
from gws_gevent.cli.load import Load
from gws_gevent.cli.load_plan import Counts, Plan
from gws_gevent.cli.load_report import as_data, as_text, check_plotting, draw, progress
from gws_gevent.cli.option_texts import parse_size
from gws_gevent.exceptions import MissingExtra
from gws_gevent.frames import MAX_CONTROL_PAYLOAD, MAX_FRAME_HEADER, Opcode
from gws_gevent.options import ClientOptions

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

__all__ = ["NAME", "SUMMARY", "add_arguments", "run"]

NAME = "bench"
SUMMARY = "put a WebSocket server under load, or hold connections open, and time the replies"

MAX_CONNECTIONS = 1_000_000
MAX_DEPTH = 100_000
MIN_RATE, MAX_RATE = 0.001, 1_000_000
MAX_SIZE = 256 * 1024 * 1024
#: Descriptors the process needs besides its connections.
OTHER_DESCRIPTORS = 64
#: Bytes of a write queue for pongs, beside the messages.
ROOM_FOR_PONGS = 64 * 1024
#: Seconds between two lines about how it goes.
PROGRESS_INTERVAL = 1.0

_BACK_TO_START = "\r\x1b[K"

#: What has no meaning with --hold, with the values that it has if it is not given.
_NOT_WITH_HOLD = {"rate": None, "size": None, "depth": None, "text": False, "ping": False, "check": False}

_EPILOG = """\
URLs:
  ws://HOST[:PORT]/PATH, wss://HOST[:PORT]/PATH, ws+unix:/path/of/socket:/PATH
  ws+quic://HOST[:PORT]/PATH and wss+h3://HOST[:PORT]/PATH with the extra quic, ws+kcp://HOST[:PORT]/PATH with the extra kcp

The server has to answer each message with one, as an echo does; the n-th reply on a connection belongs to its n-th message. For any
other server there is --ping, which every WebSocket server answers.

Without --rate each reply is followed by the next message at once: that shows what the server can do, and latency counts from when a
message was sent. With --rate messages are due at set times, whatever the server does, and latency counts from when a message was
due, which is what users of a server see that cannot keep up. What had no reply at the end counts with the time it had waited.

A line on the terminal tells how it goes, the result is printed at the end. Ctrl-C ends the run and prints the result so far; a
second one does not wait for the connections to close.

exit status:
  0  nothing failed
  1  something did: a connection, or a reply; or the output could not be written
  2  an argument was wrong

examples:
  gws-gevent bench ws://127.0.0.1:3001/echo
  gws-gevent bench ws://127.0.0.1:3001/echo --connections 1000 --ramp 5 --rate 20000 --duration 60 --plot latency.png
  gws-gevent bench wss://example.org/feed --connections 10000 --ramp 60 --hold --duration inf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    add_dialing_arguments(parser)
    add = parser.add_argument
    add("--connections", type=_whole(1, MAX_CONNECTIONS), default=10, metavar="N", help="how many (default 10)")
    add("--ramp", type=positive_seconds, metavar="SECONDS", help="open them over so many seconds (default: as fast as they open)")
    add("--duration", type=_duration, default=10.0, metavar="SECONDS", help="from when all are open (default 10; inf: to Ctrl-C)")
    add("--rate", type=_rate, metavar="N", help="messages a second, over all connections (default: as fast as replies come)")
    add("--size", type=_size, metavar="BYTES", help="payload of a message, such as 125 or 16KiB (default 64)")
    add("--depth", type=_whole(1, MAX_DEPTH), metavar="N", help="messages that may be unanswered on a connection (default 1)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--text", action="store_true", help="send text (default: binary)")
    kind.add_argument("--ping", action="store_true", help="send pings; their pongs are the replies: for servers that do not echo")
    add("--check", action="store_true", help="a reply that is not what was sent is an error")
    add("--hold", action="store_true", help="send nothing: open connections, keep them, and tell how many are alive")
    add(
        "--timeout",
        type=positive_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for the opening handshake, for a reply, and for the closing handshake (default 10)",
    )
    add("--json", action="store_true", help="print the result as JSON")
    add("--plot", metavar="FILE", help="draw the latencies, as .png, .svg or .pdf (needs the extra plot)")
    parser.epilog = _EPILOG


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def _duration(text: str) -> float:
    return float("inf") if text == "inf" else positive_seconds(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of messages a second from {MIN_RATE} to {MAX_RATE}")
    return rate


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes up to {MAX_SIZE}, nor a size such as 16KiB")
    return size


def run(args: argparse.Namespace) -> int:
    """Do it, and tell what became of it."""
    plan = _plan(args)
    if args.plot is not None:
        _check_plot(args.plot)
    _allow_descriptors(plan.connections)
    load = Load(plan)
    watchers = [gevent.signal_handler(number, load.interrupt) for number in (signal.SIGINT, signal.SIGTERM)]
    teller = gevent.spawn(_tell_progress, load) if sys.stderr is not None and sys.stderr.isatty() else None
    try:
        load.run()
    finally:
        if teller is not None:
            teller.kill()
        for watcher in watchers:
            watcher.cancel()
    with writing_output():
        print(json.dumps(as_data(plan, load.counts), indent=2) if args.json else as_text(plan, load.counts), flush=True)
    if args.plot is not None:
        try:
            draw(plan, load.counts, args.plot)
        except OSError as error:
            raise UsageError(f"--plot {describe(error)}") from error
    return 1 if load.counts.errors else 0


def _plan(args: argparse.Namespace) -> Plan:
    if args.hold:
        for name, unset in _NOT_WITH_HOLD.items():
            if getattr(args, name) != unset:
                raise UsageError(f"--{name}: --hold sends nothing")
    size = 64 if args.size is None else args.size
    depth = args.depth or 1
    if args.ping and size > MAX_CONTROL_PAYLOAD:
        raise UsageError(f"--size: a ping has at most {MAX_CONTROL_PAYLOAD} bytes")
    if args.ping and depth > 1:
        # RFC 6455 section 5.5.3: one pong may answer several pings.
        raise UsageError("--depth: a server may answer several pings at once, so only one may be unanswered")
    context = tls_context(args)
    return Plan(
        url=args.url,
        options=_options(args, size, depth),
        ssl_context=context,
        proxy=proxy_of(args),
        connections=args.connections,
        ramp=args.ramp or 0.0,
        duration=args.duration,
        hold=args.hold,
        opcode=Opcode.PING if args.ping else Opcode.TEXT if args.text else Opcode.BINARY,
        payload=_payload(size, args.text),
        depth=depth,
        rate=args.rate,
        check=args.check,
        timeout=args.timeout,
    )


def _options(args: argparse.Namespace, size: int, depth: int) -> ClientOptions:
    usual = ClientOptions()
    # What may be unanswered may be unsent, without a write that waits.
    queue = depth * (size + MAX_FRAME_HEADER) + ROOM_FOR_PONGS
    return client_options(
        args,
        handshake_timeout=args.timeout,
        close_timeout=args.timeout,
        read_max_payload_size=max(usual.read_max_payload_size, size),
        write_max_payload_size=max(usual.write_max_payload_size, size),
        write_high_water=max(usual.write_high_water, queue),
        write_queue_size=max(usual.write_queue_size, queue),
        max_buffered=max(usual.max_buffered, 2 * queue),
    )


def _payload(size: int, text: bool) -> str | bytes:
    pattern = b"abcdefghijklmnopqrstuvwxyz" if text else bytes(range(256))
    payload = (pattern * (size // len(pattern) + 1))[:size]
    return payload.decode() if text else payload


def _check_plot(path: str) -> None:
    """Find out before the run what would be a pity to find out behind it."""
    try:
        check_plotting(splitext(path)[1].removeprefix("."))
    except MissingExtra as error:
        raise UsageError(str(error)) from error
    except ValueError as error:
        raise UsageError(f"--plot {path}: {error}") from error
    if not Path(dirname(path) or ".").is_dir():
        raise UsageError(f"--plot {path}: there is no folder {dirname(path)}")
    if Path(path).is_dir():
        raise UsageError(f"--plot {path}: Is a directory")


def _allow_descriptors(connections: int) -> None:
    """Raise the limit of open files if it is too low, as far as it may be raised."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UsageError(f"--connections {connections}: this process may open no more than {hard} files (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _tell_progress(load: Load) -> None:
    """Keep one line on the terminal up to date."""
    before, then = Counts(), clock()
    try:
        while True:
            gevent.sleep(PROGRESS_INTERVAL)
            now = clock()
            line = progress(load.plan, load.counts, now - load.begun, now - then, before)
            width = shutil.get_terminal_size().columns - 1
            print(_BACK_TO_START + line[:width], end="", file=sys.stderr, flush=True)
            before, then = Counts(answered=load.counts.answered, latency=load.counts.latency.copy()), now
    except OSError:
        return  # nobody reads it
    finally:
        try:
            print(_BACK_TO_START, end="", file=sys.stderr, flush=True)
        except OSError:
            pass
