"""A plan is machine code: a bundle's is loaded only where somebody answers for it."""

import logging
import os

import pytest

from neds_rt import plans
from neds_rt.bundle import ModalityOut, Shape, make_bundle, random_bundle, read_bundle, write_bundle
from neds_rt.bundle_reader import read_apart
from neds_rt.cli import main
from neds_rt.config import load_config
from neds_rt.engines import plan_loader
from neds_rt.engines.plan_graph import graph_hash, graph_name
from neds_rt.engines.plan_loader import choose_plan
from neds_rt.errors import BadInput, StartError
from neds_rt.plans import BuiltPlan, PlanKey, describe, get_plan
from tests.rt.serving import small_bundle
from tests.rt.test_swap import Rig, other_bundle

RTX, TARGET, GRAPH = "tensorrt-rtx", "sm89", graph_name("step", "fp16")
THEIRS, OURS = b"their plan", b"our plan"
SHAPE = Shape(hidden=8, layers=1, heads=1, mlp=8, window=3)


@pytest.fixture
def parts(monkeypatch):
    """What a bundle with a plan is made of; the product that made it is here in its version."""
    monkeypatch.setattr(plan_loader, "product_version", lambda product: "1.0")
    made = random_bundle(SHAPE, 3, [ModalityOut("v", "continuous", 1)], probe="a")
    m = made.manifest
    key = PlanKey(RTX, "1.0", TARGET, "step", "fp16", graph_hash(b"graph"))
    return {"session": "s", "subject": "m", "bin_size_s": 0.02, "shape": m.shape, "units": m.units,
            "modalities": m.modalities, "weights": made.weights,
            "files": {GRAPH: b"graph", key.file: THEIRS},
            "plans": [describe(key, BuiltPlan(THEIRS, 1.0, False), GRAPH)]}


@pytest.fixture
def path(tmp_path, parts):
    write_bundle(tmp_path / "x.neds", **parts)
    return tmp_path / "x.neds"


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Graphs that a plan was built of, instead of building one."""
    monkeypatch.setenv(plans.CACHE_VARIABLE, str(tmp_path / "cache"))
    found = []
    monkeypatch.setattr(plans, "build_plan", lambda graph, *_: found.append(graph) or OURS)
    return found


def chosen(bundle):
    return choose_plan(bundle, RTX, "step", "fp16", TARGET)


@pytest.fixture
def keys(tmp_path):
    pytest.importorskip("cryptography")
    for name in ("lab", "stranger"):
        assert main(["keygen", "--signing", "--out", str(tmp_path / "keys"), "--name", name]) == 0
    return tmp_path / "keys"


def test_nobody_answers_for_it_so_another_is_built_and_that_is_said(path, built, caplog):
    with caplog.at_level(logging.WARNING, "neds_rt.plans"):
        assert chosen(read_bundle(path)) == OURS
    assert built == [b"graph"]
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith(f"{path}: plans/step-fp16-tensorrt-rtx-sm89.plan is code that nobody ")
    assert "--trust-plans" in told
    assert "\n" not in told


def test_a_trusted_signature_answers_for_it(path, built, keys, caplog):
    trust = str(keys / "lab.pub.pem")
    assert main(["sign", str(path), "--key", str(keys / "lab.pem")]) == 0
    assert chosen(read_bundle(path)) == OURS  # signed, but nobody asked by whom
    with pytest.raises(BadInput, match="signature"):
        read_bundle(path, trust=str(keys / "stranger.pub.pem"))
    caplog.clear()
    assert chosen(read_bundle(path, trust=trust)) == THEIRS
    assert caplog.records == []
    assert built == [b"graph"]


def test_the_user_can_answer_for_it(path, built):
    assert chosen(read_bundle(path, trust_plans=True)) == THEIRS
    assert built == []


def test_who_makes_a_bundle_answers_for_it(parts, built):
    assert chosen(make_bundle(**parts)) == THEIRS


@pytest.mark.parametrize("given", [{}, {"trust_plans": True}])
def test_what_another_process_reads_is_trusted_alike(path, built, given):
    assert chosen(read_apart(str(path), **given)) == chosen(read_bundle(path, **given))
    assert read_apart(str(path), **given).plans_trusted == bool(given)


def test_a_loaded_model_is_trusted_by_its_signature(path, built, keys):
    assert main(["sign", str(path), "--key", str(keys / "lab.pem")]) == 0
    assert chosen(read_apart(str(path), str(keys / "lab.pub.pem"))) == THEIRS


def test_without_a_way_to_build_one_line_says_what_would_do(path, monkeypatch, tmp_path):
    monkeypatch.setenv(plans.CACHE_VARIABLE, str(tmp_path / "cache"))

    def refuse(*_):
        raise StartError("no builder")

    monkeypatch.setattr(plans, "build_plan", refuse)
    with pytest.raises(StartError, match=r"\.plan is not trusted .*--trust-plans.* none can be "
                                         r"built here: no builder; ") as error:
        chosen(read_bundle(path))
    assert "\n" not in str(error.value)


def test_serve_has_the_option_on_the_command_line_and_in_the_file(tmp_path):
    path = tmp_path / "serve.toml"
    assert load_config(None, {}).trust_plans is False
    path.write_text("trust_plans = true")
    assert load_config(str(path), {}).trust_plans is True


@pytest.mark.parametrize(("options", "trusted"), [((), False), (("--trust-plans",), True)])
def test_a_server_and_what_is_loaded_into_it_are_told_alike(tmp_path, options, trusted):
    models = [small_bundle(tmp_path / "a.neds"), other_bundle(tmp_path / "b.neds")]
    with Rig(tmp_path, models[0], "--engine=tests.rt.trusting_engine:Trusting", *options) as rig:
        rig.bins(3)
        rig.change("load", models[1])
        told = [line for line in rig.server.lines if "plans trusted" in line]
        assert told == [f"neds-rt serve: plans trusted: {trusted}"] * 2


class TestCache:
    """Plans built here lie in the user's cache, where nobody else may have put them."""

    KEY = PlanKey(RTX, "1.0", TARGET, "step", "fp16", graph_hash(b"graph"))

    def test_what_others_can_write_is_not_loaded(self, built, tmp_path):
        assert not get_plan(b"graph", self.KEY).cached
        assert get_plan(b"graph", self.KEY).cached
        (file,) = (tmp_path / "cache" / "plans").iterdir()
        for mode in (0o620, 0o602, 0o666):
            file.chmod(mode)
            assert not get_plan(b"graph", self.KEY).cached
        assert get_plan(b"graph", self.KEY).cached

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
    def test_what_somebody_else_owns_is_not_loaded(self, built, tmp_path):
        get_plan(b"graph", self.KEY)
        (file,) = (tmp_path / "cache" / "plans").iterdir()
        os.chown(file, 4711, 4711)
        assert not get_plan(b"graph", self.KEY).cached
