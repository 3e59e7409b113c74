"""IBL sessions by their ids: what is fetched, from a ONE that serves a folder, and what fails."""

import numpy as np
import pytest

from neds.data import ibl_one
from neds.data.ibl import IblOptions, ibl_reader, read_alf
from tests.neds.alf_cases import SUBJECT, make_alf
from tests.neds.reader_cases import same

pytest.importorskip("one.api")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # ONE's own, into pandas


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A session with what is not read beside what is, and the ONE that serves it as the network."""
    from tests.neds.one_server import FolderOne

    folder = make_alf(tmp_path / "served")
    probe = folder / "alf" / "probe00"
    for at in (probe, probe / "pykilosort" / "#2024-01-01#"):
        at.mkdir(exist_ok=True)
        np.save(at / "spikes.times.npy", np.array([1.0, 2.0]))
        np.save(at / "spikes.clusters.npy", np.array([1, 1]))
    np.save(probe / "pykilosort" / "spikes.amps.npy", np.zeros(4000))
    np.save(folder / "alf" / "licks.times.npy", np.zeros(3))
    one = FolderOne(tmp_path / "served", tmp_path / "cache")
    monkeypatch.setattr(ibl_one, "connection", lambda mode, cache, host: one)
    return folder, one


def test_what_is_read_is_fetched_and_no_more(served):
    folder, one = served
    eid = one.eid_of(SUBJECT)
    reader = ibl_reader(None, [])
    session = reader.read(eid)
    same(session, read_alf(folder, session=eid))
    probes = [path for path in one.fetched if "/probe0" in path]
    sorting = ["clusters.channels", "clusters.depths", "spikes.clusters", "spikes.times"]
    first, second = (f"alf/probe{n:02d}/pykilosort/" for n in (0, 1))
    assert sorted(probes) == sorted(
        [f"{first}channels.brainLocationAcronyms_ccf_2017.npy",
         *(f"{second}{name}.npy" for name in sorting),
         *(f"{first}{name}.npy" for name in sorting[:2]),
         *(f"{first}#2024-01-01#/{name}.npy" for name in sorting[2:])])
    rest = set(one.fetched) - set(probes)
    assert not [path for path in rest if "licks" in path]
    assert {"alf/_ibl_wheel.position.npy", "alf/_ibl_leftCamera.times.npy",
            "alf/_ibl_trials.choice.npy"} <= rest
    before = list(one.fetched)
    assert {path.name for path in reader.files(eid)} == {path.split("/")[-1] for path in before}
    assert one.fetched == before  # what is in the cache is not fetched again


def test_an_older_revision_is_fetched_in_its_place(served):
    folder, one = served
    eid = one.eid_of(SUBJECT)
    session = ibl_reader(None, ["revision=2023-12-31"]).read(eid)
    same(session, read_alf(folder, IblOptions(revision="2023-12-31"), session=eid))
    assert not [path for path in one.fetched if "#" in path]
    assert session.units.cluster[session.units.probe == "probe00"].tolist() == [0, 1, 2, 3, 5]
