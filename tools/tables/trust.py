"""Tables of what a rig may count on: faults, swaps, probes, acquisition programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tools.tables.page import NONE, Result, markdown

PLUGIN = "plugin: "  # how faults between an acquisition program and its source are called


def three(values: Mapping[str, float] | None, digits: int = 0) -> str:
    """Median, p99 and p99.9 (or the maximum) of a spread."""
    if not values:
        return NONE
    last = values.get("p999", values.get("max", 0.0))
    return " / ".join(f"{v:.{digits}f}" for v in (values["p50"], values["p99"], last))


def faults_table(results: Sequence[Result]) -> str:
    """A row for each fault, newest result last; then the safe states, where they were measured."""
    head = ["fault", "runs", "wrong and valid", "lost, untold", "first invalid decode after, ms",
            "valid again after, ms", "reasons told"]
    rows = [head]
    told = ""
    for result in results:
        for row in result["faults"]:
            rows.append([
                row["fault"], str(row["runs"]),
                f"{row['wrong_and_valid']} of {row['valid_checked']}", str(row["unreported_lost"]),
                three(row["to_invalid_ms"], 1) if row["alarm_expected"] else "no alarm is due",
                three(row["to_recover_ms"]) if row["alarm_expected"] else NONE,
                ", ".join(row["reasons"]),
            ])
        plugin = [row["floor_ms"] for row in result["faults"] if row["fault"].startswith(PLUGIN)]
        floor = max((row["floor_ms"] for row in result["faults"]
                     if not row["fault"].startswith(PLUGIN)), default=0.0)
        told = (f"Times as p50 / p99 / max. While all is well a frame takes at most {floor:.1f} "
                "ms to its decode at p99 (the largest of all rows); the aim is that and 25 ms."
                + (f" From a plugin, whose blocks tell of their last samples a block later, it "
                   f"takes {max(plugin):.1f} ms." if plugin else "") + "\n\n")
    safe = [row for result in results for row in result.get("outputs", [])]
    return told + markdown(rows) + (outputs_table(safe) if safe else "")


def outputs_table(found: Sequence[Mapping[str, Any]]) -> str:
    """How long outputs that act took to their safe state, a row for each fault."""
    rows = [["outputs that act, while", "runs", "TTL line down after, ms",
             "datagram not valid after, ms", "never safe", "valid datagrams that no decode said"]]
    for row in found:
        rows.append([
            row["fault"], str(row["runs"]), three(row["ttl_ms"], 1), three(row["udp_ms"], 1),
            str(row["missed"]), f"{row['wrong_datagrams']} of {row['datagrams_checked']}",
        ])
    limit = max(row["limit_ms"] for row in found)
    return (f"\nFrom the last valid decode to the safe state at the receiver, p50 / p99 / max; the "
            f"aim is a bin and 5 ms, {limit:g} ms.\n\n") + markdown(rows)


def swap_table(results: Sequence[Result]) -> str:
    """Swaps and fail-overs."""
    head = ["while decoding", "changes", "decodes", "missed", "of the wrong model", "largest error",
            "later than a bin, around the change", "elsewhere", "fail-overs told",
            "late at one, most", "late and untold"]
    rows = [head]
    for result in results:
        for name, words in (("swaps", "models swapped"), ("failovers", "engines killed"),
                            ("slow", "engines too slow")):
            part: Any = result.get(name)
            if part:
                changes = part.get("asked", part.get("killed"))
                rows.append([
                    words, str(changes), str(part["decodes"]), str(part["missed"]),
                    str(part["wrong_model"]), f"{part['largest_error']:.1e}",
                    str(part["late"]["around the change"]), str(part["late"]["elsewhere"]),
                    *(str(part.get(key, NONE)) for key in ("reported", "late_at_one_failure",
                                                           "late_unreported")),
                ])
    return markdown(rows)


def within(found: Mapping[str, float] | None) -> str:
    """The median over the rounds and what it is within at 95 %."""
    if not found:
        return NONE
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def viewers_table(results: Sequence[Result]) -> str:
    """What those who look on cost a server."""
    rows = [["the server", "service, µs", "median, as a multiple", "p99, as a multiple",
             "bins lost"]]
    told = ""
    for result in results:
        for row in result["engines"]:
            ratio = row["to_off_by_round"]
            rows.append([VIEWED.get(row["name"], row["name"]), three(row["service_us"]),
                         *(NONE if row["name"] == "off" else within(ratio.get(key))
                           for key in ("p50", "p99")), str(row["lost"])])
        told = (f"Service as p50 / p99 / p99.9 of {result['bins']} bins, "
                f"{result['bins_per_second']:g} a second; multiples of that of the first server in "
                f"the same round, the median of {result['rounds']} (within, at 95 %).\n\n")
    return told + markdown(rows)


VIEWED = {"off": "publishes no state", "unwatched": "does, and nobody looks",
          "watched": "`top` and `dashboard` look", "viewer stalled": "both of them stopped",
          "subscriber stalled": "a stopped `sink`"}


def blackbox_table(results: Sequence[Result]) -> str:
    """What the flight recorder costs, and what a kill takes of a recording."""
    rows = [["the disk", "service, µs", "median, as a multiple", "p99, as a multiple",
             "bins lost", "decodes of the recording", "of them different"]]
    told = ""
    for result in results:
        for name, row in result["servers"].items():
            ratio = result["to_off_by_round"].get(name, {})
            found = result["verified"].get(name)
            rows.append([DISKS.get(name, name), three(row["service_us"]),
                         *(within(ratio.get(key)) for key in ("p50", "p99")), str(row["lost"]),
                         *((NONE, NONE) if found is None else
                           (str(found["decodes"]), str(found["different"])))])
        kills, lost = result["kills"], result["kill_lost_ms"]
        told = ("Multiples are of the service without a recorder in the same round, the median of "
                f"{result['rounds']} (within, at 95 %).")
        if kills:
            told += (f" Of {len(kills)} servers killed, {sum(k['reopened'] for k in kills)} "
                     f"recordings opened, with {sum(k['different'] for k in kills)} decodes "
                     f"different; {three(lost, 1)} ms were lost (p50 / p99 / max).")
    return f"{told}\n\n{markdown(rows)}"


DISKS = {"off": "none: nothing is recorded", "on": "as it is", "stalled": "stands still",
         "full": "full half way"}


def probes_table(results: Sequence[Result]) -> str:
    """What a further probe costs."""
    head = ["probes", "units", "CPU, of a core", "a probe", "service, µs", "missed", "bins lost"]
    rows = [head]
    for result in results:
        rows += [[str(row["probes"]), str(row["units"]), f"{row['cpu_of_a_core']:.3f}",
                  f"{row['cpu_per_probe']:.3f}", three(row["service_us"]),
                  str(row["decodes_missed"]), str(row["bins_lost"])] for row in result["rows"]]
    return markdown(rows)


def sources_table(results: Sequence[Result]) -> str:
    """Every acquisition program's source against its twin."""
    head = ["source", "messages lost", "spikes/s", "bins equal to offline", "missed",
            "gaps noticed", "service, µs", "sample age, ms", "CPU, of a core"]
    rows = [head]
    for result in results:
        rows += [[row["source"], f"{100 * row['loss']:g} %", str(row["spikes_per_second"]),
                  f"{row['bins_equal_percent']:g} % of {row['bins'] - row['bins_lost']}",
                  str(row["decodes_missed"]), f"{row['gaps_detected']} of {row['gaps_injected']}",
                  three(row["service_us"]), three(row["sample_age_ms"]),
                  f"{row['cpu_of_a_core']:.2f}"] for row in result["rows"]]
    return markdown(rows)


