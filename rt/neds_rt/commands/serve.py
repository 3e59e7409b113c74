"""Decode a live spike stream.

Connects to every probe's publisher, bins its spikes by watermark, runs one step of the model for
every closed bin and publishes one decode message each. Prints a line that begins with `ready` on
standard error once it decodes. Ctrl-C or SIGTERM ends it with a summary; a second Ctrl-C at once.

    neds-rt serve --probe probe00=zmq+tcp://127.0.0.1:5570 --model X.neds
    neds-rt serve --config serve.toml --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds_rt.server import Server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt serve`."""
    from neds_rt.access_options import add_access_arguments
    from neds_rt.config import ServeConfig

    d = ServeConfig()
    add = parser.add_argument
    parser.argument_default = argparse.SUPPRESS  # what is not given comes from the file
    add("--probe", action="append", metavar="NAME=URI",
        help="a probe's stream name and where its spikes come from: zmq+tcp://HOST:PORT, "
             "zmq+ipc://PATH, oe://HOST:PORT (Open Ephys ZMQ Interface), oe-events://HOST:PORT "
             "(Event Broadcaster), replay:PATH, synthetic:, and more in rt/README.md; once for "
             "each probe")
    add("--model", metavar="BUNDLE", help="the bundle to serve, from `neds export`")
    add("--out", metavar="ENDPOINT",
        help=f"where decodes are published, tcp://HOST:PORT (port * picks one) or ipc://PATH "
             f"(default {d.out})")
    add("--status", metavar="ENDPOINT",
        help="where the server's state is published for top, dashboard and metrics; off for "
             f"nowhere, auto for the port after that of --out (default {d.status})")
    add("--engine", metavar="NAME[:PRECISION]",
        help="native, onnx, cuda or module:Class, and what its weights are stored in "
             f"(default {d.engine})")
    add("--units", metavar="FILE",
        help="unit map of acquisition programs: tab-separated, with columns probe, channel, "
             "cluster, stream, electrode, sorted_id (default: the number in the electrode's name "
             "is the channel, the sorted id the cluster)")
    add("--align", choices=("auto", "on", "off"),
        help="put all probes into the first one's sample clock, by arrival times and, where "
             "sources deliver them (?sync=), shared pulses; auto does so for several probes of "
             f"acquisition programs (default {d.align})")
    add("--keep-warm", choices=("auto", "on", "off"),
        help="rehearse a bin on scratch state shortly before each is due; auto measures whether "
             f"that helps (default {d.keep_warm})")
    add("--stale-after", type=float, metavar="S",
        help="publish invalid decodes at the bin rate when no bin closed for S seconds (default: "
             "learned from how the bins come, at least two bins, at most 0.5)")
    add("--close-after", type=float, metavar="S",
        help="close bins without a probe that says nothing new for S seconds while others go on; "
             f"decodes are then invalid and name it (default {d.close_after:g})")
    add("--clock-jump", type=float, metavar="S",
        help="decodes are invalid where a probe's sample clock, once it kept pace with this "
             f"machine's, leaves it by S seconds (default {d.clock_jump:g})")
    add("--drift", choices=("invalid", "warn", "off"),
        help="whether spikes that are not as in training make decodes invalid, are told only, or "
             f"are not looked at (default {d.drift})")
    add("--deadline-ms", type=float, metavar="MS",
        help="decodes written later than this after their frame came are invalid "
             "(default: the length of a bin)")
    add("--open-bins", type=int, metavar="N",
        help=f"bins kept open per probe for early spikes and slower probes "
             f"(default {d.open_bins})")
    add("--max-bins", type=int, metavar="N", help="end after N decoded bins")
    add("--idle-exit", type=float, metavar="S",
        help="end when no frame arrived for S seconds, counted from the first frame on")
    add("--control", metavar="PATH",
        help="open a control socket for `neds-rt model`, in a directory that only you can enter")
    add("--fail-over", choices=("native", "off"),
        help="what takes over when another engine fails: the native one, kept at the present "
             f"beside it, or nothing (default {d.fail_over})")
    add("--budget-ms", type=float, metavar="MS",
        help="a step that takes longer is an overrun (default: the length of a bin)")
    add("--overruns", type=int, metavar="N",
        help=f"an engine with N overruns in a row has failed (default {d.overruns})")
    add("--hang-after", type=float, metavar="S",
        help="end the process, with a last invalid decode, when a step does not return for S "
             f"seconds (default {d.hang_after:g})")
    add("--record", metavar="PATH",
        help="record all that comes in and goes out into a new folder, to be replayed with "
             "`neds-rt replay PATH --verify`; %%Y%%m%%d-%%H%%M%%S and the like become the date")
    add("--record-sync", type=float, metavar="S",
        help="bring the recording to the disk every S seconds: what a power cut may take "
             f"(default {d.record_sync:g})")
    add("--record-reserve-mb", type=int, metavar="MB",
        help=f"end the recording, not the decoding, when less than this is free "
             f"(default {d.record_reserve_mb})")
    add("--trust", metavar="FILE",
        help="serve only a bundle signed by a public key in FILE (neds-rt sign)")
    add("--trust-plans", action="store_true",
        help="load GPU plans of a bundle that is not signed so: they are machine code (default: "
             "build them here from the bundle's graph)")
    add_access_arguments(parser, binds=True, connects=True, foreign=True)
    add("--config", metavar="FILE", help="TOML file with these options, `-` written as `_`, and "
        "probes as a table `[probe]`; the command line goes over it")
    add("--json", action="store_true", help="end with the summary as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; returns 0. Raises `EngineFailed`, after the summary, if it did."""
    import json
    import logging
    import sys

    from neds_rt.bundle import read_bundle
    from neds_rt.config import load_config, parse_probes
    from neds_rt.curve import parse_servers
    from neds_rt.engine_parity import precision_warning
    from neds_rt.engines import load_engine
    from neds_rt.server import Server, announce

    given = dict(vars(args))
    as_json, path = given.pop("json", False), given.pop("config", None)
    if "probe" in given:
        given["probe"] = parse_probes(given["probe"])
    if "curve_server" in given:
        given["curve_server"] = parse_servers(given["curve_server"])
    config = load_config(path, given)
    config.check()
    logging.basicConfig(format="neds-rt serve: %(message)s")
    bundle = read_bundle(config.model, trust=config.trust, trust_plans=config.trust_plans)
    engine = load_engine(config.engine, bundle)
    warning = precision_warning(engine, bundle.manifest, bundle.where)
    server = Server(config, bundle, engine)
    if warning:
        print(f"neds-rt serve: {warning}", file=sys.stderr)
    with _Signals(server):
        summary = server.run(announce)
    print(_text(summary))
    if as_json:
        print(json.dumps(summary))
    if server.failure is not None:
        sys.stdout.flush()
        raise server.failure
    return 0


class _Signals:
    """The first SIGINT or SIGTERM stops the server, a second SIGINT raises `KeyboardInterrupt`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        import signal

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)

    def __exit__(self, *_: object) -> None:
        import signal

        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: object) -> None:
        import signal

        self._server.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _text(summary: dict[str, Any]) -> str:
    """Return the summary for people."""
    counters = {k: v for k, v in summary["counters"].items() if v and k not in ("bins",)}
    reasons = {k: v for k, v in summary["reasons"].items() if v}
    changes = [f"{event['from']} to {event['to']} at decode {event['decode']}: {event['why']}"
               for event in summary["failovers"]]
    lines = [
        *changes,
        f"{summary['decodes']} decodes of {summary['bins']} bins in {summary['seconds']:.1f} s, "
        f"{summary['stale_decodes']} stale; engine {summary['engine']} ({summary['precision']})",
        "decodes by reason: " + (", ".join(f"{k} {v}" for k, v in reasons.items()) or "none"),
        "counters: " + (", ".join(f"{k} {v}" for k, v in counters.items()) or "none"),
    ]
    if summary["recording"] is not None:
        lines.append("recording {path}: {state}, {bytes} bytes, {lost_records} records lost"
                     .format_map(summary["recording"]))
    for name, source in summary["sources"].items():
        odd = {k: v for k, v in source["counters"].items() if v}
        if odd:
            lines.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in odd.items()))
    health = summary["health"] or {"not watched": "the bundle has no statistics, or --drift off"}
    lines.append("health: " + ", ".join(f"{k} {v}" for k, v in health.items()))
    for name, span in summary["latency"].items():
        if span is not None:
            figures = "  ".join(f"{key} {value:9.1f}" for key, value in span.items())
            lines.append(f"{name:>12}  {figures}")
    return "\n".join(lines)
