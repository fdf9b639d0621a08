"""Negotiating permessage-deflate: offers, answers, and what both ends make of them (RFC 7692 section 7.1)."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gws_gevent import ClientOptions, HandshakeError, PermessageDeflate, ServerOptions
from gws_gevent.extensions.permessage_deflate import Agreement, accept_offer, judge_answer, offer
from gws_gevent.handshake import Headers, Request, ResponseHead, accept_key, judge_response, judge_upgrade, parse_extensions

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
NAME = "permessage-deflate"
BOTH_RESET = "server_no_context_takeover; client_no_context_takeover"
KEEPING = {"server_context_takeover": True, "client_context_takeover": True}


def answer_to(offered: str, **options: Any) -> str | None:
    """What a server answers to the value of a header; None: it declines."""
    accepted = accept_offer(parse_extensions([offered]), PermessageDeflate(**options))
    return accepted[1] if accepted is not None else None


def agreed(offered: str, **options: Any) -> Agreement:
    accepted = accept_offer(parse_extensions([offered]), PermessageDeflate(**options))
    assert accepted is not None
    return accepted[0]


def judged(answered: str, **options: Any) -> Agreement | None:
    """What a client with these options makes of a server's answer."""
    return judge_answer(parse_extensions([answered]), PermessageDeflate(**options))


# The server


@pytest.mark.parametrize(
    ("offered", "answered"),
    [
        (NAME, f"{NAME}; {BOTH_RESET}"),
        (f"{NAME}; client_no_context_takeover", f"{NAME}; {BOTH_RESET}"),
        (f"{NAME}; client_max_window_bits", f"{NAME}; {BOTH_RESET}; client_max_window_bits=15"),
        (f"{NAME}; client_max_window_bits=11", f"{NAME}; {BOTH_RESET}; client_max_window_bits=11"),
        (f"{NAME}; client_max_window_bits=8", f"{NAME}; {BOTH_RESET}; client_max_window_bits=8"),
        (f'{NAME}; server_max_window_bits="10"', f"{NAME}; {BOTH_RESET}; server_max_window_bits=10"),
        (f"{NAME}; server_max_window_bits=15", f"{NAME}; {BOTH_RESET}; server_max_window_bits=15"),
        (
            f"{NAME}; server_max_window_bits=9; client_max_window_bits=12",
            f"{NAME}; {BOTH_RESET}; server_max_window_bits=9; client_max_window_bits=12",
        ),
        (f"x, y; z, {NAME}", f"{NAME}; {BOTH_RESET}"),
    ],
)
def test_what_the_server_answers_by_default(offered: str, answered: str) -> None:
    assert answer_to(offered) == answered


@pytest.mark.parametrize(
    "parameters",
    [
        "server_max_window_bits=8",  # no zlib deflates with it
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=010",
        "server_max_window_bits=+9",
        "server_max_window_bits=1e1",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=08",
        "client_max_window_bits=x",
        "server_no_context_takeover=1",
        "client_no_context_takeover=true",
        "server_no_context_takeover; server_no_context_takeover",
        "client_max_window_bits; client_max_window_bits=10",
        "server_max_window_bits=10; server_max_window_bits=10",
        "unknown",
        "unknown=3",
        "Server_No_Context_Takeover",
    ],
)
def test_a_wrong_offer_is_declined_and_the_next_one_taken(parameters: str) -> None:
    assert answer_to(f"{NAME}; {parameters}") is None
    assert (
        answer_to(f"{NAME}; {parameters}, {NAME}; server_max_window_bits=12") == f"{NAME}; {BOTH_RESET}; server_max_window_bits=12"
    )


def test_other_names_are_not_ours() -> None:
    assert answer_to("permessage-bzip2, x-webkit-deflate-frame, Permessage-Deflate") is None


def test_takeover_is_kept_unless_the_client_says_otherwise() -> None:
    assert answer_to(NAME, **KEEPING) == NAME
    assert answer_to(f"{NAME}; server_no_context_takeover", **KEEPING) == f"{NAME}; server_no_context_takeover"
    assert answer_to(f"{NAME}; client_no_context_takeover", **KEEPING) == f"{NAME}; client_no_context_takeover"
    assert answer_to(NAME, server_context_takeover=True) == f"{NAME}; client_no_context_takeover"
    assert answer_to(NAME, client_context_takeover=True) == f"{NAME}; server_no_context_takeover"


