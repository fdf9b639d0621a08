"""What was imported too early for `gevent.monkey.patch_all()`.

Belongs here: finding what still holds a blocking original, and saying so. Does not belong here: the patching itself (gevent's), nor
repairing: a name that is bound again behind a module's back surprises more than it helps.

This package needs no patching and holds what it needs of the originals on purpose; it is not looked at, nor are gevent and the
standard library, which gevent takes care of.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Final

from gevent import monkey

__all__ = ["EarlyImport", "early_imports", "patch_all", "report_early_imports"]

_TLS: Final = "TLS through it ends in a RecursionError or blocks every greenlet"
_BLOCKS: Final = "it blocks every greenlet while it waits"
_LOCK: Final = "who waits for it blocks every greenlet, its holder as well"
_LOCAL: Final = "all greenlets share its values"

#: (module, name) of what patching replaces and what becomes of a program that goes on with the original. What is missing here, such
#: as `threading.Thread`, looks up what it needs when it is called and works all the same.
_CONSEQUENCES: Final[Mapping[tuple[str, str], str]] = {
    **dict.fromkeys((("ssl", "SSLContext"), ("ssl", "SSLSocket"), ("ssl", "get_server_certificate")), _TLS),
    **dict.fromkeys(
        (
            *(("socket", name) for name in ("socket", "create_connection", "socketpair", "fromfd", "getaddrinfo", "gethostbyname")),
            *(("socket", name) for name in ("gethostbyname_ex", "gethostbyaddr", "getnameinfo", "getfqdn")),
            *(("select", name) for name in ("select", "poll", "epoll", "kqueue")),
            *(("selectors", name) for name in ("DefaultSelector", "EpollSelector", "PollSelector", "KqueueSelector")),
            *(("subprocess", name) for name in ("Popen", "call", "check_call", "check_output", "run")),
            *(("queue", name) for name in ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue")),
            ("time", "sleep"),
        ),
        _BLOCKS,
    ),
    **dict.fromkeys((("threading", "Lock"), ("_thread", "allocate_lock"), ("threading", "_CRLock")), _LOCK),
    **dict.fromkeys((("threading", "local"), ("_thread", "_local"), ("_threading_local", "local")), _LOCAL),
}
#: What patching makes no difference to by itself, but made of originals: one looks inside for a lock.
_MADE_OF_LOCKS: Final = {"threading", "queue"}
#: Top-level packages that are not looked at.
_EXEMPT: Final = sys.stdlib_module_names | {"gevent", "greenlet", "gws_gevent", "zope"} - {"__main__"}

_ADVICE: Final = (
    "put `from gevent import monkey; monkey.patch_all()` before every other import of the program (under gunicorn with --preload: "
    "first in gunicorn.conf.py), or import these modules later"
)


@dataclass(frozen=True, slots=True)
class EarlyImport:
    """A module that keeps blocking originals.

    Attributes:
        module: its name.
        names: where it keeps them, such as "SSLContext", "LOCK" or "Registry.lock".
        consequence: what comes of it, in words.
    """

    module: str
    names: tuple[str, ...]
    consequence: str

    def __str__(self) -> str:
        return f"{self.module} ({', '.join(self.names)}): {self.consequence}"


def early_imports() -> list[EarlyImport]:
    """Return the modules that were imported before patching and keep what patching replaces, sorted by name.

    They did `from ssl import SSLContext`, derived a class from an original, or made a lock, a queue, a socket or a
    `threading.local` while they were imported. Module level, classes and the attributes of module-level objects are looked at.
    Where nothing has been patched yet: those that would be too early if it were done now.
    """
    originals = _Originals()
    found: dict[tuple[str, str], list[str]] = {}
    seen: set[int] = set()
    # Something else than a module stands there at times, and a module under more names than one: under its own it comes first.
    # A module's attributes are not asked for: one that is loaded lazily would be loaded by that.
    modules = [
        (name, id(module), _attributes(module)) for name, module in sys.modules.items() if issubclass(type(module), ModuleType)
    ]
    for name, identity, attributes in sorted(modules, key=lambda one: (one[2].get("__name__") != one[0], one[0])):
        if name.partition(".")[0] in _EXEMPT or identity in seen:
            continue
        seen.add(identity)
        for where, consequence in originals.kept_by(attributes):
            found.setdefault((name, consequence), []).append(where)
    result = [EarlyImport(module, tuple(names), consequence) for (module, consequence), names in found.items()]
    return sorted(result, key=lambda one: one.module)


def report_early_imports(logger: logging.Logger | logging.LoggerAdapter[Any] | None = None) -> bool:
    """Log one warning that names what was imported too early, what comes of it and what to do; False if there is nothing to say.

    Args:
        logger: None is logging.getLogger("gws_gevent").
    """
    found = early_imports() if monkey.is_anything_patched() else []
    if found:
        lines = "".join(f"\n  {one}" for one in found)
        (logger or logging.getLogger("gws_gevent")).warning("imported before gevent patched:%s\n%s", lines, _ADVICE)
    return bool(found)


def patch_all(logger: logging.Logger | logging.LoggerAdapter[Any] | None = None, **kwargs: bool) -> None:
    """`gevent.monkey.patch_all(**kwargs)`, and `report_early_imports`, which says what gevent's own warning says and more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)
        monkey.patch_all(**kwargs)
    report_early_imports(logger)


