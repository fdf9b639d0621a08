"""`install()`: `import geventwebsocket` finds this package.

Belongs here: the entries of sys.modules. Does not belong here: what the modules hold.
"""

from __future__ import annotations

import sys

from gws_gevent.exceptions import GwsError
from gws_gevent.integrations.geventwebsocket import (
    _compat,
    exceptions,
    gunicorn,
    handler,
    logging,
    protocols,
    resource,
    server,
    utf8validator,
    utils,
    websocket,
)
from gws_gevent.integrations.geventwebsocket.gunicorn import workers
from gws_gevent.integrations.geventwebsocket.protocols import base, wamp
from gws_gevent.options import ServerOptions

__all__ = ["install"]

OLD = "geventwebsocket"
NEW = __name__.rpartition(".")[0]
#: The modules that gevent-websocket has; those of ours besides keep to their own names.
MODULES = (
    _compat, exceptions, gunicorn, workers, handler, logging, protocols, base, wamp, resource, server, utf8validator, utils,
    websocket,
)  # fmt: skip


def install(options: ServerOptions | None = None) -> None:
    """Let `import geventwebsocket` and its submodules find this package, whether or not gevent-websocket is installed.

    Call it before anything imports geventwebsocket, as engineio, flask_socketio and flask_sockets do. It may be called again.

    Args:
        options: limits, deadlines, compression and so on of all WebSockets whose server or handler class has none of its own.
            None: as they are.

    Raises:
        GwsError: gevent-websocket itself has been imported already. Nothing has changed.
        TypeError, ValueError: options that WebSockets cannot have; see WebSocketServer.
    """
    there = sys.modules.get(OLD)
    if there is not None and there is not sys.modules[NEW]:
        raise GwsError(
            f"install: geventwebsocket has been imported already, from {getattr(there, '__file__', None)}; call install() before "
            "anything imports it, as engineio, flask_socketio and flask_sockets do"
        )
    if options is not None:
        handler.WebSocketHandler.options = handler.check_options(options)
    sys.modules[OLD] = sys.modules[NEW]
    for module in MODULES:
        sys.modules[OLD + module.__name__.removeprefix(NEW)] = module
