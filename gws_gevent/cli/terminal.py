"""Lines in, messages out: stdin without blocking the other greenlets, stdout for people or for pipes.

Belongs here: what the two streams of the process are and how they are read and written. Does not belong here: connections.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Final

import gevent

from gws_gevent.cli.errors import UsageError, writing_output

__all__ = ["Input", "Screen", "harmless", "standard_streams"]

#: Bytes of one read of stdin.
READ_SIZE: Final = 64 * 1024
#: Bytes of the longest line that is taken.
MAX_LINE: Final = 16 * 1024 * 1024

#: What could move the cursor, change colours or ring: every control character but tab and line feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BACK_TO_START = "\r\x1b[K"


def harmless(text: str) -> str:
    """Write out what could do something to a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Input:
    """Lines of a stream. Waiting for one blocks its greenlet only.

    Attributes:
        terminal: a person types them.
    """

    def __init__(self, source: IO[str] | None) -> None:
        # A closed stdin is None, and its number may belong to another file by now.
        self._descriptor = source.fileno() if source is not None else -1
        self.terminal = source is not None and source.isatty()

    def lines(self) -> Iterator[str]:
        """The lines without their ends, to the end of the input.

        Raises:
            UsageError: a line that is not UTF-8, or longer than MAX_LINE bytes.
        """
        held = bytearray()
        number = 0
        while self._descriptor >= 0:
            piece = self._read()
            held += piece
            if not piece:
                break
            if b"\n" in piece:
                *whole, rest = bytes(held).split(b"\n")
                held = bytearray(rest)
                for line in whole:
                    number += 1
                    yield _decode(line, number)
            elif len(held) > MAX_LINE:
                raise UsageError(f"line {number + 1} of the input has more than {MAX_LINE} bytes")
        if held:
            yield _decode(bytes(held), number + 1)

    def _read(self) -> bytes:
        # A thread waits: pollers refuse files, and make a terminal non-blocking for everyone who shares it. One that still
        # waits when the connection has ended does not keep the process.
        piece: bytes = gevent.get_hub().threadpool.apply(os.read, (self._descriptor, READ_SIZE))
        return piece


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise UsageError(f"line {number} of the input is not UTF-8") from None


class Screen:
    """Where messages are shown: to a person with what happens besides, or plain, one a line, to a file or pipe.

    Args:
        prompt: a person types in the same terminal.
    """

    def __init__(self, output: IO[str] | None, prompt: bool) -> None:
        self._output = output
        self.terminal = output is not None and output.isatty()
        self._prompt = "> " if self.terminal and prompt else ""
        reconfigure = getattr(output, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def message(self, data: str | bytes) -> None:
        """Show a message: text as it is, binary as hexadecimal digits behind 0x.

        Raises:
            BrokenPipeError: nobody reads the output any more.
            OutputError: it cannot be written.
        """
        text = data if isinstance(data, str) else f"0x{data.hex()}"
        if self.terminal:
            self._show(f"< {text}")
        else:
            self._write(f"{text}\n")

    def note(self, text: str) -> None:
        """Tell a person what happens besides messages."""
        if self.terminal:
            self._show(text)

    def ask(self) -> None:
        """Show the prompt, where there is one."""
        if self._prompt:
            self._write(self._prompt)

    def leave(self) -> None:
        """Put the cursor where the shell expects it."""
        if self._prompt:
            self._write(_BACK_TO_START)

    def _show(self, text: str) -> None:
        safe = harmless(text)
        if self._prompt:
            self._write(f"{_BACK_TO_START}{safe}\n{self._prompt}")
        else:
            self._write(f"{safe}\n")

    def _write(self, text: str) -> None:
        if self._output is not None:
            with writing_output():
                self._output.write(text)
                self._output.flush()


def standard_streams() -> tuple[Input, Screen]:
    """Return the process's own."""
    source = Input(sys.stdin)
    return source, Screen(sys.stdout, source.terminal)
