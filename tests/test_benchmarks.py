"""The benchmarks run and say what they measured; how fast anything is, is not looked at here."""

from __future__ import annotations

import math
import re
import shutil
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import compare, memory, processes, profile, report, run, targets
from benchmarks.bench import Collected, Progress, Results
from benchmarks.compare import Rates, Shape
from benchmarks.libraries import FLOOR, GO, LIBRARIES, OURS, why_not
from gws_gevent import ServerOptions
from gws_gevent._accel import build_of
from tests.support import free_port, require_module, require_tool, run_program

SMALL = Shape(3, 64, 2)
TEXT = Shape(3, 1000, 1, True)
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the load is an epoll loop, and memory is read from /proc")

#: Echoes on a port, but for the last byte. Takes its port from the command line.
WRONG_ECHO = """
import base64, hashlib, socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            if connection.recv(4096):
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\n\\r\\n")
                frame = connection.recv(4096)
                payload = bytes(byte ^ frame[2 + at % 4] for at, byte in enumerate(frame[6:]))
                connection.sendall(bytes([frame[0], len(payload)]) + payload[:-1] + b"?")
                connection.recv(1)
"""


@pytest.mark.parametrize(
    ("text", "shape", "shown"),
    [
        ("1,64,1", Shape(1, 64, 1), "1 x 64 B"),
        ("100,65000,16", Shape(100, 65000, 16), "100 x 65,000 B, 16 deep"),
        ("10,0,2,text", Shape(10, 0, 2, True), "10 x 0 B, 2 deep, text"),
    ],
)
def test_a_shape_is_read_and_shown(text: str, shape: Shape, shown: str) -> None:
    assert Shape.parse(text) == shape
    assert str(shape) == shown


