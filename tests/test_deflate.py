"""Compressing and inflating: every codec and window, messages that stand alone, what does not inflate, bombs."""

from __future__ import annotations

import random
import sys
import tracemalloc
import zlib
from itertools import product
from typing import Any

import pytest

from gws_gevent import MissingExtra, PermessageDeflate, ProtocolError
from gws_gevent.extensions import deflate as deflate_module
from gws_gevent.extensions.deflate import MAX_STREAMS, Compression, Deflate, find_codec
from gws_gevent.extensions.permessage_deflate import Agreement
from gws_gevent.frames import Side
from tests.support import require_module

KIB, MIB = 1024, 1024 * 1024
NO_LIMIT = 1 << 30
MODULES = {"zlib": "zlib", "isal": "isal.isal_zlib", "zlib-ng": "zlib_ng.zlib_ng"}
CODECS = pytest.mark.parametrize("codec", MODULES)
EACH_WINDOW = pytest.mark.parametrize("bits", range(9, 16))
#: Section 7.2.3.1: "Hello" in one block with fixed codes.
HELLO = bytes.fromhex("f248cdc9c90700")


def words(count: int, seed: int = 1) -> bytes:
    """Text that compresses like text."""
    source = random.Random(seed)
    return b" ".join(b"word%d" % source.randrange(500) for _ in range(count))


MESSAGES = [b"a", words(10), words(1000), bytes(100_000), random.Random(2).randbytes(5000), words(8000, 3), b"end"]


def ends(keep: bool = False, bits: int = 15, **options: Any) -> tuple[Deflate, Deflate]:
    """A server's and a client's half after they have agreed."""
    require_module(MODULES[options.get("codec", "zlib")])
    agreement = Agreement(not keep, not keep, bits, bits)
    made = PermessageDeflate(**options)
    return Compression(made, Side.SERVER).agreed(agreement), Compression(made, Side.CLIENT).agreed(agreement)


def raw(data: bytes, level: int = 1, bits: int = 15, end: int = zlib.Z_SYNC_FLUSH) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    packed = compressor.compress(data) + compressor.flush(end)
    return packed[:-4] if end == zlib.Z_SYNC_FLUSH else packed


def failure(deflate: Deflate, data: bytes, limit: int = NO_LIMIT) -> int:
    with pytest.raises(ProtocolError) as caught:
        deflate.inflate(data, limit)
    return caught.value.code


# Round trips


@CODECS
@EACH_WINDOW
@pytest.mark.parametrize("keep", [False, True])
def test_what_one_end_compresses_the_other_inflates(codec: str, bits: int, keep: bool) -> None:
    for level, memory_level in ((1, 8), (9, 1)):
        server, client = ends(keep, bits, codec=codec, level=level, memory_level=memory_level)
        for message, (one, other) in product(MESSAGES, ((server, client), (client, server))):
            packed = one.compress(message)
            assert packed is not None or (not keep and message in (MESSAGES[0], MESSAGES[4], MESSAGES[6]))
            assert packed is None or other.inflate(packed, len(message)) == message


@CODECS
@pytest.mark.parametrize("keep", [False, True])
def test_pieces_make_one_message(codec: str, keep: bool) -> None:
    server, client = ends(keep, codec=codec)
    for pieces in ([b"", b""], [words(50), b"", words(50)], [b"", words(3)], [words(5000)], [words(9), b""], [b""]):
        deflation = server.begin()
        packed = b"".join([*(deflation.add(piece) for piece in pieces[:-1]), deflation.end(pieces[-1])])
        assert client.inflate(packed, NO_LIMIT) == b"".join(pieces)
        between = server.compress(words(100))
        assert between is not None
        assert client.inflate(between, NO_LIMIT) == words(100)


