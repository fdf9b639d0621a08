# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""What the connections of one server or one client have in common.

Belongs here: the side, the limits, the frame parsers, what was negotiated. Does not belong here: anything of a single connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gws_gevent.extensions.deflate import MAX_RATIO, TAIL, Compression, Deflate
from gws_gevent.frames import Side

from ._frame_parser import FrameParser

if TYPE_CHECKING:
    from gws_gevent.extensions.permessage_deflate import Agreement
    from gws_gevent.options import ConnectionOptions

__all__ = ["ProtocolRules"]

#: What a frame of a message in pieces may declare; the limit of its stream is looked at besides.
MAX_LENGTH: Final = 2**63 - 1


class ProtocolRules:
    """What connections of one server or client share: the side and the limits, the frame parsers, and what was negotiated.

    Args:
        compression: what others in this thread, of the same side and with the same `permessage_deflate`, share already.

    Attributes:
        deflate: what messages are compressed and inflated with; None where that was not negotiated.
        never_too_big: bytes of compressed data that cannot come to more than `max_size`.

    Raises:
        MissingExtra: the codec of `permessage_deflate` is not installed.
    """

    __slots__ = (
        "_compression", "_options", "_shared", "check_utf8", "deflate", "is_client", "max_fragments", "max_size",
        "never_too_big", "parser", "stream_parser", "utf8_errors",
    )  # fmt: skip

    def __init__(
        self, side: Side, options: ConnectionOptions, compression: Compression | None = None, deflate: Deflate | None = None
    ) -> None:
        self._options = options
        self._compression = compression
        self._shared: dict[Deflate, ProtocolRules] = {}
        self.deflate = deflate
        if compression is None and options.permessage_deflate is not None:
            self._compression = Compression(options.permessage_deflate, side)
        self.is_client = side is Side.CLIENT
        self.max_size = options.read_max_payload_size
        self.never_too_big = options.read_max_payload_size // MAX_RATIO - len(TAIL)
        self.max_fragments = options.max_fragments
        self.check_utf8 = options.check_utf8
        self.utf8_errors = "strict" if options.check_utf8 else "replace"
        self.parser = FrameParser(side is Side.SERVER, options.read_max_payload_size, deflate is not None)
        self.stream_parser = FrameParser(side is Side.SERVER, MAX_LENGTH, deflate is not None)

    def agreed(self, agreement: Agreement) -> ProtocolRules:
        """Return the rules of connections that have agreed on compression; one object for all of them that keep no context."""
        assert self._compression is not None, "compression is agreed on where the options have it"
        deflate = self._compression.agreed(agreement)
        rules = self._shared.get(deflate)
        if rules is None:
            rules = ProtocolRules(Side.CLIENT if self.is_client else Side.SERVER, self._options, self._compression, deflate)
            if deflate.is_shared:
                self._shared[deflate] = rules
        return rules
