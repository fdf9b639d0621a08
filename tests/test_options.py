"""Options: the defaults, and each field's check. A wrong value is a ValueError that names the field."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import logging
import pickle
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from gws_gevent import BridgeOptions, EventHandler, PermessageDeflate, Reconnect, Server, Upgrader, WsgiSettings, connect, serve
from gws_gevent import options as options_module
from gws_gevent.exceptions import GwsError
from gws_gevent.options import PROTECTED_HEADERS, ClientOptions, ServerOptions

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
OptionsClass = type[ServerOptions] | type[ClientOptions]

#: What both sides have, with the defaults that are promised.
SHARED: dict[str, Any] = {
    "read_max_payload_size": 16 * MiB,
    "write_max_payload_size": 16 * MiB,
    "max_fragments": 131_072,
    "check_utf8": True,
    "parallel": 0,
    "handshake_timeout": 5,
    "close_timeout": 5,
    "ping_interval": 30,
    "ping_timeout": 30,
    "read_timeout": None,
    "message_timeout": 60,
    "park_after": None,
    "write_timeout": 30,
    "write_high_water": 64 * KiB,
    "write_queue_size": MiB,
    "slow_consumer": "close",
    "max_buffered": GiB,
    "no_delay": True,
    "new_session": None,
    "recovery": True,
    "logger": None,
    "subprotocols": (),
    "permessage_deflate": None,
}
SERVER_ONLY: dict[str, Any] = {
    "max_request_head": 16 * KiB,
    "trusted_proxies": (),
    "require_subprotocol": False,
    "origins": None,
    "authorize": None,
    "response_headers": {},
    "keep_request": False,
    "max_connections": None,
    "accept_limit": None,
    "context_vars": (),
    "keep_alive_timeout": 75,
    "body_timeout": 30,
    "max_request_body": GiB,
}
CLIENT_ONLY: dict[str, Any] = {
    "headers": {},
    "transport_params": {},
    "max_redirects": 10,
    "max_response_head": 64 * KiB,
    "streams_per_connection": 100,
}
FIELDS: dict[OptionsClass, dict[str, Any]] = {ServerOptions: SHARED | SERVER_ONLY, ClientOptions: SHARED | CLIENT_ONLY}

EACH_FIELD = [(cls, name) for cls, defaults in FIELDS.items() for name in defaults]
EACH_CLASS = pytest.mark.parametrize("cls", FIELDS)

#: Fields by the kind of their value, each with "or None" where None turns it off.
SIZES = {
    "read_max_payload_size": 1,
    "write_max_payload_size": 1,
    "max_fragments": 1,
    "parallel": 0,
    "write_high_water": 1,
    "write_queue_size": 1,
    "max_buffered": 1,
    "max_request_head": 64,
    "max_redirects": 0,
    "streams_per_connection": 1,
    "max_response_head": 64,
    "max_connections": 1,
    "accept_limit": 1,
}
DEADLINES = {
    "handshake_timeout",
    "close_timeout",
    "ping_interval",
    "ping_timeout",
    "read_timeout",
    "message_timeout",
    "park_after",
    "write_timeout",
}
FLAGS = {"check_utf8", "no_delay", "recovery", "require_subprotocol", "keep_request"}
OPTIONAL = {
    "park_after",
    "ping_interval",
    "ping_timeout",
    "read_timeout",
    "message_timeout",
    "write_timeout",
    "max_connections",
    "accept_limit",
}


def with_fields(names: Sequence[str] | set[str] | dict[str, int]) -> list[tuple[OptionsClass, str]]:
    return [(cls, name) for cls, name in EACH_FIELD if name in names]


def value_of(cls: OptionsClass, name: str, value: Any) -> Any:
    """The field's value when it was given as `value`."""
    return getattr(cls(**{name: value}), name)


def refused(cls: OptionsClass, name: str, value: Any) -> str:
    """Why the value was refused; the message begins with the field's name."""
    with pytest.raises(ValueError) as caught:
        cls(**{name: value})
    said = str(caught.value)
    assert said.startswith(f"{name}: ")
    assert "\n" not in said
    assert not isinstance(caught.value, GwsError)
    return said.removeprefix(f"{name}: ")


@EACH_CLASS
def test_defaults(cls: OptionsClass) -> None:
    made = cls()
    assert {field.name: getattr(made, field.name) for field in dataclasses.fields(cls)} == FIELDS[cls]


@EACH_CLASS
def test_every_field_says_what_it_means(cls: OptionsClass) -> None:
    tree = ast.parse(inspect.getsource(options_module))
    documented = {
        line.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for line, following in zip(node.body, node.body[1:], strict=False)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) and isinstance(following.value.value, str)
    }
    assert {field.name for field in dataclasses.fields(cls)} <= documented


