"""The programs that write the README's tables and pictures, on small made results."""

import importlib
import json
import re
from pathlib import Path

import pytest

from neds_rt.errors import BadInput
from tools.tables import accuracy, compared, engines, precisions, speed
from tools.tables.page import read_result, replace_block
from tools.tables.rows import Score, fit_seconds, pool

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables():
    return importlib.import_module("tools.make_tables")


@pytest.fixture(scope="module")
def pictures():
    return importlib.import_module("tools.make_pictures")


def row(model, session, value, key="velocity.r2", seed=101, **more):
    modality, metric = key.split(".")
    return {"session": session, "model": model, "seed": seed, "modality": modality,
            "metric": metric, "value": value, "seconds": 10.0, **more}


def result(*rows, file="within-made.json", device="cpu"):
    return {"rows": list(rows), "commit": "0123456789abcdef", "file": file,
            "command": f"python bench/accuracy.py --device {device}"}


def alone_result():
    """Sessions trained alone, as accuracy-*.json has them."""
    return result(
        row("ridge", "b", 0.5, seed=0), row("ridge", "a", 0.6, seed=0),
        row("gru", "b", 0.7), row("gru", "b", 0.72, seed=102),
        row("neds", "b", 0.70), row("neds", "b", 0.74, seed=102),
        row("neds", "a", 0.80), row("neds", "a", 0.80, seed=102),
        row("ridge", "b", 0.123, "velocity.correlation", seed=0),
        row("ridge", "c", float("nan"), seed=0), row("ridge", "d", None, seed=0),
        file="accuracy-made.json",
    )


def within_result():
    """NEDS on all sessions with two seeds, NEDS and a GRU with one, ridge on a part."""
    rows = [row("neds", s, v + 0.02 * (seed - 101), seed=seed)
            for seed in (101, 102) for s, v in (("a", 0.8), ("b", 0.7))]
    rows += [row("neds_single", "a", 0.7), row("neds_single", "b", 0.72), row("linear", "a", 0.9)]
    rows += [row("gru", "a", 0.6), row("gru", "b", 0.7)]
    rows += [row("neds", s, v, "spikes.bps_pooled", seed) for seed in (101, 102)
             for s, v in (("a", 0.09), ("b", 0.11))]
    return result(*rows, device="cuda")


def forms_result():
    """Variants with the first seed only, one of them on one session, and unimodal models."""
    rows = [row("neds_sqrt", "a", 0.79), row("neds_sqrt", "b", 0.69),
            row("neds_sqrt", "a", 0.10, "spikes.bps_pooled"),
            row("neds_sqrt", "b", 0.12, "spikes.bps_pooled"),
            row("neds_no_encoding", "a", 0.81), row("neds_no_encoding", "b", 0.71),
            row("glm", "a", 0.04, "spikes.bps_pooled"), row("glm", "b", 0.06, "spikes.bps_pooled"),
            row("neds_decoding", "a", -0.5, "spikes.bps_pooled"), row("neds_decoding", "a", 0.7),
            row("neds_decoding", "b", 0.7)]
    return result(*rows, file="forms-made.json") | {"protocol": "forms,masking,encoding"}


def new_session_result():
    rows = [row(model, s, v + a / 1000, seed=seed, calibration_s=a, adapt_s=2.0)
            for model, v in (("ridge_pretrained", 0.3), ("neds", 0.6)) for seed in (101, 102)
            for s in ("a", "b") for a in (0.0, 30.0, -1.0)]
    return result(*rows, file="new-session-made.json")


def latency_result():
    def figure(p50):
        return {"p50": p50, "p99": 2 * p50, "p999": 3 * p50, "max": 4 * p50}

    def engine(name, us, late):
        keys = ("arrival_to_publish_us", "service_us", "step_us", "step_hot_us")
        return {"engine": name, "late": late,
                **{k: figure(us / (i + 1)) for i, k in enumerate(keys)}}

    return {
        "engines": [engine("native", 400.0, 1), engine("neds.torch_engine:EagerWindow", 9e4, 99)],
        "echo_us": figure(120.0), "bins": 100, "commit": None,
        "model": {"units": 600, "hidden": 128, "layers": 5, "window": 100},
    }