def test_our_own_window_is_told_unasked_and_the_clients_only_if_it_offers() -> None:
    narrow = {"server_max_window_bits": 10, "client_max_window_bits": 11, **KEEPING}
    assert answer_to(NAME, **narrow) == f"{NAME}; server_max_window_bits=10"
    assert agreed(NAME, **narrow) == (False, False, 10, 15)
    assert answer_to(f"{NAME}; client_max_window_bits", **narrow) == f"{NAME}; server_max_window_bits=10; client_max_window_bits=11"
    both = f"{NAME}; server_max_window_bits=12; client_max_window_bits=9"
    assert answer_to(both, **narrow) == f"{NAME}; server_max_window_bits=10; client_max_window_bits=9"
    assert answer_to(f"{NAME}; server_max_window_bits=9", **narrow) == f"{NAME}; server_max_window_bits=9"


# The client


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        ({}, f"{NAME}; {BOTH_RESET}; client_max_window_bits"),
        (KEEPING, f"{NAME}; client_max_window_bits"),
        ({"server_max_window_bits": 8, **KEEPING}, f"{NAME}; server_max_window_bits=8; client_max_window_bits"),
        ({"client_max_window_bits": 10, **KEEPING}, f"{NAME}; client_max_window_bits=10"),
    ],
)
def test_what_the_client_offers(options: dict[str, Any], offered: str) -> None:
    assert offer(PermessageDeflate(**options)) == offered


@pytest.mark.parametrize(
    ("answered", "options", "agreement"),
    [
        (f"{NAME}; {BOTH_RESET}", {}, (True, True, 15, 15)),
        # What we do not keep, we do not keep, also where the server would let us.
        (f"{NAME}; server_no_context_takeover", {}, (True, True, 15, 15)),
        (NAME, KEEPING, (False, False, 15, 15)),
        (f"{NAME}; client_no_context_takeover", KEEPING, (False, True, 15, 15)),
        (f"{NAME}; server_no_context_takeover", KEEPING, (True, False, 15, 15)),
        (f"{NAME}; server_max_window_bits=8; client_max_window_bits=9", KEEPING, (False, False, 8, 9)),
        (f"{NAME}; client_max_window_bits=8", KEEPING, (False, False, 15, 8)),
        (f"{NAME}; server_max_window_bits=9", {"server_max_window_bits": 10, **KEEPING}, (False, False, 9, 15)),
        (NAME, {"client_max_window_bits": 12, **KEEPING}, (False, False, 15, 12)),
    ],
)
def test_answers_that_fit(answered: str, options: dict[str, Any], agreement: tuple[Any, ...]) -> None:
    assert judged(answered, **options) == agreement


def test_no_answer_is_no_compression() -> None:
    assert judge_answer([], PermessageDeflate()) is None


@pytest.mark.parametrize(
    ("answered", "options"),
    [
        (NAME, {}),  # we asked for server_no_context_takeover
        (f"{NAME}; {BOTH_RESET}, {NAME}; {BOTH_RESET}", {}),
        (f"{NAME}; unknown", KEEPING),
        (f"{NAME}; client_max_window_bits", KEEPING),
        (f"{NAME}; client_max_window_bits=7", KEEPING),
        (f"{NAME}; client_max_window_bits=12", {"client_max_window_bits": 11, **KEEPING}),
        (f"{NAME}; server_max_window_bits", KEEPING),
        (f"{NAME}; server_max_window_bits=16", KEEPING),
        (f"{NAME}; server_max_window_bits=11", {"server_max_window_bits": 10, **KEEPING}),
        (NAME, {"server_max_window_bits": 10, **KEEPING}),
        (f"{NAME}; server_no_context_takeover=1", KEEPING),
        (f"{NAME}; server_no_context_takeover; server_no_context_takeover", KEEPING),
    ],
)
def test_answers_that_fail_the_connection(answered: str, options: dict[str, Any]) -> None:
    with pytest.raises(HandshakeError, match=NAME):
        judged(answered, **options)


def test_a_request_that_was_not_granted_is_named() -> None:
    with pytest.raises(HandshakeError, match=r"did not grant server_no_context_takeover, .*: it answered without parameters"):
        judged(NAME)


