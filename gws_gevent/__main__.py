"""`python -m gws_gevent` is `gws-gevent`."""

from __future__ import annotations

import sys

from gws_gevent.cli import main

if __name__ == "__main__":
    sys.exit(main())
