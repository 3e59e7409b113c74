"""The raw AP band to units: accuracy against ground truth and SpikeInterface, cost, latency.

    python bench/raw_path.py --seconds 600 --out bench/results/raw_path.json

Recordings are SpikeInterface's (`generate_drifting_recording`): 384 channels of a Neuropixels probe
at 30 kHz, made anew a second at a time, so that ten minutes need no disk. Templates are measured on
`--still` seconds before the units drift, the rest is tested: up and down by `--drift` micrometres
every `--period` seconds. `online` is the matcher of `neds-rt serve` in blocks of 5 ms, with what it
does against drift and without; CPU is its own, not that of making the recording. `offline` runs
`find_spikes_from_templates` on the first `--offline` seconds of the test and on as many before its
end, on rows behind the same front end with the same templates; `online` is scored there as well.
`latency` is from the newest sample of a spike's bin to the bin's being closed, by samples held back
and by the time that a block takes.

A spike is found if one of its unit's lies within 0.4 ms. Exit code 4 if the matcher takes more than
1.5 cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a program, its neighbours are not on the path
    sys.path.insert(0, str(ROOT))

from bench.output import finish  # noqa: E402
from neds.templates import Raw, Sorted, measure_templates  # noqa: E402
from neds_rt import _core  # noqa: E402
from neds_rt.stats import percentiles  # noqa: E402
from neds_rt.templates import MatchOptions, Templates  # noqa: E402

FS, BLOCK, STEP_UV, CHANNELS = 30_000, 150, 2.34, 384
TOLERANCE = round(0.4e-3 * FS)
BIN = 600
GROUPS = ((0, 4), (4, 6), (6, 10), (10, 20), (20, 1000))  # of the peak in standard deviations
WAYS = {"online": MatchOptions(), "online, no drift": MatchOptions(drift_gain=0, adapt_gain=0)}
Ints = NDArray[np.int64]


class Made:
    """A recording with known spikes, in steps of the ADC, made as it is asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        from probeinterface.neuropixels_tools import build_neuropixels_probe
        from spikeinterface.generation import generate_drifting_recording

        probe = build_neuropixels_probe(args.probe).get_slice(np.arange(CHANNELS))
        probe.set_device_channel_indices(np.arange(CHANNELS))
        motion = {"drift_mode": "zigzag", "non_rigid_gradient": args.non_rigid or None,
                  "t_start_drift": args.still, "t_end_drift": None, "period_s": args.period}
        _, self.recording, sorting = generate_drifting_recording(
            num_units=args.units, duration=args.still + args.seconds, probe=probe, seed=args.seed,
            generate_displacement_vector_kwargs={
                "displacement_sampling_frequency": 5.0, "drift_start_um": [0, args.drift],
                "drift_stop_um": [0, -args.drift], "drift_step_um": 1, "motion_list": [motion]},
            generate_sorting_kwargs={"firing_rates": (2.0, 8.0), "refractory_period_ms": 4.0},
            amplitude_std=0.05)
        vector = sorting.to_spike_vector()
        self.sample = vector["sample_index"].astype(np.int64)
        self.unit = vector["unit_index"].astype(np.int64)
        self.probe, self.n = probe, self.recording.get_num_samples()
        self.position = np.zeros((CHANNELS, 3), np.float32)
        self.position[:, :2] = self.recording.get_channel_locations()[:, :2]

    def read(self, begin: int, end: int) -> NDArray[np.int16]:
        """Samples [begin, end) of all channels."""
        traces = self.recording.get_traces(start_frame=begin, end_frame=end)
        return np.rint(traces / STEP_UV).astype(np.int16)

    def templates(self, still: float, units: int) -> Templates:
        """What the seconds before the test say of every unit."""
        end = round(still * FS)
        data = np.concatenate([self.read(a, min(a + FS, end)) for a in range(0, end, FS)])
        names = np.c_[np.arange(units), np.arange(units)]
        early = self.sample < end
        raw = Raw(lambda a, b: data[a:b], end, float(FS), self.position, "generated")
        return measure_templates(raw, Sorted(self.sample[early], self.unit[early], names))[0]


