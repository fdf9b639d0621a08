"""Compiled or plain: chosen once, here.

The hot path is plain Python (`connection.py`, `protocol.py`, ...). Each of those files is also built as a C extension
under the same name inside the package `gws_gevent._compiled`, with C types from the `.pxd` beside it. In such a file an
import of a sibling of the same build is relative (`from .protocol import Protocol`), an import of a module that exists
once is absolute (`from gws_gevent.frames import Opcode`): so each build is closed in itself and both can be tested side by side.

`GWS_GEVENT_PURE_PYTHON=1` chooses the plain build.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

__all__ = ["ACCELERATED", "build_of"]

#: The modules that are built twice. All or none of them are used compiled.
BUILT_TWICE: Final = (
    "_masking", "_frame_parser", "message", "partial_message", "protocol_rules", "protocol",
    "_fdio", "_tls_engine", "_tls_stream", "timers", "writer", "service", "payloads", "frame_output", "message_queue", "outgoing",
    "deadlines", "reading", "incoming", "connection",
)  # fmt: skip

#: Those of them that import nothing above layer 2.
LEAVES: Final = BUILT_TWICE[:6]


def _compiled_is_usable() -> bool:
    if os.environ.get("GWS_GEVENT_PURE_PYTHON", "") not in ("", "0"):
        return False
    try:
        for name in LEAVES:
            import_module(f"gws_gevent._compiled.{name}")
        # The others import this module, which must not be half done then: that they are there has to do.
        return all(find_spec(f"gws_gevent._compiled.{name}") is not None for name in BUILT_TWICE)
    except (ImportError, ValueError):
        return False


#: True where the compiled modules are in use.
ACCELERATED: Final[bool] = _compiled_is_usable()


def build_of(name: str) -> ModuleType:
    """Return the chosen build of one of the modules that are built twice."""
    return import_module(f"gws_gevent._compiled.{name}" if ACCELERATED else f"gws_gevent.{name}")