@pytest.mark.parametrize("text", ["", "1,64", "1,64,x", "1,64,-1", "1,64,1,binary", "1,64,1,text,text"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a shape is CONNECTIONS,SIZE,DEPTH"):
        Shape.parse(text)


def test_a_server_is_read() -> None:
    read = compare.parse_server("ours=unix:/run/echo.sock@/echo=run --option NAME=VALUE 'a b'")
    assert read == processes.Server("ours", "unix:/run/echo.sock", ("run", "--option", "NAME=VALUE", "a b"), "/echo")
    assert compare.parse_server("x=127.0.0.1:1=run").target == "/"


@pytest.mark.parametrize("text", ["", "name", "name=127.0.0.1:1", "=127.0.0.1:1=run", "name==run"])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a server is NAME=ADDRESS=COMMAND"):
        compare.parse_server(text)


def test_ratios_are_medians_of_rounds_in_which_both_were_measured() -> None:
    rates: Rates = {
        (SMALL, "a"): [10.0, 40.0, math.nan, 90.0],
        (SMALL, "b"): [10.0, 10.0, 10.0, 10.0],
        (SMALL, "c"): [math.nan] * 4,
    }
    assert compare.ratio(rates, SMALL, "a", "b") == 4.0
    assert compare.median(rates, SMALL, "a") == 40.0
    assert math.isnan(compare.median(rates, SMALL, "c"))
    assert math.isnan(compare.ratio(rates, SMALL, "a", "c"))
    assert math.isnan(compare.ratio(rates, TEXT, "a", "b"))


def results() -> Results:
    """What a run with three servers found: one of them could not be loaded with text."""
    found = Results(["a fact"], {name: f"{name} 1.0" for name in (OURS, "other", FLOOR)}, (SMALL, TEXT), notes=["a note"])
    found.rates = {
        (SMALL, OURS): [3000.0],
        (SMALL, "other"): [1500.0],
        (SMALL, FLOOR): [4000.0],
        (TEXT, OURS): [2000.0],
        (TEXT, "other"): [math.nan],
        (TEXT, FLOOR): [2000.0],
    }
    found.growth = {OURS: {10: 20_000.0, 100: 200_000.0}, "other": {10: 60_000.0, 100: 500_000.0}}
    found.keepalive = {OURS: 2100.0}
    found.parked = 600.0
    found.tls_idle = {OURS: 9000.0, memory.BARE: 6000.0}
    found.wsgi_idle = {OURS: 2000.0, memory.IN_APPS["wsgi"]: 2080.0, memory.IN_APPS["flask"]: 2200.0}
    found.handshakes = {OURS: [100.0, 300.0], "picows": [100.0, 100.0]}
    found.quiet, found.flooded = {OURS: [10.0]}, {OURS: [30.0]}
    found.collected = {"10 connections over TCP": Collected(10, 0.0015, 4.0)}
    return found


def test_tables_show_what_was_measured_and_nothing_else() -> None:
    by_title = {table.title: table.rows for table in report.tables(results())}
    assert by_title.pop("What to reach")
    assert by_title == {
        "Messages per second (share of the C epoll loop)": [
            ["gws_gevent 1.0", "3,000 (0.750)", "2,000 (1.000)"],
            ["other 1.0", "1,500 (0.375)", "-"],
            ["C epoll loop 1.0", "4,000", "2,000"],
        ],
        "Throughput of gws_gevent divided by that of another": [["other 1.0", "2.00", "-"]],
        "Memory per idle connection": [
            ["gws_gevent 1.0", "2,000", "2,000", "2,100", "1.00"],
            ["other 1.0", "6,000", "5,000", "-", "2.50"],
            ["gws_gevent, parked", "-", "600", "-", "0.30"],
        ],
        "Memory per idle TLS connection": [["gws_gevent 1.0", "9,000", "1.00"], ["a bare SSLObject", "6,000", "0.67"]],
        "Memory per idle connection that was upgraded in a WSGI app": [
            ["gws_gevent 1.0", "2,000", "1.00"],
            ["gws_gevent, upgraded in a WSGI app", "2,080", "1.04"],
            ["gws_gevent, upgraded in Flask", "2,200", "1.10"],
        ],
        "Handshakes per second": [["gws_gevent 1.0", "200", "1.00"], ["picows", "100", "0.67"]],
        "Fairness": [["gws_gevent 1.0", "10", "30", "3.00"]],
        "A full garbage collection": [["10 connections over TCP", "1.5", "4.0"]],
    }


def test_what_is_to_be_reached_is_judged() -> None:
    found = results()
    found.rates |= {
        (Shape(100, 64, 16), OURS): [70.0],
        (Shape(100, 64, 16), FLOOR): [100.0],
        (Shape(100, 64, 16), "picows"): [10.0],
    }
    rows = {row[0]: row[1:] for row in report.tables(found)[0].rows}
    assert rows["idle connection over TCP, after a round of keepalive"] == ["2,100 bytes", "at most 2,300 bytes", "yes"]
    assert rows["idle connection over a Unix socket, after a round of keepalive"] == ["-", "at most 2,300 bytes", "-"]
    assert rows["idle connection that was upgraded in a WSGI app"] == ["1.04 x a direct one", "at most 1.05 x a direct one", "yes"]
    assert rows["idle connection that was upgraded in Flask"] == ["1.10 x a direct one", "at most 1.05 x a direct one", "no"]
    assert rows["idle TLS connection, above a bare SSLObject"] == ["3,000 bytes", "at most 2,300 bytes", "no"]
    assert rows["handshakes per second"] == ["2.00 x picows", "at least 2.00 x picows", "yes"]
    assert rows["p99 of 99 connections beside a flood"] == ["3.00 x without", "at most 2.00 x without", "no"]
    # Where gws is not measured, its share of the floor is that of an earlier measurement: 0.08.
    assert rows["100 x 64 B, 16 deep"] == [
        "0.70 of the floor, 7.00 x picows, 8.75 x gws",
        "at least 0.60 of the floor, 8.00 x picows, 6.00 x gws",
        "no",
    ]
    found.rates[Shape(100, 64, 16), GO] = [10.0]
    rows = {row[0]: row[1:] for row in report.tables(found)[0].rows}
    assert rows["100 x 64 B, 16 deep"][0] == "0.70 of the floor, 7.00 x picows, 7.00 x gws"


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ({1000: 2e6, 5000: 1e7, 19000: 3.8e7}, 1.0),
        ({1000: 1e6, 5000: 9e6, 19000: 5.1e7}, 1.5),
        ({5000: 1e7, 19000: 5.2e7}, math.nan),
        ({}, math.nan),
    ],
)
def test_growth_is_linear_when_the_last_connections_cost_what_those_before_did(growth: dict[int, float], expected: float) -> None:
    assert targets.linearity(growth) == pytest.approx(expected, nan_ok=True)