def run_online(made: Made, templates: Templates, begin: int) -> dict[str, dict[str, Any]]:
    """Every way over the recording from `begin` on: spikes, CPU seconds of each block."""
    matchers = {way: templates.matcher(options) for way, options in WAYS.items()}
    found: dict[str, list[Any]] = {way: [] for way in WAYS}
    cost: dict[str, list[int]] = {way: [] for way in WAYS}
    for first in range(begin, made.n, FS):
        data = made.read(first, min(first + FS, made.n))
        for way, matcher in matchers.items():
            for i in range(0, len(data), BLOCK):
                block = np.ascontiguousarray(data[i : i + BLOCK])
                started = time.thread_time_ns()
                n = matcher.push(block.data, first + i)
                cost[way].append(time.thread_time_ns() - started)
                found[way].append(np.c_[matcher.samples[:n], matcher.where[:n]])
    return {way: {"spikes": np.concatenate(found[way]), "cost_ns": np.array(cost[way]),
                  "matcher": matchers[way]} for way in WAYS}


def run_offline(
    made: Made, templates: Templates, begin: int, end: int, methods: list[str]
) -> dict[str, dict[str, Any]]:
    """SpikeInterface's matching over samples [begin, end), behind our front end."""
    from spikeinterface.core import NumpyRecording
    from spikeinterface.core import Templates as Dense
    from spikeinterface.sortingcomponents.matching import find_spikes_from_templates

    s, t = templates.settings, templates.tensors
    front = _core.FrontEnd(CHANNELS, s.fs, s.highpass_hz, s.reference)
    data = made.read(begin, end)
    rows = np.empty(data.shape, np.float32)
    front.process(np.ascontiguousarray(data).data, rows)
    recording = NumpyRecording(rows, FS)
    recording.set_probe(made.probe)
    recording.annotate(is_filtered=True)
    dense = np.zeros((len(t["unit"]), t["waveform"].shape[1], CHANNELS), np.float32)
    for u in range(len(dense)):
        dense[u][:, t["site"][u].astype(int)] = t["waveform"][u]
    known = Dense(dense, FS, s.before, probe=made.probe, is_in_uV=False)
    found = {}
    for method in methods:
        more: dict[str, Any] = {}
        if method in ("nearest", "tdc-peeler"):
            more["noise_levels"] = t["noise"]
        started = time.process_time()
        spikes = find_spikes_from_templates(
            recording, known, method=method, method_kwargs=more,
            job_kwargs={"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False})
        found[method] = {
            "spikes": np.c_[spikes["sample_index"] + begin, spikes["cluster_index"]],
            "cpu_s_per_s": round((time.process_time() - started) * FS / (end - begin), 3)}
    return found


def score(made: Made, templates: Templates, spikes: Ints, begin: int, end: int) -> dict[str, Any]:
    """Precision, recall and accuracy of every unit, over samples [begin, end)."""
    rows = []
    for row, (unit, _) in enumerate(templates.names):
        true = made.sample[(made.unit == unit) & (made.sample >= begin) & (made.sample < end)]
        told = np.sort(spikes[spikes[:, 1] == row, 0])
        told = told[(told >= begin) & (told < end)]
        hits = _pairs(true, told)
        rows.append((hits, len(true), len(told)))
    hits, true, told = np.array(rows, np.float64).T
    figures = {"precision": hits / np.maximum(told, 1), "recall": hits / np.maximum(true, 1),
               "accuracy": hits / np.maximum(true + told - hits, 1)}
    peak = peaks(templates)
    groups = {}
    for low, high in GROUPS:
        chosen = (peak >= low) & (peak < high) & (true > 0)
        if chosen.any():
            groups[f"{low}-{high}"] = {"units": int(chosen.sum())} | {
                name: round(float(f[chosen].mean()), 4) for name, f in figures.items()}
    return {"mean": {name: round(float(f.mean()), 4) for name, f in figures.items()},
            "median_accuracy": round(float(np.median(figures["accuracy"])), 4),
            "by_peak": groups,
            "units": [{"peak_sd": round(float(peak[u]), 2)} | {
                name: round(float(f[u]), 3) for name, f in figures.items()}
                for u in range(len(hits))]}


def _pairs(true: Ints, told: Ints) -> int:
    """How many true spikes have one of the told ones, each used once; both sorted."""
    hits = i = 0
    for sample in true.tolist():
        while i < len(told) and told[i] < sample - TOLERANCE:
            i += 1
        if i < len(told) and told[i] <= sample + TOLERANCE:
            hits += 1
            i += 1
    return hits


def peaks(templates: Templates) -> NDArray[np.float64]:
    """The depth of each template in standard deviations of its channel's noise."""
    t = templates.tensors
    noise = t["noise"][t["site"].astype(int)]
    return np.asarray(-(t["waveform"] / noise[:, None]).min((1, 2)), np.float64)


def latency(matcher: Any, cost_ns: Ints) -> dict[str, Any]:
    """From the last sample of a bin to its being closed, in ms: waiting for samples, then work."""
    hold = matcher.hold
    # A bin closes with the first block that ends `hold` samples after it; blocks of any phase.
    waits = (hold + (np.arange(BLOCK) - hold) % BLOCK) / FS * 1e3
    work = percentiles(cost_ns / 1e6)
    return {"held_back_samples": hold, "held_back_ms": round(hold / FS * 1e3, 3),
            "block_ms": BLOCK / FS * 1e3, "wait_ms": percentiles(waits), "work_ms": work}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Make, run and score everything."""
    made = Made(args)
    templates = made.templates(args.still, args.units)
    begin = round(args.still * FS)
    online = run_online(made, templates, begin)
    live = online["online"]["matcher"].live_from
    seconds = (made.n - begin) / FS
    report: dict[str, Any] = {"channels": CHANNELS, "fs": FS, "seconds": seconds,
                              "online": {}, "offline": []}
    for way, ran in online.items():
        matcher = ran["matcher"]
        report["online"][way] = {
            "cpu_s_per_s": round(float(ran["cost_ns"].sum()) / 1e9 / seconds, 4),
            "real_time_factor": round(seconds / (float(ran["cost_ns"].sum()) / 1e9), 1),
            "peaks_hz": round(matcher.peaks / seconds, 1),
            "drift_um": (matcher.drift * 5).round(1).tolist(),
            "score": score(made, templates, ran["spikes"], live, made.n - matcher.hold)}
    report["latency"] = latency(online["online"]["matcher"], online["online"]["cost_ns"])
    size = round(args.offline * FS)
    methods = [m for m in args.methods.split(",") if m]
    if size and methods:
        starts = {"early": begin, "late": made.n - size}
        for part, start in starts.items():
            ways = {way: {"spikes": ran["spikes"]} for way, ran in online.items()}
            ways |= run_offline(made, templates, start, start + size, methods)
            inner = (max(start + FS // 10, live), start + size - FS // 10)
            report["offline"] += [
                {"part": part, "way": way, "cpu_s_per_s": ran.get("cpu_s_per_s"),
                 **score(made, templates, ran["spikes"], *inner)} for way, ran in ways.items()]
    report["passed"] = report["online"]["online"]["cpu_s_per_s"] < 1.5
    return report


def print_table(report: dict[str, Any]) -> None:
    print(f"{'':34}{'CPU s/s':>8}{'precision':>10}{'recall':>8}{'accuracy':>9}{'median':>8}")
    rows = [(f"whole, {way}", row["cpu_s_per_s"], row["score"])
            for way, row in report["online"].items()]
    rows += [(f"{row['part']}, {row['way']}", row["cpu_s_per_s"], row)
             for row in report["offline"]]
    for name, cpu, row in rows:
        mean = row["mean"]
        print(f"{name:34}{cpu if cpu is not None else '':>8}{mean['precision']:10.3f}"
              f"{mean['recall']:8.3f}{mean['accuracy']:9.3f}{row['median_accuracy']:8.3f}")
    for way, row in report["online"].items():
        for group, figures in row["score"]["by_peak"].items():
            print(f"{way}, peak {group} sd: {figures}")
    print(f"latency: {report['latency']}")


def main() -> int:
    """Measure and report; returns 4 if it is not real time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="tested (default 600)")
    add("--still", type=float, default=60.0, help="before that, for the templates (default 60)")
    add("--offline", type=float, default=20.0, help="given to SpikeInterface, twice (default 20)")
    add("--methods", default="tdc-peeler,wobble,circus-omp", help="of SpikeInterface")
    add("--units", type=int, default=100, help="default 100")
    add("--probe", default="NP1000", help="part number of imec (default NP1000)")
    add("--drift", type=float, default=20.0, help="micrometres to either side (default 20)")
    add("--period", type=float, default=200.0, help="seconds up and down (default 200)")
    add("--non-rigid", type=float, default=0.0, help="gradient along the probe (default 0)")
    add("--seed", type=int, default=101)
    add("--out", type=Path, help="write the result there as well")
    add("--json", action="store_true", help="end with one JSON object")
    args = parser.parse_args()
    report = measure(args)
    finish("raw_path", args, report, print_table)
    return 0 if report["passed"] else 4


if __name__ == "__main__":
    sys.exit(main())
