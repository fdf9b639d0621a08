"""Masking, plain and compiled, against its definition: payload byte i is XORed with byte i mod 4 of the key (section 5.3)."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import pytest

from gws_gevent.frames import frame_header
from tests.test_accel import compiled

BUILDS = pytest.mark.parametrize("build", ["plain", "compiled"])
KEY = bytes((0x37, 0xFA, 0x21, 0x3D))
#: What stands before and behind a payload must not be touched, nor come out.
BEFORE, BEHIND = b"\xee" * 3, b"\xdd" * 9
#: Past one and several of the 8, 16 and 32 byte steps a compiled loop may take.
LENGTHS = range(71)
LONG = (255, 256, 257, 4095, 4096, 4099, 65_535, 65_541)

TEXTS = [
    "",
    "a",
    "plain ASCII that is longer than one vector register of 32 bytes",
    "é",
    "naïve",
    "日本語",
    "🐍",
    "a🐍é日" * 20,
    "x" * 63 + "é",
]


def masking(build: str) -> ModuleType:
    return import_module("gws_gevent._masking") if build == "plain" else compiled("_masking")


def payload_of(length: int) -> bytes:
    return bytes((i * 7 + 1) & 0xFF for i in range(length))


def masked(payload: bytes, key: bytes = KEY, phase: int = 0) -> bytes:
    """The definition, a byte at a time."""
    return bytes(byte ^ key[(i + phase) % 4] for i, byte in enumerate(payload))


def test_the_example_of_the_rfc() -> None:
    # Section 5.7: a single-frame masked text message.
    assert masked(b"Hello") == bytes.fromhex("7f9f4d5158")


@BUILDS
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_unmask_gives_the_payload_at_any_offset(build: str, kind: type[bytes] | type[bytearray]) -> None:
    unmask = masking(build).unmask
    for length in (*LENGTHS, *LONG):
        payload = payload_of(length)
        for offset in range(4):
            start = bytes(offset) + BEFORE
            data = kind(start + KEY + masked(payload) + BEHIND)
            untouched = bytes(data)
            result = unmask(data, len(start) + 4, length, len(start))
            assert type(result) is bytes
            assert result == payload, (length, offset)
            assert data == untouched


@BUILDS
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_negative_key_offset_means_unmasked_data(build: str, kind: type[bytes] | type[bytearray]) -> None:
    for length in LENGTHS:
        result = masking(build).unmask(kind(BEFORE + payload_of(length) + BEHIND), len(BEFORE), length, -1)
        assert type(result) is bytes
        assert result == payload_of(length)


@BUILDS
def test_a_key_of_zeros_changes_nothing(build: str) -> None:
    for length in LENGTHS:
        assert masking(build).unmask(bytes(4) + payload_of(length), 4, length, 0) == payload_of(length)


@BUILDS
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("with_key", [True, False])
def test_unmask_text_gives_the_text(build: str, text: str, kind: type[bytes] | type[bytearray], with_key: bool) -> None:
    payload = text.encode()
    data = kind(BEFORE + KEY + (masked(payload) if with_key else payload) + BEHIND)
    result = masking(build).unmask_text(data, len(BEFORE) + 4, len(payload), len(BEFORE) if with_key else -1, "strict")
    assert type(result) is str
    assert result == text


@BUILDS
def test_unmask_text_of_every_length_with_a_character_at_every_place(build: str) -> None:
    for length in LENGTHS:
        for place in range(length + 1):
            text = "a" * place + "é" + "b" * (length - place)
            payload = text.encode()
            assert masking(build).unmask_text(KEY + masked(payload), 4, len(payload), 0, "strict") == text
        ascii_only = "c" * length
        assert masking(build).unmask_text(KEY + masked(ascii_only.encode()), 4, length, 0, "strict") == ascii_only


@BUILDS
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"])
@pytest.mark.parametrize("before", [0, 1, 40])
def test_unmask_text_refuses_or_replaces_what_is_not_utf8(build: str, bad: bytes, before: int) -> None:
    payload = b"a" * before + bad
    data = KEY + masked(payload)
    with pytest.raises(UnicodeDecodeError):
        masking(build).unmask_text(data, 4, len(payload), 0, "strict")
    replaced = masking(build).unmask_text(data, 4, len(payload), 0, "replace")
    assert replaced == payload.decode("utf-8", "replace")
    assert "\ufffd" in replaced


@BUILDS
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("phase", range(4))
def test_append_unmasked_goes_on_in_the_middle_of_a_key(build: str, kind: type[bytes] | type[bytearray], phase: int) -> None:
    for length in (*LENGTHS, *LONG):
        payload = payload_of(length)
        target = bytearray(b"begun")
        data = kind(BEFORE + masked(payload, phase=phase) + BEHIND)
        masking(build).append_unmasked(target, data, len(BEFORE), length, KEY, phase)
        assert target == b"begun" + payload, (length, phase)


@BUILDS
def test_append_unmasked_without_a_key_copies(build: str) -> None:
    for length in LENGTHS:
        target = bytearray()
        masking(build).append_unmasked(target, BEFORE + payload_of(length) + BEHIND, len(BEFORE), length, b"", 0)
        assert target == payload_of(length)


@BUILDS
def test_a_payload_cut_anywhere_comes_together_again(build: str) -> None:
    payload = payload_of(70)
    data = masked(payload)
    for cut in range(71):
        target = bytearray()
        masking(build).append_unmasked(target, data, 0, cut, KEY, 0)
        masking(build).append_unmasked(target, data, cut, 70 - cut, KEY, cut & 3)
        assert target == payload


@BUILDS
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_append_frame_with_a_key_masks(build: str, kind: type) -> None:
    for length in (*LENGTHS, 125, 126, *LONG):
        payload = payload_of(length)
        out = bytearray(b"begun")
        masking(build).append_frame(out, 0x82, kind(payload), KEY)
        assert out == b"begun" + frame_header(0x82, length, KEY) + masked(payload), length


@BUILDS
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_append_frame_without_a_key_copies(build: str, kind: type) -> None:
    for length in (0, 1, 125, 126, 127, 65_535, 65_536):
        out = bytearray()
        masking(build).append_frame(out, 0x01, kind(payload_of(length)), b"")
        assert out == frame_header(0x01, length) + payload_of(length)


@pytest.mark.parametrize(
    ("length", "form"),
    [(0, "8200"), (125, "827d"), (126, "827e007e"), (65_535, "827effff"), (65_536, "827f0000000000010000")],
)
def test_a_header_has_the_shortest_length_form(length: int, form: str) -> None:
    assert frame_header(0x82, length) == bytes.fromhex(form)
    with_key = bytearray(bytes.fromhex(form))
    with_key[1] |= 0x80
    assert frame_header(0x82, length, KEY) == bytes(with_key) + KEY