def raw_table(results: Sequence[Result]) -> str:
    """Raw samples to units: ours over the whole recording and, on two stretches, beside offline."""
    head = ["stretch", "by", "CPU, of a core", "precision", "recall", "accuracy",
            "accuracy, median unit"]
    rows, told = [head], ""
    for result in results:
        whole = f"{result['seconds']:g} s"
        found = [(whole, way, row["cpu_s_per_s"], row["score"])
                 for way, row in result["online"].items()]
        found += [(row["part"], row["way"], row.get("cpu_s_per_s"), row)
                  for row in result["offline"]]
        for part, way, cpu, row in found:
            rows.append([part, way, NONE if cpu is None else f"{cpu:.2f}",
                         *(f"{row['mean'][name]:.3f}" for name in ("precision", "recall",
                                                                   "accuracy")),
                         f"{row['median_accuracy']:.3f}"])
        late = result["latency"]
        told = (f"A bin closes {three(late['wait_ms'], 1)} ms after its last sample, "
                f"{late['held_back_ms']:.1f} ms of it held back for spikes that overlap; a block "
                f"of {late['block_ms']:g} ms takes {three(late['work_ms'], 2)} ms of work.\n\n")
    return told + markdown(rows)


def attacks_table(results: Sequence[Result]) -> str:
    """Every attack that was tried, and what came of it."""
    rows = [["attack", "result", "what the server, or the bundle's reader, said"]]
    for result in results:
        rows += [[row["attack"], row["result"], code(row["said"])] for row in result["attacks"]]
    return markdown(rows)


def code(text: str, most: int = 110) -> str:
    """A program's words as they are, shortened, fit for a cell of a table."""
    line = " ".join(text.split()).replace("`", "'").replace("|", "/")
    return f"`{line[:most]}{'…' if len(line) > most else ''}`" if line else NONE