def gpu_result():
    step = {"steps": 9, "p50": 181.9, "p99": 190.7, "p999": 207.0, "max": 1724.0}
    engine = {"model": "2.9M", "parameters": 2792967, "engine": "cuda", "form": "step",
              "precision": "float32", "parity": 1.08e-6, "step_us": step}
    return {
        "gpu": {"name": "Made GPU"},
        "tests": [{"check": "one", "error": 1e-7},
                  {"error": "ended with 1\nFAILED tests/x.py::test_wide[a] - why\n"}],
        "engines": [engine, {**engine, "engine": "native (CPU)", "form": "window", "parity": 0.0},
                    {"error": "no such engine"}],
        "paced": [{**step, "model": "2.9M", "engine": "cuda", "precision": "float32",
                   "period_s": 0.02, "warm_every_s": 0.001}],
    }


def throughput_result():
    def rate(x):
        return {"median": x, "min": x / 2, "max": 2 * x}

    return {
        "device": "cpu", "data": "synthetic", "units": [200, 450], "recipe": "single", "set": [],
        "sizes": {"batch": 16, "bins": 100, "hidden": 256, "layers": 5},
        "models": {name: {"parameters": {"total": 1234567}, "samples_per_s": rate(x)}
                   for name, x in (("reference", 5.0), ("neds", 250.0))},
        "speedup": {"neds": rate(50.0)},
    }


def plans_result():
    plan = {"model": "1M", "parameters": 973_063, "units": 600, "window": 100, "form": "window",
            "precision": "fp16", "target": "sm89", "build_s": 16.38, "build_cpu_s": 1.78,
            "plan_bytes": 12_345_678, "graph_bytes": 2_405_473}
    return {"product": "tensorrt-rtx", "version": "1.7.1", "plans": [plan]}


def figure(p50):
    return {"steps": 9, "p50": p50, "p99": 2 * p50, "p999": 3 * p50, "max": 4 * p50}


def compare_result():
    def server(name, kind, us, late, cpu):
        return {"name": name, "engine": name, "kind": kind, "late": late, "lost": 0,
                "cpu_us_a_bin": cpu,
                "difference": 0.0 if kind == "engine" else 1.234e-6,
                "arrival_to_publish_us": figure(us + 500), "service_us": figure(us),
                "above_echo": {"median_us": us, "median_steps": 1.25, "tail_ratio": 1.1,
                               "within": True}}

    return {
        "engines": [server("native", "engine", 300.0, 0, 500.0),
                    server("zmq_torch", "alternative", 9000.0, 80, None)],
        "not_installed": [{"name": "zmq_openvino", "package": "openvino"}],
        "echo_us": figure(200.0), "echo_late": 1, "echo_lost": 0, "echo_cpu_us_a_bin": 100.0,
        "bins": 100, "bins_per_second": 50.0, "rounds": 4, "versions": {"torch": "2.13.0"},
        "model": {"units": 600, "hidden": 128, "layers": 5, "window": 100},
        "machine": {"cpu": "Made CPU", "cores": 2},
    }


def sizes_result():
    base = {"units": 600, "window": 100, "hidden": 256}
    points = [base, {**base, "units": 100}, {**base, "window": 25}]
    return {
        "base": base, "axes": ["units", "window", "hidden"], "layers": 5, "period_s": 0.02,
        "rows": [{**point, "parameters": 1_230_000, "name": engine, "precision": "float32",
                  "step_us": figure(us), "step_hot_us": figure(us / 4)}
                 for point in points for engine, us in (("native", 100.0), ("onnx", 400.0))],
    }


