"""From a checkpoint and one of its sessions to a bundle that `neds-rt` serves without torch.

Everything that is constant for one session is folded into the weights: the session's embedding and
the marks of hidden modalities into what a bin's embedding is added to, and into what stands for a
lost bin; the behaviours' scaling into the heads. The parity report says how far each engine is from
the torch model on rows that were held back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neds.checkpoint import BehaviourState, CheckpointInfo, SessionState, created_by
from neds.config import ModelConfig
from neds.dataset import Recording
from neds.evaluate import decode_part, decode_rows
from neds.health import FILE as HEALTH_FILE
from neds.health import fit_health
from neds.model import BehaviourSpec, BehaviourStitch, Neds, SessionSpec
from neds.precisions import decode_with, errors, precision_report
from neds_rt.bundle import (
    Bundle,
    Manifest,
    ModalityOut,
    ProbeTemplates,
    Shape,
    make_bundle,
    write_bundle,
)
from neds_rt.engines import load_engine
from neds_rt.errors import BadInput, CheckFailed

Floats = NDArray[np.float32]
PARITY_BINS = 2000
PARITY_LIMIT = 1e-4  # of the largest output
SERVED = {"tokens": "summed", "inputs": "counts"}  # what the runtime's streaming step computes


def fold_weights(model: Neds, state: SessionState, behaviours: list[str]) -> dict[str, Floats]:
    """The streaming step's tensors for one session, names and layout as bundles have them."""
    maps = model.maps([state.session])
    parts = _chosen(model, state, behaviours)
    hidden = [model.modality_index[b.name] for b in model.stitcher(state.session).spec.behaviours]
    # A stream shows no behaviour, exported or not: the token of a bin has all their marks.
    token = maps.embedding[0] + model.modality[hidden].sum(0)
    named: dict[str, Tensor] = {
        "input.weight": maps.spikes_in[0][0],
        "input.bias": maps.spikes_in[1][0, 0],
        "input.token": token,
        "input.lost": token + model.modality[0],
        "norm.weight": model.norm.weight,
        "norm.bias": model.norm.bias,
    }
    if model.stem.conv is not None and model.stem.conv.bias is not None:
        named["conv.weight"] = model.stem.conv.weight[:, 0].flip(-1).T  # tap j multiplies bin t - j
        named["conv.bias"] = model.stem.conv.bias
    if model.stem.gru is not None:
        for name, parameter in model.stem.gru.named_parameters():
            named[f"gru.{name.removesuffix('_l0')}"] = parameter
    for i, block in enumerate(model.layers()):
        for name, parameter in block.named_parameters():
            named[f"layers.{i}.{name}"] = parameter
    heads = [_scaled_head(*maps.behaviours_out[m], behaviour) for _, behaviour, m in parts]
    named["head.weight"] = torch.cat([w for w, _ in heads])
    named["head.bias"] = torch.cat([b for _, b in heads])
    return {k: np.ascontiguousarray(v.detach().float().numpy()) for k, v in named.items()}


def _chosen(
    model: Neds, state: SessionState, behaviours: list[str]
) -> list[tuple[BehaviourStitch, BehaviourState, int]]:
    """The behaviours to decode: their stitch, their state, their place in the session's order."""
    by_name = {b.name: b for b in state.behaviours}
    for name in behaviours:
        if name not in by_name:
            raise BadInput("--behaviours", "name", repr(name), f"some of {', '.join(by_name)}")
    chosen = []
    for m, part in enumerate(model.stitcher(state.session).parts()):
        if not behaviours or part.spec.name in behaviours:
            chosen.append((part, by_name[part.spec.name], m))
    return chosen


def _scaled_head(
    weight: Tensor, bias: Tensor, behaviour: BehaviourState
) -> tuple[Tensor, Tensor]:
    """Weight (1, H, n) and bias (1, 1, n) of a head as (n, H) and (n,), in behaviour units."""
    weight, bias = weight[0].T, bias[0, 0]
    if behaviour.kind != "continuous":
        return weight, bias
    mean, sd = torch.tensor(behaviour.mean), torch.tensor(behaviour.sd)
    return weight * sd[:, None], bias * sd + mean


