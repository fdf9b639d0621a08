"""The Locust user, in a real Locust: a child process, since importing Locust patches the process."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest

from gws_gevent import CloseInfo, Connection, EventHandler, Message, Request, ServerOptions
from tests.pairs import serving
from tests.peers.programs import HERE
from tests.support import ROOT, require_installed, run_program

pytestmark = pytest.mark.slow

LOCUST = [sys.executable, "-m", "locust", "--headless", "--json", "-r", "10"]

#: Users of the kind that does everything.
EVERYTHING = 2


class Counting(EventHandler):
    """An echo that counts, and does what the path says."""

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()
        self.headers: set[tuple[str | None, str | None]] = set()
        self.clean: Counter[bool] = Counter()
        self.messages = 0

    def on_open(self, conn: Connection) -> None:
        request = conn.request
        assert request is not None
        self.opened[request.path] += 1
        self.headers.add((request.headers.get("X-User"), request.headers.get("X-Task")))
        if request.path == "/three":
            for text in "123":
                conn.send(text)
            conn.write_close()
        elif request.path == "/broken":
            conn.write_close(1011)

    def on_message(self, conn: Connection, message: Message) -> None:
        self.messages += 1
        conn.write_message(message.opcode, message.data)

    def on_close(self, conn: Connection, info: CloseInfo) -> None:
        self.clean[info.clean] += 1

    def route(self, request: Request) -> EventHandler | None:
        return self if request.path != "/nowhere" else None


def requests_and_failures(output: str) -> dict[tuple[str, str], tuple[int, int]]:
    return {(one["method"], one["name"]): (one["num_requests"], one["num_failures"]) for one in json.loads(output)}


@pytest.fixture(autouse=True)
def locust() -> None:
    require_installed("locust")


def test_everything_is_reported() -> None:
    server_side = Counting()
    with serving(None, ServerOptions(ping_interval=None), on_request=server_side.route) as server:
        host = server.address.replace("tcp:", "http:")
        args = [*LOCUST, "-f", str(HERE / "locustfile.py"), "--host", host, "-u", str(EVERYTHING + 1), "-t", "60s"]
        finished = run_program(args, timeout=60)
    assert finished.status == 1, finished.errors  # there were failures
    assert "Traceback" not in finished.errors
    seen = requests_and_failures(finished.output)
    three, none, all_of_them = (EVERYTHING * 3, 0), (EVERYTHING, 0), (EVERYTHING, EVERYTHING)
    assert seen == {
        ("WS OPEN", "/echo"): none, ("WS CALL", "question"): none, ("WS SEND", "/echo"): none, ("WS RECV", "/echo"): none,
        ("WS RECV", "silence"): all_of_them, ("WS CLOSE", "/echo"): none,
        ("WS CALL", "no answer"): all_of_them,
        ("WS OPEN", "/nowhere"): all_of_them,
        ("WS OPEN", "/three"): none, ("WS RECV", "/three"): three, ("WS CLOSE", "/three"): none,
        ("WS OPEN", "/broken"): none, ("WS CLOSE", "/broken"): all_of_them,
        ("WS OPEN", "lost"): none, ("WS RECV", "lost"): all_of_them, ("WS SEND", "lost"): all_of_them,
        ("WS CLOSE", "lost"): all_of_them,
        ("WS OPEN", "listen"): none, ("WS SEND", "listen"): none, ("WS RECV", "listen"): none, ("WS CLOSE", "listen"): none,
        ("WS OPEN", "left open"): none, ("WS CLOSE", "left open"): none,
        ("WS OPEN", "careless"): (1, 0), ("WS CALL", "careless"): (1, 0),
    }  # fmt: skip
    listened = next(one for one in json.loads(finished.output) if (one["method"], one["name"]) == ("WS RECV", "listen"))
    assert (listened["min_response_time"], listened["max_response_time"]) == (7, 7)
    # The server saw the same.
    assert server_side.headers == {("everything", "yes"), ("everything", None), (None, None)}
    assert server_side.clean[False] == 1, "the careless one is dropped, all others say goodbye"


def test_a_user_without_a_host_is_told() -> None:
    finished = run_program([*LOCUST, "-f", str(HERE / "locustfile.py"), "-u", "1", "-t", "1s"], timeout=60)
    assert finished.status == 1
    assert "a WebSocketUser needs a host" in finished.errors


def test_what_it_exports_is_there() -> None:
    code = "import gws_gevent.integrations.locust as module; print(all(hasattr(module, name) for name in module.__all__))"
    assert run_program([sys.executable, "-W", "ignore", "-c", code]).output == "True\n"


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "frameworks.md").read_text()
    shown = page[page.index("class Talker") :].partition("```")[0].strip()
    assert shown in (ROOT / "examples" / "load_test.py").read_text()
