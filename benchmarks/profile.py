"""Where the instructions of one echo go, stage by stage, counted by valgrind's callgrind: python -m benchmarks.profile.

Runs the echo server under callgrind on a Unix socket, sends it messages and counts from the first to the last of
them: no handshake, no start. Instructions are counted, not timed, so that a busy machine changes nothing; what the kernel does is
not in them. A function counts for the stage of the compiled function that it was called from, however deep (C types of
Python, memory, ...); once Python code comes in between, for the stage `Python code`, which is the handler where all else is
compiled.

Belongs here: counting, and which function is which stage. Does not belong here: time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.idle import HEADERS
from benchmarks.libraries import LIBRARIES, server_of
from benchmarks.processes import BenchmarkError, Server, running
from benchmarks.report import Table
from gws_gevent._accel import BUILT_TWICE

__all__ = ["main", "read_counts", "stage_of"]

#: Messages before the count begins, so that what is made once has been made.
WARM_UP = 500
#: Callers that callgrind tells apart: how far a function may be from the one whose stage it counts for.
CALLERS = 16
#: Seconds until a server that valgrind slows down must have answered, and until callgrind has written its file.
PATIENCE = 60.0

#: Stages by "module.function" of the compiled modules; the first that matches counts.
STAGES = [
    ("write", r"_fdio\..*(send|write|flush)|_masking\.append_frame|protocol\..*append_frame"),
    ("write", r"(writer|frame_output|message_queue|outgoing)\."),
    ("read", r"_fdio\..*(recv|receive)"),
    ("wait", r"_fdio\.|(timers|deadlines|service)\."),
    ("parse", r"(_frame_parser|_masking)\."),
    ("assemble", r"(message|partial_message|protocol|reading|incoming)\."),
    ("read loop", r"."),
]
PYTHON, WAIT, ELSEWHERE = "Python code", "wait", "elsewhere"
ORDER = ["read", "parse", "assemble", "read loop", PYTHON, "write", WAIT, ELSEWHERE]
#: A line of the source and what it cost; other lines are "name: value".
_COST = re.compile(r"[-+*\d]\S* \d+")
#: Cython's name of a function: its kind, the packages, the module and the function, each with its length before it.
_LONGEST_FIRST = sorted(BUILT_TWICE, key=len, reverse=True)
_COMPILED = re.compile(r"_compiled_\d+(?P<module>" + "|".join(_LONGEST_FIRST) + r")_+\d*(?P<function>\w+)")
_SWITCHING = re.compile(r"g_switch|slp_switch|^ev_|^gevent_|_6gevent_|epoll")


def main() -> int:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=(__doc__ or "").partition("\n")[0])
    cli.add_argument("--messages", type=int, default=2000, help="counted (default: 2000)")
    cli.add_argument("--size", type=int, default=64, help="bytes of each (default: 64)")
    cli.add_argument("--depth", type=int, default=1, help="messages sent at once (default: 1)")
    cli.add_argument("--functions", type=int, default=25, help="shown (default: 25)")
    args = cli.parse_args()
    for tool in ("valgrind", "callgrind_control"):
        if shutil.which(tool) is None:
            print(f"{tool} is missing: install valgrind (Debian: apt install valgrind, Fedora: dnf install valgrind).")
            return 0
    try:
        with tempfile.TemporaryDirectory(prefix="profile-") as folder:
            text = _profile(Path(folder), args.messages, args.size, args.depth)
    except BenchmarkError as error:
        sys.exit(str(error))
    own, inclusive, calls = read_counts(text)
    for table in _tables(own, inclusive, calls, args.messages, args.functions):
        print(table.text(), end="\n\n")
    return 0


# Counting


def _profile(folder: Path, messages: int, size: int, depth: int) -> str:
    """Return what callgrind wrote about so many messages."""
    plain = server_of(LIBRARIES[0], endpoint=f"unix:{folder / 'echo.sock'}")
    output = folder / "callgrind.out"
    options = ["--instr-atstart=no", f"--separate-callers={CALLERS}", "--compress-strings=no", "--compress-pos=no"]
    command = ("valgrind", "--tool=callgrind", *options, f"--callgrind-out-file={output}", *plain.command)
    with running(Server(plain.name, plain.address, command, plain.target)) as process, socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(plain.address.removeprefix("unix:"))
        peer.sendall(f"GET {plain.target} HTTP/1.1\r\n{HEADERS}".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += _receive(peer)
        _echo(peer, WARM_UP, size, depth)
        _control("-i", "on", str(process.pid))
        _echo(peer, messages, size, depth)
        _control("-d", str(process.pid))
        return output.with_suffix(".out.1").read_text()


def _echo(peer: socket.socket, messages: int, size: int, depth: int) -> None:
    """Send so many messages, `depth` at a time, and wait for their echoes."""
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    frame = b"\x82" + bytes([0x80 | length[0]]) + length[1:] + bytes(4 + size)
    for first in range(0, messages, depth):
        count = min(depth, messages - first)
        peer.sendall(frame * count)
        left = (len(frame) - 4) * count
        while left:
            left -= len(_receive(peer))


def _receive(peer: socket.socket) -> bytes:
    data = peer.recv(1 << 16)
    if not data:
        raise BenchmarkError("the server closed the connection")
    return data


def _control(*arguments: str) -> None:
    done = subprocess.run(["callgrind_control", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode or "Error" in done.stdout + done.stderr:
        raise BenchmarkError(f"callgrind_control: {(done.stderr or done.stdout).strip()}")


def read_counts(text: str) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Read what callgrind wrote.

    Returns:
        Instructions by chain of callers ("function'caller'its caller"), their own; and by function, those with all that it
        calls, and how often it was called.
    """
    own, inclusive, calls = Counter[str](), Counter[str](), Counter[str]()
    chain = callee = ""
    for line in text.splitlines():
        if line.startswith("fn="):
            chain = line[3:]
        elif line.startswith("cfn="):
            callee = line[4:]
        elif line.startswith("calls="):
            calls[_functions(callee)[0]] += int(line[6:].split()[0])
        elif _COST.fullmatch(line):
            cost = int(line.rpartition(" ")[2])
            if not callee:
                own[chain] += cost
            elif (name := _functions(callee)[0]) not in _functions(chain):
                inclusive[name] += cost
            callee = ""
    return own, inclusive, calls


