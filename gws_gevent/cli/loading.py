"""Importing what `serve` is told to serve: MODULE:OBJECT.

Belongs here: handlers and WSGI apps by name, and what is wrong with them in one line. Does not belong here: serving them.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

from gws_gevent.cli.errors import UsageError
from gws_gevent.handler import EventHandler, as_handler

__all__ = ["load_app", "load_handler"]

#: Where this package is.
_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def load_handler(name: str) -> EventHandler:
    """Import a handler; a UsageError with what is wrong if that fails."""
    return _as_handler(_load("--handler", name), name)


def load_app(name: str) -> Callable[..., Any]:
    """Import a WSGI app; a UsageError with what is wrong if that fails."""
    found = _load("--wsgi", name)
    if not callable(found):
        raise UsageError(f"--wsgi {name}: is not callable, and so no WSGI app: {type(found).__name__}")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise UsageError(f"--wsgi {name}: is a coroutine function, as an ASGI app is, and no WSGI app")
    try:
        inspect.signature(found).bind({}, None)
    except ValueError:
        pass  # some that are written in C do not tell what they take: it will show
    except TypeError as error:
        raise UsageError(f"--wsgi {name}: is to be called with two arguments, environ and start_response: {error}") from error
    app: Callable[..., Any] = found
    return app


def _load(flag: str, name: str) -> Any:
    module_name, separator, path = name.partition(":")
    if not separator or not module_name or not path:
        raise UsageError(f"{flag} {name}: must be MODULE:OBJECT")
    if os.sep in module_name or module_name.startswith("."):
        raise UsageError(f"{flag} {name}: MODULE is a module's name, such as app or package.app, not a path")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and module_name.endswith(".py"):
            raise UsageError(f"{flag} {name}: did you mean {module_name.removesuffix('.py')}:{path}?") from error
        raise UsageError(f"{flag} {name}: {module_name} cannot be imported: {_with_place(error)}") from error
    try:
        return attrgetter(path)(module)
    except AttributeError:
        raise UsageError(f"{flag} {name}: {module_name} has no {path}") from None


def _as_handler(found: Any, name: str) -> EventHandler:
    if isinstance(found, type):
        if not issubclass(found, EventHandler):
            raise UsageError(f"--handler {name}: is a class, but no EventHandler")
        try:
            return found()
        except Exception as error:
            raise UsageError(f"--handler {name}: cannot be made without arguments: {_with_place(error)}") from error
    try:
        return as_handler(found)
    except TypeError as error:
        raise UsageError(f"--handler {name}: {error}") from error


def _with_place(error: BaseException) -> str:
    """An error in the user's code in one line: its kind, its text, and the last place outside of this package on the way to it."""
    said = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    # A module that is not there, or a syntax error, is raised in the machinery of imports, which helps nobody.
    if isinstance(error, SyntaxError) or not frames or frames[-1].filename.startswith("<frozen importlib"):
        return said
    # What is compiled or generated has no absolute path.
    while frames and (frames[-1].filename.startswith(_OURS) or not os.path.isabs(frames[-1].filename)):
        frames.pop()
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said
