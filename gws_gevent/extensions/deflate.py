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

__all__ = ["Codec", "Compression", "Deflate", "Deflation", "Inflation", "find_codec"]

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
#: Bytes that a byte may inflate to: 258 for two bits.
MAX_RATIO: Final = 1032
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
        keeps_context, keeps_inflating: it is in this one, of what is sent, of what is received.
        variant: the same for all whose messages look the same when each is compressed by itself.
    """

    __slots__ = (
        "_compressor", "_decompressor", "_inflate_bits", "agreement", "bits", "compression", "is_shared", "keeps_context",
        "keeps_inflating", "variant",
    )  # fmt: skip

    def __init__(self, compression: Compression, agreement: Agreement) -> None:
        is_client = compression.is_client
        self.agreement = agreement
        self.bits = agreement.client_max_window_bits if is_client else agreement.server_max_window_bits
        self.keeps_context = not (agreement.client_no_context_takeover if is_client else agreement.server_no_context_takeover)
        self._inflate_bits = agreement.server_max_window_bits if is_client else agreement.client_max_window_bits
        self.keeps_inflating = not (agreement.server_no_context_takeover if is_client else agreement.client_no_context_takeover)
        self.is_shared = not self.keeps_context and not self.keeps_inflating
        self.variant = (compression.codec.name, compression.level, compression.options.memory_level, self.bits)
        self.compression = compression
        self._compressor: Any = None
        self._decompressor: Any = None

    def is_wanted(self, size: int, compress: bool | None) -> bool:
        """Tell whether a message of so many bytes is to be compressed; `compress` is what its writer says, if anything."""
        if self.bits < NARROWEST or not size:
            return False  # a server may ask a client for 8, which no zlib can do: it is sent everything uncompressed
        if compress is not None:
            return compress
        return self.keeps_context or size >= self.compression.options.threshold

    def compress(self, payload: bytes | bytearray | memoryview, always: bool = False) -> bytes | None:
        """Compress a message that is sent next; None if it is no smaller then, unless `always` or a context is kept."""
        if not self.keeps_context:
            return self.compress_alone(payload, always)
        if self._compressor is None:
            self._compressor = self.compression.new_compressor(self.bits)
        return _finished(self._compressor.compress(payload) + self._compressor.flush(zlib.Z_SYNC_FLUSH))

    def compress_alone(self, payload: bytes | bytearray | memoryview, always: bool = False) -> bytes | None:
        """Compress a message so that it refers to no other; None if that makes it no smaller, unless `always`."""
        compressor = self.compression.take(self.bits)
        data = _finished(compressor.compress(payload) + compressor.flush(zlib.Z_FULL_FLUSH))
        self.compression.give_back(self.bits, compressor)
        return data if always or len(data) < len(payload) else None

    def begin(self) -> Deflation:
        """Begin a message that is compressed piece by piece; nothing else may be compressed for the connection until it ends."""
        if not self.keeps_context:
            return Deflation(self.compression.take(self.bits), self.compression, self.bits)
        if self._compressor is None:
            self._compressor = self.compression.new_compressor(self.bits)
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
        inflation = self.begin_inflating(limit)
        if len(data) <= INPUT_SLICE:
            inflation.inflate(data + TAIL)
        else:
            with memoryview(data) as view:
                for at in range(0, len(data), INPUT_SLICE):
                    inflation.inflate(bytes(view[at : at + INPUT_SLICE]))
            inflation.inflate(TAIL)
        inflation.end()
        return bytes(inflation.out)

    def begin_inflating(self, limit: int) -> Inflation:
        """Begin a message of at most `limit` bytes; no other may be inflated for the connection until it has ended."""
        context, self._decompressor = self._decompressor, None
        return Inflation(self, self.new_decompressor(b"") if context is None else context, limit)

    def go_on_with(self, decompressor: Any) -> None:
        """Keep what has inflated a whole message for the next one."""
        self._decompressor = decompressor

    def new_decompressor(self, past: bytes) -> Any:
        new = self.compression.codec.decompressobj
        return new(-self._inflate_bits, past) if past else new(-self._inflate_bits)


class Inflation:
    """One message that is inflated piece by piece.

    Attributes:
        out: what was inflated; of a message that is read in pieces the last WINDOW bytes.
        size: bytes inflated so far.
    """

    __slots__ = ("_began", "_decompressor", "_deflate", "_left", "_limit", "_streams", "out", "size")

    def __init__(self, deflate: Deflate, decompressor: Any, limit: int) -> None:
        self._deflate = deflate
        self._decompressor = decompressor
        self._limit = limit
        self._streams = 1
        #: What is left of the piece that was added; None where all of it has been inflated.
        self._left: bytes | bytearray | None = None
        #: Anything was added. A compressor that has nothing to flush gives nothing, and some peers send just that.
        self._began = False
        self.out = bytearray()
        self.size = 0

    @property
    def is_needed(self) -> bool:
        """Later messages may refer to this one, so that it has to be inflated even if nobody wants it."""
        return self._deflate.keeps_inflating

    # As a whole

    def inflate(self, piece: bytes | bytearray) -> None:
        """Inflate all of a piece to the end of `out`. Raises as `Deflate.inflate`."""
        left: bytes | bytearray | None = piece
        while left is not None:
            left = self._inflate_slice(left)

    # In pieces

    def add(self, piece: bytes | bytearray) -> None:
        """Take the next INPUT_SLICE of the message at most, when `read` has nothing more."""
        self._left = piece
        self._began = True

    def read(self) -> bytes:
        """Inflate at most OUTPUT_SLICE bytes of what was added; empty when nothing is left of it. Raises as `Deflate.inflate`."""
        while self._left is not None:
            before = len(self.out)
            self._left = self._inflate_slice(self._left)
            if len(self.out) > before:
                got = bytes(self.out[before:])
                if len(self.out) > WINDOW:
                    del self.out[:-WINDOW]
                return got
        return b""

    def finish(self) -> bytes:
        """All of the message has been added and read: return what its end still makes of it, if anything.

        Raises:
            ProtocolError: 1007 if the message was cut off, 1009 as `read`.
        """
        before = len(self.out)
        if self._began:
            self.inflate(TAIL)
            self.end()
        elif self._deflate.keeps_inflating:
            self._deflate.go_on_with(self._decompressor)
        return bytes(self.out[before:])

    # Both

    def end(self) -> None:
        """All of the message, TAIL included, has been inflated: the next one goes on from here. Raises as `finish`."""
        decompressor, keeps = self._decompressor, self._deflate.keeps_inflating
        probe = decompressor.copy() if keeps else decompressor
        try:
            cut_off = probe.decompress(LAST, 1) or not probe.eof
        except self._deflate.compression.codec.error:
            cut_off = True
        if cut_off:
            raise ProtocolError(CloseCode.INVALID_DATA, "message does not inflate")
        if keeps:
            self._deflate.go_on_with(decompressor)

    def _inflate_slice(self, piece: bytes | bytearray) -> bytes | None:
        """Inflate some of a piece; return what is left of it, None if nothing is."""
        decompressor = self._decompressor
        most = min(OUTPUT_SLICE, self._limit + 1 - self.size)
        try:
            got = decompressor.decompress(piece, most)
        except self._deflate.compression.codec.error:
            raise ProtocolError(CloseCode.INVALID_DATA, "message does not inflate") from None
        self.out += got
        self.size += len(got)
        if self.size > self._limit:
            raise ProtocolError(CloseCode.MESSAGE_TOO_BIG, "message is too big")
        if decompressor.eof:
            # Section 7.2.3.4: the next stream of this message. It can look back into this message, not into earlier ones.
            self._streams += 1
            if self._streams > MAX_STREAMS:
                raise ProtocolError(CloseCode.INVALID_DATA, "message does not inflate")
            self._decompressor = self._deflate.new_decompressor(bytes(self.out[-WINDOW:]))
            return decompressor.unused_data or None
        if decompressor.unconsumed_tail:
            tail: bytes = decompressor.unconsumed_tail
            return tail
        return b"" if len(got) == most else None


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
