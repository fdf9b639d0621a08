"""Importing what `serve` is told to serve: MODULE:OBJECT, or MODULE:FACTORY() for what that returns.

Belongs here: handlers and WSGI apps by name, and what is wrong with them in one line. Does not belong here: serving them.
"""

from __future__ import annotations

import ast
import inspect
import logging
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

log = logging.getLogger("gws_gevent")

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
    said = f"--wsgi {name}: is to be called with two arguments, environ and start_response"
    if not name.endswith(")") and _can_take(found, ()):
        said += f" (if it makes the app: {name}())"
    try:
        inspect.signature(found).bind({}, None)
    except ValueError:
        pass  # some that are written in C do not tell what they take: it will show
    except TypeError as error:
        raise UsageError(f"{said}: {error}") from error
    app: Callable[..., Any] = found
    return app


def _load(flag: str, name: str) -> Any:
    module_name, separator, path = name.partition(":")
    if not separator or not module_name or not path:
        raise UsageError(f"{flag} {name}: must be MODULE:OBJECT")
    path, args, kwargs = _read_call(flag, name, path)
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
        found = attrgetter(path)(module)
    except AttributeError:
        raise UsageError(f"{flag} {name}: {module_name} has no {path}") from None
    if args is None:
        return found
    if not callable(found):
        raise UsageError(f"{flag} {name}: {path} cannot be called: {type(found).__name__}")
    try:
        return found(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{flag} {name}: {path} fails: {_with_place(error)}") from error


def _read_call(flag: str, name: str, path: str) -> tuple[str, list[Any] | None, dict[str, Any]]:
    """Split "create_app('test')" into its path and its arguments, which are None if nothing is called."""
    if not path.endswith(")"):
        return path, None, {}
    try:
        call = ast.parse(path, mode="eval").body
        if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        args = [ast.literal_eval(value) for value in call.args]
        return ast.unparse(call.func), args, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        raise UsageError(f"{flag} {name}: a factory is called as in app:create_app() or app:create_app('test', size=3)") from None


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


def _can_take(function: Any, arguments: tuple[Any, ...]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


def _with_place(error: BaseException) -> str:
    """An error in the user's code in one line: its kind, its text, and the last place outside of this package on the way to it.

    The log has the traceback, for those who ask for it.
    """
    log.debug("what the one line at the end is about:", exc_info=error)
    said = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    # A module that is not there, or a syntax error, is raised in the machinery of imports, which helps nobody.
    if isinstance(error, SyntaxError) or not frames or frames[-1].filename.startswith("<frozen importlib"):
        return said
    # What is compiled or generated has no absolute path.
    while frames and (frames[-1].filename.startswith(_OURS) or not os.path.isabs(frames[-1].filename)):
        frames.pop()
    if not frames:
        return said
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno}; --log-level debug shows the traceback)"