@EACH_CLASS
def test_frozen_and_by_keyword(cls: OptionsClass) -> None:
    made = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.parallel = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        cls(1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="ping_intervall"):
        cls(ping_intervall=3)  # type: ignore[call-arg]


def test_a_changed_copy_is_checked_too() -> None:
    assert dataclasses.replace(ServerOptions(parallel=3), no_delay=False).parallel == 3
    with pytest.raises(ValueError, match="parallel: "):
        dataclasses.replace(ServerOptions(), parallel=-1)


@pytest.mark.parametrize(("cls", "name"), with_fields(SIZES))
def test_sizes_and_counts(cls: OptionsClass, name: str) -> None:
    least = SIZES[name]
    for value in (least, least + 1, 1 << 40):
        assert value_of(cls, name, value) == value
    also = " or None" if name in OPTIONAL else ""
    for wrong in (least - 1, -5, 1.5, float(least), "3", True, b"1", [1]):
        assert refused(cls, name, wrong) == f"must be a whole number of at least {least}{also}, not {wrong!r}"


@pytest.mark.parametrize(("cls", "name"), with_fields(DEADLINES))
def test_seconds(cls: OptionsClass, name: str) -> None:
    for value in (0.001, 1, 2.5, 1e6):
        assert value_of(cls, name, value) == value
    also = " or None" if name in OPTIONAL else ""
    for wrong in (0, 0.0, -1, float("inf"), float("nan"), "5", True, b"1"):
        assert refused(cls, name, wrong) == f"must be a positive number of seconds{also}, not {wrong!r}"


@pytest.mark.parametrize(("cls", "name"), with_fields(FLAGS))
def test_flags(cls: OptionsClass, name: str) -> None:
    for value in (True, False):
        given: dict[str, Any] = {name: value}
        if name == "require_subprotocol":
            given["subprotocols"] = ["chat"]
        assert getattr(cls(**given), name) is value
    for wrong in (1, 0, "true", "", None):
        assert refused(cls, name, wrong) == f"must be True or False, not {wrong!r}"


@pytest.mark.parametrize(("cls", "name"), with_fields(set(SIZES) | DEADLINES))
def test_none(cls: OptionsClass, name: str) -> None:
    if name in OPTIONAL:
        assert value_of(cls, name, None) is None
    else:
        assert refused(cls, name, None).endswith("not None")


@EACH_CLASS
def test_slow_consumer(cls: OptionsClass) -> None:
    for policy in ("close", "drop", "block"):
        assert value_of(cls, "slow_consumer", policy) == policy
    for wrong in ("Close", "", None, 1):
        assert refused(cls, "slow_consumer", wrong) == f"must be 'close', 'drop' or 'block', not {wrong!r}"


@EACH_CLASS
def test_new_session(cls: OptionsClass) -> None:
    assert cls(new_session=dict).new_session is dict
    assert refused(cls, "new_session", {}) == "must be callable or None, not {}"


@EACH_CLASS
def test_logger(cls: OptionsClass) -> None:
    logger = logging.getLogger("an application")
    adapter = logging.LoggerAdapter(logger, {})
    assert cls(logger=logger).logger is logger
    assert cls(logger=adapter).logger is adapter
    assert refused(cls, "logger", "an application") == "must be a logging.Logger or None, not 'an application'"


@EACH_CLASS
def test_subprotocols(cls: OptionsClass) -> None:
    names = ["chat.v2", "chat.v1"]
    made = cls(subprotocols=names)
    names.append("later")
    assert made.subprotocols == ("chat.v2", "chat.v1")
    assert refused(cls, "subprotocols", "chat") == "must be a sequence of names, not 'chat'"
    for wrong in ("", "two words", "a,b", "é", 5, "a\r\nb"):
        assert refused(cls, "subprotocols", ["chat", wrong]) == f"each must be an HTTP token, not {wrong!r}"
    assert refused(cls, "subprotocols", ["chat", "chat"]) == "each may stand once, not ['chat', 'chat']"


def test_trusted_proxies() -> None:
    networks = ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "unix"]
    assert ServerOptions(trusted_proxies=networks).trusted_proxies == tuple(networks)
    assert refused(ServerOptions, "trusted_proxies", "10.0.0.0/8") == "must be a sequence of networks, not '10.0.0.0/8'"
    for wrong in ("10.0.0.1/8", "proxy.example", "10.0.0.0/33", ""):
        assert repr(wrong)[1:-1] in refused(ServerOptions, "trusted_proxies", ["unix", wrong])


