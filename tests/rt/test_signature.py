"""A signed bundle is believed when, and only when, a trusted key signed these very bytes."""

import subprocess
import sys
import zipfile

import msgspec
import pytest

from neds_rt import bundle_files
from neds_rt.bundle import MANIFEST, SIGNATURE, read_bundle
from neds_rt.cli import main
from neds_rt.errors import BadInput
from tests.rt.serving import small_bundle

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("lab", "stranger"):
        assert main(["keygen", "--signing", "--out", str(folder), "--name", name]) == 0
    return folder


@pytest.fixture(params=["made.neds", "made"])
def signed(request, tmp_path, keys):
    path = small_bundle(tmp_path / request.param)
    assert main(["sign", str(path), "--key", str(keys / "lab.pem")]) == 0
    return path


def edit(path, change):
    files = bundle_files.read_files(path)
    change(files)
    bundle_files.write_files(path, files)


def test_the_right_key_and_no_other(signed, keys):
    plain = read_bundle(signed).manifest
    assert read_bundle(signed, trust=str(keys / "lab.pub.pem")).manifest == plain
    with pytest.raises(BadInput, match="signature: found one by key"):
        read_bundle(signed, trust=str(keys / "stranger.pub.pem"))
    both = keys / "both.pem"
    both.write_bytes((keys / "stranger.pub.pem").read_bytes() + (keys / "lab.pub.pem").read_bytes())
    assert read_bundle(signed, trust=str(both)).manifest == plain


def test_an_unsigned_bundle_is_refused_where_trust_is_asked_for(tmp_path, keys, capsys):
    path = small_bundle(tmp_path / "x.neds")
    assert main(["serve", "--probe", "a=zmq+tcp://127.0.0.1:5999", "--out", "tcp://127.0.0.1:*",
                 "--model", str(path), "--trust", str(keys / "lab.pub.pem")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "signature: found none" in error


def test_a_signature_does_not_fit_another_manifest(signed, keys):
    trust = str(keys / "lab.pub.pem")

    def reformat(files):  # the same manifest to a reader, other bytes
        files[MANIFEST] = msgspec.json.format(files[MANIFEST], indent=4)

    edit(signed, reformat)
    read_bundle(signed)
    with pytest.raises(BadInput, match="does not fit the manifest"):
        read_bundle(signed, trust=trust)


def test_signatures_that_are_none_are_refused(signed, keys):
    trust = str(keys / "lab.pub.pem")
    good = msgspec.json.decode(bundle_files.read_files(signed)[SIGNATURE])
    for bad in (b"", b"{}", b"[" * 100_000, b"\xff", msgspec.json.encode(good | {"signature": "0"}),
                msgspec.json.encode(good | {"signature": "00" * 64}),
                msgspec.json.encode(good | {"signature": ""}),
                msgspec.json.encode(good | {"algorithm": "none"}),
                msgspec.json.encode(good | {"extra": 1})):
        edit(signed, lambda files, bad=bad: files.update({SIGNATURE: bad}))
        with pytest.raises(BadInput, match="signature"):
            read_bundle(signed, trust=trust)


def test_every_byte_of_manifest_and_signature_counts(tmp_path, keys):
    """One bit of one byte changed, at every 7th place: refused where trust is asked for."""
    path = small_bundle(tmp_path / "x")
    assert main(["sign", str(path), "--key", str(keys / "lab.pem")]) == 0
    trust = str(keys / "lab.pub.pem")
    for name in (MANIFEST, SIGNATURE, "weights.safetensors"):
        data = (path / name).read_bytes()
        for place in range(0, len(data), 7 if name != "weights.safetensors" else 997):
            changed = bytearray(data)
            changed[place] ^= 1
            (path / name).write_bytes(changed)
            with pytest.raises(BadInput):
                read_bundle(path, trust=trust)
        (path / name).write_bytes(data)
    read_bundle(path, trust=trust)


def test_key_files_that_are_none(signed, tmp_path, keys):
    (tmp_path / "no.pem").write_text("nothing")
    for trust in (tmp_path / "no.pem", keys / "lab.pem", tmp_path / "missing"):
        with pytest.raises(BadInput):
            read_bundle(signed, trust=str(trust))
    for key in ("lab.pub.pem", "missing.pem"):
        assert main(["sign", str(signed), "--key", str(keys / key)]) == 2
    (keys / "lab.pem").chmod(0o640)
    assert main(["sign", str(signed), "--key", str(keys / "lab.pem")]) == 2
    (keys / "lab.pem").chmod(0o600)


def test_a_broken_bundle_is_not_signed(tmp_path, keys):
    path = small_bundle(tmp_path / "x.neds")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more", b"")
    before = path.read_bytes()
    assert main(["sign", str(path), "--key", str(keys / "lab.pem")]) == 2
    assert path.read_bytes() == before


def test_without_the_package_one_line_names_the_extra(tmp_path, keys):
    path = small_bundle(tmp_path / "x.neds")
    code = ("import sys; sys.modules['cryptography'] = None; from neds_rt.cli import main; "
            "sys.exit(main(sys.argv[1:]))")
    done = subprocess.run([sys.executable, "-c", code, "sign", str(path), "--key",
                           str(keys / "lab.pem")], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "neds[sign]" in done.stderr