# Both


OPTIONS = st.builds(
    PermessageDeflate,
    server_context_takeover=st.booleans(),
    client_context_takeover=st.booleans(),
    server_max_window_bits=st.integers(8, 15),
    client_max_window_bits=st.integers(8, 15),
)


@given(ours=OPTIONS, theirs=OPTIONS)
@settings(derandomize=True, deadline=None, database=None, max_examples=300)
def test_two_of_ours_agree_on_the_same(ours: PermessageDeflate, theirs: PermessageDeflate) -> None:
    accepted = accept_offer(parse_extensions([offer(theirs)]), ours)
    if theirs.server_max_window_bits == 8:
        assert accepted is None
        return
    assert accepted is not None
    agreement = judge_answer(parse_extensions([accepted[1]]), theirs)
    assert agreement == accepted[0]
    assert judge_answer(parse_extensions([str(agreement)]), theirs) == agreement


def request_with(*values: str) -> Request:
    lines = [
        ("Host", "x"), ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY), *(("Sec-WebSocket-Extensions", value) for value in values),
    ]  # fmt: skip
    return Request("GET", "/", Headers(lines), "1.1")


def test_the_handshake_answers_an_offer_only_where_compression_is_on() -> None:
    on = ServerOptions(permessage_deflate=PermessageDeflate())
    found = judge_upgrade(request_with("x", f"y, {NAME}"), on)
    assert (found.extensions, found.deflate) == (f"{NAME}; {BOTH_RESET}", (True, True, 15, 15))
    for value, options in ((NAME, ServerOptions()), ("x", on), (f"{NAME}; z", on), ('"', on)):
        found = judge_upgrade(request_with(value), options)
        assert (found.extensions, found.deflate) == ("", None)
    assert judge_upgrade(request_with(), on).deflate is None


def test_a_client_that_did_not_offer_gets_no_compression() -> None:
    lines = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept_key(KEY))]
    response = ResponseHead(101, Headers([*lines, ("Sec-WebSocket-Extensions", f"{NAME}; {BOTH_RESET}")]))
    with pytest.raises(HandshakeError, match="not offered"):
        judge_response(response, KEY)
    options = PermessageDeflate()
    assert judge_response(response, KEY, (), offer(options), options).deflate == (True, True, 15, 15)


@pytest.mark.parametrize("count", [1, 2000])
def test_offers_of_many_entries_are_read_to_the_end(count: int) -> None:
    on = ServerOptions(permessage_deflate=PermessageDeflate())
    assert judge_upgrade(request_with(", ".join(["x"] * count + [NAME])), on).deflate is not None
    assert judge_upgrade(request_with(", ".join([f"{NAME}; z"] * count)), on).deflate is None
    assert judge_upgrade(request_with(NAME + "; client_no_context_takeover" * count + "; z"), on).deflate is None


# Options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("level", 0), ("level", 10), ("level", True), ("threshold", -1), ("server_context_takeover", 1), ("memory_level", 0),
        ("memory_level", 10), ("server_max_window_bits", 7), ("server_max_window_bits", 16), ("client_max_window_bits", "15"),
        ("pool_size", -1), ("codec", "gzip"), ("codec", None),
    ],
)  # fmt: skip
def test_wrong_options(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: must be "):
        PermessageDeflate(**{name: value})


def test_a_side_cannot_deflate_with_8() -> None:
    for mine, theirs in product(("server", "client"), repeat=2):
        make = ServerOptions if mine == "server" else ClientOptions
        bits: dict[str, Any] = {f"{theirs}_max_window_bits": 8}
        narrow = PermessageDeflate(**bits)
        if mine == theirs:
            with pytest.raises(ValueError, match=f"^permessage_deflate: a {mine} takes {mine}_max_window_bits from 9 to 15"):
                make(permessage_deflate=narrow)
        else:
            assert make(permessage_deflate=narrow).permessage_deflate is narrow


@pytest.mark.parametrize("make", [ServerOptions, ClientOptions])
@pytest.mark.parametrize("value", [True, {}, "on", PermessageDeflate])
def test_the_option_takes_its_own_class(make: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"^permessage_deflate: must be PermessageDeflate\(\.\.\.\) or None"):
        make(permessage_deflate=value)
