"""Endpoints and the way from a scheme to its transport."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from gws_gevent.exceptions import EndpointError, GwsError, MissingExtra
from gws_gevent.transports import memory, registry, tcp, tls, unix
from gws_gevent.transports.base import DialSettings, Endpoint, ListenSettings, NonBlockingStream, as_transport_error

# --- Endpoints


@pytest.mark.parametrize(
    ("text", "endpoint", "written"),
    [
        (":3001", Endpoint("tcp", "", 3001), "tcp://:3001"),
        ("localhost:3001", Endpoint("tcp", "localhost", 3001), "tcp://localhost:3001"),
        ("tcp://127.0.0.1:0", Endpoint("tcp", "127.0.0.1", 0), "tcp://127.0.0.1:0"),
        ("TLS://[::1]:443/", Endpoint("tls", "::1", 443), "tls://[::1]:443"),
        ("tls://:1?cert=a.pem&key=", Endpoint("tls", "", 1, params={"cert": "a.pem", "key": ""}), "tls://:1?cert=a.pem&key="),
        ("tls://:1?cert=%26%20+%2Bé", Endpoint("tls", "", 1, params={"cert": "&  +é"}), "tls://:1?cert=%26%20%20%2B%C3%A9"),
        ("unix:/run/s", Endpoint("unix", path="/run/s"), "unix:/run/s"),
        ("unix:///run/s?mode=660", Endpoint("unix", path="/run/s", params={"mode": "660"}), "unix:/run/s?mode=660"),
        ("unix:s", Endpoint("unix", path="s"), "unix:s"),
        ("unix:@name", Endpoint("unix", path="@name"), "unix:@name"),
        ("memory:name", Endpoint("memory", "name"), "memory:name"),
        ("memory://name", Endpoint("memory", "name"), "memory:name"),
        ("anything://a.b:1", Endpoint("anything", "a.b", 1), "anything://a.b:1"),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint, written: str) -> None:
    assert Endpoint.parse(text) == endpoint
    assert str(endpoint) == written
    assert Endpoint.parse(written) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "", "localhost", "tcp://", "tcp://localhost", "tcp://localhost:", "tcp://localhost:65536", "tcp://localhost:-1", "tcp://h:١",
        "tcp://::1:80", "tcp://[::1:80", "tcp://user@host:1", "tcp://host/path:1", "tcp://ho st:1", "tcp://host:1\n",
        "tcp://h:" + "1" * 5000, "tcp://h:000080", "ws+unix:/run/x:/", "unix:", "unix://", "unix:@",
        "unix:/a\0b", "memory:", "memory://", "memory:a b", "memory:a/b", "memory:a\n",
    ],
)  # fmt: skip
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(EndpointError) as caught:
        Endpoint.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("localhost", "an endpoint is HOST:PORT, :PORT, SCHEME://HOST:PORT or unix:/path/of/socket"),
        ("/run/app.sock", "did you mean unix:/run/app.sock?"),
        ("", "an endpoint is HOST:PORT, "),
        ("localhost:http", "an endpoint is HOST:PORT, "),
        ("3001", "did you mean :3001?"),
        ("tls://3001", "did you mean tls://:3001?"),
        (":65536", "a port is 0 to 65535, not '65536'"),
        ("localhost:-1", "a port is 0 to 65535, not '-1'"),
        ("*:3001", "all addresses are :3001"),
        ("tls://*:3001", "all addresses are tls://:3001"),
        ("http://localhost:3001", "an endpoint begins with tcp://, not http://"),
        ("ws://localhost/chat", "an endpoint begins with tcp://, not ws://"),
        ("WSS://localhost:3001/", "an endpoint begins with tls://, not WSS://"),
        ("https://:443", "an endpoint begins with tls://, not https://"),
        ("unix://tmp/x", "a Unix endpoint has no host; did you mean unix:/tmp/x?"),
    ],
)
def test_the_fault_of_an_endpoint_is_named(text: str, said: str) -> None:
    with pytest.raises(EndpointError) as caught:
        Endpoint.parse(text)
    assert str(caught.value).startswith(f"{text!r}: {said}")


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("localhost:3001", Endpoint("tcp", "localhost", 3001)),
        (("127.0.0.1", 3001), Endpoint("tcp", "127.0.0.1", 3001)),
        (("::1", 3001), Endpoint("tcp", "::1", 3001)),
        (("", 0), Endpoint("tcp", "", 0)),
        (3001, Endpoint("tcp", "", 3001)),
        (Endpoint("tls", "h", 1), Endpoint("tls", "h", 1)),
    ],
)
def test_what_else_is_taken_as_an_endpoint(given: Any, endpoint: Endpoint) -> None:
    assert Endpoint.of(given) == endpoint


@pytest.mark.parametrize(
    "given",
    [
        None,
        True,
        3.5,
        b":3001",
        ["h", 1],
        ("h",),
        ("h", "1"),
        ("h", True),
        (None, 1),
        ("::1", 1, 0, 0),
        Path("/run/x"),
        {"port": 1},
    ],
    ids=repr,
)
def test_what_is_of_no_kind_of_endpoint(given: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Endpoint.of(given)
    assert str(caught.value).startswith(
        "an endpoint is HOST:PORT, :PORT, SCHEME://HOST:PORT or unix:/path/of/socket, a (host, port) pair"
    )
    assert not isinstance(caught.value, GwsError)


@pytest.mark.parametrize("given", [65536, -1, ("h", 65536), ("*", 1), ("a/b", 1)])
def test_numbers_and_pairs_that_are_no_endpoint(given: Any) -> None:
    with pytest.raises(EndpointError) as caught:
        Endpoint.of(given)
    assert str(caught.value).startswith(f"{given!r}: ")


@pytest.mark.parametrize("act", [registry.listen, registry.dialer])
def test_listen_and_dialer_take_what_is_taken_as_an_endpoint(act: Any, mine: Any) -> None:
    registry.register("tcp", mine)
    assert act(("host", 1))[1] == act("host:1")[1] == Endpoint("tcp", "host", 1)
    assert act(1)[1] == Endpoint("tcp", "", 1)
    with pytest.raises(TypeError):
        act(None)


# --- The registry


class Mine:
    """A transport that only remembers what it was asked for."""

    def listen(self, endpoint: Endpoint, settings: ListenSettings) -> Any:
        return ("listen", endpoint, settings)

    def dialer(self, endpoint: Endpoint, settings: DialSettings) -> Any:
        return ("dial", endpoint, settings)


@pytest.fixture
def mine() -> Any:
    transport = Mine()
    yield transport
    for scheme in ("mine", "tcp"):
        registry.register(scheme, None)


def test_our_own() -> None:
    assert registry.known_schemes() == ["h3", "kcp", "memory", "quic", "tcp", "tls", "unix"]
    for scheme, module in {"tcp": tcp, "tls": tls, "unix": unix, "memory": memory}.items():
        assert registry.transport_for(scheme) is module


def test_a_registered_one_comes_first(mine: Any) -> None:
    registry.register("mine", mine)
    registry.register("tcp", mine)
    assert registry.known_schemes() == ["h3", "kcp", "memory", "mine", "quic", "tcp", "tls", "unix"]
    assert registry.listen("mine://host:1?a=b") == ("listen", Endpoint("mine", "host", 1, params={"a": "b"}), ListenSettings())
    settings = DialSettings(no_delay=False)
    assert registry.dialer(Endpoint("tcp", "host", 1), settings) == ("dial", Endpoint("tcp", "host", 1), settings)  # type: ignore[comparison-overlap]
    registry.register("tcp", None)
    registry.register("tcp", None)
    assert registry.transport_for("tcp") is tcp


def test_what_is_no_transport_is_refused(mine: Any) -> None:
    with pytest.raises(EndpointError, match="the transport registered for 'mine' has no function listen"):
        registry.register("mine", object())  # type: ignore[arg-type]
    assert "mine" not in registry.known_schemes()


@pytest.mark.parametrize("act", [registry.listen, registry.dialer])
def test_an_unknown_scheme_lists_the_known_ones(act: Any) -> None:
    with pytest.raises(EndpointError, match=r"^no transport serves 'quux'; known are h3, kcp, memory, quic, tcp, tls, unix$"):
        act("quux://host:1")


def test_a_library_that_is_missing_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = registry._BuiltIn("a_library_that_is_not_installed", "quic")
    monkeypatch.setitem(registry._BUILT_IN, "exotic", missing)
    with pytest.raises(MissingExtra, match=r"the transport 'exotic' needs an extra: pip install 'gws_gevent\[quic\]'") as caught:
        registry.listen("exotic://host:1")
    assert caught.value.extra == "quic"


def test_a_fault_of_ours_is_not_taken_for_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._BUILT_IN, "exotic", registry._BuiltIn("gws_gevent.transports.no_such_module"))
    with pytest.raises(ModuleNotFoundError):
        registry.listen("exotic://host:1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('out of order')", "the transport for 'faulty', faulty_transport, cannot be loaded: out of order"),
        ("listen = print", "the transport for 'faulty', faulty_transport, has no function dialer"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_transport.py").write_text(source)
    facts = tmp_path / "faulty-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[gws_gevent.transports]\nfaulty = faulty_transport\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, "faulty_transport", raising=False)  # type: ignore[attr-defined]
    importlib.invalidate_caches()
    assert "faulty" in registry.known_schemes()
    with pytest.raises(EndpointError, match=f"^{message}$"):
        registry.dialer("faulty://host:1")


# --- What base.py does for implementers


def test_errors_keep_their_number_and_say_what_failed() -> None:
    error = as_transport_error(OSError(98, "Address already in use"), "listen")
    assert isinstance(error, GwsError)
    assert isinstance(error, OSError)
    assert (error.errno, str(error)) == (98, "[Errno 98] listen: Address already in use")
    assert isinstance(error.__cause__, OSError)
    assert str(as_transport_error(OSError("words only"), "receive")) == "receive: words only"
    assert str(as_transport_error(TimeoutError(), "connect")) == "connect: TimeoutError"


class Grudging(NonBlockingStream):
    """Takes a given number of bytes a call."""

    def __init__(self, *takes: int) -> None:
        self.takes = list(takes)
        self.got: list[bytes] = []

    def try_send(self, data: Any) -> int:
        taken = min(self.takes.pop(0), len(data))
        self.got.append(bytes(data[:taken]))
        return taken

    recv_into = send_all = close = abort = info = wait_writable = call_when_writable = lambda self, *_: None  # type: ignore[assignment]


def test_parts_are_joined_or_sent_one_by_one() -> None:
    small = Grudging(10)
    assert small.try_send_parts([b"abcdef", memoryview(b"ghij"), b"kl"]) == 10
    assert small.got == [b"abcdefghij"]
    large = Grudging(1 << 20, 5, 1 << 20)
    assert large.try_send_parts([b"x" * 20_000, b"y" * 20_000, b"z"]) == 20_005
    assert large.got == [b"x" * 20_000, b"yyyyy"]
    assert Grudging(0).try_send_parts([b"x"]) == 0
