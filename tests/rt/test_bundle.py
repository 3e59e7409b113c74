"""Bundles: written whole, read back equal, and refused in one line when anything does not match."""

import hashlib
import json
import struct
import zipfile

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neds_rt import bundle_files
from neds_rt.bundle import (
    ModalityOut,
    Shape,
    compute_model_hash,
    make_bundle,
    random_bundle,
    read_bundle,
    tensor_shapes,
    write_bundle,
)
from neds_rt.engines import load_engine
from neds_rt.errors import BadInput
from neds_rt.safetensors_io import decode_tensors, encode_tensors

SHAPE = Shape(hidden=16, layers=2, heads=2, mlp=24, window=5, conv=2)
MODALITIES = [
    ModalityOut("wheel", "continuous", 1, "rad/s", sd=[0.5]),
    ModalityOut("heading", "circular", 2),
    ModalityOut("choice", "categorical", 2, classes=["left", "right"]),
]


@pytest.fixture(scope="module")
def model():
    return random_bundle(SHAPE, 7, MODALITIES, seed=1)


def fields(model, **changes):
    manifest = model.manifest
    result = {
        "session": "s1", "subject": "mouse", "bin_size_s": 0.02, "shape": manifest.shape,
        "units": manifest.units, "modalities": manifest.modalities, "weights": model.weights,
        "files": {"model.onnx": b"graph", "plans/a.plan": b"plan"},
        "provenance": {"seed": 1, "note": "déjà vu"}, "parity": {"max": 1e-6},
    }
    return result | changes


@pytest.fixture(params=["m.neds", "folder"])
def written(request, tmp_path, model):
    path = tmp_path / request.param
    write_bundle(path, **fields(model))
    return path


def test_reads_back_what_was_written(written, model):
    bundle = read_bundle(written)
    assert bundle.manifest.session == "s1"
    assert bundle.manifest.units == model.manifest.units
    assert bundle.manifest.modalities == MODALITIES
    assert bundle.onnx_bytes == b"graph"
    assert bundle.files["plans/a.plan"] == b"plan"
    assert bundle.weights.keys() == model.weights.keys()
    for name, tensor in bundle.weights.items():
        assert tensor.dtype == np.float32
        assert np.array_equal(tensor, model.weights[name])


def test_nothing_is_left_beside_the_target(written):
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_equal_content_gives_equal_bytes(tmp_path, model):
    for name in ("a.neds", "b.neds"):
        write_bundle(tmp_path / name, **fields(model))
    assert (tmp_path / "a.neds").read_bytes() == (tmp_path / "b.neds").read_bytes()


def test_manifest_is_returned_and_stable(tmp_path, model):
    manifest = write_bundle(tmp_path / "a", **fields(model, bin_size_s=1))
    assert manifest == read_bundle(tmp_path / "a").manifest
    assert manifest.model_hash == compute_model_hash(manifest)
    other = write_bundle(tmp_path / "b", **fields(model, session="s2"))
    assert other.model_hash != manifest.model_hash


