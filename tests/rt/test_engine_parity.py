"""What a manifest says of an engine's precisions, and when the server warns of it."""

import numpy as np
import pytest

from neds_rt.bundle import ModalityOut, Shape, make_bundle, random_bundle, write_bundle
from neds_rt.engine_parity import engine_parities, precision_warning
from neds_rt.engines import load_engine
from neds_rt.errors import BadInput
from tests.rt.serving import Serving

MADE = random_bundle(Shape(hidden=16, layers=1, heads=2, mlp=16, window=5), 8,
                     [ModalityOut("wheel", "continuous", 1), ModalityOut("paw", "continuous", 2)])


def row(precision, **changes):
    return {"engine": "native", "precision": precision, "max": 0.1, "rms": 0.01,
            "score_change": changes}


def parts(*rows):
    manifest = MADE.manifest
    return {"session": "s", "subject": "a", "bin_size_s": 0.02, "shape": manifest.shape,
            "units": manifest.units, "modalities": manifest.modalities, "weights": MADE.weights,
            "parity": {"engines": list(rows)} if rows else {}}


def warning(precision, *rows):
    bundle = make_bundle(**parts(*rows))
    return precision_warning(load_engine(f"native:{precision}", bundle), bundle.manifest, "x.neds")


def test_a_changed_score_is_one_line_with_the_worst_behaviour():
    rows = row("bf16", wheel=0.0049, paw=-0.005), row("int8", wheel=0.0051, paw=-0.02)
    assert warning("int8", *rows) == (
        "warning: precision int8 of engine native changes the score of paw by -0.0200 on held-back "
        "bins, more than 0.005")
    assert warning("bf16", *rows) == ""
    assert warning("float32", *rows) == ""


def test_older_bundles_and_unknown_scores_warn_of_nothing():
    assert warning("int8") == ""
    assert warning("int8", row("int8", wheel=None)) == ""


@pytest.mark.parametrize("bad", [{"engine": "native"}, row("int8") | {"max": "large"}])
def test_a_list_of_another_form_is_refused(bad):
    with pytest.raises(BadInput, match=r"x\.neds: parity\.engines"):
        engine_parities(make_bundle(**parts(bad)).manifest, "x.neds")


@pytest.mark.parametrize(("precision", "lines"), [("int8", 1), ("bf16", 0)])
def test_the_server_says_so_before_it_is_ready(tmp_path, precision, lines):
    path = tmp_path / "x.neds"
    write_bundle(path, **parts(row("int8", wheel=-0.01), row("bf16", wheel=-0.001)))
    uri = f"zmq+ipc://{tmp_path}/probe"
    with Serving(path, {"a": uri}, f"--engine=native:{precision}") as server:
        assert server.end()["precision"] == precision
    assert [line for line in server.lines if "warning" in line] == [
        "neds-rt serve: warning: precision int8 of engine native changes the score of wheel by "
        "-0.0100 on held-back bins, more than 0.005"][:lines]
    assert np.all([line.startswith(("ready", "neds-rt serve: ")) for line in server.lines])
