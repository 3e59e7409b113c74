"""Words for the state of a server, the same in the terminal, on the page and for a script."""

from __future__ import annotations

from neds_rt.status import Percentiles, ProbeStatus, Status

STAGE_NAMES = {
    "assemble_us": "assemble", "step_us": "step", "encode_us": "encode", "send_us": "send",
    "service_us": "service",
}
# Counters of the assembler that are part of normal work; the others are trouble.
NORMAL = ("frames", "spikes", "bins")


def verdict(valid: bool, reason: str) -> str:
    """Return the headline: whether decodes may be believed, and why not."""
    if valid:
        return "DECODES VALID"
    return f"DECODES NOT VALID: {reason or 'none so far'}"


def engine_rows(status: Status) -> list[tuple[str, str, bool]]:
    """Return what decodes: a name, words for it, and whether it is as it should not be."""
    rows = [("engine", f"{status.engine}, {status.precision}", False),
            ("device", status.device or "not told", False),
            ("model", status.model[:12], False)]
    spare = status.failover
    if spare is None:
        return rows
    if spare.failed:
        state = f"FAILED OVER to {spare.active}: {spare.note}"
    else:
        state = f"standby {spare.standby} is ready" if spare.standby else "no standby"
    count = f", {spare.failovers} so far" if spare.failovers else ""
    return [*rows, ("fail-over", state + count, spare.failed),
            ("swaps so far", str(spare.swaps), False)]


def microseconds(value: float) -> str:
    """Return a time in the unit that keeps it short: 84 µs, 1.25 ms, 2.1 s."""
    if value < 1000:
        return f"{value:.0f} µs"
    return f"{value / 1e3:.2f} ms" if value < 1e6 else f"{value / 1e6:.1f} s"


def seconds(value: float | None) -> str:
    """Return an age or a length of time: 24 ms, 3.2 s, 4 min 10 s, 2 h 05 min; – for none."""
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = int(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def trouble(status: Status) -> dict[str, int]:
    """Return the counters that are not zero and should be, those of sources included."""
    found = {k: v for k, v in status.counters.items() if v and k not in NORMAL}
    for name, count in status.reasons.items():
        if count and name not in ("ok", "warming up"):
            found[f"decodes: {name}"] = count
    for probe in status.probes:
        found |= {f"{probe.name}: {kind}": n for kind, n in probe_trouble(probe).items()}
    return found


def probe_trouble(probe: ProbeStatus) -> dict[str, int]:
    """Return those counters of a probe's source that are not zero and should be."""
    return {kind: n for kind, n in probe.counters.items() if n and kind in probe.trouble}


def stage_row(stage_recent: Percentiles | None) -> list[str]:
    """Return p50, p99, p99.9 and the longest as text."""
    if stage_recent is None:
        return ["–"] * 4
    return [microseconds(v) for v in (
        stage_recent.p50, stage_recent.p99, stage_recent.p999, stage_recent.max)]


def probe_words(probe: ProbeStatus) -> str:
    """Return a probe's state as a few words."""
    if probe.state == "waiting":
        return "no frame so far"
    if probe.state == "silent":
        return f"SILENT for {seconds(probe.frame_age_s)}"
    return "live"
