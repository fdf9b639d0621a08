"""Compare site-packages before and after an installation: gws_gevent may put one package and its metadata there, no more."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

command, file = sys.argv[1], Path(sys.argv[2])
now = {path.name for path in Path(sysconfig.get_path("purelib")).iterdir()} - {"__pycache__"}
if command == "save":
    file.write_text("\n".join(now))
else:
    added = now - set(file.read_text().split("\n"))
    metadata = {name for name in added if name.startswith("gws_gevent-") and name.endswith(".dist-info")}
    if added - metadata != {"gws_gevent"} or len(metadata) != 1:
        sys.exit(f"site-packages has got {sorted(added)} instead of gws_gevent and its metadata")
    print(f"site-packages has got {', '.join(sorted(added))}")
