"""Add up pytest's closing lines in the output of a CI run and print one line for all of them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

CLOSING_LINE = re.compile(r"^(?:=+ )?((?:\d+ [a-z]+, )*\d+ [a-z]+) in [\d.]+s(?: \([\d:]+\))?(?: =+)?$", re.MULTILINE)

total: Counter[str] = Counter()
for line in CLOSING_LINE.findall(Path(sys.argv[1]).read_text(errors="replace")):
    for part in line.split(", "):
        count, what = part.split(" ")
        total[what] += int(count)
if not total["passed"]:
    sys.exit("no test has run")
skipped = f", {total['skipped']} skipped" if total["skipped"] else ""
print(f"{total['passed']} passed, {total['failed'] + total['error'] + total['errors']} failed{skipped}")
