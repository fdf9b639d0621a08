"""Compressing and inflating messages (RFC 7692 section 7.2).

Belongs here: the codecs, who has a compressor when, and what an inflated message may be. Does not belong here: negotiation
(permessage_deflate.py), frames, UTF-8.

A compressor that is flushed fully has forgotten what it has seen, so its next message stands alone: one serves all connections
without context takeover, one after the other. A decompressor cannot be made to forget, and is cheap: each message has a new one.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gws_gevent.exceptions import MissingExtra, ProtocolError
from gws_gevent.extensions.permessage_deflate import Agreement
from gws_gevent.frames import CloseCode, Side

if TYPE_CHECKING:
    from gws_gevent.options import PermessageDeflate

__all__ = ["Codec", "Compression", "Deflate", "Deflation", "find_codec"]

#: What each message ends with, and is sent without (section 7.2.1).
TAIL: Final = b"\x00\x00\xff\xff"
#: An empty block, the last of its stream: only where a block may begin does it end the stream.
LAST: Final = b"\x01" + TAIL
#: An empty block as far as it is sent.
EMPTY: Final = b"\x00"

#: Bytes inflated at once: what is left of them is copied after each slice of output.
INPUT_SLICE: Final = 16 * 1024
#: Bytes of output asked for at once.
OUTPUT_SLICE: Final = 64 * 1024
#: Deflate streams that one message may consist of (section 7.2.3.4): each costs a decompressor, and only two bytes.
MAX_STREAMS: Final = 16
#: Bytes that a stream can look back.
WINDOW: Final = 32 * 1024
#: The narrowest window that zlib deflates with.
NARROWEST: Final = 9


class Codec(NamedTuple):
    """A library that deflates.

    Attributes:
        compressobj: as that of zlib.
        highest_level: of its compressor.
    """

    name: str
    compressobj: Any
    highest_level: int = 9
    decompressobj: Any = zlib.decompressobj
    error: Any = zlib.error


def find_codec(name: str) -> Codec:
    """Return a codec by its name, or for "auto" the fastest that is installed.

    Raises:
        MissingExtra: it is not installed.
    """
    if name == "zlib":
        return Codec("zlib", zlib.compressobj)
    try:
        if name in ("isal", "auto"):
            from isal import isal_zlib

            # Its decompressor cannot be copied, which is how cut-off messages are found, and is no faster.
            return Codec("isal", isal_zlib.compressobj, 3)
    except ImportError:
        if name == "isal":
            raise MissingExtra("the codec isal", "deflate") from None
    try:
        from zlib_ng import zlib_ng

        return Codec("zlib-ng", zlib_ng.compressobj, 9, zlib_ng.decompressobj, zlib_ng.error)
    except ImportError:
        if name == "zlib-ng":
            raise MissingExtra("the codec zlib-ng", "deflate") from None
    return Codec("zlib", zlib.compressobj)


class Compression:
    """What all connections of one server or client share: the codec, the idle compressors, and what was agreed on so far.

    Raises:
        MissingExtra: the codec is not installed.
    """

    def __init__(self, options: PermessageDeflate, side: Side) -> None:
        self.options = options
        self.codec = find_codec(options.codec)
        self.level = min(options.level, self.codec.highest_level)
        self.is_client = side is Side.CLIENT
        self._shared: dict[Agreement, Deflate] = {}
        self._idle: dict[int, list[Any]] = {}
        self._count = 0

    def agreed(self, agreement: Agreement) -> Deflate:
        """Return what a connection compresses and inflates with: its own if it keeps a context, otherwise everybody's."""
        deflate = self._shared.get(agreement)
        if deflate is None:
            deflate = Deflate(self, agreement)
            if deflate.is_shared:
                self._shared[agreement] = deflate
        return deflate

    def new_compressor(self, bits: int) -> Any:
        """Make a compressor."""
        return self.codec.compressobj(self.level, zlib.DEFLATED, -bits, self.options.memory_level)

    def take(self, bits: int) -> Any:
        """Return a compressor that remembers nothing. Whoever takes one gives it back, or drops it."""
        idle = self._idle.get(bits)
        if not idle:
            return self.new_compressor(bits)
        self._count -= 1
        return idle.pop()

    def give_back(self, bits: int, compressor: Any) -> None:
        """Keep a compressor that was flushed fully for the next message, unless `pool_size` are kept already."""
        if self._count < self.options.pool_size:
            self._count += 1
            self._idle.setdefault(bits, []).append(compressor)


