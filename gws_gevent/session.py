"""Per-connection storage, and a concurrent map for those who come from gws."""

from __future__ import annotations

from typing import Any

__all__ = ["SessionStorage"]


class SessionStorage(dict[Any, Any]):
    """What `conn.session` is unless `new_session` makes something else: a dict, made on first use.

    Greenlets of one hub switch only where they block, so plain dict operations need no lock.
    """

    __slots__ = ()
