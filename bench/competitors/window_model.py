"""The model as a function of one window, in torch; as a program, the same as an ONNX file.

    python -m bench.competitors.window_model --model X.neds --out window.onnx
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.competitors.script import Floats
from neds.export import BatchDecoder
from neds_rt.bundle import Bundle, read_bundle


class WindowModel(torch.nn.Module):
    """Counts (1, window, units) in, outputs (n_outputs,) of the newest bin out; no bin is lost."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        shape = bundle.manifest.shape
        self.decoder = BatchDecoder(bundle)
        self.shape = (1, shape.window, len(bundle.manifest.units))
        self.register_buffer("lost", torch.zeros(1, shape.window, dtype=torch.bool))

    def forward(self, counts: Tensor) -> Tensor:
        """Decode the newest bin."""
        outputs: Tensor = self.decoder(counts, self.lost)[0, -1]
        return outputs


class EagerDecoder:
    """The model in eager torch, on one thread."""

    def __init__(self, bundle: Bundle) -> None:
        torch.set_num_threads(1)
        self._model = WindowModel(bundle).eval()

    def __call__(self, window: Floats) -> Floats:
        """Outputs (n_outputs,) of a window (bins, units)."""
        with torch.inference_mode():
            outputs: Floats = self._model(torch.from_numpy(window)[None]).numpy()
        return outputs


def export(bundle: Bundle, path: Path) -> None:
    """Write the ONNX graph: `counts` (1, window, units) to `outputs` (n_outputs,), float32."""
    model = WindowModel(bundle).eval()
    counts = torch.from_numpy(np.zeros(model.shape, np.float32))
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter is deprecated, but needs no further package, and shapes are fixed.
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (counts,), path, input_names=["counts"],
                          output_names=["outputs"], dynamo=False)


def main() -> int:
    """Export a bundle's window."""
    parser = argparse.ArgumentParser(description="Export the window of a bundle as ONNX.")
    parser.add_argument("--model", required=True, help="bundle")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    args = parser.parse_args()
    export(read_bundle(args.model), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
