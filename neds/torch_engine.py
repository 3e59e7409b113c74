"""Engines in eager torch that recompute the window for every bin: the baseline to be beaten.

Chosen as `--engine neds.torch_engine:EagerWindow` (all tokens of the window, as the batch form
computes them) or `neds.torch_engine:EagerLastBin` (the window's spike tokens and the newest bin's
queries only). Both equal the streaming engines for the first `window` bins of a stream; after
that a recomputed window forgets what its first bins had seen, which the stream does not.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neds.export import BatchDecoder
from neds.model import rotary_phases
from neds_rt.bundle import Bundle


class EagerWindow:
    """Recompute all (1 + M) * window tokens a bin, one thread."""

    name = "eager-window"
    precision = "float32"

    def __init__(self, bundle: Bundle) -> None:
        torch.set_num_threads(1)
        manifest = bundle.manifest
        self.n_units = len(manifest.units)
        self.n_outputs = sum(m.n_outputs for m in manifest.modalities)
        self.window = manifest.shape.window
        self.decoder = BatchDecoder(bundle).eval()
        self.reset()

    def reset(self) -> None:
        """Forget all bins."""
        self.counts = torch.zeros(1, self.window, self.n_units)
        self.lost = torch.ones(1, self.window, dtype=torch.bool)

    def step(self, counts: NDArray[np.uint16], present: bool = True) -> NDArray[np.float32]:
        """Shift the window by one bin and recompute it; returns the newest bin's outputs."""
        self.counts = torch.roll(self.counts, -1, 1)
        self.lost = torch.roll(self.lost, -1, 1)
        self.counts[0, -1] = torch.from_numpy(counts.astype(np.float32))
        self.lost[0, -1] = not present
        with torch.inference_mode():
            return self.compute(self.counts, self.lost).numpy()

    def compute(self, counts: Tensor, lost: Tensor) -> Tensor:
        """Outputs of the newest bin (n_outputs,)."""
        outputs: Tensor = self.decoder(counts, lost)
        return outputs[0, -1]

    def skip(self, n_bins: int) -> None:
        """Shift the window by lost bins."""
        for _ in range(min(n_bins, self.window)):
            self.counts, self.lost = torch.roll(self.counts, -1, 1), torch.roll(self.lost, -1, 1)
            self.counts[0, -1], self.lost[0, -1] = 0, True

    def warm(self) -> None:
        """Recompute the window as it is."""
        with torch.inference_mode():
            self.compute(self.counts, self.lost)


class EagerLastBin(EagerWindow):
    """Recompute the window's spike tokens and only the newest bin's M queries."""

    name = "eager-last-bin"

    def compute(self, counts: Tensor, lost: Tensor) -> Tensor:
        """Outputs of the newest bin (n_outputs,)."""
        model = self.decoder.model
        stitch = model.stitcher(self.decoder.session)
        order = [model.modality_index[b.name] for b in stitch.spec.behaviours]
        maps = model.maps([self.decoder.session])
        embedded, _ = model.embed_spikes(maps, counts, lost)
        tokens = torch.where(lost[..., None], model.mask_token, embedded) + model.modality[0]
        x = torch.cat((tokens, (model.mask_token + model.modality[order])[None]), 1)
        last = torch.full((len(order),), self.window - 1)
        positions = torch.cat((torch.arange(self.window), last))
        age = positions[:, None] - positions[None]
        sees = (age >= 0) & torch.cat((~lost[0], torch.zeros(len(order), dtype=torch.bool)))
        blind = ~sees.any(-1, keepdim=True)
        head = model.config.hidden // model.config.heads
        cos, sin = rotary_phases(positions, head, model.config.rope_base)
        for block in model.layers():
            x = block(x, (sees | blind)[None, None], blind[None], cos, sin)
        x = model.norm(x)[0, self.window :]
        outputs = [part.out(z) for part, z in zip(stitch.parts(), x, strict=True)]
        kinds = [b.kind for b in stitch.spec.behaviours]
        return torch.cat([o.softmax(-1) if k == "categorical" else o
                          for k, o in zip(kinds, outputs, strict=True)])
