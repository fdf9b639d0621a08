"""Unix sockets: rights, stale and live files, abstract names."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gws_gevent.exceptions import EndpointError, TransportError
from gws_gevent.transports import registry, unix
from gws_gevent.transports.base import ListenSettings

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def listening() -> Iterator[Callable[..., Any]]:
    """Return a function that listens on an endpoint until the end of the test."""
    made: list[Any] = []

    def make(endpoint: str, settings: ListenSettings | None = None) -> Any:
        made.append(registry.listen(endpoint, settings))
        made[-1].start(lambda stream: stream.close())
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def answers(endpoint: str) -> bool:
    stream = registry.dialer(endpoint).dial()
    try:
        return stream.recv_into(bytearray(1)) == 0
    finally:
        stream.close()


def dead_socket(path: Path) -> None:
    """Leave a socket file behind, as a server that is killed does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


# --- Rights


@pytest.mark.parametrize("mode", ["600", "0660", "777", "0"])
def test_the_mode_is_as_told(mode: str, path: Path, listening: Any) -> None:
    listening(f"unix:{path}?mode={mode}")
    assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)


def test_without_a_mode_the_umask_decides(path: Path, listening: Any) -> None:
    before = os.umask(0o027)
    try:
        listening(f"unix:{path}")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_nobody_can_connect_before_the_rights_are_set(path: Path, listening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = os.chmod, []

    def chmod(*args: Any) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            tried.append(sock.connect_ex(str(path)))
        real(*args)

    monkeypatch.setattr(os, "chmod", chmod)
    listening(f"unix:{path}?mode=600")
    assert tried == [111]  # ECONNREFUSED
    assert answers(f"unix:{path}")


@as_root
@pytest.mark.parametrize("by", ["name", "number"])
def test_the_owner_is_as_told(by: str, path: Path, listening: Any) -> None:
    somebody = pwd.getpwnam("nobody")
    user = somebody.pw_name if by == "name" else str(somebody.pw_uid)
    listening(f"unix:{path}?user={user}&group={somebody.pw_gid}&mode=660")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (somebody.pw_uid, somebody.pw_gid, 0o660)


def test_rights_that_cannot_be_set_leave_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(TransportError, match=rf"^\[Errno 1\] listen on unix:{path}\?user=0: Operation not permitted$"):
        registry.listen(f"unix:{path}?user=0").start(lambda stream: stream.close())
    assert not path.exists()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("mode=rw", "mode is octal, 0 to 777, not 'rw'"),
        ("mode=1777", "mode is octal, 0 to 777, not '1777'"),
        ("mode=-1", "mode is octal"),
        ("user=no-such-user", "there is no user 'no-such-user'"),
        ("group=no-such-group", "there is no group 'no-such-group'"),
        ("owner=me", "unix has no parameter owner; it knows group, mode, user"),
    ],
)
def test_parameters_that_make_no_sense(params: str, message: str, path: Path) -> None:
    with pytest.raises(EndpointError, match=message):
        registry.listen(f"unix:{path}?{params}")


def test_a_dialer_has_no_parameters(path: Path) -> None:
    with pytest.raises(EndpointError, match="unix has no parameter mode; it has none"):
        registry.dialer(f"unix:{path}?mode=600")


# --- The file


def test_a_stale_file_is_replaced(path: Path, listening: Any) -> None:
    dead_socket(path)
    listening(f"unix:{path}")
    assert answers(f"unix:{path}")


def test_a_live_server_is_left_alone(path: Path, listening: Any) -> None:
    first = listening(f"unix:{path}")
    second = registry.listen(f"unix:{path}")
    with pytest.raises(TransportError, match=rf"^\[Errno 98\] listen on unix:{path}: a server is already listening there$"):
        second.start(lambda stream: stream.close())
    second.close()
    assert answers(first.address)


@linux
def test_a_live_server_with_a_full_queue_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(TransportError, match="a server is listening there, and its queue is full"):
            registry.listen(f"unix:{path}").start(lambda stream: stream.close())
    assert path.exists()


