"""Run the Autobahn TestSuite (as kosoku runs it) against a server or a client of ours that echoes, and judge the outcome.

    python tests/autobahn.py --ci
    GWS_GEVENT_PURE_PYTHON=1 python tests/autobahn.py --cases 1-7 --transport unix --markdown summary.md
    python tests/autobahn.py --side client
    python tests/autobahn.py --transport tls --via bridge --cases 1-7

Belongs here: starting both sides, and what counts as passed. Does not belong here: cases of our own, which are pytest's.

The suite speaks only TCP. For the other transports a relay in this process carries its bytes, or, with `--via bridge`, our own
`gws-gevent bridge` does.
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
#: How many parts, which run the same cases under other parameters, the groups about compression have.
PARTS = {12: 5, 13: 7}
#: Of the groups about compression the smaller messages: the others take most of the suite's time.
CI_CASES = "1-7,9,10,12.x.1-8,13.x.1-8"
GOOD_BEHAVIOR = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
GOOD_CLOSE = frozenset({"OK", "INFORMATIONAL"})
#: Transports that need certificates.
SECURE = ("tls", "quic", "h3")
#: Those that no relay of ours speaks.
BRIDGED = ("quic", "h3", "kcp")
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


# Our side, in a process of its own


def serve(endpoint: str, cert: str | None, key: str | None, takeover: bool) -> None:
    """Echo on one endpoint until terminated; print its address, and the build in use."""
    import gevent
    from gevent.signal import signal

    from gws_gevent import ACCELERATED, Connection, EventHandler, Message, PermessageDeflate, Server, ServerOptions
    from gws_gevent.transports.base import ListenSettings, TlsFiles

    class Echo(EventHandler):
        def on_message(self, conn: Connection, message: Message) -> None:
            # The suite fails over text that comes uncompressed where it has negotiated compression.
            conn.write_message(message.opcode, message.data, compress=True)

    deflate = PermessageDeflate(server_context_takeover=takeover, client_context_takeover=takeover)
    server = Server(Echo(), ServerOptions(ping_interval=None, permessage_deflate=deflate))
    server.start(endpoint, settings=ListenSettings(tls=TlsFiles(cert, key)) if cert else None)
    signal(15, lambda *_: gevent.spawn(server.stop))
    print(server.address, "compiled" if ACCELERATED else "plain", flush=True)
    server.serve_forever()


def drive(url: str, parallel: int, ca: str | None, takeover: bool) -> None:
    """Be the client of every case that the suite's server has, then ask for its reports; print the build in use."""
    from gevent.pool import Pool

    from gws_gevent import ACCELERATED, ClientOptions, Connection, GwsError, Opcode, PermessageDeflate, connect
    from gws_gevent.transports.tls_contexts import client_context

    context = client_context(ca) if ca else None
    # Without an offer to keep no context itself a client does not get to run three of the groups.
    options = ClientOptions(ping_interval=None, permessage_deflate=PermessageDeflate(server_context_takeover=takeover))

    def opened(target: str) -> Connection:
        return connect(url + target, options=options, ssl_context=context)

    def echo(number: int) -> None:
        with opened(f"/runCase?case={number}&agent=gws_gevent") as conn:
            try:
                for message in conn:
                    conn.write_message(Opcode.TEXT if isinstance(message, str) else Opcode.BINARY, message, compress=True)
            except GwsError:
                pass  # the case's way to end; the suite judges it

    with opened("/getCaseCount") as conn:
        count = int(conn.receive(timeout=START_LIMIT))
    pool = Pool(parallel)
    for _ in pool.imap_unordered(echo, range(1, count + 1)):
        pass
    opened("/updateReports?agent=gws_gevent").close()
    print("compiled" if ACCELERATED else "plain", flush=True)


@asynccontextmanager
async def running_server(transport: str, folder: Path, more: list[str]) -> AsyncIterator[tuple[str, str]]:
    """Run `serve` in another process; the context is its address and its build."""
    args = [__file__, "--serve", f"unix:{folder}/server.sock" if transport == "unix" else f"{transport}://127.0.0.1:0", *more]
    if transport in SECURE:
        make_certificate(folder)
        args += ["--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem")]
    process = await start_ours(*args)
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