def test_a_table_is_aligned_as_text_and_marked_up_as_markdown() -> None:
    table = report.Table("Title", ["", "one"], [["a", "1"], ["long", "12,345"]])
    assert table.text() == "Title\n\n         one\n----  ------\na          1\nlong  12,345"
    assert table.markdown() == "## Title\n\n|  | one |\n| --- | ---: |\n| a | 1 |\n| long | 12,345 |"


def test_the_report_has_everything() -> None:
    text = report.markdown(results(), "latest.png")
    assert "- a fact\n" in text
    assert "](latest.png)" in text
    assert text.endswith("## Notes\n\n- a note\n")
    assert "latest.png" not in report.markdown(results(), None)


def test_progress_is_a_share_of_the_whole_run() -> None:
    progress = Progress(40)
    progress.begin(10, 2)
    assert progress.done == 0
    progress.step("first")
    progress.step("second")
    assert progress.done == 0.25
    progress.step("one more than was announced")
    assert progress.done == 0.25
    progress.begin(30, 3)
    progress.step("third")
    assert progress.done == 0.5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only", "throughput,nothing"], "there is no 'nothing'"),
        (["--rounds", "0"], "must be more than 0"),
        (["--shape", "1,64"], "argument --shape"),
        (["--library", "nothing"], "argument --library"),
    ],
)
def test_a_wrong_command_line_is_told(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(arguments)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


# The profile

PARSE = "__pyx_f_10gws_gevent_9_compiled_13_frame_parser_11FrameParser_read_header"
SEND = "__pyx_f_10gws_gevent_9_compiled_5_fdio_12SocketStream_try_send"
GET = "__pyx_getprop_10gws_gevent_9_compiled_8messages_7Message_data"


@pytest.mark.parametrize(
    ("chain", "stage"),
    [
        (f"memcpy'{PARSE}'_PyEval_EvalFrameDefault", "parse"),
        (f"{SEND}'{PARSE}", "write"),
        (f"_PyFrame_Clear'_PyEval_EvalFrameDefault'2'{SEND}", "Python code"),
        (f"{GET}'_PyEval_EvalFrameDefault'{SEND}", "Python code"),
        ("memcpy'slp_switch'ev_run", "wait"),
        ("main", "elsewhere"),
    ],
)
def test_a_function_counts_for_the_stage_it_was_called_from(chain: str, stage: str) -> None:
    assert profile.stage_of(chain) == stage


def test_counts_are_read_and_sums_are_not_counts() -> None:
    text = f"""
summary: 100
fn={PARSE}'main
12 30
+3 10
cob=libc
cfn=memcpy'{PARSE}'main
calls=7 1
* 60
fn=main
cfn={PARSE}'main
calls=2 12
5 100
totals: 200
"""
    own, inclusive, calls = profile.read_counts(text)
    assert own == {f"{PARSE}'main": 40}
    assert inclusive == {"memcpy": 60, PARSE: 100}
    assert calls == {"memcpy": 7, PARSE: 2}


# Programs


@ON_LINUX
@pytest.mark.slow
def test_the_profile_counts_or_says_what_is_missing() -> None:
    command = [sys.executable, "-m", "benchmarks.profile", "--messages", "50"]
    missing = run_program(command, env={"PATH": "/nowhere"})
    assert missing.status == 0, missing.errors
    assert missing.output.startswith("valgrind is missing: install ")
    if shutil.which("callgrind_control") is None:
        return
    counted = run_program(command, timeout=60)
    assert counted.status == 0, counted.errors
    assert re.search(r"^all +[\d,]+  100.0%$", counted.output, re.MULTILINE), counted.output
    assert re.search(r"^Python code +[\d,]+ +[1-9][\d.]*%$", counted.output, re.MULTILINE), counted.output


@ON_LINUX
@pytest.mark.slow
def test_a_wrong_echo_is_no_throughput() -> None:
    require_tool("cc")
    floor, wrong = free_port(), free_port()
    ended = run_program(
        [
            *(sys.executable, "-m", "benchmarks.compare", "--rounds", "1", "--seconds", "0.1", "--shape", "2,64,1"),
            f"floor=127.0.0.1:{floor}={processes.build('rawecho')} {floor}",
            f"wrong=127.0.0.1:{wrong}={sys.executable} -c '{WRONG_ECHO.replace(chr(39), chr(34))}' {wrong}",
        ]
    )
    assert ended.status == 1
    assert ended.errors == "wrong, 2 x 64 B: first echo: not what was sent\n"
    first, second = ended.output.splitlines()
    assert re.fullmatch(r"\s*2 x 64 B  floor\s+[\d,]+ msg/s   1\.000 of floor", first)
    assert re.fullmatch(r"\s*2 x 64 B  wrong\s+nan msg/s     nan of floor", second)


@ON_LINUX
@pytest.mark.slow
def test_a_server_that_does_not_start_is_told() -> None:
    ended = run_program(
        [sys.executable, "-m", "benchmarks.idle", f"127.0.0.1:{free_port()}", sys.executable, "-c", "raise SystemExit('no way')"]
    )
    assert ended.status == 1
    assert ended.errors.endswith("ended with status 1: no way\n")


def quick(folder: Path, *arguments: str) -> str:
    """Run parts of the benchmark with very little of everything; return the report."""
    require_tool("cc")
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--seconds", "0.1", "--output", str(folder), *arguments]
    ended = run_program(command, timeout=120)
    assert ended.status == 0, ended.output + ended.errors
    return (folder / "latest.md").read_text()


def has_rows(text: str, name: str, *cells: str) -> bool:
    """True if the report has a row that begins with a library's name and has such cells."""
    return re.search(rf"^\| {name} [^|]+\| {' [|] '.join(cells)} \|$", text, re.MULTILINE) is not None


@ON_LINUX
@pytest.mark.slow
def test_every_library_that_is_installed_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOPROXY", "off")  # what go has not got yet is not installed
    shapes = ("--shape", "3,64,2", "--shape", "3,1000,1,text")
    text = quick(tmp_path, "--only", "throughput,handshakes", *shapes)
    rate, number = r"[\d,]+ \(\d+\.\d{3}\)", r"[\d,]+"
    for library in LIBRARIES:
        if (reason := why_not(library)) is not None:
            assert f"- {library.name} was skipped: {reason}.\n" in text
            continue
        shown = library.name.partition(",")[0]
        assert has_rows(text, shown, rate, rate), text
        assert has_rows(text, shown, number, r"\d+\.\d\d"), text
    assert (tmp_path / "latest.png").exists() == (find_spec("matplotlib") is not None)


@ON_LINUX
@pytest.mark.slow
def test_memory_is_measured(tmp_path: Path) -> None:
    only = ("--only", "idle,parked,wsgi-idle,collector", "--library", "websockets")
    text = quick(tmp_path, *only, "--connections", "20,40", "--settle", "0.1")
    number = r"-?[\d,]+"
    assert has_rows(text, "gws_gevent", number, number, number, r"1\.00"), text
    assert has_rows(text, "gws_gevent,", number, number, number, r"-?\d+\.\d\d"), text
    assert has_rows(text, "40 connections", r"\d+\.\d", r"-?\d+\.\d"), text
    for name in memory.IN_APPS.values():
        assert has_rows(text, re.escape(name.rpartition(" ")[0]), number, r"-?\d+\.\d\d") or "Flask were not measured" in text, text
    assert has_rows(text, "1,000 connections", r"\d+\.\d", r"-?\d+\.\d"), text
    assert "pings came" not in text
    assert ("has no park_after" in text) == ("park_after" not in {item.name for item in fields(ServerOptions)})


@ON_LINUX
@pytest.mark.slow
def test_tls_broadcast_and_fairness_are_measured(tmp_path: Path) -> None:
    text = quick(tmp_path, "--only", "tls,tls-idle,broadcast,fairness", "--library", "picows")
    number = r"[\d,]+"
    if "TLS throughput was not measured" not in text:  # OpenSSL's headers are not everywhere
        assert has_rows(text, "gws_gevent", number, number, number), text
    assert has_rows(text, "a bare", number, r"\d+\.\d\d"), text
    assert has_rows(text, "C epoll", number, r"\d+\.\d\d"), text
    assert has_rows(text, "gws_gevent", number, number, r"\d+\.\d\d"), text


@ON_LINUX
@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--reconnect",)], ids=["connect", "Reconnect"])
def test_an_idle_connection_costs_its_client_little(more: tuple[str, ...]) -> None:
    finished = run_program([sys.executable, "-m", "benchmarks.clients", "--connections", "1000", "--settle", "0.5", *more])
    assert finished.status == 0, finished.errors
    found = re.fullmatch(r"([0-9,]+) bytes for each of 1,000 connections\n", finished.output)
    assert found is not None, finished.output
    # About 2.2 KB, and 1.1 KB more for Reconnect; the plain build, and Pythons that keep the data stack, need 4 KB more and up.
    assert 1000 < int(found[1].replace(",", "")) < (5000 if build_of("_fdio").TRIMS else 20_000)


@ON_LINUX
@pytest.mark.slow
@pytest.mark.parametrize("transport", ["kcp", "h3", "tcp"])
def test_a_datagram_transport_is_measured(transport: str) -> None:
    require_module("aioquic" if transport == "h3" else "kcp")
    little = ["--seconds", "0.1", "--count", "20", "--sessions", "3", "--datagrams", "500"]
    finished = run_program([sys.executable, "-m", "benchmarks.datagrams", "all", transport, *little], timeout=60)
    assert finished.status == 0, finished.errors
    lines = [line for line in finished.output.splitlines() if not line.startswith("-- ")]
    assert len(lines) > 10
    for line in lines:
        name, _, value = line.rpartition(": ")
        assert name, line
        assert re.match(r"[\d.]+", value), line


@pytest.mark.slow
def test_a_bad_line_makes_messages_late() -> None:
    require_module("aioquic")
    require_module("kcp")
    command = [sys.executable, "-m", "benchmarks.lossy", "--loss", "0,10", "--seconds", "2", "--rtt", "60", "--jitter", "0"]
    finished = run_program(command, timeout=60)
    assert finished.status == 0, finished.errors
    rows = re.findall(
        r"^\| (TCP|QUIC|KCP)[^|]*\| (\d+) / (\d+) / (\d+) \| (\d+) / (\d+) / ([\d,]+) \|$", finished.output, re.MULTILINE
    )
    assert [name for name, *_ in rows] == ["TCP", "QUIC", "KCP", "KCP"] * 2, finished.output
    for number, (_, *found) in enumerate(rows):
        good, _, _, _, _, bad = (int(figure.replace(",", "")) for figure in found)
        shortest = 30 if number < 4 else 60
        assert shortest <= good <= shortest + 20, finished.output
        assert bad > good, finished.output


@pytest.mark.slow
def test_lateness_is_compared_with_the_least_there_is() -> None:
    finished = run_program([sys.executable, "-m", "benchmarks.lateness", "--count", "20"])
    assert finished.status == 0, finished.errors
    assert re.findall(r"^(.*), ms late: 50 of 100 [\d.]+, 90 of 100 [\d.]+, 99 of 100 [\d.]+$", finished.output, re.MULTILINE) == [
        "epoll and timerfd",
        "a session's deadline",
    ]
