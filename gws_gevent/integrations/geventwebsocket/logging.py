"""`create_logger`, as gevent-websocket has it.

Belongs here: the logger of a server. Does not belong here: what is logged.
"""

from __future__ import annotations

import logging

__all__ = ["create_logger"]


class _DebugHandler(logging.StreamHandler):  # type: ignore[type-arg]  # sys.stderr
    """Marks what `create_logger` has added."""


def create_logger(name: str, debug: bool = False, format: str | None = None) -> logging.Logger:
    """Return the logger of this name; with `debug` it writes every record to stderr.

    Handlers and levels that the program has set are left as they are.
    """
    logger = logging.getLogger(name)
    if debug and not any(isinstance(handler, _DebugHandler) for handler in logger.handlers):
        handler = _DebugHandler()
        handler.setFormatter(logging.Formatter(format))
        logger.addHandler(handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.DEBUG)
    return logger