class _Originals:
    """The originals in one view of the process, to compare others with by identity: not every class has a hash."""

    def __init__(self) -> None:
        everything = not monkey.is_anything_patched()
        self._by_id: dict[int, str] = {}
        # By type, for what somebody has made of them.
        self._types: dict[int, str] = {}
        self._replacements: set[int] = set()
        # Keeps alive what the ids are of.
        self._kept: list[Any] = []
        for (module, name), consequence in _CONSEQUENCES.items():
            if module not in sys.modules or not hasattr(sys.modules[module], name):
                continue
            original, now = monkey.get_original(module, name), getattr(sys.modules[module], name)
            if original is None or (original is now and not everything):
                continue
            self._kept.append(original)
            if original is not now:
                self._replacements.add(id(now))
            self._by_id[id(original)] = consequence
            if isinstance(original, type):
                self._types[id(original)] = consequence
            elif consequence is _LOCK:
                self._types[id(type(original()))] = consequence

    def kept_by(self, module: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """(where, consequence) of each original that a module with these attributes keeps."""
        for name, value in module.items():
            consequence = self._judge(value)
            if consequence is not None:
                yield name, consequence
            # By its type: `isinstance` asks the object for its __class__, and one that stands for another, such as Django's
            # settings, is set up by that.
            elif issubclass(type(value), type):
                if value.__module__ == module.get("__name__"):
                    yield from self._kept_by_class(name, value)
            elif not issubclass(type(value), ModuleType | FunctionType):
                yield from self._kept_by_object(name, value)

    def _kept_by_class(self, name: str, kind: type) -> Iterator[tuple[str, str]]:
        # What replaces an original may be derived from it.
        bases = map(id, kind.__mro__[1:])
        base = next((base for base in bases if base in self._types or base in self._replacements), 0)
        if base in self._types:
            yield f"class {name}", self._types[base]
        for attribute, value in list(vars(kind).items()):
            consequence = self._judge(value)
            if consequence is not None:
                yield f"{name}.{attribute}", consequence

    def _kept_by_object(self, name: str, value: Any, depth: int = 3) -> Iterator[tuple[str, str]]:
        for attribute, inner in _attributes(value).items():
            consequence = self._judge(inner)
            if consequence is not None:
                yield f"{name}.{attribute}", consequence
            elif depth > 1 and type(inner).__module__ in _MADE_OF_LOCKS:
                yield from self._kept_by_object(f"{name}.{attribute}", inner, depth - 1)

    def _judge(self, value: Any) -> str | None:
        return self._by_id.get(id(value)) or self._types.get(id(type(value)))


def _attributes(value: Any) -> dict[str, Any]:
    """An object's own attributes, without running code of its class, unless that has a `__dict__` of its own making."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except Exception:  # whatever that raises
        return {}
    return dict(found) if type(found) is dict else {}
