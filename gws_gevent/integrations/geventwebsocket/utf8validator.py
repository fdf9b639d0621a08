"""`Utf8Validator`, for programs that check text by themselves. WebSockets here do not use it."""

from __future__ import annotations

import codecs

__all__ = ["Utf8Validator"]


class Utf8Validator:
    """Tells of bytes that come in pieces whether they are UTF-8."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new text."""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.i = 0
        self._valid = True

    def validate(self, ba: bytes | bytearray | memoryview) -> tuple[bool, bool, int, int]:
        """Take the next piece.

        Returns:
            whether all is valid so far; whether it ends with a whole character; how many bytes of this piece, and how many of
            all, are in order.
        """
        piece = bytes(ba)
        held = len(self._decoder.getstate()[0])
        try:
            if not self._valid:
                return False, False, 0, self.i
            self._decoder.decode(piece)
        except UnicodeDecodeError as error:
            self._valid = False
            good = max(error.start - held, 0)
            self.i += good
            return False, False, good, self.i
        self.i += len(piece)
        return True, not self._decoder.getstate()[0], len(piece), self.i