README = """# Title

<!-- within: to come -->
Not measured yet.
<!-- end: within -->

Words between.

<!-- latency: to come -->
| old |
|---|
<!-- end: latency -->

Words after | with a bar.
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "accuracy-made.json").write_text(json.dumps(alone_result(), indent=1))
    # Kept as printed: JSON is the last line.
    (tmp_path / "latency.json").write_text("words first\n" + json.dumps(latency_result()) + "\n")
    return tmp_path


def run(module, folder, *words):
    return module.main(["--results", str(folder), *words])


def lines_of(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_tables_are_written_between_the_words(tables, folder):
    readme = folder / "README.md"
    for _ in range(2):  # again gives the same
        assert run(tables, folder, "--readme", str(readme)) == 0
        text = readme.read_text()
        assert lines_of(text)[:5] == [
            "| velocity R² | ridge | GRU | NEDS |",
            "| --- | --: | --: | --: |",
            "| a | 0.600 | – | 0.800 ± 0.000 |",
            "| b | 0.500 | 0.710 ± 0.014 | 0.720 ± 0.028 |",
            "| **mean of 2 sessions** | **0.550** | – | **0.760 ± 0.014** |",
        ]
        assert "<!-- within: from bench/results (accuracy-made.json at 0123456789ab)" in text
        assert "<!-- end: within -->\n\nWords between.\n\n<!-- latency: " in text
        assert text.endswith("<!-- end: latency -->\n\nWords after | with a bar.\n")
        assert "old" not in text
        assert "Not measured yet" not in text
    assert [p.name for p in folder.glob(".*")] == []


def test_sessions_together_take_the_place_of_sessions_alone(tables, folder):
    (folder / "within-made.json").write_text(json.dumps(within_result()))
    assert run(tables, folder, "--readme", str(folder / "README.md")) == 0
    text = (folder / "README.md").read_text()
    assert "accuracy-made" not in text
    assert "NEDS, each session alone: above on 1 of 2 sessions, mean difference +0.050" in text
    assert lines_of(text)[:6] == [
        "| model | velocity R² | sessions | seeds | fit, s |",
        "| --- | --: | --: | --: | --: |",
        # Its one session is the best of all, and compares with nothing.
        "| ridge or logistic, each session alone | – | 1 of 2 | 1 | 10 (GPU) |",
        # One fit of all sessions takes what its rows say, fits of each session their sum.
        "| **NEDS, all sessions** | **0.760 ± 0.014** | **2** | **2** | **10 (GPU)** |",
        "| NEDS, each session alone | 0.710 | 2 | 1 | 20 (GPU) |",
        "| GRU, all sessions | 0.650 | 2 | 1 | 10 (GPU) |",
    ]
    assert "| a | 0.900 | 0.810 | 0.700 | 0.600 |" in text[text.index("<details>"):]


def test_variants_are_compared_where_both_were_run():
    scores = pool([within_result(), forms_result()], ["neds", "neds_sqrt"])
    assert lines_of(compared.variants_table(scores)) == [
        "| variant | velocity R² | bits per spike, pooled | sessions | seeds |",
        "| --- | --: | --: | --: | --: |",
        "| **NEDS, all sessions** | **0.760 ± 0.014** | **0.100 ± 0.000** | **2** | **2** |",
        "| square root of counts | -0.010 | +0.010 | 2 | 1 |",
    ]
    assert compared.variants_table(pool([forms_result()], ["neds", "neds_sqrt"])) == ""


def test_files_of_several_protocols_give_each_table_its_models(tables, tmp_path):
    for made in (within_result(), forms_result(), new_session_result()):
        (tmp_path / made["file"]).write_text(json.dumps(made))
    found = tables.blocks(tmp_path)
    assert set(found) == {"within", "encoding", "forms", "masking", "new-session"}
    assert [r["file"] for r in found["masking"][1]] == ["within-made.json", "forms-made.json"]
    assert [r["file"] for r in found["within"][1]] == ["within-made.json"]
    assert "without `encoding` | +0.010 |" in found["masking"][0]
    encoding = found["encoding"][0]
    assert "NEDS explains 2.00 times the bits of the GLM" in encoding
    # What a model was never trained for is not held against it.
    assert "| NEDS, decoding only | – | 0.700 | 2 | 1 |" in encoding


def test_data_sets_have_a_table_each(tables, tmp_path):
    for name in ("one", "two"):
        made = json.dumps(within_result())
        (tmp_path / f"within-{name}-gru.json").write_text(made)
    text, used = tables.blocks(tmp_path)["within"]
    assert len(used) == 2
    assert re.findall(r"^\*\*(\w+)\*\*$", text, re.M) == ["one", "two"]


@pytest.mark.parametrize(
    ("file", "name"),
    [("within-indy.json", "indy"), ("forms-indy-more.json", "indy"), ("accuracy-indy.json", "indy"),
     ("new-session-indy.json", "indy"), ("steinmetz-within.json", "steinmetz")],
)
def test_a_file_is_named_after_its_data_set(tables, file, name):
    assert tables.data_set(file) == name


def test_rows_found_twice_count_once_unless_they_differ():
    assert len(pool([within_result(), within_result()])) == len(pool([within_result()]))
    other = result(row("neds", "a", 0.5), file="within-other.json")
    with pytest.raises(BadInput, match=r"within-other.json: neds, a, velocity.r2: found 0.5"):
        pool([within_result(), other])


def test_new_sessions_by_amount_of_data():
    lines = lines_of(accuracy.new_session_table(pool([new_session_result()])))
    assert lines[0] == "| 2 sessions, after | 0 s | 30 s | all |"
    assert lines[2].startswith("| velocity R², ridge by channel | 0.300 ± 0.000 | 0.330 ± 0.000 |")
    assert lines[3].startswith("| **velocity R², NEDS** | **0.600 ± 0.000** |")
    assert lines[5] == "| seconds to adapt, NEDS | 2.0 | 2.0 | 2.0 |"


def test_trials_of_sessions_trained_on_and_left_out():
    key = "stimulus.trial_balanced_accuracy"
    rows = [row("linear", "a", 0.6, key), row("neds", "a", 0.7, key),
            row("neds", "b", 0.65, key, calibration_s=-1.0), row("neds", "a", 0.1)]
    lines = lines_of(accuracy.discrete_table(pool([result(*rows)])))
    assert lines[0] == "| model | stimulus balanced accuracy | sessions | seeds |"
    assert lines[2:4] == ["| ridge or logistic, each session alone | 0.600 | 1 | 1 |",
                          "| **NEDS, all sessions** | **0.700** | **1** | **1** |"]
    assert "NEDS, on sessions left out, after all" in lines[4]


def test_what_was_tried_names_the_row_it_changes():
    variants = [{"name": "x", "what": "plain", "on": None, "velocity.r2": 0.5},
                {"name": "y", "what": "better", "on": "x", "velocity.r2": 0.6}]
    lines = lines_of(compared.tried_table([{"sessions": 3, "part": "validation", "seed": 0,
                                            "device": "CPU", "variants": variants}]))
    assert lines[2:] == ["| 1. plain | – | 0.500 |", "| 2. better | row 1 | 0.600 |"]


def test_fits_on_two_devices_have_a_mean_each():
    scores = [Score(session, "gru", seed, "velocity.r2", 0.8, seconds, device, None, 0.0)
              for session in "ab" for seed, seconds, device in (
                  (1, 400.0, "GPU"), (2, 1000.0, "CPU"), (3, 1100.0, "CPU"))]
    assert fit_seconds(scores, "gru") == "1050 (CPU), 400 (GPU)"
    assert fit_seconds(scores, "neds") == "–"


def test_regions_are_shown_within_and_across_animals_with_chance_below():
    def probe(within, across, p=None):
        known = {} if p is None else {"p_value": p}
        return {"within": {"balanced_accuracy": within, **known},
                "across": {"balanced_accuracy": across, **known}}

    lines = lines_of(compared.regions_table([{
        "metrics": probe(0.2, 0.15, 0.0099), "baselines": {
            "chance": probe(0.16, 0.14), "rate": probe(0.19, 0.17, 0.04),
            "activity": probe(0.23, 0.16, 0.01)}}]))
    assert lines[2:] == ["| what NEDS learned of each unit | 0.200 | 0.01 | 0.150 | 0.01 |",
                         "| activity statistics | 0.230 | 0.01 | 0.160 | 0.01 |",
                         "| the mean rate alone | 0.190 | 0.04 | 0.170 | 0.04 |",
                         "| shuffled labels | 0.160 | – | 0.140 | – |"]


def test_latency_has_a_row_per_figure_in_milliseconds():
    lines = speed.latency_table([latency_result()]).splitlines()
    assert lines[0].startswith("| 600 units, width 128, 5 layers, window 100; milliseconds |")
    assert lines[2] == "| echo, arrival to publish | 0.120 | 0.240 | 0.360 | 0.480 |"
    assert lines[3] == "| native, arrival to publish | 0.400 | 0.800 | 1.200 | 1.600 |"
    assert lines[4] == "| native, service | 0.200 | 0.400 | 0.600 | 0.800 |"
    assert [line.split(" | ")[0] for line in lines[5:7]] == [
        "| native, step, paced", "| native, step, tight loop"]
    # Slower than the pace: its arrivals say how long the run was, not how late a decode is.
    assert lines[7] == "| eager torch recomputing the window, arrival to publish | – | – | – | – |"
    assert lines[8].startswith("| eager torch recomputing the window, service | 45.000 |")


def test_what_is_above_the_echo_stands_below_the_latency():
    made = latency_result()
    assert "above the echo" not in speed.latency_table([made])
    made["engines"][0]["above_echo"] = {"median_us": 280.0, "median_steps": 1.4,
                                        "tail_ratio": 1.13, "within": True}
    assert lines_of(speed.latency_table([made]))[-1] == "| `native` | 0.280 | 1.40 | 1.13 |"


def test_servers_of_other_makes_are_compared_in_milliseconds():
    text = engines.compare_table([compare_result()])
    assert "100 bins a server at 50 a second in 4 interleaved rounds; Made CPU, 2 cores" in text
    assert "pyzmq script, eager torch on the window 30.0 and 30.0." in text
    assert lines_of(text)[2:] == [
        "| echo | 0.200 | 0.400 | 0.600 | 0.800 | – | – | – | – | 1 | 0.5 % | – |",
        "| **`neds-rt serve --engine native`** | **0.800** | **1.600** | **2.400** | **3.200** | "
        "**0.300** | **0.600** | **0.900** | **1.200** | **0 of 100** | **2.5 %** | – |",
        # Slower than the pace: no arrival to report.
        "| pyzmq script, eager torch on the window | – | – | – | – | 9.000 | 18.000 | 27.000 | "
        "36.000 | 80 of 100 | – | 1e-06 |",
        "| pyzmq script, OpenVINO on the window | not installed (openvino) |" + " – |" * 10,
    ]


def test_sizes_are_a_row_each_with_the_base_on_every_axis():
    lines = lines_of(engines.sizes_table([sizes_result()]))
    assert lines[0] == ("| 600 units, window of 100 bins, width 256, 5 layers, but | parameters | "
                        "`native` | `onnx` |")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| 100 units", "| 600 units", "| window of 25 bins", "| window of 100 bins", "| width 256"]
    assert lines[2].endswith("| 1.2 M | 100 / 200 / 300 (25) | 400 / 800 / 1200 (100) |")


def test_gpu_figures_come_with_what_failed():
    text = speed.gpu_table([gpu_result()])
    assert text.startswith("Made GPU; model 2.9M (2,792,967 parameters); largest difference ")
    assert "in 1 checks: 1e-07; tests that failed: `test_wide[a]`." in text
    assert lines_of(text)[2:] == [
        "| cuda | float32 | 182 | 191 | 207 | 1724 | 1e-06 |",
        "| native (CPU), window recomputed | float32 | 182 | 191 | 207 | 1724 | – |",
        "| cuda, one every 20 ms, kept warm every 1 ms | float32 | 182 | 191 | 207 | 1724 | – |",
    ]


def test_gpu_figures_stand_beside_the_floor_of_the_same_run():
    made = gpu_result()
    made["floor"] = [{"name": "floor_us_2.9M_bfloat16", "value": 9.6}, {"name": "x", "value": [1]}]
    paced = {**figure(50.0), "period_s": 0.001, "warm_every_s": 0.0, "steps": 20_000}
    made["engines"][0] = {**made["engines"][0], "paced_us": paced}
    text = speed.gpu_table([made])
    assert "bytes over bandwidth) in microseconds: 2.9M bfloat16 10; " in text
    assert lines_of(text)[3] == (
        "| cuda, one every 1 ms (20000 steps) | float32 | 50 | 100 | 150 | 200 | – |")


def test_precisions_by_what_they_change_and_by_the_floor():
    engine = {"engine": "native", "precision": "int8", "max": 0.0123, "rms": 0.004,
              "score_change": {"velocity": -0.00123, "position": -0.00001, "choice": None}}
    scores = dict.fromkeys(("velocity", "position", "choice"), 0.8)
    made = {"sessions": [{"session": "a", "bins": 9, "torch": scores, "engines": [engine]}],
            "stream": {"session": "a", "bins": 100_000, "int8": {"max": 0.02, "rms": 0.005}}}
    assert lines_of(precisions.parity_table([made])) == [
        "| against torch float32 | precision | largest error | RMS error | change of velocity | "
        "change of position | change of choice |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        "| a, 9 test bins (velocity 0.800, position 0.800, choice 0.800) | int8 | 1.2e-02 | "
        "4.0e-03 | -0.0012 | 0.0000 | – |",
        "| a, one stream of 100000 bins | int8 | 2.0e-02 | 5.0e-03 | – | – | – |",
    ]
    span = {"min": 90.0, "p50": 100.4, "p99": 200.0}
    case = {"precision": "int8", "bytes": 3_456_789, "of_floor": 1.5, "of_floor_min": 1.2,
            "us": {"read": span, "step": span}, "gb_s": {"read": 34.4, "step": 34.4}}
    made = {"sizes": {"units": 600, "hidden": 256, "layers": 5, "window": 100},
            "precisions": [case]}
    assert lines_of(precisions.floor_table([made])) == [
        "| 600 units, width 256, 5 layers, window 100; µs (GB/s) | MB read | reading, in a loop | "
        "step, in a loop | step over reading |",
        "| --- | --: | --: | --: | --: |",
        "| int8 | 3.46 | 100 (34) | 100 (34) | 1.50 |",
    ]


def test_throughput_and_memory():
    text = speed.throughput_table([throughput_result()])
    assert text.startswith("cpu, 2 synthetic sessions of 200 to 450 units, batch 16 of 100 bins")
    assert lines_of(text)[2:] == [
        "| paper's implementation | 1,234,567 | 5.0 (2.5 to 10.0) | – |",
        "| NEDS | 1,234,567 | 250 (125 to 500) | 50.00 |",
    ]
    runs = [{"sessions": n, "files_mb": n, "peak_mb": 400.4, "anonymous_mb": 300,
             "parameters_mb": 9} for n in (20, 200)]
    growth = {"peak_mb": 1.5, "anonymous_mb": 0.7, "parameters_mb": 0.6, "beyond_parameters": 0.1}
    lines = lines_of(speed.memory_table([{"runs": runs, "mb_a_session": growth}]))
    assert lines[2:] == ["| 20 sessions | 20 | 400 | 300 | 9 |",
                         "| 200 sessions | 200 | 400 | 300 | 9 |",
                         "| a session more | – | 1.50 | 0.70 | 0.60 |"]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda f: (f / "README.md").write_text("no marker"), "within"),
        (lambda f: (f / "README.md").write_text("<!-- within: x -->\nno end"), "within"),
        (lambda f: (f / "latency.json").write_text("no JSON"), "latency.json"),
        (lambda f: [p.unlink() for p in f.glob("*.json")], "none"),
    ],
)
def test_nothing_is_written_when_something_is_wrong(tables, folder, capsys, spoil, named):
    spoil(folder)
    readme = folder / "README.md"
    before = readme.read_text()
    assert run(tables, folder, "--readme", str(readme)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert readme.read_text() == before


def test_the_pages_have_a_place_for_every_kind(tables):
    texts = {page: page.read_text(encoding="utf-8") for page in tables.PAGES}
    for kind in tables.KINDS:
        page = tables.page_of(kind, texts)
        assert "\nnew\n" in replace_block(texts[page], kind, "made", "new\n", page)
        assert sum(f"<!-- end: {kind} -->" in text for text in texts.values()) == 1


def test_the_pages_show_the_results_that_are_kept(tables):
    text = "\n".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    text = text.replace("](results/", "](bench/results/")  # as a page beside them has it
    for kind, (block, _) in tables.blocks(ROOT / "bench" / "results").items():
        assert f"-->\n{block}<!-- end: {kind} -->" in text, f"{kind}: run tools/make_tables.py"


def test_a_table_goes_to_the_page_that_has_its_place(tables, folder):
    other = folder / "other.md"
    other.write_text("Words.\n\n<!-- plans: to come -->\nNot yet.\n<!-- end: plans -->\n")
    (folder / "plans.json").write_text(json.dumps(plans_result()))
    assert run(tables, folder, "--readme", str(folder / "README.md"), str(other)) == 0
    assert lines_of(other.read_text())[2] == (
        "| 1M (1.0 M, 600 units, window 100) | window | fp16 | sm89 | 2.4 | 12.3 | 16.4 | 1.8 |")
    assert "tensorrt" not in (folder / "README.md").read_text()


def test_pictures_of_results(pictures, folder, capsys):
    assert run(pictures, folder, "--demo-seconds", "0") == 0
    for name in ("accuracy.svg", "latency.svg"):
        assert (folder / name).read_text().startswith("<?xml")
    (folder / "latency.json").unlink()
    assert run(pictures, folder, "--demo-seconds", "0") == 0
    assert "latency" in capsys.readouterr().err


def test_picture_of_sizes(pictures, tmp_path):
    (tmp_path / "sizes.json").write_text(json.dumps(sizes_result()))
    assert run(pictures, tmp_path, "--demo-seconds", "0") == 0
    text = (tmp_path / "sizes.svg").read_text()
    for words in ("window, bins", "native", "onnx", "one every 20 ms"):
        assert words in text


def test_pictures_of_many_sessions(pictures, tmp_path):
    for made in (within_result(), forms_result(), new_session_result()):
        (tmp_path / made["file"]).write_text(json.dumps(made))
    assert run(pictures, tmp_path, "--demo-seconds", "0") == 0
    assert {p.name for p in tmp_path.glob("*.svg")} == {
        "single-multi-made.svg", "masking-made.svg", "calibration-made.svg"}
    shown = importlib.import_module("tools.make_tables").blocks(tmp_path)
    for kind, file in (("within", "single-multi"), ("masking", "masking"),
                       ("new-session", "calibration")):
        assert shown[kind][0].endswith(f"](bench/results/{file}-made.svg)\n")
    assert "better in 1 of 2 sessions" in (tmp_path / "single-multi-made.svg").read_text()


def test_results_are_read_whole_or_from_the_last_line(folder):
    assert read_result(folder / "latency.json")["bins"] == 100
    assert read_result(folder / "accuracy-made.json")["name"] == "made"


def test_a_still_of_the_demo(pictures):
    svg = pictures.demo_svg(2.0)
    assert svg.startswith("<svg")
    for word in ("wheel", "decoded", "latency"):
        assert word in svg