async def start_ours(*args: str) -> Process:
    """Run this file in a process of its own, with this checkout's package."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return await asyncio.create_subprocess_exec(sys.executable, *args, stdout=PIPE, env={**os.environ, "PYTHONPATH": path})


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
    """The context is a ws:// URL that leads to our server, through a relay unless the server speaks TCP."""
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

    async with await asyncio.start_server(relay_to(connect), "127.0.0.1", 0) as relay:
        yield f"ws://127.0.0.1:{relay.sockets[0].getsockname()[1]}/"


@asynccontextmanager
async def bridged(address: str, folder: Path) -> AsyncIterator[str]:
    """The context is a ws:// URL that leads to our server through our own bridge."""
    args = ["-m", "gws_gevent", "bridge", "--listen", "127.0.0.1:0", "--to", address, "--log-level", "warning"]
    if address.startswith(SECURE):
        args += ["--to-ca", str(folder / "ca.pem")]
    process = await start_ours(*args)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_LIMIT)
        if not line:
            raise SystemExit("the bridge did not start")
        yield line.decode().split()[-1].replace("tcp:", "ws:") + "/"
        if process.returncode is not None:
            raise SystemExit(f"the bridge ended with status {process.returncode} during the run")
    finally:
        await end(process)


@asynccontextmanager
async def offered(transport: str, port: int, folder: Path) -> AsyncIterator[str]:
    """The context is the URL over a transport that leads to the suite's server on a port."""

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port)

    if transport == "tcp":
        yield f"ws://127.0.0.1:{port}"
    elif transport == "unix":
        async with await asyncio.start_unix_server(relay_to(connect), str(folder / "relay.sock")):
            yield f"ws+unix:{folder}/relay.sock:"
    else:
        make_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        async with await asyncio.start_server(relay_to(connect), "127.0.0.1", 0, ssl=context) as relay:
            yield f"wss://127.0.0.1:{relay.sockets[0].getsockname()[1]}"


def relay_to(connect: Connect) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    tasks = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio forgets the task of a connection that is lost, and it could be collected before its end.
        tasks.add(asyncio.current_task())
        try:
            await carry_both_ways(reader, writer, connect)
        except OSError:
            pass  # one side dropped the connection, which the suite sees
        finally:
            writer.transport.abort()
            tasks.discard(asyncio.current_task())

    return relay


async def carry_both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect) -> None:
    far_reader, far_writer = await connect()
    forth = asyncio.create_task(carry(reader, far_writer))
    try:
        # Once the far side has closed there is nothing to carry to it.
        await carry(far_reader, writer)
        writer.close()
        await writer.wait_closed()
    finally:
        forth.cancel()
        far_writer.transport.abort()


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until the end, and how it ended: a reset is passed on as a reset."""
    try:
        while piece := await reader.read(RELAY_PIECE):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()
    except OSError:
        writer.transport.abort()


# The suite


def parse_cases(text: str) -> list[str]:
    """Turn "1-7,9,12.1.*,13.x.1-8" into the suite's globs; "all" is every group."""
    globs: list[str] = []
    for part in ("1-13" if text == "all" else text).split(","):
        some = re.fullmatch(r"(12|13)\.x\.(\d+)-(\d+)", part.strip())
        if some is not None:
            group, first, last = map(int, some.groups())
            globs += [f"{group}.{one}.{case}" for one in range(1, PARTS[group] + 1) for case in range(first, last + 1)]
            continue
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None:
            globs.append(part.strip())
            continue
        groups = range(int(found[1]), int(found[2] or found[1]) + 1)
        globs += [f"{group}.*" for group in groups if group in GROUP_SIZES]
    if not globs:
        raise SystemExit(f"--cases {text}: no such cases")
    return globs


async def start_suite(mode: str, globs: list[str], parallel: int, out: Path, address: str) -> Process:
    program = Path(sys.executable).with_name("kosoku")
    args = ["-m", mode, "-p", str(parallel), "-o", str(out)]
    for glob in globs:
        args += ["-i", glob]
    out.mkdir()
    with (out / "log").open("wb") as sink:
        return await asyncio.create_subprocess_exec(str(program), *args, address, stdout=sink, stderr=sink)