def test_origins() -> None:
    pattern = re.compile(r"https://[a-z]+\.example\.com")
    assert ServerOptions(origins=["https://example.com", pattern]).origins == ("https://example.com", pattern)
    for origin in (
        "null",
        "http://localhost:8000",
        "http://[::1]:80",
        "https://a-b.example",
        "chrome-extension://abcdef",
        "app://-",
    ):
        assert ServerOptions(origins=[origin]).origins == (origin,)
    assert refused(ServerOptions, "origins", "https://example.com") == "must be a sequence of origins, not 'https://example.com'"
    for wrong in (5, None, b"https://example.com", re.compile(rb"https://.*")):
        assert refused(ServerOptions, "origins", [wrong]) == f"each must be a string or a compiled pattern of one, not {wrong!r}"


@pytest.mark.parametrize(
    "origin",
    [
        "", "example.com", "localhost:8000", "https://", "https://example.com/", "https://example.com/chat", "https://*.example.com",
        "https://Example.com", "HTTPS://example.com", "https://example.com:", "https://example.com:123456", "//example.com", "Null",
        "https://user@example.com", "https://b\u00fccher.example", "https://example.com\n", " https://example.com",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    said = refused(ServerOptions, "origins", ["https://example.com", origin])
    assert said == f"each is scheme://host or scheme://host:port in lower case, or 'null', not {origin!r}"


@pytest.mark.parametrize("nobody", [(), []])
def test_origins_that_let_nobody_in_are_refused(nobody: Any) -> None:
    assert refused(ServerOptions, "origins", nobody) == "an empty list would let nobody in; None allows any origin"


def test_a_star_is_no_origin() -> None:
    assert refused(ServerOptions, "origins", ["https://example.com", "*"]) == "'*' is no origin; None, the default, allows any"


def test_a_required_subprotocol_needs_some_to_choose_from() -> None:
    assert refused(ServerOptions, "require_subprotocol", True) == "without subprotocols nobody could get in"


@pytest.mark.parametrize("wrong", [{}, {"parallel": 1}, 0, 5, "parallel=1", ServerOptions, ClientOptions()], ids=str)
def test_options_of_another_kind_are_a_type_error(wrong: Any) -> None:
    for make in (Server, Upgrader, serve):
        with pytest.raises(TypeError, match=r"options are ServerOptions\(\.\.\.\), not "):
            make(EventHandler(), options=wrong)  # type: ignore[operator]


@pytest.mark.parametrize("wrong", [{}, 0, "parallel=1", ClientOptions, ServerOptions()], ids=str)
def test_options_of_another_kind_are_a_type_error_for_connect(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"options are ClientOptions\(\.\.\.\), not "):
        connect("ws://127.0.0.1:1/", options=wrong)


def test_authorize() -> None:
    def authorize(_request: object, _session: object) -> bool:
        return True

    assert ServerOptions(authorize=authorize).authorize is authorize
    assert refused(ServerOptions, "authorize", True) == "must be callable or None, not True"


HEADER_FIELDS = pytest.mark.parametrize(("cls", "name"), with_fields({"response_headers", "headers"}))


@HEADER_FIELDS
def test_headers_are_copied(cls: OptionsClass, name: str) -> None:
    given = {"X-Served-By": "one", "Set-Cookie": "a=b; Path=/", "X-Empty": "", "X-Latin": "caf\xe9"}
    kept = value_of(cls, name, given)
    expected = dict(given)
    given["X-Later"] = "two"
    assert kept == expected


@HEADER_FIELDS
@pytest.mark.parametrize("header", sorted(PROTECTED_HEADERS))
def test_headers_of_the_handshake_cannot_be_set(cls: OptionsClass, name: str, header: str) -> None:
    for spelling in (header, header.upper(), header.title()):
        assert refused(cls, name, {spelling: "x"}) == f"{spelling} belongs to the handshake and cannot be set"


@HEADER_FIELDS
@pytest.mark.parametrize("header", ["", "two words", "X:", "X\r\nY", "é", 5])
def test_header_names(cls: OptionsClass, name: str, header: Any) -> None:
    assert refused(cls, name, {header: "x"}) == f"not a header name: {header!r}"


@HEADER_FIELDS
@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\x00", "\x7f", "日", 5, None, b"x"])
def test_header_values(cls: OptionsClass, name: str, value: Any) -> None:
    assert refused(cls, name, {"X-A": value}) == f"not a header value for X-A: {value!r}"


@HEADER_FIELDS
def test_headers_are_a_mapping(cls: OptionsClass, name: str) -> None:
    assert refused(cls, name, [("X-A", "b")]) == "must be a mapping of names to values, not [('X-A', 'b')]"


class Stranger:
    """Looks like a handler, and is none."""

    def on_message(self, conn: Any, message: Any) -> None: ...

    async def __call__(self, conn: Any) -> None: ...


async def coroutine(conn: Any) -> None: ...


def generator(conn: Any) -> Any:
    yield conn


def of_two(conn: Any, message: Any) -> None: ...


def of_none() -> None: ...


def with_keyword(conn: Any, *, needed: int) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (5, "a handler is an EventHandler or a function that takes a connection, not 5"),
        ("app:handler", "not 'app:handler'"),
        (EventHandler, r"a handler is an instance: EventHandler\(\), not EventHandler"),
        (of_none, "called with one argument, the connection, which of_none does not take: too many positional arguments"),
        (lambda: None, "does not take: too many positional arguments"),
        (of_two, "which of_two does not take: missing a required argument: 'message'"),
        (with_keyword, "which with_keyword does not take: missing a required"),
        (partial(of_two, 1, 2), "does not take: too many"),
        (coroutine, "a handler is a plain function, and coroutine is a coroutine function"),
        (partial(coroutine), "is a coroutine function"),
        (Stranger(), "Stranger object at .* is a coroutine function"),
        (generator, "generator is a generator function, whose call runs nothing"),
    ],
)
def test_what_is_no_handler_is_refused_before_anything_is_opened(wrong: Any, said: str) -> None:
    for make in (Server, Upgrader, partial(Reconnect, "ws://127.0.0.1:1/"), partial(connect, "ws://127.0.0.1:1/")):
        with pytest.raises(TypeError, match=said):
            make(wrong)


