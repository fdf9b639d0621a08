"""A certificate for the servers that speak TLS.

Belongs here: making it. Does not belong here: speaking TLS.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.processes import BenchmarkError

__all__ = ["make_certificate"]


def make_certificate(folder: Path) -> str:
    """Return the path of a file in `folder` with a certificate for localhost and its key (ECDSA, P-256).

    Raises:
        BenchmarkError: trustme, which makes it, is not installed.
    """
    path = folder / "localhost.pem"
    if not path.exists():
        try:
            trustme = importlib.import_module("trustme")
        except ImportError:
            raise BenchmarkError("trustme is not installed") from None
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(path)
    return str(path)
