"""`install()`: who answers `import geventwebsocket`. Each test is a process of its own, for it changes sys.modules."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from tests.legacy.client import websocket
from tests.raw import Frame, frame
from tests.support import Finished, require_module, run_program, run_server_process

pytestmark = pytest.mark.slow

INSTALL = "from gws_gevent.integrations.geventwebsocket import install; install()\n"

#: What gevent-websocket has and its successor has not, with what stands in its place.
LEFT_OUT = {
    "geventwebsocket.websocket": {"Header", "Stream"},  # ws.connection
    "geventwebsocket.websocket.WebSocket": {
        "handle_close", "handle_ping", "handle_pong", "raw_read", "raw_write", "read_frame", "read_message", "stream",
        "utf8validate_last", "utf8validator", "validate_utf8",
    },  # ws.connection
    "geventwebsocket.handler.WebSocketHandler": {"GUID", "run_websocket"},  # accept, run_application
    "geventwebsocket.utils": {"get_hg_changeset"},
    "geventwebsocket.utf8validator": {"UTF8VALIDATOR_DFA", "UTF8VALIDATOR_DFA_S", "UTF8_ACCEPT", "UTF8_REJECT"},
    "geventwebsocket.utf8validator.Utf8Validator": {"decode"},
}  # fmt: skip

#: What its modules have only imported.
IMPORTED = {"DEBUG", "PY3", "range_type", "string_types", "text_type"}

#: Prints every public name that the package defines: of modules, and of the classes in them.
NAMES = """
import importlib, json, sys
modules = ("", "_compat", "exceptions", "gunicorn.workers", "handler", "logging", "protocols.base", "protocols.wamp", "resource",
           "server", "utf8validator", "utils", "websocket")
found = {}
for module in [importlib.import_module(f"geventwebsocket.{name}".rstrip(".")) for name in modules]:
    root = module.__spec__.name
    alias = next(name for name, one in sys.modules.items() if one is module and name.startswith("geventwebsocket"))
    own = [name for name in {*dir(module), *getattr(module, "__all__", ())} if not name.startswith("_")]
    mine = [name for name in own if getattr(getattr(module, name), "__module__", root) in (root, getattr(module, "__package__", ""))
            or name in getattr(module, "__all__", ())]
    found[alias] = sorted(name for name in mine if not isinstance(getattr(module, name), type(sys)))
    for name in mine:
        value = getattr(module, name)
        if isinstance(value, type) and value.__module__ == root:
            found[f"{alias}.{name}"] = sorted(one for one in dir(value) if not one.startswith("_"))
