"""Keys: their files, and that nobody gets in or is believed without the right one."""

import stat

import pytest
import zmq
import zmq.auth

from neds_rt.cli import main
from neds_rt.client import Client
from neds_rt.curve import (
    Access,
    derived_public,
    parse_servers,
    read_access,
    read_allowed,
    read_public,
    read_secret,
    write_key_pair,
)
from neds_rt.endpoints import bind, connect
from neds_rt.errors import BadInput
from neds_rt.player import Block, Player, empty_spikes
from neds_rt.sources.frame import Frame
from neds_rt.sources.zmq import ZmqSource


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("server", "client", "stranger"):
        write_key_pair(folder, name)
    (folder / "allow.txt").write_text(f"# who\n\n{public(folder, 'client')} me\n")
    return folder


def public(folder, name):
    return read_public(str(folder / f"{name}.key")).decode()


def access(keys, name, *, allow="", server=""):
    return read_access(
        key=str(keys / f"{name}.key_secret"),
        allow=str(keys / allow) if allow else "",
        server=str(keys / server) if server else "",
    )


@pytest.fixture
def context():
    made = zmq.Context()
    yield made
    made.term()


def publisher(context, given):
    sock = context.socket(zmq.XPUB)
    sock.setsockopt(zmq.LINGER, 0)
    return sock, bind("test", sock, "tcp://127.0.0.1:*", given)


def test_a_pair_is_written_in_zeromqs_own_format_and_only_once(tmp_path, capsys):
    assert main(["keygen", "--out", str(tmp_path / "k"), "--name", "a"]) == 0
    public, secret = zmq.auth.load_certificate(tmp_path / "k" / "a.key_secret")
    assert zmq.auth.load_certificate(tmp_path / "k" / "a.key") == (public, None)
    assert derived_public(secret) == public
    assert stat.S_IMODE((tmp_path / "k" / "a.key_secret").stat().st_mode) == 0o600
    assert secret.decode() not in capsys.readouterr().out
    before = (tmp_path / "k" / "a.key_secret").read_bytes()
    assert main(["keygen", "--out", str(tmp_path / "k"), "--name", "a"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "k" / "a.key_secret").read_bytes() == before
    assert main(["keygen", "--out", str(tmp_path), "--name", "../a"]) == 2


def test_keys_of_zeromq_itself_are_read(tmp_path):
    public, secret = zmq.auth.create_certificates(tmp_path, "theirs")
    (tmp_path / "theirs.key_secret").chmod(0o600)
    assert read_secret(secret).public == read_public(public)
    assert read_allowed(str(tmp_path)) == {read_public(public)}


def test_key_files_that_are_none_are_refused(tmp_path, keys):
    for text in ("", "x" * 39, "\0" * 40, "\n" * 2_000_000, 'secret-key = "x"', '"' * 40):
        file = tmp_path / "bad"
        file.write_text(text)
        file.chmod(0o600)
        for read in (read_secret, read_public, read_allowed):
            with pytest.raises(BadInput):
                read(str(file))
    readable = tmp_path / "readable"
    readable.write_bytes((keys / "server.key_secret").read_bytes())
    readable.chmod(0o644)
    with pytest.raises(BadInput, match="0600"):
        read_secret(str(readable))
    mixed = (keys / "server.key_secret").read_text().replace(
        public(keys, "server"), public(keys, "client"))
    readable.write_text(mixed)
    readable.chmod(0o600)
    with pytest.raises(BadInput, match="two halves"):
        read_secret(str(readable))


def test_options_that_miss_their_partner(keys):
    key, public = str(keys / "server.key_secret"), str(keys / "client.key")
    for given in ({"allow": public}, {"server": public}, {"key": key}):
        with pytest.raises(BadInput, match="curve-key"):
            read_access(**given)


def test_server_keys_are_named_by_probe():
    key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]=af"  # has an equals sign
    assert parse_servers([key]) == {"": key}
    assert parse_servers([f"b={key}", "a=file"]) == {"b": key, "a": "file"}
    with pytest.raises(BadInput, match="twice"):
        parse_servers(["a=x", "a=y"])
    given = Access(servers={"": b"all", "a": b"one"})
    assert (given.server_of("a"), given.server_of("b")) == (b"one", b"all")


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://192.0.2.1:5000"])
def test_other_machines_need_keys(context, keys, endpoint):
    sock = context.socket(zmq.PUB)
    with pytest.raises(BadInput, match="--curve-allow"):
        bind("test", sock, endpoint)
    with pytest.raises(BadInput, match="--curve-server"):
        connect("test", sock, endpoint)
    with pytest.raises(BadInput, match="--curve-server"):  # keys of another side do not count
        connect("test", sock, endpoint, access(keys, "server", allow="allow.txt"))
    sock.close(linger=0)
    with pytest.raises(BadInput, match="--curve-server"):
        Client("tcp://192.0.2.1:5580")


def test_any_address_may_be_bound_with_an_allow_list(context, keys):
    sock = context.socket(zmq.PUB)
    assert bind("test", sock, "tcp://0.0.0.0:*", access(keys, "server", allow="allow.txt"))
    sock.close(linger=0)


def hears(context, endpoint, given, sock):
    """Whether a subscriber with these keys gets through the handshake within half a second."""
    listener = context.socket(zmq.SUB)
    listener.setsockopt(zmq.LINGER, 0)
    listener.subscribe(b"")
    connect("test", listener, endpoint, given)
    arrived = bool(sock.poll(500)) and sock.recv() == b"\x01"
    if arrived:
        sock.send(b"hello")
        arrived = bool(listener.poll(2000)) and listener.recv() == b"hello"
    listener.close()
    return arrived


def test_only_keys_on_the_list_get_in(context, keys):
    sock, endpoint = publisher(context, access(keys, "server", allow="allow.txt"))
    try:
        assert not hears(context, endpoint, access(keys, "stranger", server="server.key"), sock)
        assert not hears(context, endpoint, Access(), sock)
        assert not hears(context, endpoint, access(keys, "client", server="stranger.key"), sock)
        assert hears(context, endpoint, access(keys, "client", server="server.key"), sock)
    finally:
        sock.close()


def test_two_bindings_have_two_lists(context, keys):
    first, endpoint = publisher(context, access(keys, "server", allow="allow.txt"))
    second, other = publisher(context, access(keys, "server", allow="stranger.key"))
    try:
        stranger = access(keys, "stranger", server="server.key")
        assert not hears(context, endpoint, stranger, first)
        assert hears(context, other, stranger, second)
    finally:
        first.close()
        second.close()


def test_a_probe_and_a_source_with_keys(keys):
    """The real player and source; an impostor with another key is not listened to."""
    probe = access(keys, "server", allow="client.key")
    source_access = access(keys, "client", server="server.key")
    with Player("zmq+tcp://127.0.0.1:*", stream="a", fs=1e4, access=probe) as player:
        source = ZmqSource("a", player.uri, access=source_access)
        player.wait(20)
        player.send(Block(0, 100, empty_spikes()))
        assert source.pollable.poll(20_000)
        frame = Frame()
        assert source.receive(frame)
        assert frame.parts == 2
        source.close()
    impostor = access(keys, "stranger", allow="client.key")
    with Player("zmq+tcp://127.0.0.1:*", stream="a", fs=1e4, access=impostor) as player:
        source = ZmqSource("a", player.uri, access=source_access)
        assert not player._socket.poll(500)
        source.close()
