"""Masking and unmasking of payloads (RFC 6455 section 5.3), always together with the copy that has to be made anyway.

Plain twin of `_compiled/_masking.pyx`. Every function takes a buffer with offsets instead of slices.
"""

from __future__ import annotations

from typing import Any

from gws_gevent.frames import frame_header

__all__ = ["append_frame", "append_unmasked", "empty", "unmask", "unmask_text", "utf8"]


def _xor(data: bytes | bytearray, key: bytes) -> bytes:
    """XOR with a repeated key. One big-integer operation costs far less than a loop over bytes."""
    n = len(data)
    mask = int.from_bytes((key * (n // 4 + 1))[:n], "little")
    return (int.from_bytes(data, "little") ^ mask).to_bytes(n, "little")


def unmask(data: bytes | bytearray, at: int, length: int, key_at: int) -> bytes:
    """Return `length` bytes from `at`, unmasked with the 4 bytes at `key_at`. A negative `key_at` means unmasked data."""
    piece = data[at : at + length]
    if key_at < 0:
        return bytes(piece)
    return _xor(piece, bytes(data[key_at : key_at + 4]))


def unmask_text(data: bytes | bytearray, at: int, length: int, key_at: int, errors: str) -> str:
    """Like `unmask`, decoded from UTF-8 with the given error handler."""
    return unmask(data, at, length, key_at).decode("utf-8", errors)


def append_unmasked(target: bytearray, data: bytes | bytearray, at: int, length: int, key: bytes, phase: int) -> None:
    """Append `length` bytes from `at` to `target`, unmasked.

    Args:
        key: the masking key; empty for unmasked data.
        phase: how many bytes of the payload came before, modulo 4.
    """
    piece = data[at : at + length]
    target += _xor(piece, key[phase:] + key[:phase]) if key else piece


def utf8(text: str) -> Any:
    """Return text as `append_frame` and a SocketStream's `try_send_frame` take it, with the `len` that it has in UTF-8.

    The compiled twin returns ASCII text as it is, whose bytes lie in memory as they are to be sent.
    """
    return text.encode()


def append_frame(out: bytearray, first_byte: int, payload: bytes | bytearray | memoryview, masking_key: bytes) -> None:
    """Append a whole frame to `out`, masked if there is a key."""
    out += frame_header(first_byte, len(payload), masking_key)
    out += _xor(bytes(payload), masking_key) if masking_key else payload


def empty(out: bytearray) -> None:
    """Forget what a buffer of frames holds. The compiled twin keeps its memory for the next ones, unless that is much."""
    out.clear()
