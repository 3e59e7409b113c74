"""Bundles made to hurt whoever reads them: refused in one line, before memory or time is spent."""

import io
import os
import struct
import zipfile

import pytest

from neds_rt import bundle_files
from neds_rt.bundle import read_bundle
from neds_rt.errors import BadInput
from tests.rt.serving import small_bundle


@pytest.fixture
def good(tmp_path):
    return small_bundle(tmp_path / "good.neds")


def entry(name, **fields):
    info = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def with_member(path, info, data=b"x"):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, data)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//x", "C:\\x", "a\\x", "./x", "x\n",
                                  "../", "a/../", "x" * 2000])
def test_names_that_lead_elsewhere(good, name):
    with_member(good, entry(name))
    with pytest.raises(BadInput, match="file name"):
        read_bundle(good)


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o060644, 0o140644])
def test_links_and_devices_in_a_zip(good, mode):
    with_member(good, entry("link", external_attr=mode << 16), b"/etc/passwd")
    with pytest.raises(BadInput, match="special file"):
        read_bundle(good)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_takes_memory_as_it_likes(good, method):
    with_member(good, entry("x", compress_type=method), b"x" * 1000)
    with pytest.raises(BadInput, match="compression"):
        read_bundle(good)


def test_a_bomb_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.neds"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("weights.safetensors", b"\0" * (40 << 20))
    assert path.stat().st_size < 50_000
    with pytest.raises(BadInput, match="times its size"):
        read_bundle(path)


def overlapping(n):
    """`n` members that share one kilobyte of compressed zeros."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a0000", b"\0" * 1_000_000)
    data = raw.getvalue()
    start = data.index(b"PK\1\2")
    listing = data[start : data.rindex(b"PK\5\6")]
    place = listing.index(b"a0000")
    entries = b"".join(listing[:place] + b"a%04d" % i + listing[place + 5 :] for i in range(n))
    return data[:start] + entries + struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(entries), start, 0)


def test_members_that_share_their_bytes(tmp_path):
    path = tmp_path / "bomb.neds"
    path.write_bytes(overlapping(900))
    with pytest.raises(BadInput, match="times its size"):
        read_bundle(path)


def test_too_many_members_are_not_even_listed(tmp_path, monkeypatch):
    path = tmp_path / "many.neds"
    path.write_bytes(overlapping(40_000))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(BadInput, match="members"):
        read_bundle(path)


def test_a_list_of_members_that_hides(good):
    data = good.read_bytes()
    for tail in (b"comment", b"\0"):
        good.write_bytes(data + tail)
        with pytest.raises(BadInput, match="zip file"):
            read_bundle(good)
    end = data.rindex(b"PK\5\6")
    good.write_bytes(data[:end] + b"PK\6\7" + bytes(16) + data[end:])
    with pytest.raises(BadInput, match="zip64"):
        read_bundle(good)


def test_links_and_pipes_in_a_directory(tmp_path):
    path = small_bundle(tmp_path / "made")
    (path / "more").symlink_to("/etc/hostname")
    with pytest.raises(BadInput, match="a link"):
        read_bundle(path)
    (path / "more").unlink()
    (path / "plans").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(BadInput, match="a link"):
        read_bundle(path)
    (path / "plans").unlink()
    os.mkfifo(path / "pipe")
    with pytest.raises(BadInput, match="special file"):
        read_bundle(path)
    (path / "pipe").unlink()
    read_bundle(path)


def test_a_directory_without_end(tmp_path, monkeypatch):
    path = small_bundle(tmp_path / "made")
    deep = path
    for _ in range(bundle_files.MAX_DEPTH + 1):
        deep /= "d"
    deep.mkdir(parents=True)
    with pytest.raises(BadInput, match="folders deep"):
        read_bundle(path)
    monkeypatch.setattr(bundle_files, "MAX_ENTRIES", 5)
    with pytest.raises(BadInput, match="more than 5"):
        read_bundle(path)


def test_every_member_of_a_zip_tampered_by_one_byte(good):
    """Wherever the byte is, in data, in a header or in the list of members."""
    data = good.read_bytes()
    plain = read_bundle(good)
    for place in range(0, len(data), 101):
        changed = bytearray(data)
        changed[place] ^= 0x10
        good.write_bytes(changed)
        try:
            found = read_bundle(good)
        except BadInput:
            continue
        # A date or another mark that says nothing of the content.
        assert found.manifest == plain.manifest
        assert all((found.weights[k] == plain.weights[k]).all() for k in plain.weights)