print(json.dumps(found))
"""


def run(code: str) -> Finished:
    return run_program([sys.executable, "-W", "error", "-c", code])


def names(before: str) -> dict[str, Any]:
    finished = run_program([sys.executable, "-c", before + NAMES])
    assert finished.status == 0, finished
    found: dict[str, Any] = json.loads(finished.output)
    return found


def test_every_public_name_is_there() -> None:
    for module in ("geventwebsocket", "gunicorn"):
        if find_spec(module) is None:
            require_module(module)
    old, ours = names(""), names(INSTALL)
    for place, there in old.items():
        module, _, name = place.rpartition(".")
        if name not in LEFT_OUT.get(module, ()):
            expected = set(there) - LEFT_OUT.get(place, set()) - (IMPORTED if name != "_compat" else set())
            assert expected <= set(ours.get(place, ())), place
    assert len(old) > 20, "the test looks at something"


def test_imports_find_ours_by_every_path() -> None:
    finished = run(
        INSTALL
        + "import geventwebsocket, geventwebsocket.handler as handler, geventwebsocket.protocols.wamp\n"
        + "from geventwebsocket import WebSocketServer, Resource, WebSocketApplication, WebSocketError, get_version, VERSION\n"
        + "from geventwebsocket.websocket import WebSocket, MSG_SOCKET_DEAD, MSG_CLOSED, MSG_ALREADY_CLOSED\n"
        + "from geventwebsocket.exceptions import ProtocolError, FrameTooLargeException\n"
        + "import gws_gevent.integrations.geventwebsocket as ours, gws_gevent.integrations.geventwebsocket.handler as same\n"
        + "assert geventwebsocket is ours and handler is same and handler.WebSocketHandler is WebSocketServer.handler_class\n"
        + "assert issubclass(WebSocketError, OSError) and issubclass(FrameTooLargeException, ProtocolError)\n"
        + "install()\n"
        + "print(handler.WebSocketHandler.__module__, get_version())\n"
    )
    assert (finished.status, finished.output) == (0, "gws_gevent.integrations.geventwebsocket.handler 0.10.1\n"), finished


def test_it_is_found_where_gevent_websocket_is_not_installed() -> None:
    hide = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('geventwebsocket', 'gunicorn'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    finished = run(
        hide
        + INSTALL
        + "from geventwebsocket.handler import WebSocketHandler\n"
        + "try:\n"
        + "    from geventwebsocket.gunicorn.workers import GeventWebSocketWorker\n"
        + "except ImportError as error:\n"
        + "    print(error)\n"
    )
    assert (finished.status, finished.output) == (0, "the worker for gunicorn needs an extra: pip install 'gws_gevent[gunicorn]'\n")


def test_too_late_is_said_and_changes_nothing() -> None:
    require_module("geventwebsocket")
    finished = run_program(
        [
            sys.executable,
            "-c",
            "import geventwebsocket\n"
            "from gws_gevent.integrations.geventwebsocket import install\n"
            "try:\n"
            "    install()\n"
            "except Exception as error:\n"
            "    print(type(error).__name__, error)\n"
            "from geventwebsocket.handler import WebSocketHandler\n"
            "print(WebSocketHandler.__module__)\n",
        ]
    )
    said, handler = finished.output.splitlines()
    assert said.startswith("GwsError install: geventwebsocket has been imported already, from /")
    assert handler == "geventwebsocket.handler"


def test_options_for_all() -> None:
    finished = run(
        "from gws_gevent import ServerOptions\n"
        "from gws_gevent.integrations.geventwebsocket import install\n"
        "install(ServerOptions(ping_interval=None)); install()\n"
        "from geventwebsocket.handler import WebSocketHandler\n"
        "print(WebSocketHandler.options.ping_interval)\n"
        "try:\n"
        "    install({})\n"
        "except TypeError as error:\n"
        "    print(error)\n"
    )
    assert finished.output == "None\noptions are ServerOptions(...), not {}\n"


def test_flask_socketio_takes_the_handler() -> None:
    require_module("flask_socketio")
    code = (
        "import sys\n" + INSTALL + "import flask, flask_socketio\n"
        "app = flask.Flask('app')\n"
        "sio = flask_socketio.SocketIO(app, async_mode='gevent')\n"
        "sio.on_event('ask', lambda data: ('answer', data))\n"
        "import gevent.pywsgi, gevent.signal\n"
        "start = gevent.pywsgi.WSGIServer.serve_forever\n"
        "def serve(self):\n"
        "    self.start()\n"
        "    gevent.signal_handler(15, self.stop, 1)\n"
        "    print(f'tcp://127.0.0.1:{self.server_port}', type(self).__name__, self.handler_class.__module__, flush=True)\n"
        "    self._stop_event.wait()\n"
        "gevent.pywsgi.WSGIServer.serve_forever = serve\n"
        "sio.run(app, '127.0.0.1', 0)\n"
    )
    with run_server_process(["-c", code]) as server:
        assert "gws_gevent.integrations.geventwebsocket.handler" in server.output()
        with websocket(server, "/socket.io/?EIO=4&transport=websocket") as client:
            assert client.read_frame().payload.startswith(b"0{")
            client.send(frame(1, b"40"))
            assert client.read_frame().payload.startswith(b"40{")
            client.send(frame(1, b'421["ask",5]'))
            assert client.read_frame() == Frame(1, b'431["answer",5]')
