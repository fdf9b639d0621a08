"""`--option NAME=VALUE`: text to ServerOptions, and errors that name the option."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from gws_gevent.cli.errors import UsageError
from gws_gevent.cli.option_texts import describe_options, server_options
from gws_gevent.options import PermessageDeflate, ServerOptions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("read_max_payload_size=16MiB", 16 * 1024 * 1024),
        ("read_max_payload_size=64 KiB", 64 * 1024),
        ("max_buffered=2GiB", 2 * 1024**3),
        ("max_buffered=2gib", 2 * 1024**3),
        ("max_request_head=8 KIB", 8 * 1024),
        ("max_fragments=1_000", 1000),
        ("parallel=0", 0),
        ("handshake_timeout=2.5", 2.5),
        ("handshake_timeout = 3", 3.0),
        ("ping_interval=none", None),
        ("max_connections=None", None),
        ("max_connections=10", 10),
        ("context_vars=request_id,current_context", ("request_id", "current_context")),
        ("check_utf8=false", False),
        ("no_delay=True", True),
        ("no_delay=YES", True),
        ("no_delay=on", True),
        ("no_delay=no", False),
        ("no_delay=Off", False),
        ("slow_consumer=drop", "drop"),
        ("subprotocols=chat, superchat", ("chat", "superchat")),
        ("subprotocols=", ()),
        ("origins=none", None),
        ("origins=https://a.example,https://b.example", ("https://a.example", "https://b.example")),
        ("trusted_proxies=10.0.0.0/8,unix", ("10.0.0.0/8", "unix")),
        ("permessage_deflate=none", None),
        ("permessage_deflate=on", PermessageDeflate()),
        (
            "permessage_deflate=level=6, threshold=0,server_context_takeover=true,codec=auto",
            PermessageDeflate(level=6, threshold=0, server_context_takeover=True, codec="auto"),
        ),
        ("response_headers=Cache-Control: no-cache, private", {"Cache-Control": "no-cache, private"}),
    ],
)
def test_text_becomes_the_type_of_the_option(text: str, value: Any) -> None:
    name = text.partition("=")[0].strip()
    assert getattr(server_options([text]), name) == value


def test_lists_and_headers_add_up() -> None:
    options = server_options(
        ["subprotocols=a", "subprotocols=b,c", "response_headers=X-One: 1", "response_headers=X-Two: 2", "ping_interval=7"]
    )
    assert options.subprotocols == ("a", "b", "c")
    assert options.response_headers == {"X-One": "1", "X-Two": "2"}
    assert options.ping_interval == 7


def test_nothing_given_is_the_defaults() -> None:
    assert server_options([]) == ServerOptions()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["read_max_payload=1"], "--option read_max_payload: there is no such option; did you mean read_max_payload_size?"),
        (["zzz=1"], "--option zzz: there is no such option; 'gws-gevent serve --help' lists them"),
        (["ping_interval"], "--option ping_interval: must be NAME=VALUE"),
        (["ping_interval=soon"], "--option ping_interval: must be none or a number, not 'soon'"),
        (["ping_interval=-1"], "--option ping_interval: must be a positive number of seconds or none, not -1"),
        (["ping_interval=0"], "--option ping_interval: must be a positive number of seconds or none, not 0"),
        (["close_timeout=1e9999"], "--option close_timeout: must be a positive number of seconds, not 1e9999"),
        (["max_connections=0"], "--option max_connections: must be a whole number of at least 1 or none, not 0"),
        (["max_connections=1KiB"], "--option max_connections: must be none or a whole number, not '1KiB'"),
        (["parallel=1KiB"], "--option parallel: must be a whole number, not '1KiB'"),
        (["read_max_payload_size=0KiB"], "--option read_max_payload_size: must be a whole number of at least 1, not 0KiB"),
        (["origins="], "--option origins: an empty list would let nobody in"),
        (["origins=example.org"], "--option origins: each is scheme://host"),
        (["require_subprotocol=yes"], "--option require_subprotocol: without subprotocols"),
        (["ping_interval=nan"], "--option ping_interval: must be a positive number of seconds or none, not nan"),
        (["max_fragments=many"], "--option max_fragments: must be a whole number, not 'many'"),
        (["write_high_water=x"], "--option write_high_water: must be a whole number, or a size such as 64KiB or 16MiB, not 'x'"),
        (["max_fragments=0"], "--option max_fragments: must be a whole number of at least 1, not 0"),
        (["max_fragments=1.5"], "--option max_fragments: must be a whole number, not '1.5'"),
        (["read_max_payload_size=16MB"], "--option read_max_payload_size: must be a whole number, or a size"),
        (["no_delay=maybe"], "--option no_delay: must be true or false, not 'maybe'"),
        (["slow_consumer=wait"], "--option slow_consumer: must be close or drop or block, not 'wait'"),
        (["subprotocols=a b"], "--option subprotocols: each must be an HTTP token, not 'a b'"),
        (["trusted_proxies=10.0.0.0/99"], "--option trusted_proxies: "),
        (["response_headers=no colon"], "--option response_headers: must be 'Name: value', not 'no colon'"),
        (["response_headers=Upgrade: h2c"], "--option response_headers: Upgrade belongs to the handshake"),
        (["authorize=app:check"], "--option authorize: takes a Python object and cannot be set here"),
        (["new_session=dict"], "--option new_session: takes a Python object and cannot be set here"),
        (["logger=none"], "--option logger: takes a Python object and cannot be set here"),
        (["parallel=1", "parallel=2"], "--option parallel: is given twice"),
    ],
)
def test_an_error_names_the_option(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        server_options(texts)
    assert str(caught.value).startswith(said)


def listed_options() -> dict[str, str]:
    """The defaults of the list by name. Each has its meaning behind it."""
    lines = [line.split(None, 2) for line in describe_options().splitlines()]
    assert all(len(line) == 3 for line in lines)
    return {name: default for name, default, _ in lines}


def test_the_list_has_every_option_that_can_be_set() -> None:
    listed = listed_options()
    assert set(listed) == {item.name for item in fields(ServerOptions)} - {"authorize", "new_session", "logger"}
    assert listed["read_max_payload_size"] == "16MiB"
    assert listed["max_fragments"] == "131072"
    assert listed["max_request_head"] == "16KiB"
    assert listed["handshake_timeout"] == "5"
    assert listed["read_timeout"] == "none"
    assert listed["check_utf8"] == "true"


def test_the_defaults_of_the_list_can_be_given_back() -> None:
    listed = listed_options()
    texts = [f"{name}={value}" for name, value in listed.items() if value != "(empty)"]
    assert server_options(texts) == ServerOptions()
