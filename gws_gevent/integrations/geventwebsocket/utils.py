"""The version that programs written for gevent-websocket ask for."""

from __future__ import annotations

from gws_gevent.integrations.geventwebsocket._version import VERSION

__all__ = ["get_version"]

#: How the kinds of a release that is not final are written.
_KINDS = {"alpha": "a", "beta": "b", "rc": "c"}


def get_version(version: tuple[int, int, int, str, int] | None = None) -> str:
    """Write a version tuple as a string; None: of the API that is answered for, which is 0.10.1.

    Raises:
        ValueError: not such a tuple.
    """
    version = VERSION if version is None else version
    if len(version) != 5 or version[3] not in (*_KINDS, "final"):
        raise ValueError(f"a version is (1, 2, 3, 'final', 0), with alpha, beta, rc or final, not {version!r}")
    main = ".".join(str(part) for part in version[: 3 if version[2] else 2])
    return main if version[3] == "final" else f"{main}{_KINDS[version[3]]}{version[4]}"
