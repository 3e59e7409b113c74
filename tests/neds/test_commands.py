"""`neds train`, `evaluate`, `export`, `info` as a user runs them: text, JSON, and refusals."""

import json

import numpy as np
import pytest

from neds.cli import main as neds
from neds.data.store import write_session
from tests.neds.conftest import make_session

SMALL = ("--recipe", "smoke", "--threads", "1",
         *(word for pair in ("data.bin_size_s=0.05", "model.hidden=16", "model.window=10",
                             "train.steps=4", "train.bins=10", "train.batch=4",
                             "train.validate_every=2") for word in ("--set", pair)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a session and one small run of each form."""
    folder = tmp_path_factory.mktemp("commands")
    write_session(make_session(bins=500), folder / "made.h5")
    for form in ("stream", "window"):
        assert neds(["train", str(folder / "made.h5"), *SMALL, "--set", f"model.form={form}",
                     "--out", str(folder / form), "--json"]) == 0
    return folder


def said(capsys, *words):
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert neds([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    """The one line of a command that must refuse its input."""
    capsys.readouterr()
    assert neds([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


def test_train_says_what_it_wrote_and_logs_each_validation(home, capsys, tmp_path):
    text = said(capsys, "train", home / "made.h5", *SMALL, "--out", tmp_path / "run")
    assert text.startswith(f"wrote {tmp_path / 'run'}: validation ")
    assert "backbone" in text
    log = (tmp_path / "run.log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [2, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.log.jsonl"]
    said(capsys, "train", home / "made.h5", *SMALL, "--out", tmp_path / "run")  # replaces its own


def test_evaluate_prints_a_table_or_strict_json(home, capsys, tmp_path):
    text = said(capsys, "evaluate", home / "stream", "--baselines", "ridge,glm",
                "--baseline-budget", "quick")
    for word in ("made, test part", "velocity", "balanced_accuracy", "bps_pooled", "ridge", "glm"):
        assert word in text
    out = said(capsys, "evaluate", home / "stream", "--json", "--predictions",
               tmp_path / "p" / "made.npz", "--plot", tmp_path / "traces.svg")
    result = json.loads(out.splitlines()[-1])
    assert set(result["metrics"]) == {
        "velocity", "choice", "heading", "spikes", "spikes_from_velocity", "spikes_from_choice",
        "spikes_from_heading", "co_smoothing", "forecasting"}
    assert json.loads((home / "stream-report" / "report.json").read_text()) == result
    for name, row in result["metrics"].items():
        assert row.keys() == result["intervals"][name].keys()
    assert result["plots"] == ["made.traces.svg"]
    assert sorted(p.name for p in (home / "stream-report").iterdir()) == [
        "made.traces.svg", "report.json"]
    with np.load(tmp_path / "p" / "made.npz") as arrays:
        assert arrays["velocity.predicted"].shape == (result["bins"], 2)
        assert arrays["bin"][0] == result["first_bin"]
    assert (tmp_path / "traces.svg").stat().st_size > 1000


def test_every_part_is_predicted_once(home, capsys, tmp_path, monkeypatch):
    from neds import evaluate

    seen = []
    whole = evaluate.decode_rows
    monkeypatch.setattr(evaluate, "decode_rows",
                        lambda *words: seen.append(words[2:]) or whole(*words))
    said(capsys, "evaluate", home / "stream", "--json", "--out", tmp_path, "--plots", "png",
         "--predictions", tmp_path / "p.npz", "--plot", tmp_path / "t.svg")
    assert len(seen) == 1


def test_several_sessions_are_scored_together_and_against_another_report(home, capsys, tmp_path):
    made = make_session(bins=500, seed=4, units=9)
    object.__setattr__(made, "session", "other")
    write_session(made, tmp_path / "other.h5")
    run, report = tmp_path / "run", tmp_path / "report"
    said(capsys, "train", home / "made.h5", tmp_path / "other.h5", *SMALL, "--out", run)
    words = ("--tasks", "decoding,encoding", "--replicates", 20, "--block-seconds", 1)
    alone = tmp_path / "alone"
    said(capsys, "evaluate", home / "stream", *words, "--plots", "none", "--out", alone, "--json")
    out = said(capsys, "evaluate", run, *words, "--out", report, "--against", alone, "--json")
    result = json.loads(out.splitlines()[-1])
    assert [s["session"] for s in result["sessions"]] == ["made", "other"]
    values = [s["metrics"]["velocity"]["r2"] for s in result["sessions"]]
    assert result["metrics"]["velocity"]["r2"] == pytest.approx(np.mean(values))
    assert result["intervals"]["velocity"]["r2"][0] < result["metrics"]["velocity"]["r2"]
    names = {"report.json", "made.traces.svg", "other.traces.svg",
             *(f"against.{name}.svg" for name in ("velocity", "choice", "heading", "spikes"))}
    assert {p.name for p in report.iterdir()} == names
    assert set(result["plots"]) == names - {"report.json"}
    assert "mean of 2 sessions" in said(capsys, "evaluate", run, home / "made.h5",
                                        tmp_path / "other.h5", *words, "--out", report)
    twice = ("evaluate", run, home / "made.h5", home / "made.h5", *words, "--out", report)
    assert "given twice" in refused(capsys, *twice)
    assert "one session" in refused(capsys, "evaluate", run, "--plot", tmp_path / "x.svg")


def test_a_score_that_is_no_number_is_null(home, capsys, tmp_path):
    session = make_session(bins=500)
    behaviour = session.behaviours["velocity"]
    values = behaviour.values.copy()
    values[400:] = 1.0
    object.__setattr__(behaviour, "values", values)
    write_session(session, tmp_path / "still.h5")
    out = said(capsys, "evaluate", home / "stream", tmp_path / "still.h5", "--json")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["metrics"]["velocity"]["r2"] is None


def test_export_and_info(home, capsys):
    text = said(capsys, "export", home / "stream", "--out", home / "made.neds")
    assert "12 units, velocity, choice, heading" in text
    assert "largest error against torch" in text
    assert "no future" in said(capsys, "info", home / "stream")
    for path, kind in ((home / "made.h5", "session"), (home / "made.neds", "bundle")):
        assert kind in said(capsys, "info", path).splitlines()[0]
        assert json.loads(said(capsys, "info", path, "--json"))["kind"] == kind


def test_export_with_templates_says_which_units_have_none(home, capsys, tmp_path):
    from neds.data.store import read_session
    from neds_rt.bundle import read_bundle
    from neds_rt.templates import bundle_templates, make_templates
    from tests.rt.raw_band import templates

    units = read_session(home / "made.h5").units
    names = np.c_[units.channel, units.cluster][:6]
    path = tmp_path / "t"
    path.write_bytes(make_templates(
        templates().settings, templates().tensors | {"unit": names}, "t").encode())
    out = tmp_path / "with.neds"
    text = said(capsys, "export", home / "stream", "--out", out, "--templates", path)
    assert "6 units will stay silent, they have no template" in text
    bundle = read_bundle(out)
    (entry,) = bundle.manifest.templates
    assert len(entry.missing) == 6
    assert len(bundle_templates(bundle)[entry.probe].names) == 6
    line = refused(capsys, "export", home / "stream", "--out", tmp_path / "x.neds",
                   "--templates", tmp_path / "none")
    assert "none" in line


def test_the_window_form_is_evaluated_described_and_not_exported(home, capsys, tmp_path):
    assert "circular_r2" in said(capsys, "evaluate", home / "window")
    facts = json.loads(said(capsys, "info", home / "window", "--json"))
    assert facts["form"] == "window"
    assert "past and future" in facts["sees"]
    line = refused(capsys, "export", home / "window", "--out", tmp_path / "x.neds")
    assert "model.form" in line
    assert "neds train --set model.form=stream" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--set", "train.seed=text"), "seed"),
        (("--seed", "-1"), "train.seed"),
        (("--threads", "-1"), "--threads"),
        (("--set", "train.learning_rate=-1"), "train.learning_rate"),
        (("--set", "train.learning_rate=nan"), "train.learning_rate"),
        (("--set", "model.dropout=1.0"), "model.dropout"),
        (("--set", "train.unit_dropout=1"), "train.unit_dropout"),
        (("--set", "train.behaviour_weights={wheel=2.0}"), "wheel"),
        (("--set", "data.bin_size_s=0.02"), "0.05"),
        (("--set", "data.min_rate_hz=1000.0"), "min_rate_hz"),
        (("--set", "data.bin_size_s=-0.05"), "bin_size_s"),
        (("--set", "model=3"), "model"),
        (("--set", "model.window=400"), "no row left"),
        (("--behaviours", "velocity,,choice"), "behaviour"),
        (("--recipe", "nowhere"), "nowhere"),
        (("--recipe", "."), "recipe"),
    ],
)
def test_train_refuses(home, capsys, tmp_path, words, named):
    line = refused(capsys, "train", home / "made.h5", *SMALL, *words, "--out", tmp_path / "run")
    assert named in line
    assert not (tmp_path / "run").exists()


def test_train_refuses_sessions(home, capsys, tmp_path):
    made, out = home / "made.h5", ("--out", tmp_path / "run")
    assert "given twice" in refused(capsys, "train", made, made, *SMALL, *out)
    assert "nowhere.h5" in refused(capsys, "train", home / "nowhere.h5", *SMALL, *out)
    assert str(home) in refused(capsys, "train", home, *SMALL, *out)
    other = make_session(bins=500)
    object.__setattr__(other, "session", "other")
    object.__setattr__(other.spikes, "bin_size_s", 0.1)
    object.__setattr__(other, "domain", other.domain * 2)
    write_session(other, tmp_path / "other.h5")
    line = refused(capsys, "train", made, tmp_path / "other.h5", *SMALL, *out)
    assert "other" in line
    assert "0.1, in which it was recorded" in line


def test_nothing_but_a_checkpoint_is_ever_replaced(home, capsys, tmp_path):
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "thesis.tex").write_text("years")
    for out in (keep, keep / "thesis.tex", keep / "thesis.tex" / "run", "/proc/neds/run"):
        assert str(out) in refused(capsys, "train", home / "made.h5", *SMALL, "--out", out)
    assert [p.name for p in tmp_path.rglob("*")] == ["keep", "thesis.tex"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--baselines", "magic"), "ridge, linear"),
        (("--session-id", "other"), "made"),
        (("--plot", "x.jpeg2"), ".png, .svg or .pdf"),
        (("--plot", "/proc/neds/x.svg"), "/proc/neds"),
        (("--predictions", "/proc/neds/x.npz"), "/proc/neds"),
        (("--out", "/proc/neds"), "/proc/neds"),
        (("--tasks", "decoding,dreaming"), "dreaming"),
        (("--tasks", "encoding", "--plot", "x.svg"), "decoding"),
        (("--forecast-bins", "10"), "window of 10"),
        (("--forecast-bins", "-1"), "--forecast-bins"),
        (("--block-seconds", "nan"), "--block-seconds"),
        (("--replicates", "-2"), "--replicates"),
        (("--conditions", "choice"), "no trial table"),
        (("--against", "/proc/neds"), "report.json of neds evaluate"),
    ],
)
def test_evaluate_refuses(home, capsys, words, named):
    assert named in refused(capsys, "evaluate", home / "stream", *words)


def test_export_and_info_refuse(home, capsys, tmp_path):
    run, out = home / "stream", ("--out", tmp_path / "x.neds")
    assert "velocity, choice, heading" in refused(capsys, "export", run, *out, "--behaviours", "w")
    assert "step, window" in refused(capsys, "export", run, *out, "--graphs", "pie")
    assert "made" in refused(capsys, "export", run, *out, "--session", "other")
    assert "nowhere" in refused(capsys, "export", home / "nowhere", *out)
    assert "/proc/neds" in refused(capsys, "export", run, "--out", "/proc/neds/x.neds")
    assert "thesis" in refused(capsys, "info", tmp_path / "thesis")
    (tmp_path / "thesis").write_text("years")
    assert "thesis" in refused(capsys, "info", tmp_path / "thesis")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]