@CODECS
def test_a_message_without_takeover_is_what_a_new_compressor_makes_of_it(codec: str) -> None:
    server, _ = ends(codec=codec)
    compression = server.compression
    for message in (words(1000, 1), words(1000, 2), bytes(70_000), words(1000, 1)):
        fresh = compression.new_compressor(15)
        assert server.compress(message) == (fresh.compress(message) + fresh.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_with_takeover_a_repeated_message_gets_small() -> None:
    server, client = ends(keep=True)
    noise = random.Random(5).randbytes(4000)
    first, second = server.compress(noise), server.compress(noise)
    assert first is not None
    assert second is not None
    assert len(second) < 100 < len(first)
    assert [client.inflate(one, NO_LIMIT) for one in (first, second)] == [noise, noise]


def test_a_context_that_is_forgotten_goes_on_without_what_the_peer_has_not_seen() -> None:
    server, client = ends(keep=True)
    for message in (words(100, 1), words(100, 2)):
        sent = server.compress(message)
        assert sent is not None
        assert client.inflate(sent, NO_LIMIT) == message
        assert server.compress(words(100, 9))  # never sent
        server.forget()


def test_a_message_that_stands_alone_fits_between_others() -> None:
    server, client = ends(keep=True)
    for seed in range(4):
        between = server.compress_alone(words(300, 99))
        assert between is not None
        assert client.inflate(between, NO_LIMIT) == words(300, 99)
        server.forget()
        own = server.compress(words(300, seed))
        assert own is not None
        assert client.inflate(own, NO_LIMIT) == words(300, seed)


def test_nothing_leaks_from_one_message_into_the_next_one() -> None:
    """A peer that refers to what another connection was sent gets nothing."""
    server, client = ends()
    secret = server.compress(words(2000))
    assert secret is not None
    assert client.inflate(secret, NO_LIMIT) == words(2000)
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15)
    compressor.compress(words(2000))
    compressor.flush(zlib.Z_SYNC_FLUSH)
    backward = compressor.compress(words(2000)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert failure(client, backward[:-4]) == 1007


@pytest.mark.parametrize("bits", range(8, 16))
@pytest.mark.parametrize("keep", [False, True])
def test_each_window_inflates(bits: int, keep: bool) -> None:
    deflate = Compression(PermessageDeflate(), Side.CLIENT).agreed(Agreement(not keep, True, bits, 15))
    compressor = zlib.compressobj(6, zlib.DEFLATED, -max(bits, 9))
    for seed in range(5):
        # zlib looks back farther than 8 bits say: in messages as short as these it cannot.
        message = words(1000 if bits > 8 else 20, seed)
        packed = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH if keep and bits > 8 else zlib.Z_FULL_FLUSH)
        assert deflate.inflate(packed[:-4], len(message)) == message


# What inflates, and what does not


