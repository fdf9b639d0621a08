"""The parts of KCP's wire that are ours: parameters, control datagrams and cookies, check sums and encryption."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gws_gevent.exceptions import EndpointError, MissingExtra, TransportError
from gws_gevent.transports import registry
from gws_gevent.transports.base import Endpoint
from gws_gevent.transports.kcp import cipher as kcp_cipher
from gws_gevent.transports.kcp.cipher import CIPHERS, Sealed, Summed, parse_key
from gws_gevent.transports.kcp.cookie import COOKIE_LIFE, Code, Control, Controls, Cookies, Kind
from gws_gevent.transports.kcp.core import HEADER
from gws_gevent.transports.kcp.params import client_params, server_params
from tests.support import require_module

KEY = bytes(range(32))
CONV = b"\1\2\3\4"
NONCES = (b"c" * 16, b"s" * 16)

# --- Parameters


def tuning(query: str) -> tuple[int, ...]:
    found = server_params(Endpoint.parse(f"kcp://:1?{query}")).tuning
    return found.nodelay, found.interval, found.resend, found.nc


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", (1, 10, 2, 0)),
        ("mode=normal", (0, 40, 2, 1)),
        ("mode=fast", (0, 30, 2, 1)),
        ("mode=fast2", (1, 20, 2, 1)),
        ("mode=fast3", (1, 10, 2, 1)),
        ("mode=fast&nc=0&interval=15", (0, 15, 2, 0)),
        ("nodelay=0&resend=0&interval=100", (0, 100, 0, 0)),
    ],
)
def test_modes_are_kcptuns_and_each_number_can_be_given(query: str, numbers: tuple[int, ...]) -> None:
    assert tuning(query) == numbers


def test_what_an_endpoint_says() -> None:
    params = server_params(Endpoint.parse("kcp://:1?mtu=1400&sndwnd=1024&rcvwnd=2048&stream=0&cookie=0&sessions=5&linger=0&core=kcp"))
    assert (params.tuning.mtu, params.tuning.sndwnd, params.tuning.rcvwnd, params.tuning.stream) == (1400, 1024, 2048, False)
    assert (params.cookie, params.key, params.sessions, params.linger, params.core) == (False, None, 5, 0, "kcp")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("color=red", "kcp has no parameter color; it knows cipher, cookie, core, "),
        ("mode=faster", "mode is one of normal, fast, fast2, fast3, not 'faster'"),
        ("mode=", "mode is one of normal, fast, fast2, fast3, not ''"),
        ("mtu=big", "mtu is a whole number from 256 to 65000, not 'big'"),
        ("mtu=70000", "mtu is a whole number from 256 to 65000, not '70000'"),
        ("mtu=%D9%A1200", "mtu is a whole number from 256 to 65000, not '١200'"),
        ("sndwnd=0", "sndwnd is a whole number from 128 to 32768, not '0'"),
        ("nc=2", "nc is a whole number from 0 to 1, not '2'"),
        ("cookie=yes", "cookie is a whole number from 0 to 1, not 'yes'"),
        ("idle-timeout=nan", "idle-timeout is a number of seconds from 1 to 86400, not 'nan'"),
        ("idle-timeout=5", "keepalive has to be less than idle-timeout, which is 5 seconds"),
        ("core=mine", "core is one of kcp, siokcp, not 'mine'"),
        ("cipher=aes-256-gcm", "a cipher needs a key: key-file= or key-env="),
        ("key-env=X&key-file=y", "key-file and key-env: one of them"),
        ("key-env=GWS_GEVENT_NO_SUCH_VARIABLE", "there is no environment variable GWS_GEVENT_NO_SUCH_VARIABLE"),
    ],
)
@pytest.mark.parametrize("read", [server_params, client_params])
def test_a_wrong_parameter_is_named(read: object, query: str, said: str) -> None:
    with pytest.raises(EndpointError) as caught:
        read(Endpoint.parse(f"kcp://:1?{query}"))  # type: ignore[operator]
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_of_a_server_are_no_parameters_of_a_client() -> None:
    with pytest.raises(EndpointError, match="kcp has no parameter sessions; it knows"):
        registry.dialer("kcp://localhost:1?sessions=5")
    with pytest.raises(EndpointError, match="to connect, a host and a port are needed"):
        registry.dialer("kcp://:1")


def test_a_key_comes_from_a_file_or_a_variable_and_never_from_the_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    for text in (KEY.hex(), KEY.hex().upper() + "\n", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"):
        file.write_text(text)
        assert server_params(Endpoint.parse(f"kcp://:1?key-file={file}")).key == KEY
        monkeypatch.setenv("THE_KEY", text)
        assert client_params(Endpoint.parse("kcp://:1?key-env=THE_KEY&cipher=chacha20-poly1305")).key == KEY
    with pytest.raises(EndpointError, match="key in an endpoint is seen by every user") as caught:
        server_params(Endpoint.parse(f"kcp://:1?key={KEY.hex()}"))
    assert KEY.hex() not in str(caught.value)
    with pytest.raises(EndpointError, match="cookie=0 is for stock peers"):
        server_params(Endpoint.parse(f"kcp://:1?key-file={file}&cookie=0"))


def test_a_key_that_cannot_be_used_is_told_without_a_word_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    with pytest.raises(TransportError, match=r"read the key file .*key: No such file or directory"):
        server_params(Endpoint.parse(f"kcp://:1?key-file={file}"))
    file.write_text("correct horse battery staple")
    with pytest.raises(TransportError, match="a key is 32 bytes, as 64 hexadecimal digits or in base64") as caught:
        server_params(Endpoint.parse(f"kcp://:1?key-file={file}"))
    assert "horse" not in str(caught.value)
    monkeypatch.setenv("THE_KEY", "correct horse")
    with pytest.raises(EndpointError, match="the environment variable THE_KEY: a key is 32 bytes") as told:
        server_params(Endpoint.parse("kcp://:1?key-env=THE_KEY"))
    assert "horse" not in str(told.value)


def test_a_missing_library_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("kcp", "siokcp"):
        monkeypatch.setitem(sys.modules, name, None)
    for act in (registry.listen, registry.dialer):
        with pytest.raises(MissingExtra, match=r"^the transport 'kcp' needs an extra: pip install 'gws_gevent\[kcp\]'$"):
            act("kcp://localhost:1")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    file = tmp_path / "key"
    file.write_text(KEY.hex())
    with pytest.raises(MissingExtra, match=r"^a key for kcp needs an extra: pip install 'gws_gevent\[kcp\]'$"):
        registry.listen(f"kcp://localhost:1?key-file={file}")


# --- Control datagrams and cookies


@pytest.mark.parametrize("key", [None, KEY])
def test_control_datagrams_are_read_as_they_were_written(key: bytes | None) -> None:
    controls, sizes = Controls(key, "aes-256-gcm"), {}
    for kind in Kind:
        extra = b"e" * 16 if kind in (Kind.COOKIE, Kind.START, Kind.ACCEPT) else b""
        control = Control(kind, CONV, NONCES[0], extra, Code.FULL)
        data = controls.write(control)
        sizes[kind.name] = len(data)
        assert controls.read(data) == control
        for at in range(len(data)):
            broken = bytearray(data)
            broken[at] ^= 1
            assert controls.read(bytes(broken)) is None
    more = 12 if key else 0
    assert sizes == {name: size + more for name, size in zip(sizes, (68, 44, 44, 44, 28, 28), strict=True)}


def test_a_control_datagram_needs_the_same_key_and_cipher() -> None:
    data = Controls(KEY, "aes-256-gcm").write(Control(Kind.HELLO, bytes(4), NONCES[0]))
    assert Controls(KEY, "aes-256-gcm").read(data) is not None
    for other in (Controls(bytes(32), "aes-256-gcm"), Controls(KEY, "chacha20-poly1305"), Controls(None, "aes-256-gcm")):
        assert other.read(data) is None


@given(st.binary(max_size=100))
def test_anything_is_a_control_datagram_or_not(data: bytes) -> None:
    for controls in (Controls(None, ""), Controls(KEY, "")):
        assert controls.read(data) is None
        control = controls.read(data[:4] + bytes((0xC1 + len(data) % 6,)) + data[5:])
        assert control is None


def test_a_cookie_is_good_for_one_address_conversation_and_nonce_and_for_a_short_time() -> None:
    cookies = Cookies(lambda size: b"r" * size)
    address = ("192.0.2.1", 5)
    cookie = cookies.make(address, CONV, NONCES[0], 100.9)
    assert cookies.is_right(cookie, address, CONV, NONCES[0], 100.9)
    assert cookies.is_right(cookie, (*address, 0, 7), CONV, NONCES[0], 100 + COOKIE_LIFE)
    assert not cookies.is_right(cookie, address, CONV, NONCES[0], 101 + COOKIE_LIFE)
    assert not cookies.is_right(cookie, address, CONV, NONCES[0], 99.0)
    for wrong in ((("192.0.2.1", 6), CONV, NONCES[0]), (("192.0.2.15", 5), CONV, NONCES[0]), (address, b"\1\2\3\5", NONCES[0])):
        assert not cookies.is_right(cookie, *wrong, 101.0)
    assert not cookies.is_right(cookie, address, CONV, NONCES[1], 101.0)
    assert not Cookies(lambda size: b"q" * size).is_right(cookie, address, CONV, NONCES[0], 101.0)


# --- Check sums and encryption


def summed() -> tuple[Summed, Summed]:
    return Summed(*NONCES, is_client=True), Summed(*NONCES, is_client=False)


def sealed(cipher: str = "aes-256-gcm", key: bytes = KEY) -> tuple[Sealed, Sealed]:
    require_module("cryptography")
    return Sealed(key, cipher, CONV, *NONCES, is_client=True), Sealed(key, cipher, CONV, *NONCES, is_client=False)


def test_a_changed_datagram_and_one_of_our_own_have_a_wrong_check_sum() -> None:
    ours, theirs = summed()
    datagram = ours.seal(CONV + b"packet")
    assert theirs.open(datagram) == CONV + b"packet"
    assert ours.open(datagram) is None
    assert Summed(NONCES[0], b"x" * 16, is_client=False).open(datagram) is None
    for at in range(8 * len(datagram)):
        broken = bytearray(datagram)
        broken[at // 8] ^= 1 << at % 8
        assert theirs.open(bytes(broken)) is None


@pytest.mark.parametrize("cipher", CIPHERS)
def test_an_encrypted_datagram_is_opened_once_and_by_the_peer_only(cipher: str) -> None:
    ours, theirs = sealed(cipher)
    packet = b"a packet of KCP, which nobody may read"
    datagram = ours.seal(packet)
    assert packet not in datagram
    assert datagram[:4] == CONV
    assert len(datagram) == len(packet) + ours.overhead
    assert ours.open(datagram) is None
    for at in range(len(datagram)):
        broken = bytearray(datagram)
        broken[at] ^= 1
        assert theirs.open(bytes(broken)) is None
    assert theirs.open(datagram) == packet
    assert theirs.open(datagram) is None  # a replay
    assert ours.seal(packet)[12:] != datagram[12:]
    for _, other in (sealed(cipher, bytes(32)), sealed(next(iter(set(CIPHERS) - {cipher})))):
        assert other.open(datagram) is None


def test_encrypted_datagrams_may_come_late_but_not_twice_or_far_too_late() -> None:
    ours, theirs = sealed()
    datagrams = [ours.seal(b"%d" % number) for number in range(3000)]
    assert theirs.open(datagrams[2047]) == b"2047"
    for number in range(2046, -1, -1):
        assert theirs.open(datagrams[number]) == b"%d" % number
    assert all(theirs.open(datagram) is None for datagram in datagrams[:2048])
    assert theirs.open(datagrams[2999]) == b"2999"
    ours, theirs = sealed()
    again = [ours.seal(b"%d" % number) for number in range(3000)]
    assert theirs.open(again[2999]) == b"2999"
    assert theirs.open(again[951]) is None
    assert theirs.open(again[952]) == b"952"


def test_keys_change_and_a_number_that_was_never_sent_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kcp_cipher, "_EPOCH_BITS", 3)
    ours, theirs = sealed()
    datagrams = [ours.seal(b"%d" % number) for number in range(48)]
    assert len({datagram[12:] for datagram in datagrams}) == 48
    order = [0, 9, 3, 8, 15, 16, 14, 25, 17, 41, 31, 32]
    opened = []
    for number in order:
        for lie in (5, 100, 1 << 50):
            forged = datagrams[number][:5] + (number + lie).to_bytes(7, "big") + datagrams[number][12:]
            assert theirs.open(forged) is None
        opened.append(theirs.open(datagrams[number]))
    # 3 is older by one epoch and is taken, and so is 17 after 25; 41 is two epochs ahead: its sender has gone on without us.
    assert opened == [b"%d" % number if number != 41 else None for number in order]


@given(st.binary(max_size=80))
def test_anything_that_nobody_sealed_is_not_opened(data: bytes) -> None:
    for seal in (summed()[0], sealed()[0]):
        assert seal.open(data) is None
        assert seal.open(CONV + b"\xe0" + data) is None


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, "AAAA", "0" * 63])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="a key is 32 bytes"):
        parse_key(text)


def test_a_datagram_with_a_header_is_more_than_its_seal() -> None:
    assert len(summed()[0].seal(bytes(HEADER))) == HEADER + 4
