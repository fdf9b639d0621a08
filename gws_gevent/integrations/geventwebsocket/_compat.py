"""Names that programs for Python 2 and 3 took from gevent-websocket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["PY2", "PY3", "iteritems", "range_type", "string_types", "text_type"]

PY2 = False
PY3 = True
range_type = range
string_types = (str,)
text_type = str


def iteritems(mapping: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Iterate over the pairs of a mapping."""
    return iter(mapping.items())
