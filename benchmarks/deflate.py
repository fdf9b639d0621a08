"""Measure the codecs of permessage-deflate: python -m benchmarks.deflate.

Prints two Markdown tables: microseconds and ratio for messages of JSON, and what a connection that keeps its contexts holds.

Belongs here: codecs by themselves. Does not belong here: servers, idle connections (idle.py takes an offer of extensions).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from typing import Any, Literal, cast

from benchmarks.idle import resident
from gws_gevent import MissingExtra, PermessageDeflate
from gws_gevent.extensions.deflate import Compression, Deflate
from gws_gevent.extensions.permessage_deflate import Agreement
from gws_gevent.frames import Side

__all__ = ["context_bytes", "message", "speed"]

SIZES = (512, 4096, 65536)
#: Codec and level.
SETTINGS = (("zlib", 1), ("zlib", 6), ("isal", 1), ("isal", 3), ("zlib-ng", 1), ("zlib-ng", 2), ("zlib-ng", 6))
WINDOWS = (15, 12, 9)
MEMORY = ((15, 8), (15, 5), (12, 5), (12, 8), (9, 8), (9, 1))
#: Connections whose contexts are made, and rounds of which the fastest counts.
CONTEXTS, ROUNDS = 200, 7
#: Seconds of one round, about.
ROUND = 0.02


def message(size: int) -> bytes:
    """Return so many bytes of JSON as an API would send it."""
    source = random.Random(size)
    rows = [
        {"id": number, "name": f"user{source.randrange(10**6)}", "score": round(source.random(), 6), "tags": ["alpha", "beta"]}
        for number in range(size // 50 + 1)
    ]
    return json.dumps(rows).encode()[:size]


def ends(codec: str, level: int, bits: int, memory_level: int = 8, keep: bool = False) -> tuple[Deflate, Deflate]:
    """Return a server's and a client's half."""
    name = cast(Literal["zlib", "isal", "zlib-ng"], codec)
    options = PermessageDeflate(codec=name, level=level, memory_level=memory_level, threshold=0)
    agreement = Agreement(not keep, not keep, bits, bits)
    return Compression(options, Side.SERVER).agreed(agreement), Compression(options, Side.CLIENT).agreed(agreement)


def speed(codec: str, level: int, bits: int, size: int) -> tuple[float, float, float]:
    """Return microseconds to compress and to inflate a message, and how many times smaller it gets."""
    server, client = ends(codec, level, bits)
    data = message(size)
    packed = server.compress(data, True)
    assert packed is not None
    return _fastest(lambda: server.compress(data, True)), _fastest(lambda: client.inflate(packed, size)), size / len(packed)


def _fastest(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    count = max(1, int(ROUND / (time.perf_counter() - started)))
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - started) / count)
    return best * 1e6


def context_bytes(codec: str, bits: int, memory_level: int) -> tuple[float, float]:
    """Return the resident bytes of a compressor, and of a decompressor, that has worked; in a process that did nothing else."""
    data = random.Random(1).randbytes(100_000)
    server, _ = ends(codec, 1, bits, memory_level, keep=True)
    packed = server.compress(data)
    assert packed is not None
    held, found = [], []
    uses: tuple[Callable[[tuple[Deflate, Deflate]], object], ...] = (
        lambda pair: pair[0].compress(data),
        lambda pair: pair[1].inflate(packed, len(data)),
    )
    for use in uses:
        pairs = [ends(codec, 1, bits, memory_level, keep=True) for _ in range(CONTEXTS)]
        before = resident(os.getpid())
        for pair in pairs:
            use(pair)
        found.append((resident(os.getpid()) - before) / CONTEXTS)
        held.append(pairs)
    return found[0], found[1]


def print_speed() -> None:
    """A row for each codec, level and window."""
    print("| codec, level | window bits | " + " | ".join(f"{size:,} B: compress, inflate, ratio" for size in SIZES) + " |")
    print("|---|---:|" + "---|" * len(SIZES))
    for (codec, level), bits in product(SETTINGS, WINDOWS):
        try:
            cells = [speed(codec, level, bits, size) for size in SIZES]
        except MissingExtra as error:
            print(error, file=sys.stderr)
            continue
        print(f"| {codec}, {level} | {bits} | " + " | ".join(f"{c:.1f} us, {i:.1f} us, {r:.2f}" for c, i, r in cells) + " |")


def print_memory() -> None:
    """A row for each codec, window and memory level, each measured in a process of its own."""
    print("| codec | window bits | memory level | compressor | decompressor |\n|---|---:|---:|---:|---:|")
    for codec, (bits, memory_level) in product(("zlib", "isal", "zlib-ng"), MEMORY):
        args = [sys.executable, "-m", "benchmarks.deflate", codec, str(bits), str(memory_level)]
        done = subprocess.run(args, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            compressor, decompressor = json.loads(done.stdout)
            print(f"| {codec} | {bits} | {memory_level} | {compressor / 1024:.0f} KiB | {decompressor / 1024:.0f} KiB |")


def main() -> None:
    if len(sys.argv) > 1:
        codec, bits, memory_level = sys.argv[1:]
        print(json.dumps(context_bytes(codec, int(bits), int(memory_level))))
        return
    print_speed()
    print()
    print_memory()


if __name__ == "__main__":
    main()