def test_a_datagram_socket_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        with pytest.raises(TransportError, match=r"the socket is somebody else's \(Protocol wrong type for socket\)"):
            registry.listen(f"unix:{path}").start(lambda stream: stream.close())
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(kind: str, path: Path, tmp_path: Path) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TransportError, match=rf"^\[Errno 17\] listen on unix:{path}: the file exists and is not a socket$"):
        registry.listen(f"unix:{path}").start(lambda stream: stream.close())
    assert os.path.lexists(path)


def test_no_folder(path: Path) -> None:
    with pytest.raises(TransportError, match=rf"^\[Errno 2\] listen on unix:{path}/s: No such file or directory$"):
        registry.listen(f"unix:{path}/s").start(lambda stream: stream.close())


def test_the_file_is_removed_at_close(path: Path, listening: Any) -> None:
    listener = listening(f"unix:{path}")
    listener.stop_accepting()
    assert path.exists()
    listener.close()
    assert not path.exists()
    listener.close()


def test_the_file_is_removed_from_where_it_was_made(tmp_path: Path, listening: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listener = listening("unix:relative")
    assert (tmp_path / "relative").is_socket()
    monkeypatch.chdir("/")
    listener.close()
    assert not (tmp_path / "relative").exists()


def test_somebody_elses_file_is_not_removed(path: Path, listening: Any) -> None:
    first = listening(f"unix:{path}")
    path.unlink()
    second = listening(f"unix:{path}")
    first.close()
    assert answers(second.address)


def test_a_forked_child_does_not_remove_it(path: Path, listening: Any) -> None:
    listener = listening(f"unix:{path}")
    child = os.fork()
    if child == 0:
        try:
            listener.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert answers(listener.address)


@pytest.mark.parametrize("act", [registry.listen, registry.dialer])
def test_a_path_that_is_too_long(act: Any) -> None:
    with pytest.raises(EndpointError, match=rf"the path has 201 bytes, a Unix socket's has at most {unix.MAX_PATH}"):
        act("unix:/" + "x" * 200)


def test_the_longest_path(tmp_path: Path, listening: Any) -> None:
    name = "x" * (unix.MAX_PATH - len(str(tmp_path)) - 1)
    assert answers(listening(f"unix:{tmp_path}/{name}").address)


# --- Abstract names


@linux
def test_an_abstract_name_leaves_no_file(listening: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listener = listening(f"unix:@gws_gevent_test_of_abstract_names_{os.getpid()}")
    assert listener.address == f"unix:@gws_gevent_test_of_abstract_names_{os.getpid()}"
    assert answers(listener.address)
    assert os.listdir(tmp_path) == []
    with pytest.raises(TransportError, match="Address already in use"):
        registry.listen(listener.address).start(lambda stream: stream.close())


@linux
def test_an_abstract_name_has_no_rights() -> None:
    with pytest.raises(EndpointError, match="an abstract name has no mode, user"):
        registry.listen("unix:@name?user=root&mode=600")


def test_abstract_names_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EndpointError, match="only Linux has abstract names"):
        registry.dialer("unix:@name")


# --- Dialling


def test_nobody_there(path: Path) -> None:
    with pytest.raises(TransportError, match=rf"^\[Errno 2\] connect to unix:{path}: No such file or directory$"):
        registry.dialer(f"unix:{path}").dial()
    dead_socket(path)
    with pytest.raises(TransportError, match=rf"^\[Errno 111\] connect to unix:{path}: Connection refused$"):
        registry.dialer(f"unix:{path}").dial()


@linux
def test_dial_waits_while_the_queue_is_full(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.03):
            registry.dialer(f"unix:{path}").dial()
        dialing = gevent.spawn(registry.dialer(f"unix:{path}").dial)
        gevent.sleep(0.03)
        assert not dialing.dead
        accepted, _ = busy.accept()
        stream = dialing.get(timeout=5)
        assert stream.info("peername") == str(path)
        assert stream.info("scheme") == "unix"
        stream.close()
        accepted.close()