def _functions(chain: str) -> list[str]:
    """A function and its callers. A number in the chain is the depth of a recursion."""
    return [name for name in chain.split("'") if not name.isdecimal()]


# Stages


def stage_of(chain: str) -> str:
    """Return the stage of a function with its chain of callers."""
    for name in _functions(chain):
        if name.startswith("_PyEval_EvalFrame"):
            return PYTHON
        if "_getprop_" in name:
            continue  # reading an attribute counts for whoever reads it
        if (compiled := _compiled(name)) is not None:
            return next(stage for stage, pattern in STAGES if re.match(pattern, compiled))
        if _SWITCHING.search(name):
            return WAIT
    return ELSEWHERE


def _compiled(name: str) -> str | None:
    """Return "module.function" for a function of the compiled modules."""
    found = _COMPILED.search(name)
    return f"{found['module']}.{found['function']}" if found else None


# Tables


def _tables(own: Counter[str], inclusive: Counter[str], calls: Counter[str], messages: int, functions: int) -> Iterator[Table]:
    stages, by_function = Counter[str](), Counter[str]()
    for chain, count in own.items():
        stages[stage_of(chain)] += count
        by_function[_functions(chain)[0]] += count
    whole = sum(stages.values())

    def each(count: int) -> str:
        return f"{count / messages:,.0f}"

    rows = [[stage, each(stages[stage]), f"{stages[stage] / whole:.1%}"] for stage in ORDER]
    yield Table("Instructions for each message", ["stage", "instructions", "share"], [*rows, ["all", each(whole), "100.0%"]])
    ours = [(count, name) for name, count in inclusive.items() if _compiled(name)]
    yield Table(
        "Compiled functions",
        ["", "stage", "with what they call", "their own", "calls"],
        [
            [str(_compiled(name)), stage_of(name), each(count), each(by_function[name]), f"{calls[name] / messages:.2f}"]
            for count, name in sorted(ours, reverse=True)[:functions]
        ],
    )
    yield Table(
        "Functions by their own instructions",
        ["", "instructions", "share"],
        [[_compiled(name) or name, each(count), f"{count / whole:.1%}"] for name, count in by_function.most_common(functions)],
    )


if __name__ == "__main__":
    sys.exit(main())
