"""What hurts those who use gevent-websocket: each pain as it is there, and how it is here.

One program is served by both (apps.py). A test named `..._old` shows a pain with the real package; the one below it, the end of it.
"""

from __future__ import annotations

import re
import socket

import pytest

from tests.legacy.client import RawUnixClient, clear_notes, notes, page, wait_for_notes, websocket
from tests.raw import KEY, Frame, RawClient, frame, request
from tests.support import ServerProcess, wait_until

pytestmark = pytest.mark.slow

MiB = 1 << 20
CLOSE = frame(8, b"\x03\xe8")


# Frames that a client may not send


def test_unmasked_frames_are_taken_old(old: ServerProcess) -> None:
    with websocket(old, "/echo") as client:
        client.send(frame(1, b"hello", masked=False))
        assert client.read_frame() == Frame(1, b"hello")


def test_unmasked_frames_are_refused(ours: ServerProcess) -> None:
    with websocket(ours, "/echo") as client:
        client.send(frame(1, b"hello", masked=False))
        assert client.read_close()[0] == 1002
        client.read_end()


def test_lengths_in_a_longer_form_are_taken_old(old: ServerProcess) -> None:
    with websocket(old, "/echo") as client:
        client.send(frame(1, b"hello", form=127))
        assert client.read_frame() == Frame(1, b"hello")


def test_lengths_in_a_longer_form_are_refused(ours: ServerProcess) -> None:
    with websocket(ours, "/echo") as client:
        client.send(frame(1, b"hello", form=127))
        assert client.read_close()[0] == 1002
        client.read_end()


def test_a_message_of_any_size_is_taken_old(old: ServerProcess) -> None:
    with websocket(old, "/sizes") as client:
        client.send(frame(2, bytes(17 * MiB), masked=False))
        assert client.read_frame() == Frame(1, str(17 * MiB).encode())


def test_a_message_is_refused_on_its_header(ours: ServerProcess) -> None:
    with websocket(ours, "/sizes") as client:
        client.send(frame(2, b"x", length=17 * MiB)[:14])
        assert client.read_close()[0] == 1009
        client.read_end()


# What the RFCs offer, and what keeps a connection alive


def test_nothing_is_compressed_old(old: ServerProcess) -> None:
    with RawClient(old.port) as client:
        answer = client.upgrade("Sec-WebSocket-Extensions: permessage-deflate", path="/echo")
        assert "sec-websocket-extensions" not in answer.headers


def test_messages_are_compressed_where_that_is_asked_for(ours: ServerProcess) -> None:
    with RawClient(ours.port) as client:
        answer = client.upgrade("Sec-WebSocket-Extensions: permessage-deflate", path="/sizes")
        assert answer.headers["sec-websocket-extensions"].startswith("permessage-deflate")
        # RFC 7692 section 7.2.3.1: "Hello".
        client.send(frame(1, bytes.fromhex("f248cdc9c90700"), rsv=4))
        assert client.read_frame() == Frame(1, b"5")


def test_a_silent_client_is_not_asked_old(old: ServerProcess) -> None:
    with websocket(old, "/echo") as client:
        client.sock.settimeout(0.7)
        with pytest.raises(TimeoutError):
            client.read_frame()


def test_a_silent_client_is_pinged(ours: ServerProcess) -> None:
    with websocket(ours, "/echo") as client:
        assert client.read_frame().opcode == 9


# Sending


def test_two_greenlets_cannot_send_to_a_slow_client_old(old: ServerProcess) -> None:
    with websocket(old, "/two") as client:
        client.send(frame(1, b"go"))
        failed = wait_for_notes(old, 1)
        assert any("ConcurrentObjectUseError" in note for note in failed), failed


def test_two_greenlets_send_to_a_slow_client(ours: ServerProcess) -> None:
    with websocket(ours, "/two") as client:
        client.send(frame(1, b"go"))
        assert wait_for_notes(ours, 1) == ["sending"]
        texts = [message.payload for message in (client.read_frame() for _ in range(4)) if message.opcode == 1]
        assert texts[:2] == [b"a" * 8_000_000, b"b" * 8_000_000]
        assert wait_for_notes(ours, 3) == ["sending", "a sent", "b sent"]


def test_members_that_leave_break_a_loop_over_them_old(old: ServerProcess) -> None:
    with websocket(old, "/shout") as one:
        one.read_frame()
        with websocket(old, "/shout") as other:
            other.read_frame()
            one.send(frame(1, b"hello"))
            assert one.read_frame() == Frame(1, b"hello")
            other.send(CLOSE)
        # RuntimeError: dictionary changed size during iteration.
        wait_until(lambda: "dictionary changed size" in old.output(), what="the error")


