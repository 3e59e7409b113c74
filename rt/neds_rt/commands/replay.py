"""Play a prepared session as a live probe, or verify what a server recorded.

Binds the URI, waits for a subscriber (`neds-rt serve`), then sends the session's spikes in blocks,
each at the time its last sample was recorded, divided by the speed. Nothing is dropped: at
`--speed max` the player waits for the subscriber instead. RECORDING is a folder of `neds-rt serve
--record`: its spikes are played likewise. With --verify nothing is played live: the recording goes
through the same pipeline again, with the models and engines that took over, and every decode is
compared; exit code 4 if one differs.

    neds-rt replay SESSION.h5 --to zmq+tcp://127.0.0.1:5570
    neds-rt replay SESSION.h5 --to zmq+tcp://127.0.0.1:5570 --speed max --from 80% --model X.neds
    neds-rt replay RECORDING --verify
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neds_rt.bundle import Manifest
    from neds_rt.player import Played
    from neds_rt.sources.replay import Recording


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt replay`."""
    from neds_rt.access_options import add_access_arguments

    parser.add_argument("session", metavar="SESSION.h5|X.nwb|RECORDING",
                        help="session of `neds prepare`, NWB file with sorted units, or folder of "
                        "`neds-rt serve --record`")
    parser.add_argument("--verify", action="store_true",
                        help="replay a RECORDING offline and compare every decode")
    parser.add_argument("--engine", metavar="NAME[:PRECISION]",
                        help="with --verify: by another engine than was recorded")
    parser.add_argument("--bundle", action="append", metavar="BUNDLE",
                        help="with --verify: one that was swapped in, if the recording has no "
                        "copy of it; may be given several times")
    parser.add_argument("--tolerance", type=float, metavar="T",
                        help="with --verify: accept errors up to T * (1 + |value|) (default: 0 for "
                        "the recorded CPU engine and instruction set, else by precision)")
    parser.add_argument("--to", metavar="URI", default="zmq+tcp://127.0.0.1:5570",
                        help="where to bind, zmq+tcp:// or zmq+ipc:// (default %(default)s)")
    parser.add_argument("--speed", default="1", metavar="X",
                        help="times real time, or max for as fast as it is taken (default 1)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--from", dest="start", metavar="S",
                       help="begin at second S of the session, or at S%% of its bins")
    start.add_argument("--from-bin", type=int, metavar="K",
                       help="begin at bin K of the absolute grid")
    parser.add_argument("--until", dest="stop", metavar="S",
                        help="end at second S of the session, or at S%% of its bins")
    parser.add_argument("--probe", metavar="NAME", help="which probe, if the session has several")
    parser.add_argument("--model", metavar="BUNDLE",
                        help="play the units this bundle knows, in its order, on its bin grid; "
                        "with --verify: another copy of the bundle that was recorded")
    parser.add_argument("--bin-size", type=float, metavar="S",
                        help="bin size that --from-bin and percentages count in "
                        "(default: the model's, or the session's own if it is binned)")
    parser.add_argument("--block-ms", type=float, default=10.0, metavar="MS",
                        help="recording time a message covers (default %(default)s)")
    parser.add_argument("--wait", type=float, default=60.0, metavar="S",
                        help="give up if nobody subscribes within S seconds (default %(default)s)")
    add_access_arguments(parser, binds=True, connects=False)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")


