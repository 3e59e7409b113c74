"""A pyzmq script around OpenVINO on the full window, with one request that is used again."""

from __future__ import annotations

import argparse
import sys

from bench.competitors.script import Floats, Script, arguments, serve
from neds_rt.bundle import read_bundle


class OpenVinoDecoder:
    """A compiled model on one thread, float32: left alone it takes bfloat16 where a CPU has it."""

    def __init__(self, graph: str) -> None:
        import openvino

        model = openvino.Core().compile_model(graph, "CPU", {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        })
        self._tensor = openvino.Tensor
        self._request = model.create_infer_request()

    def __call__(self, window: Floats) -> Floats:
        """Outputs (n_outputs,) of a window (bins, units)."""
        request = self._request
        request.set_input_tensor(self._tensor(window[None], shared_memory=True))
        request.infer()
        outputs: Floats = request.get_output_tensor().data
        return outputs


def main() -> int:
    """Serve until interrupted."""
    args: argparse.Namespace = arguments(__doc__)
    manifest = read_bundle(args.model).manifest
    return serve(args, Script(manifest, OpenVinoDecoder(args.graph), "float32"))


if __name__ == "__main__":
    sys.exit(main())
