"""Every knob of a run: frozen, strict structs; TOML in, saved as JSON with every run.

A recipe is a TOML file with the tables `[data]`, `[model]`, `[masking]` and `[train]`. A field
that does not exist is refused by name, a field left out takes the default below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import msgspec

from neds_rt.errors import BadInput
from neds_rt.small_files import read_small


class DataConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What of a session is used, and how it is cut."""

    bin_size_s: float = 0.02
    behaviours: list[str] = []  # names to decode; empty takes all the session has
    fractions: tuple[float, float, float] = (0.74, 0.06, 0.2)  # train, validation, test, in time
    # "blocked": parts contiguous in time. For parity only: "random", trials at random by session;
    # "release": as the NEDS release deals them, after sessions of `split_before` trials each.
    split: str = "blocked"
    split_before: list[int] = []
    split_seed: int = 42  # of the random splits; the release's, and up to 2^32 - 1 there
    scaling: str = "zscore"  # of continuous behaviours, or "minmax": to [0, 1]
    min_rate_hz: float = 0.0  # units below this rate on the training part are dropped


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sizes and form of the transformer (the paper's for one session: 5 layers, width 256)."""

    form: str = "stream"  # causal, banded, O(1) a bin; or "window": bidirectional, as the paper
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 256
    window: int = 100  # bins a token can see in the streaming form, the window's length otherwise
    conv: int = 5  # taps of the causal depthwise convolution on spike tokens, 0 for none
    recurrent: bool = True  # a GRU layer on spike tokens, after the convolution if there is one
    tokens: str = "summed"  # all of a bin into one token; or "separate", one a modality and bin
    attend: str = ""  # "visible" tokens or "all", hidden ones too; by the form where empty
    inputs: str = "counts"  # of spikes as they are, their "sqrt", or a learned "table" of values
    # What sessions share besides the backbone, each adding a part of its own: nothing (""), the
    # maps of "behaviours" of one name, and further those of units on the same "channels" of a
    # subject's probe (a chronic implant), or in the same brain "regions".
    shared: str = ""
    dropout: float = 0.2
    token_dropout: float = 0.2
    rope_base: float = 10000.0


class MaskingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Probability of each of the five schemes (`neds.masking`) and the share of masked bins."""

    encoding: float = 0.2
    decoding: float = 0.2
    self_spike: float = 0.2
    self_behaviour: float = 0.2
    random_token: float = 0.2
    ratio: float = 0.3


class TrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The training loop; a batch holds sequences of several sessions, equally many of each."""

    steps: int = 1000
    batch: int = 16
    sessions_per_batch: int = 8  # at most; the batch is rounded to equally many of each
    bins: int = 100  # length of a training sequence
    learning_rate: float = 2e-3
    warmup: float = 0.1  # share of steps before the peak rate
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    unit_dropout: float = 0.2  # share of units silenced per sequence
    own_dropout: float = 0.0  # chance that a session's own maps are taken away for a batch
    spike_weight: float = 0.2  # weight of the Poisson term against the behaviours' terms
    behaviour_weights: dict[str, float] = {}  # per behaviour, 1 where not named
    validate_every: int = 100
    cuda_graph: bool = True  # on a GPU, replay steps as one graph where all steps are alike
    patience: int = 0  # validations without a better one before training stops, 0 for never
    # What sessions share, in a run that starts from a checkpoint: the factor of its learning rate,
    # and the share of the steps before which it stays as it was (new maps come first).
    backbone_rate: float = 1.0
    freeze: float = 0.0
    own_decay: float = 0.0  # weight decay of sessions' own spike maps, towards what is shared
    # First bins of every run of bins, such as a trial, of which no behaviour is asked: those of a
    # stimulus or a choice before the brain knows it teach nothing but the trials by heart.
    skip_bins: int = 0
    components: int = 0  # learn own maps from spikes in so many components of the units, 0 in all
    precision: str = "auto"  # "bf16", "float32", or bf16 on a GPU that has it
    seed: int = 0


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole recipe."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    masking: MaskingConfig = MaskingConfig()
    train: TrainConfig = TrainConfig()


def load_recipe(name: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a recipe by packaged name ("single") or path, then apply `table.field=value` overrides.

    Raises `BadInput` naming the file, the field and what was expected.
    """
    path = Path(name)
    if path.suffix == ".toml":
        text = _read(path)
    else:
        packaged = resources.files("neds").joinpath("recipes", f"{name}.toml")
        if not packaged.is_file():
            raise BadInput("--recipe", "name", repr(name), "a packaged recipe or a path to a .toml")
        text = packaged.read_text()
    try:
        tree = msgspec.toml.decode(text)
        for item in overrides or []:
            _override(tree, item)
        config = msgspec.convert(tree, RunConfig)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise BadInput(name, "recipe", str(error), "the fields of neds.config.RunConfig") from error
    check(config, name)
    return config


def check(config: RunConfig, where: str) -> None:
    """Raise `BadInput` for values that are well formed but cannot work together."""
    model, masking, train = config.model, config.masking, config.train
    if model.form not in ("stream", "window"):
        raise BadInput(where, "model.form", repr(model.form), "'stream' or 'window'")
    for field, value, allowed in (
        ("tokens", model.tokens, ("separate", "summed")),
        ("attend", model.attend, ("", "visible", "all")),
        ("inputs", model.inputs, ("sqrt", "counts", "table")),
        ("shared", model.shared, ("", "behaviours", "channels", "regions")),
    ):
        if value not in allowed:
            raise BadInput(where, f"model.{field}", repr(value), f"one of {allowed}")
    if train.precision not in ("auto", "float32", "bf16"):
        raise BadInput(where, "train.precision", repr(train.precision),
                       "'auto', 'float32' or 'bf16'")
    if model.heads < 1 or model.hidden % (2 * model.heads):
        raise BadInput(where, "model.heads", model.heads, "hidden divisible by 2 * heads")
    for name in ("hidden", "layers", "mlp", "window"):
        if getattr(model, name) < 1:
            raise BadInput(where, f"model.{name}", getattr(model, name), "at least 1")
    _check_numbers(config, where)
    if model.conv < 0:
        raise BadInput(where, "model.conv", model.conv, "0 or more taps")
    if model.form == "window" and train.bins != model.window:
        raise BadInput(where, "train.bins", train.bins, f"model.window ({model.window})")
    shares = (masking.encoding, masking.decoding, masking.self_spike, masking.self_behaviour,
              masking.random_token)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise BadInput(where, "masking", shares, "five probabilities that sum to 1")
    if not 0 < masking.ratio < 1:
        raise BadInput(where, "masking.ratio", masking.ratio, "between 0 and 1")
    for field, allowed in (("split", ("blocked", "random", "release")),
                           ("scaling", ("zscore", "minmax"))):
        if getattr(config.data, field) not in allowed:
            raise BadInput(where, f"data.{field}", repr(getattr(config.data, field)),
                           " or ".join(map(repr, allowed)))
    if config.data.split == "release" and config.data.split_seed >= 2**32:
        raise BadInput(where, "data.split_seed", config.data.split_seed,
                       "below 2^32, for data.split = 'release'")
    if not all(0 < trials < 10**6 for trials in config.data.split_before):
        raise BadInput(where, "data.split_before", config.data.split_before,
                       "numbers of trials, from 1 to a million")
    if abs(sum(config.data.fractions) - 1) > 1e-6 or min(config.data.fractions) <= 0:
        raise BadInput(where, "data.fractions", config.data.fractions, "three shares that sum to 1")
    for name in ("steps", "batch", "sessions_per_batch", "bins", "validate_every"):
        if getattr(train, name) < 1:
            raise BadInput(where, f"train.{name}", getattr(train, name), "at least 1")


# What each number must satisfy, in words and as a test that NaN fails too.
RANGES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("data.min_rate_hz", "0 or more", lambda v: 0 <= v < math.inf),
    ("data.split_seed", "from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63),
    ("model.dropout", "from 0 to below 1", lambda v: 0 <= v < 1),
    ("model.token_dropout", "from 0 to below 1", lambda v: 0 <= v < 1),
    ("model.rope_base", "above 1", lambda v: 1 < v < math.inf),
    ("train.learning_rate", "above 0", lambda v: 0 < v < math.inf),
    ("train.warmup", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("train.weight_decay", "0 or more", lambda v: 0 <= v < math.inf),
    ("train.clip", "above 0", lambda v: v > 0),
    ("train.unit_dropout", "from 0 to below 1", lambda v: 0 <= v < 1),
    ("train.own_dropout", "from 0 to below 1", lambda v: 0 <= v < 1),
    ("train.patience", "0 or more", lambda v: 0 <= v < 2**31),
    ("train.spike_weight", "0 or more", lambda v: 0 <= v < math.inf),
    ("train.backbone_rate", "0 or more", lambda v: 0 <= v < math.inf),
    ("train.freeze", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("train.own_decay", "0 or more", lambda v: 0 <= v < math.inf),
    ("train.skip_bins", "0 or more", lambda v: 0 <= v < 2**31),
    ("train.components", "0 or more", lambda v: 0 <= v < 2**31),
    ("train.seed", "from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63),
)


def _check_numbers(config: RunConfig, where: str) -> None:
    for field, expected, holds in RANGES:
        table, _, name = field.partition(".")
        value = getattr(getattr(config, table), name)
        if not holds(value):
            raise BadInput(where, field, value, expected)
    for name, weight in config.train.behaviour_weights.items():
        if not 0 <= weight < math.inf:
            raise BadInput(where, f"train.behaviour_weights.{name}", weight, "0 or more")


def _override(tree: dict[str, dict[str, object]], item: str) -> None:
    key, separator, text = item.partition("=")
    table, _, field = key.partition(".")
    if not separator or not field:
        raise BadInput("--set", "override", repr(item), "table.field=value")
    try:
        value = msgspec.toml.decode(f"v = {text}")["v"]
    except msgspec.DecodeError:
        value = text  # a bare word is a string
    if not isinstance(tree.setdefault(table, {}), dict):
        raise BadInput("recipe", table, repr(tree[table]), "a table")
    tree[table][field] = value


def _read(path: Path) -> str:
    try:
        return read_small(path, "recipe", "a readable TOML file").decode()
    except UnicodeDecodeError as error:
        raise BadInput(path, "recipe", "bytes that are no text", "a TOML file") from error
