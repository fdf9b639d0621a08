"""The page of `gws-gevent serve` in a headless Chromium: the echo, and two pages that chat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from tests.support import ServerProcess, require_module, require_tool, run_server_process, wait_until

pytestmark = [pytest.mark.peer, pytest.mark.slow]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def in_thread(function: Any, *args: Any) -> Any:
    """Run what blocks in a thread, so that the test's time limit holds."""
    return gevent.get_hub().threadpool.apply(function, args)


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with run_server_process(["-m", "gws_gevent", "serve", "--bind", "127.0.0.1:0"]) as server:
        yield server


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    webdriver = require_module("selenium.webdriver")
    service = require_module("selenium.webdriver.chrome.service")
    options = webdriver.ChromeOptions()
    options.binary_location = require_tool("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = in_thread(lambda: webdriver.Chrome(options, service.Service(require_tool("chromedriver"))))
    try:
        yield driver
    finally:
        in_thread(driver.quit)


class Page:
    """One tab with the page open."""

    def __init__(self, browser: Any, server: ServerProcess) -> None:
        self._browser = browser
        in_thread(browser.switch_to.new_window, "tab")
        self._tab = in_thread(getattr, browser, "current_window_handle")
        in_thread(browser.get, server.address.replace("tcp:", "http:"))

    def _find(self, name: str) -> Any:
        in_thread(self._browser.switch_to.window, self._tab)
        return in_thread(self._browser.find_element, "id", name)

    def submit(self, name: str, text: str) -> None:
        """Type a text into a field, and press Enter."""
        in_thread(self._find(name).send_keys, text + "\n")

    def click(self, name: str) -> None:
        in_thread(self._find(name).click)

    def text(self, name: str) -> str:
        found: str = in_thread(getattr, self._find(name), "text")
        return found

    def wait_for(self, name: str, text: str) -> None:
        wait_until(lambda: text in self.text(name), 10, f"{text!r} in {name}")


def test_the_page_echoes_and_two_pages_chat(browser: Any, server: ServerProcess) -> None:
    first = Page(browser, server)
    first.wait_for("echo-status", "connected")
    first.submit("echo-text", "hello <b>you</b>")
    first.wait_for("echo-log", "hello <b>you</b> (")

    second = Page(browser, server)
    first.submit("chat-name", "Ada")
    first.wait_for("chat-log", "* Ada joined, 1 here")
    second.submit("chat-name", "Bob & Co")
    for page in (first, second):
        page.wait_for("chat-log", "* Bob & Co joined, 2 here")
    second.submit("chat-text", "hello Ada")
    for page in (first, second):
        page.wait_for("chat-log", "Bob & Co: hello Ada")
    first.submit("chat-text", "hello Bob")
    for page in (first, second):
        page.wait_for("chat-log", "Ada: hello Bob")
    second.click("chat-join-button")
    second.wait_for("chat-status", "closed with 1000")
    first.wait_for("chat-log", "* Bob & Co left, 1 here")
    # Neither the page's policy nor its script had anything to complain about.
    assert in_thread(browser.get_log, "browser") == []


def test_the_page_tells_that_the_server_is_gone(browser: Any) -> None:
    with run_server_process(["-m", "gws_gevent", "serve", "--bind", "127.0.0.1:0"]) as server:
        page = Page(browser, server)
        page.submit("chat-name", "Ada")
        page.wait_for("chat-status", "joined")
        page.wait_for("echo-status", "connected")
    page.wait_for("chat-status", "closed with 1001")
    page.wait_for("echo-status", "closed with 100")
