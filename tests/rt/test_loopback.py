"""Loopback unless keys are given or `--insecure` is said: for every scheme that there is.

A scheme that is new fails here until it is written down what it reaches.
"""

import ast
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import neds_rt
from neds_rt.curve import Access
from neds_rt.endpoints import check_endpoint, is_loopback, parse_listen
from neds_rt.errors import BadInput, NedsError
from neds_rt.manifest import Unit
from neds_rt.sinks import SINKS, open_sink
from neds_rt.sinks.outlet import OUTLETS, open_outlet
from neds_rt.sources import SOURCES, open_source
from neds_rt.sources.units import UnitMap

# Of every scheme a URI that leaves this machine, and one that does not; None where there is none.
# 192.0.2.0/24 is nobody's (RFC 5737).
FAR_SOURCES = {
    "zmq+tcp": "zmq+tcp://192.0.2.1:5570", "oe": "oe://192.0.2.1", "oe-events": "oe-events://rig",
    "spikeglx": "spikeglx://192.0.2.1", "trodes": "trodes://[2001:db8::1]:9",
    "zmq+ipc": None, "replay": None, "synthetic": None,
}
NEAR_SOURCES = {
    "zmq+tcp": "zmq+tcp://127.0.0.1:9", "zmq+ipc": "zmq+ipc://{folder}/x", "oe": "oe://127.0.0.1:9",
    "oe-events": "oe-events://127.0.0.1:9?rate=30000", "spikeglx": "spikeglx://127.0.0.1:9",
    "trodes": "trodes://127.0.0.1:9", "replay": None, "synthetic": "synthetic:",
}
FAR_SINKS = {"tcp": "tcp://0.0.0.0:*", "ipc": None}
NEAR_SINKS = {"tcp": "tcp://127.0.0.1:*", "ipc": "ipc://{folder}/x"}
FAR_OUTLETS = {
    "lsl": "lsl://decodes", "udp": "udp://192.0.2.1:9000",
    "oe-events+tcp": "oe-events+tcp://192.0.2.1?value=a.0&above=1",
}
NEAR_OUTLETS = {
    "lsl": None, "udp": "udp://127.0.0.1:9000",
    "oe-events+tcp": "oe-events+tcp://127.0.0.1:9?value=a.0&above=1",
}
UNITS = [Unit("a", channel, 0) for channel in range(4)]


def source(uri, insecure):
    return open_source("a", uri, units=UnitMap(UNITS), access=Access(insecure=insecure))


def sink(uri, insecure):
    return open_sink(uri, Access(insecure=insecure))


def outlet(uri, insecure):
    return open_outlet(uri, insecure=insecure)


KINDS = ((SOURCES, FAR_SOURCES, NEAR_SOURCES, source), (SINKS, FAR_SINKS, NEAR_SINKS, sink),
         (OUTLETS, FAR_OUTLETS, NEAR_OUTLETS, outlet))
FAR = [(uri, make) for _, far, _, make in KINDS for uri in far.values() if uri]
NEAR = [(uri, make) for _, _, near, make in KINDS for uri in near.values() if uri]


def test_every_scheme_is_here():
    for table, far, near, _ in KINDS:
        assert set(far) == set(near) == set(table)
        assert all(far[scheme] or near[scheme] or scheme == "replay" for scheme in table)


@pytest.mark.parametrize(("uri", "make"), FAR, ids=lambda x: x if isinstance(x, str) else "")
def test_other_machines_are_refused_before_anything_is_opened(uri, make, monkeypatch):
    monkeypatch.setitem(sys.modules, "pylsl", None)  # importing it would be another error
    before = network_sockets()
    with pytest.raises(BadInput, match="--insecure"):
        make(uri, False)
    assert network_sockets() == before


@pytest.mark.parametrize(("uri", "make"), FAR, ids=lambda x: x if isinstance(x, str) else "")
def test_insecure_is_what_opens_them(uri, make):
    told = ""
    try:
        make(uri, True).close()
    except NedsError as error:  # no route, no package
        told = str(error)
    assert "insecure" not in told


@pytest.mark.parametrize(("uri", "make"), NEAR, ids=lambda x: x if isinstance(x, str) else "")
def test_others_open_nothing_that_other_machines_reach(uri, make, tmp_path):
    before = network_sockets()
    opened = make(uri.format(folder=tmp_path), False)
    try:
        for address in network_sockets() - before:
            assert is_loopback(address.rpartition(":")[0]), address
    finally:
        opened.close()


def network_sockets():
    """Local addresses of this process' TCP and UDP sockets, as `HOST:PORT`; Linux has a list."""
    if not Path("/proc/self/net/tcp").exists():
        return set()
    own = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            own.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the listing's own
            continue
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        table = Path(f"/proc/self/net/{kind}")
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            words = line.split()
            if f"socket:[{words[9]}]" in own:
                host, port = words[1].split(":")
                found.add(f"{_host(host)}:{int(port, 16)}")
    return found


def _host(text):
    import ipaddress

    words = np.frombuffer(bytes.fromhex(text), ">u4").astype("<u4").tobytes()
    return str(ipaddress.ip_address(words))


def test_the_list_of_sockets_would_show_an_open_one():
    if not Path("/proc/self/net/tcp").exists():
        pytest.skip("no list of a process' sockets here")
    opened = sink("tcp://0.0.0.0:*", True)
    port = opened.endpoint.rpartition(":")[2]
    try:
        assert f"0.0.0.0:{port}" in network_sockets()
    finally:
        opened.close()


def test_pages_and_endpoints_have_the_same_rule():
    for host in ("0.0.0.0", "192.0.2.1", "rig", "[::]", "*", "[2001:db8::1]"):
        with pytest.raises(BadInput, match="--insecure"):
            parse_listen("--listen", f"{host}:9000")
        with pytest.raises(BadInput, match="--insecure"):
            check_endpoint("--status", f"tcp://{host}:9000")
    for host in ("127.0.0.1", "127.5.6.7", "[::1]", "localhost"):
        parse_listen("--listen", f"{host}:9000")
        check_endpoint("--status", f"tcp://{host}:9000")


# Where sockets are bound and connected, and by whom the address was looked at before.
OPENERS = {
    "endpoints.py": "check_endpoint", "control.py": "a Unix socket",
    "gatekeeper.py": "inproc", "sources/handover.py": "inproc", "sources/heartbeat.py": "inproc",
    "sinks/oe_events.py": "parse_address", "sinks/udp.py": "parse_address",
    "sources/openephys.py": "parse_address", "sources/oebroadcast.py": "parse_address",
    "sources/oe_raw.py": "sources/oe.py", "sources/spikeglx_wire.py": "parse_address",
    "sources/trodes.py": "parse_address", "sources/trodes_directory.py": "check_endpoint",
    "sources/trodes_digital.py": "check_endpoint",
    "doctor/openephys.py": "commands/doctor.py", "doctor/trodes.py": "commands/doctor.py",
    "doctor/heard.py": "commands/doctor.py", "doctor/ports.py": "commands/doctor.py",
}


def test_no_other_module_opens_a_socket():
    root, found = Path(neds_rt.__file__).parent, set()
    for path in root.rglob("*.py"):
        if path.parent.name == "engines":  # which bind tensors
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (
                    node.func.attr in ("bind", "connect", "create_connection", "create_server")):
                found.add(path.relative_to(root).as_posix())
    assert found == set(OPENERS)
