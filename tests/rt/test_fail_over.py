"""Engines that fail while they serve: the native one decodes the very bin, and says that it did."""

import time

import numpy as np
import pytest

from neds_rt.bundle import read_bundle
from neds_rt.control import Request, ask
from neds_rt.errors import NedsError
from tests.rt.failing_engine import GOOD_STEPS
from tests.rt.serving import Publisher, Serving, reference, small_bundle, wait_for
from tests.rt.spike_frames import Sender
from tests.rt.test_swap import BIN, Rig, check, other_bundle, said

ENGINES = "--engine=tests.rt.failing_engine:"


@pytest.fixture
def model(tmp_path):
    return small_bundle(tmp_path / "x.neds")


def only_failed_over(rig):
    """The bins that were published with reason "failed over"; none of them valid, all with values.

    Every other one is valid once the window is full.
    """
    bins = [d.bin for d in rig.seen if d.reason == "failed over"]
    assert not any(d.valid for d in rig.seen if d.bin in bins)
    assert np.isfinite([said(d) for d in rig.seen]).all()
    return bins


@pytest.mark.parametrize("how", ["RaisingEngine", "RaisingWithLag"])
def test_the_bin_at_which_an_engine_raises_is_decoded(model, tmp_path, how):
    with Rig(tmp_path, model, ENGINES + how) as rig:
        if how == "RaisingWithLag":  # all at once: the standby has had no time to follow
            for k in range(20):
                rig.probe.send(rig.send.frame(k * BIN, (k + 1) * BIN, [k * BIN], [k % 4]))
                rig.counts.append(np.bincount([k % 4], minlength=4).astype(np.uint16))
            rig.seen += rig.server.decodes(20)
        rig.bins(20)
        wait_for(lambda: any("failed over" in line for line in rig.server.lines))
        told = ask(rig.control, Request("info"), 30)
        summary = rig.server.end()
    check(rig, model)
    assert only_failed_over(rig) == [GOOD_STEPS]
    (event,) = summary["failovers"]
    assert (event["from"], event["to"]) == ("raising", "native")
    assert event["why"] == "engine raising failed: RuntimeError: the device is gone"
    assert rig.seen[GOOD_STEPS].seq == event["decode"]
    assert (told["engine"], told["standby"]) == ("native", None)
    assert told["failovers"] == [event]
    assert (summary["engine"], summary["failure"]) == ("native", None)
    assert summary["reasons"]["failed over"] == 1


def test_outputs_of_another_shape_fail_over_too(model, tmp_path):
    with Rig(tmp_path, model, ENGINES + "WrongOutputs") as rig:
        rig.bins(12)
        summary = rig.server.end()
    check(rig, model)
    assert only_failed_over(rig) == [0]
    assert "n_outputs" in summary["failovers"][0]["why"]


def test_an_engine_that_is_too_slow_again_and_again_is_replaced(model, tmp_path):
    with Rig(tmp_path, model, ENGINES + "Slowing", "--budget-ms=40", "--overruns=3") as rig:
        rig.bins(GOOD_STEPS + 3 + 6)
        summary = rig.server.end()
    check(rig, model)
    assert only_failed_over(rig) == [GOOD_STEPS + 3]
    assert summary["failovers"][0]["why"] == "3 steps in a row took over 40 ms"


@pytest.mark.parametrize("how", ["RaisingReset", "RaisingSkip"])
def test_failing_between_bins_shows_with_the_next(model, tmp_path, how):
    """A restart of the source resets the engine; a gap beyond the window skips."""
    with Rig(tmp_path, model, ENGINES + how) as rig:
        rig.bins(5)
        if how == "RaisingReset":
            rig.send, rig.counts, rig.seen = Sender("a", "again"), [], []
        else:
            rig.counts += [None] * 40
            rig.bins(1)
            rig.seen += rig.server.decodes(6)  # of the lost bins, as many as the window has
            rig.seen = [d for d in rig.seen if d.bin >= 45]
        rig.bins(12)
        summary = rig.server.end()
    truth = reference(read_bundle(model), rig.counts)
    for decode in rig.seen:
        np.testing.assert_allclose(said(decode), truth[decode.bin], atol=2e-6)
    assert only_failed_over(rig) == [rig.seen[0].bin]
    assert len(summary["failovers"]) == 1


def test_a_rehearsal_that_fails_fails_over(model, tmp_path):
    """The keep-warm tick runs the engine between bins."""
    with Rig(tmp_path, model, ENGINES + "RaisingWarmLater", "--keep-warm=on") as rig:
        while not any("failed over" in line for line in rig.server.lines):
            rig.bins(1)
            time.sleep(0.025)  # a tick comes where a bin is late
        rig.bins(3)
        summary = rig.server.end()
    check(rig, model)
    assert len(only_failed_over(rig)) == 1
    assert summary["failovers"][0]["why"] == "engine native failed: OSError: no such device"


def test_after_a_fail_over_a_model_can_be_loaded_but_not_gone_back_to(model, tmp_path):
    other = other_bundle(tmp_path / "y.neds")
    y = read_bundle(other).manifest.model_hash
    with Rig(tmp_path, model, ENGINES + "RaisingFirst") as rig:
        rig.bins(20)
        assert rig.change("load", other)["engine"] == "raising"
        rig.bins(3)
        with pytest.raises(NedsError, match=r"which has failed.*load .* anew"):
            rig.change("rollback")
        assert ask(rig.control, Request("info"), 30)["standby"] == "native"
        summary = rig.server.end()
    assert check(rig, model, other)[-1] == y
    assert (summary["engine"], summary["swaps"]) == ("raising", 1)


def test_a_swapped_model_fails_over_to_its_own_standby(model, tmp_path):
    other = other_bundle(tmp_path / "y.neds")
    with Rig(tmp_path, model, ENGINES + "LoadedRaisingLater") as rig:
        rig.bins(3)
        rig.change("load", other)
        wait_for(lambda: (rig.bins(20), any(d.reason == "failed over" for d in rig.seen))[1])
        rig.bins(5)
        summary = rig.server.end()
    _, y = check(rig, model, other)
    (event,) = summary["failovers"]
    assert event["model"] == y
    assert len(only_failed_over(rig)) == 1


def test_an_engine_that_never_returns_ends_the_process_and_says_so(model, tmp_path):
    uri = f"zmq+ipc://{tmp_path}/probe"
    options = ("--engine=tests.rt.hanging_engine:HangingEngine", "--hang-after=0.5")
    with Publisher(uri) as probe, Serving(model, {"a": uri}, *options) as server:
        probe.wait()
        probe.send(Sender().frame(0, BIN))
        (last,) = server.decodes(1)
        assert (last.reason, last.valid, last.bin) == ("engine failed", False, -1)
        assert server.process.wait(30) == 4
        wait_for(lambda: server.lines[-1] == "neds-rt serve: engine native failed: a step has not "
                                             "returned for 0.5 s")