def unfold_model(bundle: Bundle) -> Neds:
    """The torch model of a bundle: the same function, for batch computation and parity."""
    manifest, weights = bundle.manifest, bundle.weights
    shape = manifest.shape
    config = ModelConfig(
        form="stream", hidden=shape.hidden, layers=shape.layers, heads=shape.heads, mlp=shape.mlp,
        window=shape.window, conv=shape.conv, recurrent=shape.recurrent,
        rope_base=shape.rope_base, dropout=0.0, token_dropout=0.0, **SERVED,
    )
    specs = tuple(
        BehaviourSpec(m.name, m.kind, m.n_outputs // (2 if m.kind == "circular" else 1),
                      tuple(m.classes), m.unit)
        for m in manifest.modalities
    )
    model = Neds(config, [SessionSpec(manifest.session, len(manifest.units), specs)])
    stitch = model.stitcher(manifest.session)
    state = {k: torch.from_numpy(v.copy()) for k, v in weights.items()}
    with torch.no_grad():
        stitch.spikes_in.weight.copy_(state["input.weight"].T)
        stitch.spikes_in.bias.copy_(state["input.bias"])
        stitch.embedding.copy_(state["input.token"])
        model.modality.zero_()
        model.modality[0] = state["input.lost"] - state["input.token"]
        if model.stem.conv is not None and model.stem.conv.bias is not None:
            model.stem.conv.weight[:, 0] = state["conv.weight"].T.flip(-1)
            model.stem.conv.bias.copy_(state["conv.bias"])
        if model.stem.gru is not None:
            for name, parameter in model.stem.gru.named_parameters():
                parameter.copy_(state[f"gru.{name.removesuffix('_l0')}"])
        model.norm.weight.copy_(state["norm.weight"])
        model.norm.bias.copy_(state["norm.bias"])
        for i, block in enumerate(model.layers()):
            for name, parameter in block.named_parameters():
                parameter.copy_(state[f"layers.{i}.{name}"])
        row = 0
        for part in stitch.parts():
            stop = row + part.spec.n_outputs
            part.out.weight.copy_(state["head.weight"][row:stop])
            part.out.bias.copy_(state["head.bias"][row:stop])
            row = stop
    return model.eval()


class BatchDecoder(torch.nn.Module):
    """Counts (1, T, N) and lost bins (1, T) in, engine outputs (1, T, n_outputs) out."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.model = unfold_model(bundle)
        self.session = bundle.manifest.session
        self.modalities = bundle.manifest.modalities

    def forward(self, counts: Tensor, lost: Tensor) -> Tensor:
        """Decode every bin of a stream that starts with the first row."""
        batch, bins = counts.shape[:2]
        blank = [counts.new_zeros(batch, bins, m.n_outputs) for m in self.modalities]
        hidden = torch.ones(batch, len(blank), bins, dtype=torch.bool)
        _, outputs = self.model([self.session], counts, blank, lost, hidden)
        return self.finished(outputs)

    def finished(self, outputs: list[Tensor]) -> Tensor:
        """The model's outputs, (..., n) of each behaviour, as an engine gives them."""
        final = [
            o.softmax(-1) if m.kind == "categorical" else o
            for m, o in zip(self.modalities, outputs, strict=True)
        ]
        return torch.cat(final, -1)


def window_graph(bundle: Bundle) -> bytes:
    """The batch form over one window of bins as an ONNX graph, static shapes, opset 18.

    Inputs `counts` (1, window, N) float32 and `lost` (1, window) bool; output `outputs`.
    """
    import warnings

    shape = bundle.manifest.shape
    counts = torch.zeros(1, shape.window, len(bundle.manifest.units))
    lost = torch.zeros(1, shape.window, dtype=torch.bool)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        path = Path(folder) / "window.onnx"
        torch.onnx.export(
            BatchDecoder(bundle).eval(), (counts, lost), str(path), opset_version=18, dynamo=False,
            input_names=["counts", "lost"], output_names=["outputs"],
        )
        return path.read_bytes()


def export(
    model: Neds,
    info: CheckpointInfo,
    recording: Recording,
    out: Path,
    *,
    behaviours: list[str],
    graphs: list[str],
    templates: Sequence[tuple[ProbeTemplates, bytes]] = (),
) -> Manifest:
    """Write the bundle of one session, with graphs and a parity report; returns its manifest.

    templates: of the probes' units, as `neds.bundle_templates` makes them.

    The graphs are of the streaming form: "step" is one bin against cached keys and values,
    "window" the batch computation over `window` bins from a cold start.

    Raises `BadInput` for a window-form model (it reads the future of every bin, which a live
    decoder has not) or one of another form than bundles serve, a session without behaviours or an
    unknown one; `CheckFailed` for a bundle that fails parity.
    """
    parts = bundle_parts(model, info, recording, behaviours=behaviours, graphs=graphs)
    parts["files"] |= {entry.file: data for entry, data in templates}
    return write_bundle(out, **parts, templates=[entry for entry, _ in templates])


