"""The client against a publisher that sends what a server would, and what none should."""

import msgpack
import pytest
import zmq

import neds_rt
from neds_rt.errors import BadInput
from neds_rt.wire import Decode


@pytest.fixture
def publisher(tmp_path):
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.RCVTIMEO, 30_000)
    socket.bind(f"ipc://{tmp_path}/out")
    yield socket
    socket.close(0)
    context.term()


def message(seq, **changes):
    return msgpack.packb({
        "v": 1, "kind": "decode", "seq": seq, "session": "s", "bin": seq, "t_s": 0.02 * seq,
        "spike_age_us": 1.0, "service_us": 2.0, "recv_ns": 3, "pub_ns": 4, "model": "m",
        "valid": True, "reason": "ok", "values": {"x": {"mean": [float(seq)], "sd": []}}} | changes)


def endpoint(socket):
    return socket.last_endpoint.rstrip(b"\0").decode()


def test_decodes_come_as_typed_structs_and_losses_are_counted(publisher):
    with neds_rt.Client(endpoint(publisher)) as client:
        assert publisher.recv() == b"\x01"
        for seq in (5, 6, 9, 0, 1):  # two lost, then another server
            publisher.send(message(seq))
        found = [decode for _, decode in zip(range(5), client, strict=False)]
        assert [d.bin for d in found] == [5, 6, 9, 0, 1]
        assert all(isinstance(d, Decode) for d in found)
        assert found[1].values["x"].mean == [6.0]
        assert client.missed == 2


def test_messages_that_are_no_decodes_are_counted_and_passed_over(publisher):
    with neds_rt.Client(endpoint(publisher)) as client:
        assert publisher.recv() == b"\x01"
        for data in (b"", b"\xc1", b"text", message(1, v=2), message(1, values=3), message(7)):
            publisher.send(data)
        assert client.recv(30).seq == 7
        assert client.malformed == 5


def test_waiting_ends_after_the_timeout(publisher):
    with neds_rt.Client(endpoint(publisher)) as client:
        assert publisher.recv() == b"\x01"
        with pytest.raises(TimeoutError, match=r"0\.05 s"):
            client.recv(0.05)
        publisher.send(message(0))  # and the client still works
        assert client.recv(30).seq == 0


@pytest.mark.parametrize("wrong", ["", "here", "tcp://", "udp://127.0.0.1:1", "tcp://127.0.0.1:x"])
def test_an_endpoint_that_is_none_is_refused(wrong):
    with pytest.raises(BadInput, match="Client: endpoint"):
        neds_rt.Client(wrong)


def test_the_package_has_nothing_else_to_offer():
    with pytest.raises(AttributeError, match="Klient"):
        neds_rt.Klient  # noqa: B018
