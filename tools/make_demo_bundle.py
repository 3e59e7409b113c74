"""Make the bundle that `neds-rt demo` serves: one synthetic animal, trained and exported anew.

    python tools/make_demo_bundle.py [--out rt/neds_rt/demo/demo.neds] [--steps N]

Runs the public commands `neds synth`, `neds train`, `neds export`, nothing else. The demo plays
session `neds_rt.demo.SESSION` of the animal; what is trained on here is session 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from neds_rt.bundle import read_bundle
from neds_rt.demo import ANIMAL, BUNDLE, UNITS
from neds_rt.errors import CheckFailed

MAX_BYTES = 1_000_000  # it lies in the repository and in every install
MODEL = {"hidden": 64, "layers": 2, "heads": 4, "mlp": 128, "window": 50, "conv": 5}


def neds(*arguments: str) -> None:
    """Run one command of `neds` and stop if it fails."""
    print("neds", *arguments, flush=True)
    code = "import sys; from neds.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def make(out: Path, seconds: float, steps: int, threads: int) -> None:
    """Simulate, train and export into `out`; raises `CheckFailed` if the file is too large."""
    with tempfile.TemporaryDirectory(prefix="neds-demo-") as name:
        folder = Path(name)
        neds("synth", "--seed", str(ANIMAL), "--units", str(UNITS), "--seconds", str(seconds),
             "--out", str(folder))
        (session,) = folder.glob("*.h5")
        sizes = [part for k, v in MODEL.items() for part in ("--set", f"model.{k}={v}")]
        neds("train", str(session), "--recipe", "single", "--out", str(folder / "run"),
             "--set", f"train.steps={steps}", "--threads", str(threads), *sizes)
        neds("export", str(folder / "run"), "--data", str(session), "--graphs", "step",
             "--out", str(folder / "demo.neds"))
        made = (folder / "demo.neds").read_bytes()
    if len(made) > MAX_BYTES:
        raise CheckFailed(f"{out}: {len(made)} bytes, more than {MAX_BYTES}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(made)
    print(f"{out}: {len(made)} bytes, model {read_bundle(out).manifest.model_hash[:12]}")


def main() -> int:
    """Parse options and make the bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=BUNDLE, help="file to write")
    parser.add_argument("--seconds", type=float, default=900.0, help="length of the recording")
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    args = parser.parse_args()
    make(args.out, args.seconds, args.steps, args.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
