"""Users that do everything a MeasuredConnection can, once each, for test_locust.py. Then the test is over."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from locust import constant, task

from gws_gevent import ClientOptions
from gws_gevent.integrations.locust import Failed, MeasuredConnection, WebSocketUser

#: Users that have done what they had to do.
finished: list[WebSocketUser] = []


def done(user: WebSocketUser) -> None:
    finished.append(user)
    runner = user.environment.runner
    assert runner is not None
    if len(finished) == runner.target_user_count:
        gevent.spawn(runner.quit)


class Everything(WebSocketUser):
    wait_time = constant(60)
    options = ClientOptions(ping_interval=None, headers={"X-User": "everything"})

    @task
    def everything(self) -> None:
        with self.connect("/echo", headers={"X-Task": "yes"}) as ws:
            assert ws.call("how are you?", answers=lambda text: text == "how are you?", name="question") == "how are you?"
            ws.send(b"12345")
            assert ws.receive(timeout=5) == b"12345"
            assert self.fails(ws.receive, timeout=0.01, name="silence") == "TimeoutError"
            with pytest.raises(Failed, match=r"^no answer within 0\.1 seconds$"):
                ws.call("?", answers=lambda text: text != "?", timeout=0.1, name="no answer")
        ws.close()
        assert self.fails(self.connect, "/nowhere") == "HandshakeRefused"
        assert list(self.connect("/three")) == ["1", "2", "3"]
        assert list(self.connect("/broken")) == []
        lost = self.connect("/broken", name="lost")
        assert self.fails(lost.receive) == "ConnectionClosed"
        assert self.fails(lost.send, "x") == "ConnectionClosed"
        heard: list[Any] = []

        def on_message(ws: MeasuredConnection, data: Any) -> float | None:
            heard.append(data)
            return 7.0

        with self.connect("/echo", name="listen", on_message=on_message) as listening:
            listening.send("push")
            while not heard:
                gevent.sleep(0.01)
        self.connect("/echo", name="left open")
        done(self)

    def fails(self, function: Any, *args: Any, **kwargs: Any) -> str | None:
        try:
            function(*args, **kwargs)
        except Failed as failed:
            return type(failed.error).__name__
        return None


class Careless(WebSocketUser):
    """Overrides on_stop without calling ours, and keeps a connection open."""

    fixed_count = 1
    wait_time = constant(60)

    @task
    def open(self) -> None:
        self.connect("/echo", name="careless").call("x")
        done(self)

    def on_stop(self) -> None:
        pass
