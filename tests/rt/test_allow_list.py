"""Lists of keys that change while they are in use, over real sockets."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest
import zmq

from neds_rt import allow_list, curve, gatekeeper
from neds_rt.allow_list import AllowList, cut_connections
from neds_rt.client import Client
from neds_rt.curve import read_access, read_allowed, write_key_pair
from neds_rt.endpoints import bind, connect
from neds_rt.errors import BadInput
from tests.rt.serving import COMMAND, ROOT, small_bundle, wait_for

NAMES = ("server", "ann", "bob")


@pytest.fixture
def keys(tmp_path):
    for name in NAMES:
        write_key_pair(tmp_path / "keys", name)
    return tmp_path / "keys"


def public(keys, *names):
    return frozenset(curve.read_public(str(keys / f"{name}.key")) for name in names)


def write(path, keys, *names):
    """As editors do it: another file in the place of the old one."""
    staged = path.with_suffix(".new")
    staged.write_text("# who may listen\n" + "".join(
        f"{key.decode()} {name}\n" for name in names for key in public(keys, name)))
    os.replace(staged, path)
    return path


def settle(listed):
    """What two looks after a change say."""
    found = [listed.look(), listed.look(), listed.look()]
    assert found[0] is None
    assert found[2] is None
    return found[1]


class TestList:
    @pytest.fixture
    def listed(self, keys, tmp_path):
        path = write(tmp_path / "allow", keys, "ann")
        made = AllowList(str(path), read_allowed(str(path)))
        assert settle(made) is None
        return made

    def test_keys_come_and_go(self, listed, keys, tmp_path, caplog):
        write(tmp_path / "allow", keys, "ann", "bob")
        assert settle(listed) == frozenset()
        assert listed.keys == public(keys, "ann", "bob")
        write(tmp_path / "allow", keys, "bob")
        assert settle(listed) == public(keys, "ann")
        assert listed.keys == public(keys, "bob")
        assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
            "2 keys are let in now, 1 more and 0 fewer than before",
            "1 keys are let in now, 0 more and 1 fewer than before"]

    def test_what_changed_before_the_first_look_is_seen(self, keys, tmp_path):
        path = write(tmp_path / "allow", keys, "ann")
        made = AllowList(str(path), read_allowed(str(path)))
        write(path, keys, "bob")
        assert settle(made) == public(keys, "ann")

    def test_a_file_that_is_being_written_is_waited_for(self, listed, keys, tmp_path):
        path = tmp_path / "allow"
        (bob,) = public(keys, "bob")
        for n in (7, 20, 39):
            path.write_bytes(bob[:n])
            assert listed.look() is None
        path.write_bytes(bob)
        assert settle(listed) == public(keys, "ann")

    def test_one_that_cannot_be_read_changes_nothing(self, listed, keys, tmp_path, caplog):
        path = tmp_path / "allow"
        path.write_text("this is no key\n")
        assert settle(listed) is None
        path.unlink()
        assert settle(listed) is None
        path.write_bytes(b"#" * (curve.MAX_FILE_BYTES + 1))
        assert settle(listed) is None
        assert listed.keys == public(keys, "ann")
        assert len(caplog.records) == 3
        assert all("\n" not in r.getMessage() and "stays as it was" in r.getMessage()
                   for r in caplog.records)

    def test_an_empty_one_lets_nobody_in(self, listed, keys, tmp_path):
        (tmp_path / "allow").write_text("# nobody\n")
        assert settle(listed) == public(keys, "ann")
        assert listed.keys == frozenset()

    def test_a_folder_is_a_list(self, keys, tmp_path, monkeypatch):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "ann.key").write_bytes((keys / "ann.key").read_bytes())
        made = AllowList(str(folder), read_allowed(str(folder)))
        (folder / "bob.key").write_bytes((keys / "bob.key").read_bytes())
        assert settle(made) == frozenset()
        assert made.keys == public(keys, "ann", "bob")
        (folder / "ann.key").unlink()
        assert settle(made) == public(keys, "ann")
        if sys.platform == "linux":  # where a name need not be text
            os.rename(folder / "bob.key", os.fsencode(folder) + b"/b\xffb.key")
            assert settle(made) is None
            assert made.keys == public(keys, "bob")
        monkeypatch.setattr(curve, "MAX_KEY_FILES", 0)
        with pytest.raises(BadInput, match="keys: found more than 0 files"):
            read_allowed(str(folder))


@pytest.fixture
def context(monkeypatch):
    monkeypatch.setattr(gatekeeper, "LOOK_S", 0.02)
    made = zmq.Context()
    yield made
    made.term()


def access(keys, name, allow=""):
    server = "" if allow else str(keys / "server.key")
    return read_access(key=str(keys / f"{name}.key_secret"), allow=str(allow), server=server)


class Listener:
    """A client that subscribes."""

    def __init__(self, context, endpoint, given):
        self.socket = context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.subscribe(b"")
        connect("test", self.socket, endpoint, given)

    def hears(self, publisher):
        """Whether what is published now arrives, in a tenth of a second."""
        publisher.send(b"%d" % time.monotonic_ns())
        return bool(self.socket.poll(100)) and bool(self.socket.recv())


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_whoever_is_taken_off_is_cut_and_others_come_back(context, keys, tmp_path, transport):
    path = write(tmp_path / "allow", keys, "ann")
    publisher = context.socket(zmq.PUB)
    publisher.setsockopt(zmq.LINGER, 0)
    place = "tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/out"
    endpoint = bind("test", publisher, place, access(keys, "server", path))
    made = []

    def start(name):  # one that was refused does not ask again
        made.append(Listener(context, endpoint, access(keys, name)))
        return made[-1]

    def comes(name):
        """Whether one who starts now is let in."""
        listener = start(name)
        return any(listener.hears(publisher) for _ in range(4))

    try:
        ann = start("ann")
        wait_for(lambda: ann.hears(publisher))
        assert not comes("bob")
        write(path, keys, "ann", "bob")
        wait_for(lambda: comes("bob"))
        bob = next(each for each in reversed(made) if each is not ann)
        wait_for(lambda: ann.hears(publisher))
        write(path, keys, "bob")
        wait_for(lambda: not ann.hears(publisher))
        wait_for(lambda: bob.hears(publisher))
        assert not any(ann.hears(publisher) for _ in range(5))
        assert not comes("ann")
        write(path, keys)
        wait_for(lambda: not bob.hears(publisher))
        assert not any(bob.hears(publisher) for _ in range(5))
    finally:
        for sock in (publisher, *(each.socket for each in made)):
            sock.close()


def test_connections_of_other_endpoints_stay():
    with contextlib.ExitStack() as stack:
        pairs = []
        for _ in range(2):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            client = stack.enter_context(socket.create_connection(server.getsockname()))
            stack.enter_context(server.accept()[0])
            pairs.append((f"tcp://127.0.0.1:{server.getsockname()[1]}", client))
        (first, cut), (_, other) = pairs
        assert cut_connections(first) == 1
        assert cut.recv(1) == b""
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        assert cut_connections("tcp://127.0.0.1:1") == 0


def test_a_system_without_a_list_of_descriptors_cuts_nobody(monkeypatch):
    monkeypatch.setattr(allow_list, "DESCRIPTORS", ("/no/such/place",))
    assert cut_connections("tcp://127.0.0.1:1") == 0


def silent(client):
    try:
        client.recv(1)
    except TimeoutError:
        return True
    return False


def test_a_running_server_takes_another_list(keys, tmp_path):
    path = write(tmp_path / "allow", keys, "ann")
    words = [*COMMAND, "serve", f"--probe=a=zmq+ipc://{tmp_path}/probe", "--out=tcp://127.0.0.1:*",
             f"--model={small_bundle(tmp_path / 'x.neds')}", "--stale-after=0.05",
             f"--curve-key={keys / 'server.key_secret'}", f"--curve-allow={path}", "--status=off"]
    process = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    clients = []
    try:
        endpoint = process.stderr.readline().split()[1]
        ann = Client(endpoint, access=access(keys, "ann"))
        clients.append(ann)
        assert ann.recv(30).reason == "stale"
        write(path, keys, "bob")
        wait_for(lambda: silent(ann))
        bob = Client(endpoint, access=access(keys, "bob"))
        clients.append(bob)
        assert bob.recv(30).reason == "stale"
        assert silent(ann)
    finally:
        for client in clients:
            client.close()
        process.terminate()
        _, told = process.communicate(timeout=60)
    lines = told.splitlines()
    assert any("1 keys are let in now, 1 more and 1 fewer" in line for line in lines), lines
    assert any("connections are made anew" in line for line in lines), lines
