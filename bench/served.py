"""A trained session served: what an outside client receives against what `neds evaluate` predicts.

    python bench/served.py CKPT SESSION.h5 --speed 1 --json

Exports the checkpoint, plays the session's test part from its own process through `neds-rt serve`,
subscribes from this one, and compares bin for bin. Ends with exit code 4 if a decode is missing or
one differs by more than 1e-4 of the largest prediction.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from neds_rt.client import Client
from neds_rt.machine import machine_facts
from neds_rt.wire import Decode

LIMIT = 1e-4
QUIET_S = 60.0


def neds(*words: object) -> dict[str, Any]:
    """Run `neds` in its own process; returns the JSON object of its last line."""
    done = subprocess.run([sys.executable, "-m", "neds", *map(str, words), "--json"], text=True,
                          capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def play_through_server(
    bundle: Path, session: Path, first_bin: int, bins: int, engine: str, speed: str
) -> tuple[list[Decode], dict[str, Any]]:
    """Replay bins from `first_bin` on through a server; returns all messages and its summary."""
    probe, out = (f"127.0.0.1:{free_port()}" for _ in range(2))
    runtime = [sys.executable, "-m", "neds_rt"]
    serve = subprocess.Popen(
        [*runtime, "serve", "--probe", f"probe00=zmq+tcp://{probe}", "--model", str(bundle),
         "--out", f"tcp://{out}", "--engine", engine, "--max-bins", str(bins), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    assert serve.stdout is not None
    assert serve.stderr is not None
    try:
        for line in serve.stderr:
            if line.startswith("ready"):
                break
        with Client(f"tcp://{out}") as client:
            replay = subprocess.Popen(
                [*runtime, "replay", str(session), "--to", f"zmq+tcp://{probe}", "--model",
                 str(bundle), "--from-bin", str(first_bin), "--speed", speed],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            messages: list[Decode] = []
            while sum(m.bin >= 0 for m in messages) < bins:
                messages.append(client.recv(timeout=QUIET_S))
            if replay.wait(QUIET_S):
                raise SystemExit(f"neds-rt replay ended with {replay.returncode}")
        output, errors = serve.communicate(timeout=QUIET_S)
        if serve.returncode:
            raise SystemExit(errors)
        return messages, json.loads(output.splitlines()[-1])
    finally:
        serve.kill()
        serve.wait()
        serve.stdout.close()
        serve.stderr.close()


def numbers(decode: Decode, name: str) -> list[float]:
    """The decoded numbers of a continuous or categorical behaviour."""
    found = decode.values[name]
    chosen = found.p if found.mean is None else found.mean
    assert chosen is not None
    return chosen


def compare(decodes: list[Decode], predictions: Path) -> dict[str, float]:
    """Largest difference per behaviour, as a share of its largest prediction."""
    with np.load(predictions) as expected:
        names = [k.removesuffix(".predicted") for k in expected.files if k.endswith(".predicted")]
        result = {}
        for name in names:
            wanted = expected[f"{name}.predicted"]
            found = np.array([numbers(d, name) for d in decodes])
            result[name] = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    return result


def main() -> int:
    """Export, serve, replay, compare."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CKPT", type=Path)
    parser.add_argument("session", metavar="SESSION.h5", type=Path)
    parser.add_argument("--engine", default="native")
    parser.add_argument("--speed", default="1", help="times real time, or max (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle, predictions = Path(folder) / "model.neds", Path(folder) / "test.npz"
        neds("export", args.checkpoint, "--data", args.session, "--out", bundle)
        scores = neds("evaluate", args.checkpoint, args.session, "--predictions", predictions,
                      "--tasks", "decoding", "--plots", "none", "--out", Path(folder) / "report")
        messages, summary = play_through_server(
            bundle, args.session, scores["first_bin"], scores["bins"], args.engine, args.speed)
        decodes = [m for m in messages if m.bin >= 0]
        wanted = range(scores["first_bin"], scores["first_bin"] + scores["bins"])
        missing = sorted(set(wanted) - {d.bin for d in decodes})
        difference = compare(decodes, predictions)
    result = {
        "command": " ".join(["python", *sys.argv]), "session": scores["session"],
        "engine": summary["engine"], "speed": args.speed, "bins": scores["bins"],
        "decodes": len(decodes), "missing": len(missing), "largest_difference": difference,
        "metrics": scores["metrics"], "machine": machine_facts(),
    }
    ok = not missing and max(difference.values()) <= LIMIT
    print(json.dumps(result) if args.json else
          f"{len(decodes)} of {scores['bins']} decodes, largest difference "
          f"{max(difference.values()):.1e}: {'equal' if ok else 'NOT EQUAL'}")
    return 0 if ok else 4


if __name__ == "__main__":
    sys.exit(main())
