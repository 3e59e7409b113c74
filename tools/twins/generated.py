"""Samples for the twins from SpikeInterface's ground-truth generator, where it is installed.

Other people's idea of a recording: units of many shapes at places of their own, so a spike is seen
on many channels and no two units are alike, which `tools.twins.spikeglx.make_ap_band` does not do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neds_rt.errors import BadInput

UNITS_A_CHANNEL = 0.4  # as many as a probe in cortex has, about


class Generated(NamedTuple):
    """`traces` (n, channels) in microvolts; `samples`, `units` (spikes,) of what is in them."""

    traces: NDArray[np.float32]
    samples: NDArray[np.int64]
    units: NDArray[np.int64]

    def steps(self, step_uv: float) -> NDArray[np.int16]:
        """Return the traces in steps of an ADC of `step_uv` microvolts."""
        whole: NDArray[np.float32] = np.clip(np.rint(self.traces / step_uv), -32768, 32767)
        return whole.astype(np.int16)


def generate(
    channels: int, seconds: float, *, fs: float = 30_000.0, seed: int = 0
) -> Generated:
    """Return a recording; raises `BadInput` without SpikeInterface."""
    try:
        from spikeinterface.core import generate_ground_truth_recording
    except ImportError as error:
        raise BadInput("--generate", "SpikeInterface", f"not installed ({error})",
                       "pip install spikeinterface") from None
    recording, sorting = generate_ground_truth_recording(
        durations=[seconds], sampling_frequency=fs, num_channels=channels,
        num_units=max(2, round(UNITS_A_CHANNEL * channels)), seed=seed)
    spikes = sorting.to_spike_vector()
    return Generated(
        np.ascontiguousarray(recording.get_traces(), np.float32),
        spikes["sample_index"].astype(np.int64), spikes["unit_index"].astype(np.int64))