@pytest.mark.parametrize("fits", [print, [].append, partial(of_two, message=1), lambda conn, more=None: None, max])
def test_what_can_be_called_with_a_connection_is_a_handler(fits: Any) -> None:
    Server(fits)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (ClientOptions, "timeout", "ClientOptions has no option 'timeout'; did you mean handshake_timeout?"),
        (ClientOptions, "max_size", "ClientOptions has no option 'max_size'; did you mean read_max_payload_size?"),
        (ClientOptions, "extra_headers", "ClientOptions has no option 'extra_headers'; did you mean headers?"),
        (ServerOptions, "extra_headers", "ServerOptions has no option 'extra_headers'; did you mean response_headers?"),
        (ServerOptions, "ping_intervall", "ServerOptions has no option 'ping_intervall'; did you mean ping_interval?"),
        (PermessageDeflate, "window_bits", "PermessageDeflate has no option 'window_bits'"),
        (WsgiSettings, "logger", "WsgiSettings has no option 'logger'"),
        (BridgeOptions, "zebra", "BridgeOptions has no option 'zebra'"),
    ],
)
def test_an_option_that_does_not_exist_is_told_with_the_one_that_was_meant(kind: Any, name: str, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        kind(**{name: 1})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("timeout", " has no argument 'timeout'; did you mean options=ClientOptions(handshake_timeout=...)?"),
        ("close_timeout", " has no argument 'close_timeout'; did you mean options=ClientOptions(close_timeout=...)?"),
        ("header", " has no argument 'header'; did you mean options=ClientOptions(headers=...)?"),
        ("ssl", " has no argument 'ssl'; did you mean ssl_context?"),
        ("server_hostname", " has no argument 'server_hostname'; did you mean server_name?"),
        ("zebra", " has no argument 'zebra'$"),
    ],
)
def test_an_argument_that_is_an_option_is_told_so(given: str, said: str) -> None:
    pattern = re.escape(said).replace("\\$", "$")
    functions: list[Any] = [connect, Reconnect]
    for function in functions:
        with pytest.raises(TypeError, match=f"^{function.__name__}\\(\\){pattern}"):
            function("ws://127.0.0.1:1/", **{given: 1})


def test_an_argument_of_a_server_that_is_an_option_is_told_so() -> None:
    for make in (Server, serve):
        with pytest.raises(TypeError, match=re.escape("did you mean options=ServerOptions(read_max_payload_size=...)?")):
            make(print, max_size=1)  # type: ignore[call-arg, operator]


def test_options_are_copied_pickled_and_changed_as_any_dataclass() -> None:
    options = ClientOptions(handshake_timeout=3, permessage_deflate=PermessageDeflate(level=3))
    assert pickle.loads(pickle.dumps(options)) == copy.deepcopy(options) == options
    assert dataclasses.replace(options, close_timeout=1).handshake_timeout == 3