def test_members_may_leave_during_a_loop_over_them(ours: ServerProcess) -> None:
    with websocket(ours, "/shout") as one:
        one.read_frame()
        with websocket(ours, "/shout") as other:
            other.read_frame()
            one.send(frame(1, b"hello"))
            assert one.read_frame() == Frame(1, b"hello")
            other.send(CLOSE)
        one.send(frame(1, b"still here"))
        assert next(read for read in iter(one.read_frame, None) if read.opcode == 1) == Frame(1, b"still here")
    assert "dictionary changed size" not in ours.output()


def test_a_timeout_in_a_message_spoils_what_follows_old(old: ServerProcess) -> None:
    assert heard_after_a_timeout(old) != Frame(1, b"whole")


def test_a_timeout_in_a_message_spoils_nothing(ours: ServerProcess) -> None:
    assert heard_after_a_timeout(ours) == Frame(1, b"whole")


def heard_after_a_timeout(server: ServerProcess) -> Frame:
    message = frame(1, b"whole")
    with websocket(server, "/timeout") as client:
        assert client.read_frame() == Frame(1, b"begin")
        client.send(message[:-2])
        assert client.read_frame() == Frame(1, b"end")
        client.send(message[-2:], CLOSE)
        client.sock.shutdown(socket.SHUT_WR)  # it may take any of this for the beginning of more
        return client.read_frame()


# Closing


def test_close_sends_neither_code_nor_reason_old(old: ServerProcess) -> None:
    with websocket(old, "/close") as client:
        assert client.read_frame() == Frame(8, b"b'why'")


def test_close_sends_code_and_reason(ours: ServerProcess) -> None:
    with websocket(ours, "/close") as client:
        assert client.read_close() == (4001, b"why")
        client.send(frame(8, b"\x0f\xa1why"))
        client.read_end()


def test_an_application_by_default_never_hears_of_the_end_old(old: ServerProcess) -> None:
    clear_notes(old)
    with websocket(old, "/default") as client:
        client.echo()
        client.send(CLOSE)
        client.read_to_the_end()
    # on_message(None), the default of which sends it back: an error, and no on_close.
    wait_until(lambda: "Socket is dead" in old.output(), what="the error")
    assert notes(old) == []


def test_an_application_hears_of_the_end_once(ours: ServerProcess) -> None:
    clear_notes(ours)
    with websocket(ours, "/default") as client:
        client.echo()
        client.send(CLOSE)
        assert client.read_close() == (1000, b"")
        client.read_end()
    assert wait_for_notes(ours, 1) == ["closed None"]


def test_the_end_is_a_message_old(old: ServerProcess) -> None:
    clear_notes(old)
    with websocket(old, "/remembering") as client:
        client.send(frame(1, b"last"), frame(8, b"\x03\xe8bye"))
        client.read_to_the_end()
    assert wait_for_notes(old, 3) == ["last", None, "closed None"]


def test_the_end_is_no_message_and_has_its_reason(ours: ServerProcess) -> None:
    clear_notes(ours)
    with websocket(ours, "/remembering") as client:
        client.send(frame(1, b"last"), frame(8, b"\x03\xe8bye"))
        assert client.read_close() == (1000, b"")
        client.read_end()
    assert wait_for_notes(ours, 2) == ["last", "closed bye"]


# The handshake


def test_an_application_cannot_refuse_old(old: ServerProcess) -> None:
    with websocket(old, "/members/eve") as client:
        assert client.read_frame().opcode == 8


def test_an_application_may_refuse(ours: ServerProcess) -> None:
    with RawClient(ours.port) as client:
        client.send(request("/members/eve", "Origin: https://example.org"))
        answer = client.read_answer()
        assert (answer.status, answer.body) == (401, b"members only")
        assert answer.headers["x-asked-by"] == "https://example.org"
    with websocket(ours, "/members/ann") as client:
        assert client.read_frame() == Frame(1, b"welcome")
        assert client.read_close() == (1000, b"")


def test_clients_of_a_unix_socket_share_one_address_old(old: ServerProcess) -> None:
    with RawUnixClient(unix_path(old)) as one, RawUnixClient(unix_path(old)) as other:
        for client in (one, other):
            client.upgrade(path="/echo")
        other.send(CLOSE)
        other.read_to_the_end()
        one.send(CLOSE)
        one.read_to_the_end()
    # `del self.server.clients[""]` for the second time.
    wait_until(lambda: "KeyError: ''" in old.output(), what="the error")


def test_clients_of_a_unix_socket_are_each_their_own(ours: ServerProcess) -> None:
    with RawUnixClient(unix_path(ours)) as one, RawUnixClient(unix_path(ours)) as other:
        for client in (one, other):
            client.upgrade(path="/shout")
            assert client.read_frame() == Frame(1, b"open")
        one.send(frame(1, b"to both"))
        assert one.read_frame() == other.read_frame() == Frame(1, b"to both")
        other.send(CLOSE)
        other.read_to_the_end()
        one.send(frame(1, b"to one"))
        assert next(read for read in iter(one.read_frame, None) if read.opcode == 1) == Frame(1, b"to one")
    assert "KeyError" not in ours.output()


