"""The control socket: who may reach it, what it survives, what its commands say."""

import os
import socket
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

import msgspec
import pytest

from neds_rt.control import (
    CLIENTS,
    LENGTH,
    MAX_REQUEST,
    ControlSocket,
    Request,
    ask,
    receive,
    send,
)
from neds_rt.errors import BadInput, NedsError, StartError
from tests.rt.serving import COMMAND, ROOT, Publisher, Serving, fail, small_bundle, wait_for


@pytest.fixture
def place(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path / "ctl"


@pytest.fixture
def control(place):
    """A socket that tells what it was asked, or raises it."""

    def handle(request):
        if request.path == "bad":
            raise BadInput("x", "field", "this", "that")
        if request.path == "broken":
            raise KeyError("who\nknows")
        return {"command": request.command, "path": request.path}

    found = ControlSocket(str(place), handle)
    found.start()
    yield found
    found.close()


def talk(place, data):
    """Send raw bytes; returns the reply, None when the server hangs up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(place))
        sock.sendall(data)
        try:
            return msgspec.msgpack.decode(receive(sock, 1 << 20))
        except (EOFError, ConnectionError):
            return None


def test_a_request_is_answered(control, place):
    assert ask(str(place), Request("load", "/x"), 20) == {"command": "load", "path": "/x"}
    for path, code, text in (("bad", 2, "x: field: found this, expected that"),
                             ("broken", 4, "KeyError: 'who\\nknows'")):
        with pytest.raises(NedsError) as found:
            ask(str(place), Request("load", path), 20)
        assert (found.value.exit_code, str(found.value)) == (code, text)


def test_only_the_user_can_reach_it(control, place):
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    control.close()
    assert not place.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o750, 0o701])
def test_a_directory_that_others_can_enter_is_refused(tmp_path, mode):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(BadInput, match=f"found mode {mode:04o} .*expected mode 0700"):
        ControlSocket(str(folder / "ctl"), lambda request: {})
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_a_directory_of_another_user_is_refused(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(BadInput, match="of user 12345"):
        ControlSocket(str(folder / "ctl"), lambda request: {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_cut_off_unheard():
    code = ("import os, socket, sys; os.setgid(12345); os.setuid(12345)\n"
            "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
            "try: s.sendall(b'\\1\\0\\0\\0x'); print(len(s.recv(10)))\n"
            "except ConnectionError: print(0)")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # where the other one gets to
        place = Path(folder) / "ctl"
        control = ControlSocket(str(place), lambda request: {})
        control.start()
        for path in (place, place.parent):
            path.chmod(0o777)  # as if somebody had opened all doors
        done = subprocess.run(["python3", "-c", code, str(place)], capture_output=True, text=True,
                              timeout=60)
        assert (done.stdout, done.stderr) == ("0\n", "")
        wait_for(lambda: control.refused == 1)
        assert ask(str(place), Request("info"), 20) == {}
        control.close()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"x", "control request"), (b"\xc1", "control request"), (b"", "control request"),
        (msgspec.msgpack.encode({"command": "exec"}), "Invalid enum value 'exec'"),
        (msgspec.msgpack.encode({"command": "info", "more": 1}), "unknown field `more`"),
        (msgspec.msgpack.encode({"command": "load", "path": 7}), "Expected `str`"),
        (b"\x91" * 5000, "control request"),
    ],
)
def test_what_is_no_request_is_told_so(control, place, data, text):
    reply = talk(place, LENGTH.pack(len(data)) + data)
    assert (reply["ok"], reply["code"]) == (False, 2)
    assert text in reply["error"]
    assert "\n" not in reply["error"]


def test_sizes_are_limited_and_parts_survived(control, place):
    assert talk(place, LENGTH.pack(MAX_REQUEST + 1)) is None
    assert talk(place, LENGTH.pack(0xFFFFFFFF)) is None
    for data in (b"", b"\1\0", LENGTH.pack(10) + b"abc"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(place))
            sock.sendall(data)
    wait_for(lambda: control.refused == 5)
    assert ask(str(place), Request("info"), 20)["command"] == "info"


def test_clients_beyond_the_limit_are_refused_and_the_socket_goes_on(place):
    free, inside = threading.Event(), threading.Semaphore(0)

    def handle(request):
        inside.release()
        assert free.wait(30)
        return {}

    control = ControlSocket(str(place), handle)
    control.start()
    held = [socket.socket(socket.AF_UNIX) for _ in range(CLIENTS)]
    for sock in held:
        sock.connect(str(place))
        send(sock, msgspec.msgpack.encode(Request("info")))
        assert inside.acquire(timeout=30)
    with pytest.raises(StartError, match="no answer"):
        ask(str(place), Request("info"), 20)
    free.set()
    for sock in held:
        sock.settimeout(20)
        assert msgspec.msgpack.decode(receive(sock, 1000))["ok"]
        sock.close()
    wait_for(lambda: _works(place))
    control.close()


def _works(place):
    try:
        return ask(str(place), Request("info"), 20) == {}
    except StartError:
        return False


def test_names_that_cannot_be_bound(place, control):
    with pytest.raises(BadInput, match="in use by another server"):
        ControlSocket(str(place), lambda request: {})
    (place.parent / "file").write_text("mine")
    with pytest.raises(BadInput, match="found a file"):
        ControlSocket(str(place.parent / "file"), lambda request: {})
    assert (place.parent / "file").read_text() == "mine"
    with pytest.raises(BadInput, match="at most 100"):
        ControlSocket(str(place.parent / ("x" * 100)), lambda request: {})
    with pytest.raises(BadInput, match="directory"):
        ControlSocket(str(place.parent / "no" / "such" / "ctl"), lambda request: {})


def test_the_socket_of_a_server_that_was_killed_is_taken_over(place, tmp_path):
    model, uri = small_bundle(tmp_path / "x.neds"), f"zmq+ipc://{tmp_path}/probe"
    with Publisher(uri):
        with Serving(model, {"a": uri}, f"--control={place}") as server:
            server.process.kill()
            server.process.wait()
        assert place.exists()
        with Serving(model, {"a": uri}, f"--control={place}") as server:
            assert ask(str(place), Request("info"), 30)["stage"] == "idle"
            server.end()
    assert not place.exists()


def test_refusals_of_serve_and_of_the_command_are_one_line(place, tmp_path):
    model = small_bundle(tmp_path / "x.neds")
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    code, err = fail(f"--probe=a=zmq+ipc://{tmp_path}/p", f"--model={model}",
                     "--out=tcp://127.0.0.1:*", f"--control={folder / 'ctl'}")
    assert (code, err.count("\n")) == (2, 1), err
    assert "--control directory" in err
    for words, code, text in (
        (["info"], 3, "no answer from a server"),
        (["load"], 2, "bundle: found none"),
        (["rollback", "x.neds"], 2, "bundle: found a bundle"),
        (["info", "--timeout=-1"], 2, "--timeout"),
    ):
        done = subprocess.run([*COMMAND, "model", *words, f"--control={place}"], cwd=ROOT,
                              capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done
        assert text in done.stderr