async def finish_suite(process: Process, out: Path) -> list[Result]:
    try:
        await asyncio.wait_for(process.wait(), SUITE_LIMIT)
    except TimeoutError:
        raise SystemExit(f"the suite was not through after {SUITE_LIMIT:g} s") from None
    finally:
        await end(process)
    index = out / "index.json"
    if not index.exists():
        said = (out / "log").read_text(errors="replace")[-4000:]
        raise SystemExit(f"the suite ended with status {process.returncode} and no report:\n{said}")
    return read_results(json.loads(index.read_text()))


async def check_server(
    transport: str, via: str | None, globs: list[str], parallel: int, folder: Path, more: list[str]
) -> tuple[str, list[Result]]:
    """Return the build in use and the results."""
    way = bridged if via == "bridge" or (via is None and transport in BRIDGED) else reachable
    async with running_server(transport, folder, more) as (address, build), way(address, folder) as url:
        suite = await start_suite("fuzzingclient", globs, parallel, folder / "report", url)
        return build, await finish_suite(suite, folder / "report")


async def check_client(transport: str, globs: list[str], parallel: int, folder: Path, more: list[str]) -> tuple[str, list[Result]]:
    """Return the build in use and the results."""
    out = folder / "report"
    suite = await start_suite("fuzzingserver", globs, 1, out, "127.0.0.1:0")
    try:
        port = await listening_port(out / "log")
        async with offered(transport, port, folder) as url:
            trust = ["--ca", str(folder / "ca.pem")] if transport == "tls" else []
            client = await start_ours(__file__, "--drive", url, "--parallel", str(parallel), *trust, *more)
            try:
                said, _ = await asyncio.wait_for(client.communicate(), SUITE_LIMIT)
            finally:
                await end(client)
            if client.returncode != 0:
                raise SystemExit(f"the client ended with status {client.returncode}")
            return said.decode().strip(), await finish_suite(suite, out)
    finally:
        await end(suite)


async def listening_port(log: Path) -> int:
    """Wait until the suite's server has written where it listens."""
    async with asyncio.timeout(START_LIMIT):
        while not (found := re.search(r"listening on ws://[^\n]*:(\d+)\n", log.read_text())):
            await asyncio.sleep(0.02)
    return int(found[1])


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
        more = ["--no-takeover"] if options.no_takeover else []
        if options.side == "client":
            build, results = await check_client(options.transport, globs, options.parallel, Path(name), more)
        else:
            build, results = await check_server(options.transport, options.via, globs, options.parallel, Path(name), more)
    how = "without" if options.no_takeover else "with"
    seconds = time.monotonic() - begin
    via = " via bridge" if options.via == "bridge" or options.transport in BRIDGED else ""
    where = f"{options.side}, {options.transport}{via}"
    title = f"{where}, {build} build, {how} context takeover, cases {options.cases}: {seconds:.0f} s"
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
    parser = argparse.ArgumentParser(description="Run the Autobahn TestSuite against gws_gevent.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ci", action="store_true", help=f"cases {CI_CASES} over TCP")
    what.add_argument("--cases", default=CI_CASES, help=f"groups, ranges or globs, as in 1-7,12.1.*,13.x.1-8; or all ({CI_CASES})")
    parser.add_argument("--side", choices=("server", "client"), default="server", help="which side of ours is tested")
    parser.add_argument("--transport", choices=("tcp", "tls", "unix", *BRIDGED), default="tcp")
    parser.add_argument("--via", choices=("relay", "bridge"), help="what leads from TCP to our server's transport (relay)")
    parser.add_argument("--parallel", type=int, default=2, help="cases run at once (2)")
    parser.add_argument("--no-takeover", action="store_true", help="compress each message by itself")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there")
    # What a process of its own is started with.
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--ca", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--cert", help=argparse.SUPPRESS)
    parser.add_argument("--key", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive, options.parallel, options.ca, not options.no_takeover)
        return
    if options.serve:
        serve(options.serve, options.cert, options.key, not options.no_takeover)
        return
    if options.ci:
        options.side, options.transport = "server", "tcp"
    sys.exit(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