def run(args: argparse.Namespace) -> int:
    """Play the session, returns 0 after the last watermark; or verify a recording."""
    from pathlib import Path

    from neds_rt.access_options import access_of
    from neds_rt.bundle import read_bundle
    from neds_rt.errors import BadInput
    from neds_rt.player import Player
    from neds_rt.recording.header import is_recording
    from neds_rt.sources.replay import blocks, read_recording

    if args.verify:
        from neds_rt.recording.verdict import run_verify

        return run_verify(Path(args.session), args.model, args.engine, args.tolerance, args.json,
                          args.bundle or ())
    for option, value in (("--engine", args.engine), ("--tolerance", args.tolerance),
                          ("--bundle", args.bundle)):
        if value is not None:
            raise BadInput(option, "option", "given", "--verify with it")
    speed = _speed(args.speed)
    manifest = read_bundle(args.model).manifest if args.model else None
    order = [(u.probe, u.channel, u.cluster) for u in manifest.units] if manifest else None
    recording: Recording
    if is_recording(Path(args.session)):
        from neds_rt.recording.tape_session import read_tape_session

        recording, manifest = read_tape_session(Path(args.session), args.model, args.probe)
    else:
        recording = read_recording(Path(args.session), args.probe, order)
    t0, t1, first_bin = _range(args, recording, manifest)
    block = max(1, round(_positive("--block-ms", args.block_ms) * 1e-3 * recording.fs))
    with Player(args.to, stream=recording.units.probe, fs=recording.fs,
                access=access_of(args)) as player:
        if not args.json:
            print(f"{player.uri}: {recording.session}, probe {recording.units.probe}, "
                  f"{recording.units.n_units} units, waiting for a subscriber", flush=True)
        player.wait(args.wait)
        played = player.play(blocks(recording, t0, t1, block), speed)
    _report(args, recording, played, first_bin)
    return 0


def _speed(text: str) -> float:
    from neds_rt.errors import BadInput

    try:
        speed = float("inf") if text == "max" else float(text)
    except ValueError:
        speed = float("nan")
    if not speed > 0:
        raise BadInput("--speed", "value", repr(text), "a number above 0, or max")
    return speed


def _positive(option: str, value: float) -> float:
    from neds_rt.errors import BadInput

    if not 0 < value < float("inf"):
        raise BadInput(option, "value", value, "a number above 0")
    return value


def _range(
    args: argparse.Namespace, recording: Recording, manifest: Manifest | None
) -> tuple[int, int, int | None]:
    """Return the first sample, one past the last, and the first bin if a bin size is known."""
    from neds_rt.binning import bin_edges
    from neds_rt.errors import BadInput
    from neds_rt.sources.replay import bin_axis

    own = recording.bin_size_s
    size = args.bin_size or (manifest.bin_size_s if manifest else own)
    if own is not None and size != own:
        raise BadInput(args.session, "bin size", own, f"{size} s, as asked for by the model or you")
    bins = bin_axis(recording, _positive("--bin-size", size)) if size else None

    def sample(option: str, text: str) -> int:
        number = _number(option, text.removesuffix("%"))
        if not text.endswith("%"):
            return round(number * recording.fs)
        if bins is None or size is None or not 0 <= number <= 100:
            raise BadInput(option, "percentage", text, "0% to 100%, with --model or --bin-size")
        row = min(int(number / 100 * len(bins)), len(bins) - 1)
        edge = bins[row] + (number == 100)
        return int(bin_edges(edge, recording.fs, size))

    t0, t1 = int(recording.spans[0, 0]), int(recording.spans[-1, 1])
    if args.from_bin is not None:
        if size is None:
            raise BadInput("--from-bin", "bin size", "none known", "--model or --bin-size")
        t0 = max(t0, int(bin_edges(args.from_bin, recording.fs, size)))
    elif args.start is not None:
        t0 = max(t0, sample("--from", args.start))
    if args.stop is not None:
        t1 = min(t1, sample("--until", args.stop))
    if t0 >= t1:
        end = recording.spans[-1, 1] / recording.fs
        raise BadInput(args.session, "range", "nothing between --from and --until",
                       f"times inside the recording, which ends at {end:.3f} s")
    if bins is None or size is None:
        return t0, t1, None
    later = bins[bin_edges(bins, recording.fs, size) >= t0]
    return t0, t1, int(later[0]) if len(later) else None


def _number(option: str, text: str) -> float:
    from neds_rt.errors import BadInput

    try:
        return float(text)
    except ValueError:
        raise BadInput(option, "value", repr(text), "seconds or a percentage like 80%") from None


def _report(
    args: argparse.Namespace, recording: Recording, played: Played, first_bin: int | None
) -> None:
    import json

    summary: dict[str, Any] = {
        "session": recording.session,
        "stream": recording.units.probe,
        "fs": recording.fs,
        "first_bin": first_bin,
        "speed": args.speed,
        **played.summary(),
    }
    if args.json:
        print(json.dumps(summary))
        return
    print(f"played {played.frames} frames, {played.spikes} spikes, samples {played.first_sample} "
          f"to {played.last_watermark} in {played.seconds:.2f} s; {played.unheard} unheard")