def test_overwrites_an_older_bundle(written, model):
    write_bundle(written, **fields(model, subject="rat", files={}))
    bundle = read_bundle(written)
    assert (bundle.manifest.subject, bundle.files) == ("rat", {})
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_refuses_to_overwrite_other_things(tmp_path, model):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "d.neds").mkdir()
    for name in ("notes", "file", "d.neds"):
        with pytest.raises(BadInput, match="target"):
            write_bundle(tmp_path / name, **fields(model))
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_refuses_an_unwritable_place(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="writable"):
        write_bundle(tmp_path / "file" / "m.neds", **fields(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bin_size_s": 0.0}, "bin_size_s: found 0.0"),
        ({"bin_size_s": float("nan")}, "bin_size_s"),
        ({"precision": "int7"}, "precision: found 'int7'"),
        ({"units": []}, "units: found 0 units"),
        ({"modalities": []}, "modalities"),
        ({"modalities": [MODALITIES[0]] * 2}, "distinct names"),
        ({"modalities": [ModalityOut("a", "ordinal", 1)]}, "kind: found 'ordinal'"),
        ({"modalities": [ModalityOut("a", "circular", 3)]}, "n_outputs: found 3, expected 2"),
        ({"modalities": [ModalityOut("a", "continuous", 0)]}, "n_outputs: found 0"),
        ({"modalities": [ModalityOut("a", "categorical", 2, classes=["x"])]}, "2 distinct labels"),
        ({"modalities": [ModalityOut("a", "categorical", 2, classes=["x", "x"])]}, "classes"),
        ({"modalities": [ModalityOut("a", "continuous", 1, classes=["x"])]}, "classes"),
        ({"modalities": [ModalityOut("a", "continuous", 1, sd=[1.0, 2.0])]}, "sd"),
        ({"modalities": [ModalityOut("a", "continuous", 1, sd=[-1.0])]}, "sd"),
        ({"shape": Shape(hidden=15, layers=2, heads=2, mlp=24, window=5)}, "shape.hidden"),
        ({"shape": Shape(hidden=16, layers=2, heads=0, mlp=24, window=5)}, "shape.heads"),
        ({"shape": Shape(hidden=16, layers=0, heads=2, mlp=24, window=5)}, "shape.layers"),
        ({"shape": Shape(hidden=16, layers=2, heads=2, mlp=24, window=0)}, "shape.window"),
        ({"shape": Shape(hidden=16, layers=1024, heads=2, mlp=24, window=1 << 20)}, "bytes"),
        ({"shape": Shape(hidden=16, layers=2, heads=2, mlp=24, window=5, conv=-1)}, "shape.conv"),
        ({"shape": Shape(hidden=16, layers=2, heads=2, mlp=24, window=5, rope_base=0.0)}, "rope"),
        ({"shape": Shape(hidden=16, layers=3, heads=2, mlp=24, window=5, conv=2)}, "layers.2"),
        ({"shape": Shape(hidden=16, layers=1, heads=2, mlp=24, window=5, conv=2)}, "no such tens"),
        ({"shape": Shape(hidden=16, layers=2, heads=2, mlp=24, window=5)}, "conv.bias"),
        ({"shape": msgspec.structs.replace(SHAPE, recurrent=True)}, "gru.weight_ih"),
        ({"shape": msgspec.structs.replace(SHAPE, recurrent=2)}, "recurrent"),
        ({"files": {"../evil": b""}}, "file name"),
        ({"files": {"/etc/evil": b""}}, "file name"),
        ({"files": {"a\\b": b""}}, "file name"),
        ({"files": {"C:evil": b""}}, "file name"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, model, changes, message):
    with pytest.raises(BadInput, match="expected") as error:
        write_bundle(tmp_path / "m.neds", **fields(model, **changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_reserved_names_cannot_be_extra_files(tmp_path, model):
    for name in ("manifest.json", "weights.safetensors", "signature"):
        with pytest.raises(BadInput, match="reserved"):
            write_bundle(tmp_path / "m.neds", **fields(model, files={name: b"{}"}))


def test_another_sessions_unit_count(tmp_path, model):
    units = model.manifest.units[:-1]
    with pytest.raises(BadInput, match=r"'input.weight': found shape \(7, 16\), .*\(6, 16"):
        write_bundle(tmp_path / "m.neds", **fields(model, units=units))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_must_be_finite(model, value):
    weights = dict(model.weights) | {"norm.bias": np.full(16, value, np.float32)}
    with pytest.raises(BadInput, match=r"norm\.bias.*finite"):
        make_bundle(**fields(model, weights=weights))


def change(path, name, edit):
    """Replace one file of a directory bundle by `edit(bytes)`; None deletes it."""
    data = edit((path / name).read_bytes())
    if data is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(data)


def edit_manifest(**changes):
    def edit(data):
        return json.dumps(json.loads(data) | changes).encode()

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("weights.safetensors", lambda d: d[:-1] + b"x", "weights.safetensors: sha256"),
        ("weights.safetensors", lambda d: None, "weights.safetensors: found no such file"),
        ("model.onnx", lambda d: d + b"x", "model.onnx: sha256"),
        ("model.onnx", lambda d: None, "model.onnx: found no such file"),
        ("manifest.json", lambda d: None, "manifest.json: found no such file"),
        ("manifest.json", lambda d: b"{", "manifest.json: JSON"),
        ("manifest.json", lambda d: b"[" * 100000, "manifest.json: JSON"),
        ("manifest.json", lambda d: b"\xff", "manifest.json: JSON"),
        ("manifest.json", edit_manifest(schema=1), "schema: found 1, expected 2: make the"),
        ("manifest.json", edit_manifest(schema="1"), "schema"),
        ("manifest.json", edit_manifest(extra=1), "extra"),
        ("manifest.json", edit_manifest(session=3), "$.session"),
        ("manifest.json", edit_manifest(session="other"), "model_hash"),
        ("manifest.json", edit_manifest(model_hash="0"), "model_hash"),
        ("manifest.json", edit_manifest(hashes={}), "model_hash"),
    ],
)
def test_changed_files(tmp_path, model, name, edit, message):
    path = tmp_path / "folder"
    write_bundle(path, **fields(model))
    change(path, name, edit)
    with pytest.raises(BadInput) as error:
        read_bundle(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_files_that_the_manifest_does_not_list(tmp_path, model):
    path = tmp_path / "folder"
    write_bundle(path, **fields(model))
    (path / ".DS_Store").write_bytes(b"")
    read_bundle(path)
    (path / "extra.bin").write_bytes(b"")
    with pytest.raises(BadInput, match=r"extra\.bin"):
        read_bundle(path)


def forge(path, model, weights_file, **changes):
    """Write a bundle whose hashes are right but whose weights file is `weights_file`."""
    manifest = msgspec.structs.replace(
        model.manifest,
        hashes={"weights.safetensors": hashlib.sha256(weights_file).hexdigest()}, **changes,
    )
    manifest = msgspec.structs.replace(manifest, model_hash=compute_model_hash(manifest))
    path.mkdir()
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    (path / "weights.safetensors").write_bytes(weights_file)


def test_tensors_are_checked_even_when_hashes_match(tmp_path, model):
    weights = dict(model.weights)
    missing = {name: w for name, w in weights.items() if name != "input.lost"}
    extra = weights | {"spare": np.zeros(3, np.float32)}
    wrong = weights | {"input.lost": np.zeros((3, 15), np.float32)}
    cases = [(missing, "input.lost"), (extra, "spare"), (wrong, r"shape \(3, 15\)")]
    for i, (tensors, message) in enumerate(cases):
        forge(tmp_path / str(i), model, encode_tensors(tensors))
        with pytest.raises(BadInput, match=message):
            read_bundle(tmp_path / str(i))
    forge(tmp_path / "good", model, encode_tensors(weights))
    read_bundle(tmp_path / "good")


def test_unlisted_weights(tmp_path, model):
    forge(tmp_path / "m", model, encode_tensors(model.weights))
    manifest = msgspec.structs.replace(model.manifest, hashes={})
    manifest = msgspec.structs.replace(manifest, model_hash=compute_model_hash(manifest))
    (tmp_path / "m" / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BadInput, match=r"hashes\['weights.safetensors'\]"):
        read_bundle(tmp_path / "m")


@pytest.mark.parametrize("name", ["missing.neds", "missing"])
def test_missing_bundle(tmp_path, name):
    with pytest.raises(BadInput, match="no such file"):
        read_bundle(tmp_path / name)


def test_things_that_are_no_bundle(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.neds").write_text("hello")
    (tmp_path / "nothing.neds").write_bytes(b"")
    for name in ("empty", "text.neds", "nothing.neds"):
        with pytest.raises(BadInput, match="bundle"):
            read_bundle(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "message"),
    [(["../x"], "file name"), (["/x"], "file name"), (["a/../../x"], "file name"),
     (["a", "a"], "two files"), (["a\nb"], "file name")],
)
def test_hostile_names_in_a_zip(tmp_path, names, message):
    with zipfile.ZipFile(tmp_path / "m.neds", "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(BadInput, match=message):
        read_bundle(tmp_path / "m.neds")


def test_size_limits(tmp_path, model, monkeypatch):
    for name in ("m.neds", "folder"):
        write_bundle(tmp_path / name, **fields(model))
        with monkeypatch.context() as patch:
            patch.setattr(bundle_files, "MAX_TOTAL_BYTES", 1000)
            with pytest.raises(BadInput, match="at most 1000"):
                read_bundle(tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(bundle_files, "MAX_FILES", 2)
            with pytest.raises(BadInput, match="at most 2"):
                read_bundle(tmp_path / name)


def test_zip_that_declares_less_than_it_holds(tmp_path):
    path = tmp_path / "m.neds"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"0" * 100_000)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    with pytest.raises(BadInput, match=r"m\.neds"):
        read_bundle(path)


@pytest.fixture(scope="module")
def zipped(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("fuzz") / "m.neds"
    write_bundle(path, **fields(model))
    return path


def read_or_refuse(path):
    """A damaged bundle is refused, or the damage was in bytes that mean nothing."""
    try:
        bundle = read_bundle(path)
    except BadInput:
        return
    assert bundle.manifest.model_hash == compute_model_hash(bundle.manifest)
    load_engine("native", bundle).step(np.ones(len(bundle.manifest.units), np.uint16))


@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_zips_are_refused(tmp_path, zipped, data):
    content = bytearray(zipped.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    tail = data.draw(st.booleans())  # the zip's directory is at the end
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            last = len(content) - 1
            at = data.draw(st.integers(max(0, last - 600), last) if tail else st.integers(0, last))
            content[at] = data.draw(st.integers(0, 255))
    (tmp_path / "m.neds").write_bytes(content)
    read_or_refuse(tmp_path / "m.neds")


@settings(max_examples=100, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_manifests_are_refused(tmp_path_factory, model, data):
    """A manifest with one value replaced and every hash right: sizes alone must catch it."""
    numbers = st.one_of(st.integers(-3, 300), st.sampled_from([2**31, 2**40, 2**62]))
    size = st.sampled_from(["hidden", "layers", "heads", "mlp", "window", "conv"])
    shape = msgspec.structs.replace(SHAPE, **{data.draw(size): data.draw(numbers)})
    path = tmp_path_factory.mktemp("forged") / "m"
    forge(path, model, encode_tensors(model.weights), shape=shape)
    read_or_refuse(path)


def test_random_bundle_is_deterministic():
    first, again = (random_bundle(SHAPE, 7, MODALITIES, seed=4) for _ in range(2))
    other = random_bundle(SHAPE, 7, MODALITIES, seed=5)
    assert first.manifest == again.manifest
    assert first.manifest.model_hash != other.manifest.model_hash
    assert list(first.weights) == list(tensor_shapes(SHAPE, 7, MODALITIES))
    decoded = decode_tensors(encode_tensors(first.weights), "weights")
    assert all(np.array_equal(decoded[name], w) for name, w in first.weights.items())
