"""The benchmarks run and say what they measured; how fast anything is, is not looked at here."""

from __future__ import annotations

import math
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import compare, processes, report
from benchmarks.compare import Rates, Shape
from benchmarks.run import LIBRARIES
from tests.support import free_port, require_tool, run_program

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


def results() -> report.Results:
    """What a run with three servers found: one of them could not be loaded with text."""
    names = [report.OURS, "other", report.FLOOR]
    rates = {
        (SMALL, report.OURS): [3000.0],
        (SMALL, "other"): [1500.0],
        (SMALL, report.FLOOR): [4000.0],
        (TEXT, report.OURS): [2000.0],
        (TEXT, "other"): [math.nan],
        (TEXT, report.FLOOR): [2000.0],
    }
    labels = {name: f"{name} 1.0" for name in names}
    return report.Results(["a fact"], names, labels, [SMALL, TEXT], rates, {report.OURS: 2000.0, "other": 5000.0}, ["a note"])


def test_tables_show_rates_ratios_and_memory() -> None:
    throughput, ratios, memory = report.tables(results())
    assert throughput.rows == [
        ["gws_gevent 1.0", "3,000 (0.750)", "2,000 (1.000)"],
        ["other 1.0", "1,500 (0.375)", "-"],
        ["C epoll loop 1.0", "4,000", "2,000"],
    ]
    assert ratios.rows == [["other 1.0", "2.00", "-"]]
    assert memory.rows == [["gws_gevent 1.0", "2,000", "1.00"], ["other 1.0", "5,000", "2.50"]]


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


@ON_LINUX
@pytest.mark.slow
def test_every_library_that_is_installed_is_measured(tmp_path: Path) -> None:
    require_tool("cc")
    ended = run_program(
        [
            *(
                sys.executable,
                "-m",
                "benchmarks.run",
                "--quick",
                "--seconds",
                "0.1",
                "--shape",
                "3,64,2",
                "--shape",
                "3,1000,1,text",
            ),
            *("--connections", "50", "--settle", "0.1", "--output", str(tmp_path)),
        ],
        timeout=120,
    )
    assert ended.status == 0, ended.output + ended.errors
    text = (tmp_path / "latest.md").read_text()
    rate, number = r"[\d,]+ \(\d+\.\d{3}\)", r"-?[\d,]+"
    for library in LIBRARIES:
        if find_spec(library.module) is None:
            assert f"- {library.name} was skipped: it is not installed.\n" in text
            continue
        assert re.search(rf"^\| {library.name} [^|]+ \| {rate} \| {rate} \|$", text, re.MULTILINE), text
        assert re.search(rf"^\| {library.name} [^|]+ \| {number} \| [^|]+ \|$", text, re.MULTILINE), text
    assert (tmp_path / "latest.png").exists() == (find_spec("matplotlib") is not None)