class Deflate:
    """Compresses and inflates what one connection, or all that have agreed on the same, send and receive.

    Attributes:
        agreement: what was negotiated.
        is_shared: no context is kept in either direction.
        variant: the same for all whose messages look the same when each is compressed by itself.
    """

    __slots__ = (
        "_compression", "_compressor", "_decompressor", "_inflate_bits", "_keeps_inflating", "agreement", "bits", "is_shared",
        "keeps_context", "variant",
    )  # fmt: skip

    def __init__(self, compression: Compression, agreement: Agreement) -> None:
        is_client = compression.is_client
        self.agreement = agreement
        self.bits = agreement.client_max_window_bits if is_client else agreement.server_max_window_bits
        self.keeps_context = not (agreement.client_no_context_takeover if is_client else agreement.server_no_context_takeover)
        self._inflate_bits = agreement.server_max_window_bits if is_client else agreement.client_max_window_bits
        self._keeps_inflating = not (agreement.server_no_context_takeover if is_client else agreement.client_no_context_takeover)
        self.is_shared = not self.keeps_context and not self._keeps_inflating
        self.variant = (compression.codec.name, compression.level, compression.options.memory_level, self.bits)
        self._compression = compression
        self._compressor: Any = None
        self._decompressor: Any = None

    def is_wanted(self, size: int, compress: bool | None) -> bool:
        """Tell whether a message of so many bytes is to be compressed; `compress` is what its writer says, if anything."""
        if self.bits < NARROWEST or not size:
            return False  # a server may ask a client for 8, which no zlib can do: it is sent everything uncompressed
        if compress is not None:
            return compress
        return self.keeps_context or size >= self._compression.options.threshold

    def compress(self, payload: bytes | bytearray | memoryview, always: bool = False) -> bytes | None:
        """Compress a message that is sent next; None if it is no smaller then, unless `always` or a context is kept."""
        if not self.keeps_context:
            return self.compress_alone(payload, always)
        if self._compressor is None:
            self._compressor = self._compression.new_compressor(self.bits)
        return _finished(self._compressor.compress(payload) + self._compressor.flush(zlib.Z_SYNC_FLUSH))

    def compress_alone(self, payload: bytes | bytearray | memoryview, always: bool = False) -> bytes | None:
        """Compress a message so that it refers to no other; None if that makes it no smaller, unless `always`."""
        compressor = self._compression.take(self.bits)
        data = _finished(compressor.compress(payload) + compressor.flush(zlib.Z_FULL_FLUSH))
        self._compression.give_back(self.bits, compressor)
        return data if always or len(data) < len(payload) else None

    def begin(self) -> Deflation:
        """Begin a message that is compressed piece by piece; nothing else may be compressed for the connection until it ends."""
        if not self.keeps_context:
            return Deflation(self._compression.take(self.bits), self._compression, self.bits)
        if self._compressor is None:
            self._compressor = self._compression.new_compressor(self.bits)
        return Deflation(self._compressor, None, self.bits)

    def forget(self) -> None:
        """What comes next is not to refer to what was compressed here: the peer has not seen it, or something else since."""
        self._compressor = None

    def inflate(self, data: bytes | bytearray, limit: int) -> bytes:
        """Inflate one message of at most `limit` bytes.

        Raises:
            ProtocolError: 1009 when it turns out larger, before more than that was inflated; 1007 if it is no deflate data, or is
                cut off.
        """
        if not data:
            # A compressor that has nothing to flush gives nothing, and some peers send just that.
            return b""
        context = self._decompressor
        if context is None:
            context = self._new_decompressor(b"")
        self._decompressor = None
        try:
            if len(data) <= INPUT_SLICE:
                inflated, context = self._inflate(context, (data + TAIL,), limit)
            else:
                with memoryview(data) as view:
                    slices = (bytes(view[at : at + INPUT_SLICE]) for at in range(0, len(data), INPUT_SLICE))
                    inflated, context = self._inflate(context, (*slices, TAIL), limit)
        except self._compression.codec.error:
            raise ProtocolError(CloseCode.INVALID_DATA, "message does not inflate") from None
        if self._keeps_inflating:
            self._decompressor = context
        return inflated

    def _inflate(self, context: Any, pieces: tuple[bytes | bytearray, ...], limit: int) -> tuple[bytes, Any]:
        """Return what the pieces inflate to, and the decompressor that goes on after them."""
        out = bytearray()
        streams = 1
        for piece in pieces:
            while True:
                most = min(OUTPUT_SLICE, limit + 1 - len(out))
                got = context.decompress(piece, most)
                out += got
                if len(out) > limit:
                    raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message is too big")
                if context.eof:
                    # Section 7.2.3.4: the next stream of this message. It can look back into this message, not into earlier ones.
                    piece = context.unused_data
                    streams += 1
                    if streams > MAX_STREAMS:
                        raise ProtocolError(CloseCode.INVALID_DATA, "message does not inflate")
                    context = self._new_decompressor(bytes(out[-WINDOW:]))
                    if not piece:
                        break
                elif context.unconsumed_tail:
                    piece = context.unconsumed_tail
                elif len(got) == most:
                    piece = b""
                else:
                    break
        probe = context.copy() if self._keeps_inflating else context
        if probe.decompress(LAST, 1) or not probe.eof:
            raise ProtocolError(CloseCode.INVALID_DATA, "message does not inflate")
        return bytes(out), context

    def _new_decompressor(self, past: bytes) -> Any:
        new = self._compression.codec.decompressobj
        return new(-self._inflate_bits, past) if past else new(-self._inflate_bits)


class Deflation:
    """One message that is compressed piece by piece."""

    __slots__ = ("_bits", "_compression", "_compressor")

    def __init__(self, compressor: Any, compression: Compression | None, bits: int) -> None:
        self._compressor = compressor
        # Where the compressor goes back to; None: the connection keeps it.
        self._compression = compression
        self._bits = bits

    def add(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Compress what is not the last piece, all of it."""
        return bytes(self._compressor.compress(piece) + self._compressor.flush(zlib.Z_SYNC_FLUSH))

    def end(self, piece: bytes | bytearray | memoryview) -> bytes:
        """Compress the last piece."""
        compressor, compression = self._compressor, self._compression
        if compression is None:
            return _finished(compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH))
        data = _finished(compressor.compress(piece) + compressor.flush(zlib.Z_FULL_FLUSH))
        compression.give_back(self._bits, compressor)
        return data


def _finished(data: bytes) -> bytes:
    """Take the tail off a message that was flushed. There is none if nothing was left to flush: that is an empty block."""
    return data[: -len(TAIL)] if data else EMPTY
