"""Run the Autobahn TestSuite's client (as kosoku runs it) against an echo server of ours, and judge the outcome.

    python tests/autobahn.py --ci
    GWS_GEVENT_PURE_PYTHON=1 python tests/autobahn.py --cases 1-7 --transport unix --markdown summary.md

Belongs here: starting both sides, and what counts as passed. Does not belong here: cases of our own, which are pytest's.

The suite's client speaks only TCP. For the other transports a relay in this process carries its bytes to the server.
Keepalive is off: the suite takes a ping it did not expect for a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import ssl
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

#: Cases in each group of the suite: a run that lost some has not passed. There are no groups 8 and 11.
GROUP_SIZES = {1: 16, 2: 11, 3: 7, 4: 10, 5: 20, 6: 145, 7: 37, 9: 54, 10: 1, 12: 90, 13: 126}
#: Without the groups about compression.
CI_CASES = "1-7,9,10"
GOOD_BEHAVIOR = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
GOOD_CLOSE = frozenset({"OK", "INFORMATIONAL"})
#: Seconds the whole suite may take; it takes about 8 minutes.
SUITE_LIMIT = 1800.0
START_LIMIT = 20.0
RELAY_PIECE = 256 * 1024

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Result(NamedTuple):
    """One case's outcome: in the order of the suite when sorted."""

    number: tuple[int, ...]
    behavior: str
    behavior_close: str

    @property
    def case(self) -> str:
        return ".".join(map(str, self.number))

    @property
    def good(self) -> bool:
        return self.behavior in GOOD_BEHAVIOR and self.behavior_close in GOOD_CLOSE


# The server, in a process of its own


def serve(endpoint: str, cert: str | None, key: str | None) -> None:
    """Echo on one endpoint until terminated; print its address, and the build in use."""
    import gevent
    from gevent.signal import signal

    from gws_gevent import ACCELERATED, Connection, EventHandler, Message, Server, ServerOptions
    from gws_gevent.transports.base import ListenSettings, TlsFiles

    class Echo(EventHandler):
        def on_message(self, conn: Connection, message: Message) -> None:
            conn.write_message(message.opcode, message.data)

    server = Server(Echo(), ServerOptions(ping_interval=None))
    server.start(endpoint, settings=ListenSettings(tls=TlsFiles(cert, key)) if cert else None)
    signal(15, lambda *_: gevent.spawn(server.stop))
    print(server.address, "compiled" if ACCELERATED else "plain", flush=True)
    server.serve_forever()


@asynccontextmanager
async def running_server(transport: str, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Run `serve` in another process; the context is its address and its build."""
    args = [__file__, "--serve", f"unix:{folder}/server.sock" if transport == "unix" else f"{transport}://127.0.0.1:0"]
    if transport == "tls":
        make_certificate(folder)
        args += ["--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem")]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = await asyncio.create_subprocess_exec(sys.executable, *args, stdout=PIPE, env={**os.environ, "PYTHONPATH": path})
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT)
        if not line:
            raise SystemExit("the server did not start")
        address, build = line.decode().split()
        yield address, build
        if process.returncode is not None:
            raise SystemExit(f"the server ended with status {process.returncode} during the run")
    finally:
        await end(process)


async def end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), START_LIMIT)
        except TimeoutError:
            process.kill()
            await process.wait()


def make_certificate(folder: Path) -> None:
    import trustme

    authority = trustme.CA()
    ours = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    ours.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    ours.private_key_pem.write_to_path(str(folder / "key.pem"))


# The relay


@asynccontextmanager
async def reachable(address: str, folder: Path) -> AsyncIterator[str]:
    """The context is a ws:// URL that leads to the server, through a relay unless the server speaks TCP."""
    scheme, _, rest = address.partition(":")
    if scheme == "tcp":
        yield f"ws:{rest}/"
        return

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if scheme == "unix":
            return await asyncio.open_unix_connection(rest)
        host, _, port = rest.removeprefix("//").rpartition(":")
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        return await asyncio.open_connection(host, int(port), ssl=context)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await carry_both_ways(reader, writer, connect)
        except OSError:
            pass  # one side dropped the connection, which the suite's client sees
        finally:
            writer.transport.abort()

    relay_server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with relay_server:
        yield f"ws://127.0.0.1:{relay_server.sockets[0].getsockname()[1]}/"


async def carry_both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect) -> None:
    far_reader, far_writer = await connect()
    forth = asyncio.ensure_future(carry(reader, far_writer))
    try:
        # Once the server has closed there is nothing to carry to it.
        await carry(far_reader, writer)
        writer.close()
        await writer.wait_closed()
    finally:
        far_writer.transport.abort()
        forth.cancel()
        await asyncio.gather(forth, return_exceptions=True)


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(RELAY_PIECE):
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()


