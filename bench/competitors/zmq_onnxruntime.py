"""A pyzmq script around ONNX Runtime on the full window, with its buffers bound once."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

from bench.competitors.script import Floats, Script, arguments, serve
from neds_rt.bundle import read_bundle


class OnnxDecoder:
    """One session on one thread; reads the window where it lies, writes into one array."""

    def __init__(self, graph: str, n_outputs: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"])
        self._outputs = np.zeros(n_outputs, np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_output("outputs", "cpu", 0, np.float32, self._outputs.shape,
                                  self._outputs.ctypes.data)

    def __call__(self, window: Floats) -> Floats:
        """Outputs (n_outputs,) of a window (bins, units)."""
        self._binding.bind_input("counts", "cpu", 0, np.float32, (1, *window.shape),
                                 window.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        return self._outputs


def main() -> int:
    """Serve until interrupted."""
    args = arguments(__doc__)
    manifest = read_bundle(args.model).manifest
    n_outputs = sum(m.n_outputs for m in manifest.modalities)
    return serve(args, Script(manifest, OnnxDecoder(args.graph, n_outputs), "float32"))


if __name__ == "__main__":
    sys.exit(main())