def bundle_parts(
    model: Neds, info: CheckpointInfo, recording: Recording, *, behaviours: list[str],
    graphs: list[str],
) -> dict[str, Any]:
    """All that `export` writes, parity report included, as `write_bundle` takes it."""
    _check_form(info.config.model, recording.state.session)
    if not recording.encoded:
        raise BadInput(recording.state.session, "behaviours", "none", "some to decode")
    from neds_rt.engines.onnx_graph import build_step_graph

    state, config = recording.state, info.config.model
    parts: dict[str, Any] = {
        "session": state.session,
        "subject": state.subject,
        "bin_size_s": info.config.data.bin_size_s,
        "shape": Shape(hidden=config.hidden, layers=config.layers, heads=config.heads,
                       mlp=config.mlp, window=config.window, conv=config.conv,
                       recurrent=config.recurrent, rope_base=config.rope_base),
        "units": state.units,
        "modalities": modalities_out(model, recording, behaviours),
        "weights": fold_weights(model, state, behaviours),
        "provenance": {
            # Paths are the trainer's own business; a bundle travels.
            **{k: v for k, v in info.provenance.items() if k != "sessions"},
            "trained_by": info.created_by, "exported_by": created_by(), "step": info.step,
            "split": state.split,
        },
    }
    draft = make_bundle(**parts)
    files = {"model.onnx": build_step_graph(draft.manifest, draft.weights)}
    if "window" in graphs:
        files["window.onnx"] = window_graph(draft)
    fitted = fit_health(draft, recording)
    if fitted is not None:
        parts["health"], files[HEALTH_FILE] = fitted
    draft = make_bundle(**parts, files=files)
    parity = parity_report(model, recording, draft)
    return {**parts, "files": files, "parity": parity}


def _check_form(config: ModelConfig, session: str) -> None:
    if config.form != "stream":
        raise BadInput(session, "model.form", repr(config.form),
                       "'stream', which needs no future bins: neds train --set model.form=stream")
    if config.attend == "all":
        raise BadInput(session, "model.attend", "'all'", "'visible': lost bins are never attended")
    for field, served in SERVED.items():
        if getattr(config, field) != served:
            raise BadInput(session, f"model.{field}", repr(getattr(config, field)),
                           f"{served!r}: neds train --set model.{field}={served}")


def modalities_out(model: Neds, recording: Recording, behaviours: list[str]) -> list[ModalityOut]:
    """The decoded behaviours with their residual spread on the validation part."""
    pairs = decode_part(model, recording, "val")
    sd = {
        b.name: _residual_sd(b, truth, predicted)
        for b, (truth, predicted) in zip(recording.state.behaviours, pairs, strict=True)
    }
    return [
        ModalityOut(name=b.name, kind=b.kind, n_outputs=b.spec.n_outputs, unit=b.unit,
                    classes=b.classes, sd=sd[b.name])
        for _, b, _ in _chosen(model, recording.state, behaviours)
    ]


def _residual_sd(behaviour: BehaviourState, truth: Floats, predicted: Floats) -> list[float]:
    if behaviour.kind != "continuous":
        return []
    error = (truth - predicted)[~np.isnan(truth).any(1)]
    # Without a known value on the validation part the training spread is the honest answer.
    return [float(s) for s in error.std(0)] if len(error) > 1 else behaviour.sd


def parity_report(model: Neds, recording: Recording, bundle: Bundle) -> dict[str, Any]:
    """Largest and RMS error of each engine against torch on held-back rows, relative to outputs.

    The list "engines" says the same of every precision of the CPU engine, and what it changes of
    the scores (`neds_rt.engine_parity`); no limit is put on those. Every run of consecutive bins
    starts cold, up to `PARITY_BINS` bins in all. Raises `CheckFailed` when an engine is off by more
    than `PARITY_LIMIT`.
    """
    runs = held_back_runs(recording)
    truth = torch_outputs(model, recording, bundle, runs)
    report: dict[str, Any] = {"reference": "torch batch form, float32", "bins": len(truth)}
    counts = [recording.counts[first:stop].numpy().astype(np.uint16) for first, stop in runs]
    for name in ("native", "onnx"):
        report[name] = errors(decode_with(load_engine(name, bundle), counts), truth)
        if not report[name]["max"] <= PARITY_LIMIT:
            raise CheckFailed(f"parity of engine {name} with torch: {report[name]['max']:.2e}, "
                              f"expected at most {PARITY_LIMIT:.0e}")
    report["engines"] = msgspec.to_builtins(precision_report(recording, bundle, runs, truth))
    return report


def torch_outputs(
    model: Neds, recording: Recording, bundle: Bundle, runs: list[tuple[int, int]]
) -> Floats:
    """What float32 torch predicts over these runs of rows, (T, n_outputs) as engines give them."""
    names = [m.name for m in bundle.manifest.modalities]
    kept = [m for m, b in enumerate(recording.state.behaviours) if b.name in names]
    decoded = [decode_rows(model, recording, first, stop) for first, stop in runs]
    return np.concatenate([np.concatenate([d[m] for m in kept], 1) for d in decoded])


def held_back_runs(recording: Recording, bins: int = PARITY_BINS) -> list[tuple[int, int]]:
    """The first runs of the test part, cut to `bins` rows in all."""
    runs: list[tuple[int, int]] = []
    for first, stop in recording.runs_within("test"):
        if bins > 0:
            runs.append((first, min(stop, first + bins)))
        bins -= stop - first
    return runs
