"""The command line: `gws-gevent COMMAND`, also `python -m gws_gevent COMMAND`.

Belongs here: choosing the subcommand, and what becomes of its errors. Does not belong here: what a subcommand does.

A subcommand is a module with NAME, SUMMARY, `add_arguments(parser)` and `run(args) -> int`, listed in COMMANDS.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gws_gevent import __version__
from gws_gevent.cli import bench, bridge, connect, serve
from gws_gevent.cli.errors import OutputError, UsageError

__all__ = ["main"]

PROGRAM = "gws-gevent"
COMMANDS = (serve, connect, bench, bridge)

#: Exit statuses beside 0: the work ended badly, the user has to change something, interrupted (128 + SIGINT).
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """Leaves the reporting of errors to `main`: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: arguments without the program's name; None takes the process's.

    Returns:
        0 for success, 1 if the work ended badly, 2 for an error of the user. Errors are told in one line on stderr.
    """
    try:
        args, rest = _make_parser().parse_known_args(argv)
        if rest:
            hint = serve.hint_at(rest[0]) if args.command == serve.NAME else ""
            raise UsageError(f"unrecognized arguments: {' '.join(rest)}{hint} (see {PROGRAM} {args.command} --help)")
        status: int = args.run(args)
        return status
    except UsageError as error:
        _tell(error)
        return WRONG_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputError as error:
        _tell(error)
        _drop_output()
        return FAILED
    except BrokenPipeError:
        # Whoever read our output has gone.
        _drop_output()
        return FAILED


def _tell(error: Exception) -> None:
    print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)


def _drop_output() -> None:
    """The interpreter flushes stdout once more at its end: let that succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="WebSocket (RFC 6455) on the command line: a server, a client to talk to any server, a load for it, and a "
        "bridge between transports.",
        epilog=f"'{PROGRAM} COMMAND --help' tells more about each command. Errors are one line on stderr and exit status 2.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