def unix_path(server: ServerProcess) -> str:
    return server.addresses[1].removeprefix("unix:")


# Frameworks


def test_plain_routes_of_flask_do_not_match_old(old: ServerProcess) -> None:
    with websocket(old, "/flask/echo/ann") as client:
        assert client.read_frame().opcode == 8  # the view was never called


@pytest.mark.parametrize("path", ["/flask/echo/ann", "/sockets/echo/ann"])
def test_plain_routes_of_flask_and_flask_sockets_match(ours: ServerProcess, path: str) -> None:
    with websocket(ours, path) as client:
        assert client.read_frame() == Frame(1, b"hello ann")
        client.echo()
        client.send(CLOSE)
        assert client.read_close() == (1000, b"")
        client.read_end()


def test_routes_of_flask_sockets_do_not_match_old(old: ServerProcess) -> None:
    with websocket(old, "/sockets/echo/ann") as client:
        assert client.read_frame().opcode == 8
    wait_until(lambda: "WebsocketMismatch" in old.output(), what="the error")


def test_flask_sock_in_the_same_application_answers_twice_old(old: ServerProcess) -> None:
    with websocket(old, "/flask/sock") as client:
        assert client.read_answer().status == 101, "for the second time"


def test_flask_sock_in_the_same_application(ours: ServerProcess) -> None:
    with websocket(ours, "/flask/sock") as client:
        client.echo()
        client.send(CLOSE)
        assert client.read_close()[0] == 1000
        client.read_end()


def test_pages_beside_them(ours: ServerProcess) -> None:
    for path in ("/flask/page", "/sockets/page", "/bottle/echo"):
        answer = page(ours, path)
        assert (answer.status, answer.body) == (200, b"a page"), path
    with RawClient(ours.port) as client:
        client.send(request("/flask/login"))
        answer = client.read_answer()
        assert (answer.status, answer.body) == (401, b"log in first")


def test_views_of_bottle(ours: ServerProcess) -> None:
    with websocket(ours, "/bottle/echo") as client:
        client.echo()
        client.send(CLOSE)
        assert client.read_close() == (1000, b"")
        client.read_end()


@pytest.mark.parametrize("server", ["old", "ours"])
def test_engineio_takes_wsgi_websocket(server: str, request: pytest.FixtureRequest) -> None:
    process: ServerProcess = request.getfixturevalue(server)
    with websocket(process, "/engine.io/?EIO=4&transport=websocket") as client:
        assert re.match(rb'0\{"sid":"[^"]+"', client.read_frame().payload)
        client.send(frame(1, b"4hello"))
        assert next(read for read in iter(client.read_frame, None) if read.payload[:1] == b"4") == Frame(1, b"4hello")
        client.send(frame(2, b"\x00\xff"))
        assert next(read for read in iter(client.read_frame, None) if read.opcode == 2) == Frame(2, b"\x00\xff")


def test_an_engineio_session_that_begins_with_polling_is_upgraded(ours: ServerProcess) -> None:
    opened = page(ours, "/engine.io/?EIO=4&transport=polling")
    sid = re.search(rb'"sid":"([^"]+)"', opened.body)
    assert sid
    with websocket(ours, f"/engine.io/?EIO=4&transport=websocket&sid={sid[1].decode()}") as client:
        client.send(frame(1, b"2probe"))
        assert next(read for read in iter(client.read_frame, None) if read.opcode == 1) == Frame(1, b"3probe")
        client.send(frame(1, b"5"), frame(1, b"4hello"))
        assert next(read for read in iter(client.read_frame, None) if read.payload[:1] == b"4") == Frame(1, b"4hello")


# Requests that are no WebSocket


@pytest.mark.parametrize(
    ("head", "status_old", "status"),
    [
        (request("/echo", version="HTTP/1.0"), 402, 505),
        (request("/echo", without="sec-websocket-version"), 426, 426),
        (request("/echo", sec_websocket_version="9"), 400, 426),
        (request("/echo", without="sec-websocket-key"), 400, 400),
        (request("/echo", sec_websocket_key="c2hvcnQ="), 400, 400),
        (request("/echo", f"Sec-WebSocket-Key: {KEY}"), 101, 400),
        (request("/echo", "Content-Length: 5") + b"hello", 101, 400),
        (request("/notes", upgrade="h2c"), 200, 200),
        (request("/notes", method="POST"), 200, 200),
    ],
    ids=["1.0", "no version", "version 9", "no key", "short key", "two keys", "body", "h2c", "POST"],
)
def test_other_requests(old: ServerProcess, ours: ServerProcess, head: bytes, status_old: int, status: int) -> None:
    for server, expected in ((old, status_old), (ours, status)):
        with RawClient(server.port) as client:
            client.send(head)
            # What follows the status line is cut off where gevent-websocket has a body, which it writes as a str.
            assert client.sock.makefile("rb").readline().startswith(f"HTTP/1.1 {expected} ".encode())
