"""What every foreign source stands on: the bridge to native frames, unit maps, addresses."""

import msgspec
import numpy as np
import pytest

from neds_rt import _core
from neds_rt.errors import BadInput
from neds_rt.manifest import Unit
from neds_rt.sources import open_source
from neds_rt.sources.address import parse_address
from neds_rt.sources.bridge import Bridge
from neds_rt.sources.frame import Frame
from neds_rt.sources.units import UNKNOWN, UnitMap, read_unit_file
from neds_rt.wire import decode_header
from tests.rt.spike_frames import counters_of, drain

FS = 30_000.0
UNITS = [Unit("p", channel, cluster) for channel, cluster in ((3, 1), (3, 2), (40, 7))]
HEADER = "probe\tchannel\tcluster\tstream\telectrode\tsorted_id\n"


def assembler(n_units=3):
    return _core.Assembler(0.02, [("a", list(range(n_units)))], n_units, 64)


def push(target, frame):
    target.push(frame.header, frame.payload)
    return drain(target)


def test_a_bridge_fills_frames_that_the_assembler_takes():
    bridge, frame, target = Bridge("a"), Frame(), assembler()
    for sample, unit in ((650, 0), (10, 2), (10, 2)):
        bridge.add(sample, unit)
    bridge.emit(frame, 0, 600, FS)
    assert decode_header(bytes(frame.header)).n_spikes == 3
    assert [c.tolist() for c in push(target, frame).values()] == [[0, 0, 2]]
    bridge.extend(np.array([700, 1000]), np.array([1, 1]))
    bridge.emit(frame, 600, 1200, FS)
    assert [c.tolist() for c in push(target, frame).values()] == [[1, 2, 0]]
    assert counters_of(target) == {"frames": 2, "spikes": 5, "bins": 2}


def test_a_jump_of_t0_is_a_gap_and_a_restart_is_another_session():
    bridge, frame, target = Bridge("a"), Frame(), assembler()
    bridge.emit(frame, 0, 600, FS)
    push(target, frame)
    bridge.emit(frame, 1300, 2400, FS)
    assert list(push(target, frame).values())[:2] == [None, None]
    first = bridge.session
    bridge.add(5, 0)
    bridge.restart()
    assert (bridge.session != first, bridge.waiting, bridge.watermark) == (True, 0, None)
    bridge.emit(frame, 0, 600, FS)
    assert len(push(target, frame)) == 1
    assert counters_of(target)["restarts"] == 1


def test_a_full_bridge_sends_early_spikes_without_moving_the_watermark():
    bridge, frame, target = Bridge("a", capacity=4), Frame(), assembler()
    bridge.add(1, 0)
    assert not bridge.flush(frame, FS)  # nothing says yet where the stream begins
    bridge.emit(frame, 0, 0, FS)
    assert push(target, frame) == {}
    for sample in range(4):
        bridge.add(sample, 1)
    assert bridge.full
    assert bridge.flush(frame, FS)
    assert push(target, frame) == {}
    bridge.emit(frame, 0, 600, FS)
    assert [c.tolist() for c in push(target, frame).values()] == [[0, 4, 0]]


def test_units_are_found_by_number_and_sorted_id():
    units = UnitMap(UNITS)
    assert [units.number("s", name, i) for name, i in
            (("Electrode 3", 1), ("Electrode 3", 2), ("40", 7), ("AP40x", 7))] == [0, 1, 2, 2]
    assert [units.number("s", name, i) for name, i in
            (("Electrode 3", 0), ("Electrode 4", 1), ("none", 1), ("x" * 9999, 1))] == [UNKNOWN] * 4
    report = units.report()
    assert (report["heard"], report["unknown_spikes"], report["missing"]) == (3, 4, [])
    assert report["first_unknown"][0] == ["s", "Electrode 3", 0]


def test_units_that_nothing_can_mean_are_missing_and_not_taken_by_order():
    units = UnitMap([*UNITS, Unit("p", 3, 1)])
    assert units.missing == [("p", 3, 1), ("p", 3, 1)]
    assert units.number("s", "3", 1) == UNKNOWN


def test_a_unit_file_decides_alone(tmp_path):
    path = tmp_path / "units.tsv"
    path.write_text(HEADER + "p\t3\t1\tProbeA\tElectrode 9\t4\np\t40\t7\t\tElectrode 1\t2\n"
                    "q\t1\t1\t\tElectrode 8\t2\n")
    units = UnitMap(UNITS, read_unit_file(str(path)))
    assert units.missing == [("p", 3, 2)]
    found = [units.number(*key) for key in
             (("ProbeA", "Electrode 9", 4), ("ProbeB", "Electrode 9", 4), ("x", "Electrode 1", 2),
              ("x", "Electrode 3", 1), ("x", "Electrode 8", 2))]
    assert found == [0, UNKNOWN, 2, UNKNOWN, UNKNOWN]


@pytest.mark.parametrize(("text", "field"), [
    ("probe\tchannel\n", "columns: found no cluster"),
    (HEADER + "p\tx\t1\t\tE\t1\n", "line 2, channel: found 'x'"),
    (HEADER + "p\t1\t1\t\tE\t1\np\t1\t1\t\tF\t1\n", "line 3: found ('p', 1, 1) twice"),
    (HEADER + "p\t1\t1\t\tE\t1\np\t2\t1\t\tE\t1\n", "line 3: found ('', 'E', 1) twice"),
    (HEADER + "p\t1\t1\t\t\t1\n", "line 2: found an empty probe or electrode"),
    ("\udcff", "file: found"),
])
def test_bad_unit_files_are_refused_in_one_line(tmp_path, text, field):
    path = tmp_path / "units.tsv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput) as error:
        read_unit_file(str(path))
    assert str(error.value).startswith(f"{path}: {field}")


class Options(msgspec.Struct):
    stream: str = ""
    hold_ms: float = 50.0


def test_addresses_have_typed_options():
    address, options = parse_address("p", "x://127.0.0.1?stream=A%20b&hold_ms=2", 5556, Options)
    assert (address.endpoint, options) == ("tcp://127.0.0.1:5556", Options("A b", 2.0))
    assert parse_address("p", "x://[::1]:7", 1, Options)[0].endpoint == "tcp://[::1]:7"


@pytest.mark.parametrize("uri", [
    "x://", "x://127.0.0.1:x", "x://127.0.0.1:0", "x://127.0.0.1/path", "x://127.0.0.1?strem=A",
    "x://127.0.0.1?hold_ms=soon", "x://127.0.0.1?stream=a&stream=b", "x://10.0.0.1", "x://[::1",
    "x://a..b", "x://a b", "x://-", "x://*", "x://µ", f"x://{'a' * 64}.org",
])
def test_bad_addresses_are_refused(uri):
    with pytest.raises(BadInput, match=r"^p: "):
        parse_address("p", uri, 5556, Options)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(BadInput, match="URI scheme"):
        open_source("p", "oo://127.0.0.1", units=UnitMap(UNITS))