# The suite


def parse_cases(text: str) -> list[str]:
    """Turn "1-7,9,12.1.*" into the suite's globs; "all" is every group."""
    globs: list[str] = []
    for part in ("1-13" if text == "all" else text).split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None:
            globs.append(part.strip())
            continue
        groups = range(int(found[1]), int(found[2] or found[1]) + 1)
        globs += [f"{group}.*" for group in groups if group in GROUP_SIZES]
    if not globs:
        raise SystemExit(f"--cases {text}: no such cases")
    return globs


async def run_suite(url: str, globs: list[str], parallel: int, out: Path) -> list[Result]:
    program = Path(sys.executable).with_name("kosoku")
    args = ["-m", "fuzzingclient", "-p", str(parallel), "-o", str(out)]
    for glob in globs:
        args += ["-i", glob]
    log = out / "log"
    out.mkdir()
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(str(program), *args, url, stdout=sink, stderr=sink)
    try:
        await asyncio.wait_for(process.wait(), SUITE_LIMIT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise SystemExit(f"the suite was not through after {SUITE_LIMIT:g} s") from None
    index = out / "index.json"
    if not index.exists():
        said = log.read_text(errors="replace")[-4000:]
        raise SystemExit(f"the suite ended with status {process.returncode} and no report:\n{said}")
    return read_results(json.loads(index.read_text()))


def read_results(index: dict[str, dict[str, dict[str, Any]]]) -> list[Result]:
    return sorted(
        Result(tuple(map(int, case.split("."))), found["behavior"], found["behaviorClose"])
        for agent in index.values()
        for case, found in agent.items()
    )


def lost(results: list[Result], globs: list[str]) -> list[str]:
    """Whole groups that were asked for and have not all of their cases."""
    counts = Counter(result.number[0] for result in results)
    wanted = {int(glob[:-2]): GROUP_SIZES[int(glob[:-2])] for glob in globs if re.fullmatch(r"\d+\.\*", glob)}
    return [f"group {group}: {counts[group]} of {size} cases ran" for group, size in wanted.items() if counts[group] != size]


def table(results: list[Result]) -> str:
    """A Markdown table: a line for each group."""
    lines = ["| group | cases | OK | NON-STRICT | INFORMATIONAL | failed |", "|---|---|---|---|---|---|"]
    for group in sorted({result.number[0] for result in results}):
        ours = [result for result in results if result.number[0] == group]
        kinds = Counter(result.behavior for result in ours if result.good)
        bad = sum(not result.good for result in ours)
        counts = " | ".join(str(kinds[kind]) for kind in ("OK", "NON-STRICT", "INFORMATIONAL"))
        lines.append(f"| {group}.* | {len(ours)} | {counts} | {bad} |")
    return "\n".join(lines) + "\n"


async def run(options: argparse.Namespace) -> int:
    globs = parse_cases(options.cases)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with running_server(options.transport, folder) as (address, build), reachable(address, folder) as url:
            results = await run_suite(url, globs, options.parallel, folder / "report")
    title = f"{options.transport}, {build} build, cases {options.cases}: {time.monotonic() - begin:.0f} s"
    text = table(results)
    if options.markdown:
        Path(options.markdown).write_text(f"### {title}\n\n{text}")
    print(f"{title}\n\n{text}")
    failures = [result for result in results if not result.good]
    for result in failures:
        print(f"{result.case}: behavior {result.behavior}, close {result.behavior_close}")
    missing = lost(results, globs)
    print(*missing, sep="\n", end="\n" if missing else "")
    failed = len(failures) + len(missing)
    print(f"{len(results) - len(failures)} passed, {failed} failed")
    return 1 if failed or not results else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the Autobahn TestSuite against an echo server of gws_gevent.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ci", action="store_true", help=f"cases {CI_CASES} over TCP")
    what.add_argument("--cases", default=CI_CASES, help=f"groups, ranges or globs, as in 1-7,9,12.1.*; or all ({CI_CASES})")
    parser.add_argument("--transport", choices=("tcp", "tls", "unix"), default="tcp")
    parser.add_argument("--parallel", type=int, default=2, help="cases run at once (2)")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there")
    # What the server's process is started with.
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--cert", help=argparse.SUPPRESS)
    parser.add_argument("--key", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.cert, options.key)
        return
    if options.ci:
        options.transport = "tcp"
    sys.exit(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