@pytest.mark.parametrize(
    "packed",
    [
        HELLO,
        bytes.fromhex("000500faff48656c6c6f00"),  # 7.2.3.3: stored
        bytes.fromhex("f348cdc9c9070000"),  # 7.2.3.4: a block with BFINAL
        bytes.fromhex("f248050000 00ffff cac9c90700".replace(" ", "")),  # 7.2.3.5: two blocks
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_the_examples_of_the_rfc(packed: bytes, keep: bool) -> None:
    _, client = ends(keep)
    assert client.inflate(packed, 5) == b"Hello"
    assert client.inflate(packed, 5) == b"Hello"


def test_the_shared_window_of_the_rfc() -> None:
    _, client = ends(keep=True)
    assert client.inflate(HELLO, 5) == b"Hello"
    assert client.inflate(bytes.fromhex("f200110000"), 5) == b"Hello"  # 7.2.3.2
    assert failure(ends(keep=False)[1], bytes.fromhex("f200110000")) == 1007


def test_an_empty_message() -> None:
    for keep in (False, True):
        _, client = ends(keep)
        assert client.inflate(b"\x00", 0) == b""
        assert client.inflate(b"", 0) == b""


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("size", [40, 3000, 200_000])
def test_truncated_data_does_not_inflate(keep: bool, size: int) -> None:
    source = words(size // 6)
    packed = raw(source, 6)
    cuts = range(1, len(packed)) if len(packed) < 2000 else random.Random(3).sample(range(1, len(packed)), 100)
    for cut in cuts:
        assert failure(ends(keep)[1], packed[:cut]) == 1007, cut


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "packed",
    [
        b"\xff",
        b"\x07",
        HELLO + b"\x00\x00\xff\xff",
        b"\x01\x05\x00\xfa\xffHello",
        random.Random(4).randbytes(100),
        b"\x78\x9c" + HELLO,
    ],
)
def test_what_is_no_deflate_data(packed: bytes, keep: bool) -> None:
    assert failure(ends(keep)[1], packed) == 1007


def test_a_message_of_several_streams_looks_back_into_itself_only() -> None:
    _, client = ends(keep=True)
    text = words(3000)
    first = zlib.compressobj(1, zlib.DEFLATED, -15)
    second = zlib.compressobj(1, zlib.DEFLATED, -15, zdict=text[-32768:])
    packed = first.compress(text) + first.flush(zlib.Z_FINISH) + second.compress(text) + second.flush(zlib.Z_SYNC_FLUSH)
    assert client.inflate(packed[:-4], NO_LIMIT) == text * 2
    assert failure(ends()[1], (second.compress(text) + second.flush(zlib.Z_SYNC_FLUSH))[:-4]) == 1007


def test_the_number_of_streams_is_bounded() -> None:
    end = raw(b"", end=zlib.Z_FINISH)
    _, client = ends()
    assert client.inflate(end * (MAX_STREAMS - 1) + b"\x00", NO_LIMIT) == b""
    assert failure(client, end * MAX_STREAMS + b"\x00") == 1007
    assert failure(client, end * 200_000 + b"\x00") == 1007


# Limits


@pytest.mark.parametrize("size", [1, 5, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB, 1_000_003])
@pytest.mark.parametrize("keep", [False, True])
def test_the_limit_is_exact(size: int, keep: bool) -> None:
    for source in (bytes(size), random.Random(size).randbytes(size)):
        packed = raw(source)
        assert ends(keep)[1].inflate(packed, size) == source
        assert failure(ends(keep)[1], packed, size - 1) == 1009


@pytest.mark.slow
def test_a_bomb_is_not_inflated_past_the_limit() -> None:
    limit = MIB
    bomb = raw(bytes(50 * MIB), 9)
    assert len(bomb) < 60 * KIB
    _, client = ends()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert failure(client, bomb, limit) == 1009
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 2 * limit


# Who has a compressor


def test_all_that_agreed_on_the_same_share_what_they_need() -> None:
    compression = Compression(PermessageDeflate(), Side.SERVER)
    one, other = (compression.agreed(Agreement(True, True, bits, bits)) for bits in (15, 12))
    assert compression.agreed(Agreement(True, True, 15, 15)) is one
    assert one is not other
    assert one.variant != other.variant
    for takeover in (Agreement(False, True, 15, 15), Agreement(True, False, 15, 15), Agreement(False, False, 15, 15)):
        assert compression.agreed(takeover) is not compression.agreed(takeover)
        assert compression.agreed(takeover).variant == one.variant


def test_compressors_are_used_again_and_the_idle_ones_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = Compression.new_compressor
    monkeypatch.setattr(Compression, "new_compressor", lambda self, bits: made.append(bits) or original(self, bits))
    compression = Compression(PermessageDeflate(pool_size=2), Side.SERVER)
    deflate = compression.agreed(Agreement(True, True, 15, 15))
    for _ in range(10):
        deflate.compress(words(100))
    assert made == [15]
    streams = [deflate.begin() for _ in range(5)]
    for stream in streams:
        stream.end(words(10))
    assert len(made) == 5
    for stream in [deflate.begin() for _ in range(3)]:
        stream.end(b"")
    assert len(made) == 6, "two of the five were kept"


def test_without_a_pool_each_message_has_a_new_compressor() -> None:
    compression = Compression(PermessageDeflate(pool_size=0), Side.SERVER)
    deflate = compression.agreed(Agreement(True, True, 15, 15))
    assert deflate.compress(words(100)) == deflate.compress(words(100))


@pytest.mark.parametrize(
    ("size", "compress", "keep", "wanted"),
    [
        (0, None, False, False), (0, True, True, False), (511, None, False, False), (512, None, False, True), (1, None, True, True),
        (1, True, False, True), (9999, False, False, False), (9999, False, True, False),
    ],
)  # fmt: skip
def test_which_messages_are_compressed(size: int, compress: bool | None, keep: bool, wanted: bool) -> None:
    assert ends(keep)[0].is_wanted(size, compress) is wanted


def test_a_client_that_is_asked_for_8_bits_sends_everything_uncompressed() -> None:
    client = Compression(PermessageDeflate(), Side.CLIENT).agreed(Agreement(True, True, 15, 8))
    assert not client.is_wanted(10_000, None)
    assert not client.is_wanted(10_000, True)
    assert client.inflate(HELLO, 5) == b"Hello"


# Codecs


def test_the_codec_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES.values():
        require_module(module)
    assert [find_codec(name).name for name in (*MODULES, "auto")] == ["zlib", "isal", "zlib-ng", "isal"]
    monkeypatch.setitem(sys.modules, "isal", None)
    assert find_codec("auto").name == "zlib-ng"
    with pytest.raises(MissingExtra, match=r"^the codec isal needs an extra: pip install 'gws_gevent\[deflate\]'$"):
        find_codec("isal")
    monkeypatch.setitem(sys.modules, "zlib_ng", None)
    assert find_codec("auto").name == "zlib"
    with pytest.raises(MissingExtra, match="zlib-ng"):
        find_codec("zlib-ng")


def test_levels_are_those_of_the_codec() -> None:
    require_module("isal")
    assert Compression(PermessageDeflate(codec="isal", level=9), Side.SERVER).level == 3
    assert Compression(PermessageDeflate(level=9), Side.SERVER).level == 9


def test_input_in_slices_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, text = raw(words(500), 6), words(500)
    for size in (1, 2, 3, 7, 100):
        monkeypatch.setattr(deflate_module, "INPUT_SLICE", size)
        monkeypatch.setattr(deflate_module, "OUTPUT_SLICE", size)
        assert ends()[1].inflate(packed, len(text)) == text
        assert failure(ends()[1], packed, len(text) - 1) == 1009
        assert failure(ends()[1], packed[:-3]) == 1007
