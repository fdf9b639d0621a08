"""The chats in Flask and Django, under our server and under gunicorn, in a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gws_gevent import ClientOptions, HandshakeRefused, connect
from tests.frameworks.apps import get
from tests.gunicorn_process import GWS_WORKER
from tests.peers.programs import browser
from tests.support import ROOT, require_installed, run_program, run_server_process, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.peer]

FLASK, DJANGO = ROOT / "examples" / "flask_chat", ROOT / "examples" / "django_chat"
PASSWORD = "open sesame 1"


@contextmanager
def on_our_server(folder: Path, app: str, env: dict[str, str]) -> Iterator[int]:
    args = ["-m", "gws_gevent", "serve", "--wsgi", app, "--patch", "--bind", "127.0.0.1:0"]
    with run_server_process(args, cwd=folder, env=env) as server:
        yield server.port
        assert "Traceback" not in server.output(), server.output()


@contextmanager
def on_gunicorn(folder: Path, app: str, env: dict[str, str]) -> Iterator[int]:
    with run_server_process(["-m", "gunicorn", "-k", GWS_WORKER, "--bind", "127.0.0.1:0", app], cwd=folder, env=env) as server:
        yield server.port
        assert "Traceback" not in server.output(), server.output()


SERVERS: dict[str, Callable[..., Any]] = {"ours": on_our_server, "gunicorn": on_gunicorn}


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    # A new browser for each test: pages that one left open would go on connecting, and fill the next one's log.
    folder = tmp_path / "browser"
    folder.mkdir()
    with browser(folder) as driver:
        yield driver


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    for package in ("django", "flask", "gunicorn"):
        require_installed(package)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "CHAT_SECRET": "for tests", "CHAT_DATABASE": str(tmp_path / "chat.sqlite3")}


@pytest.mark.parametrize("server", SERVERS)
def test_flask(server: str, driver: Any, env: dict[str, str]) -> None:
    with SERVERS[server](FLASK, "app:app", env) as port:
        check_refusals(port, "/chat/socket")
        chat(driver, f"http://127.0.0.1:{port}/", lambda name: log_in(driver, name, "sesame"))
        driver.get(f"http://127.0.0.1:{port}/")
        log_in(driver, "cleo", "sesame")
        element(driver, "link text", "History").click()
        wait_until(lambda: texts(driver, ".card p") == ["ann <b>hi</b> \u20ac", "bo hello ann"], 10)


@pytest.mark.parametrize("server", SERVERS)
def test_django(server: str, driver: Any, env: dict[str, str]) -> None:
    made = run_program([sys.executable, "manage.py", "migrate"], cwd=DJANGO, env=env)
    assert made.status == 0, made.errors
    with SERVERS[server](DJANGO, "chat.wsgi:application", env) as port:
        check_refusals(port, "/room/garden/socket")
        for name in ("ann", "bo"):
            driver.get(f"http://127.0.0.1:{port}/signup/")
            fill_in(driver, username=name, password1=PASSWORD, password2=PASSWORD)
            element(driver, "id", "signup").click()
            wait_until(lambda: "/signup/" not in driver.current_url, 10, "the page for logging in")
        chat(driver, f"http://127.0.0.1:{port}/room/garden/", lambda name: log_in(driver, name, PASSWORD))
        # What was said is there for who comes later.
        driver.get(f"http://127.0.0.1:{port}/room/garden/")
        log_in(driver, "ann", PASSWORD)
        wait_until(lambda: shown(driver)[1] == ["ann <b>hi</b> \u20ac", "bo hello ann"], 10)


def check_refusals(port: int, target: str) -> None:
    """Who is not logged in, or comes from another site, gets no 101."""
    for origin, status in ((f"http://127.0.0.1:{port}", 401), ("http://evil.example", 403)):
        with pytest.raises(HandshakeRefused) as refused:
            connect(f"ws://127.0.0.1:{port}{target}", options=ClientOptions(headers={"Origin": origin}))
        assert refused.value.status == status
    assert get(port, "/nowhere")[0].startswith("HTTP/1.")


def chat(driver: Any, url: str, log_in: Callable[[str], None]) -> None:
    """Two windows of two people talk; one logs out."""
    first = driver.current_window_handle
    driver.get(url)
    log_in("ann")
    wait_until(lambda: shown(driver)[0] == "1 here", 10)
    # Both windows share one cookie jar: the socket of the first stays ann's.
    driver.delete_all_cookies()
    driver.switch_to.new_window("tab")
    second = driver.current_window_handle
    driver.get(url)
    log_in("bo")
    wait_until(lambda: shown(driver)[0] == "2 here", 10)
    driver.switch_to.window(first)
    say(driver, "<b>hi</b> \u20ac")
    driver.switch_to.window(second)
    wait_until(lambda: shown(driver)[1] == ["ann <b>hi</b> \u20ac"], 10)
    say(driver, "hello ann")
    driver.switch_to.window(first)
    wait_until(lambda: shown(driver)[1] == ["ann <b>hi</b> \u20ac", "bo hello ann"], 10)
    # This window has bo's cookie by now. Logging out in one closes what bo has open in the other.
    driver.switch_to.window(second)
    driver.switch_to.new_window("tab")
    driver.get(url)
    wait_until(lambda: shown(driver)[0] == "3 here", 10)
    element(driver, "css selector", "header form button").click()
    wait_until(lambda: "/login" in driver.current_url, 10)
    driver.close()
    driver.switch_to.window(second)
    wait_until(lambda: "/login" in driver.current_url, 10)
    assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]
    driver.close()
    driver.switch_to.window(first)
    wait_until(lambda: shown(driver)[0] == "1 here", 10)


def log_in(driver: Any, name: str, password: str) -> None:
    wait_until(lambda: "/login" in driver.current_url, 10)
    # Flask's form calls it name, Django's username.
    who = element(driver, "css selector", ".field input:not([type=password])").get_attribute("name")
    fill_in(driver, **{who: name, "password": password})
    element(driver, "id", "login").click()


def element(driver: Any, by: str, what: str) -> Any:
    """The one element of the page, as soon as it is there: a click returns before the page it leads to is loaded."""
    wait_until(lambda: len(driver.find_elements(by, what)) == 1, 10, f"an element whose {by} is {what}")
    return driver.find_elements(by, what)[0]


def texts(driver: Any, selector: str) -> list[str]:
    """The texts of all elements, in one step: the page may change between two."""
    found: list[str] = driver.execute_script(
        "return Array.from(document.querySelectorAll(arguments[0]), found => found.innerText.trim())", selector
    )
    return found


def fill_in(driver: Any, **fields: str) -> None:
    for name, value in fields.items():
        element(driver, "name", name).send_keys(value)


def say(driver: Any, text: str) -> None:
    element(driver, "id", "text").send_keys(text)
    element(driver, "css selector", "#say button").click()


def shown(driver: Any) -> tuple[str, list[str]]:
    return "".join(texts(driver, "#state")), texts(driver, "#lines li")
