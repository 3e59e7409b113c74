"""IBL sessions by their ids: what is fetched, from a ONE that serves a folder, and what fails."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs

import numpy as np
import pytest

from neds.cli import main
from neds.data import ibl_one
from neds.data.ibl import IblOptions, ibl_reader, read_alf
from neds_rt.errors import BadInput, StartError
from tests.neds.alf_cases import SUBJECT, make_alf
from tests.neds.reader_cases import same

pytest.importorskip("one.api")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # ONE's own, into pandas

EIDS = ibl_one.LISTS["paper-test"].read_text().split()
CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """ONE notes every database it is given in the home folder, and makes folders there."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr("one.params.CACHE_DIR_DEFAULT", str(tmp_path / "home"))
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


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


def test_local_mode_needs_tables(tmp_path):
    with pytest.raises(BadInput, match=r"sessions\.pqt"):
        ibl_reader(None, ["mode=local", f"cache={tmp_path}"]).read(EIDS[0])


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_without_a_network_the_run_ends_once(tmp_path, capfd, jobs):
    out = tmp_path / "out"
    words = ["prepare", "--reader", "ibl", "--eids", "paper-train", "--out", str(out),
             "--jobs", jobs, "--set", f"host={CLOSED}", f"cache={tmp_path}"]
    assert main(words) == StartError.exit_code == 3
    shown = capfd.readouterr()
    assert len(shown.err.splitlines()) == 1, shown.err
    assert f"{CLOSED} is needed" in shown.err
    assert "mode=local cache=" in shown.err
    assert list(out.iterdir()) == []


def test_a_network_that_fails_later_fails_one_session(served, tmp_path, capsys):
    folder, one = served
    one.failing = ConnectionError("no route to host")
    eid = one.eid_of(SUBJECT)
    assert main(["prepare", "--reader", "ibl", eid, str(folder), "--out", str(tmp_path / "out"),
                 "--set", f"host={CLOSED}"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for text in (eid, "no route to host", CLOSED, "mode=local cache="):
        assert text in error
    assert len(list((tmp_path / "out").glob("*.h5"))) == 1


def test_the_open_databases_account_is_named(tmp_path):
    """ONE no longer knows it by itself; without a name nothing is asked at all."""
    posted = []

    class Database(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, parse_qs(body.decode())))
            self.send_error(400)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        host = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(StartError, match=f"{host} is needed.*HTTPError"):
            ibl_reader(None, [f"host={host}", f"cache={tmp_path}"]).read(EIDS[0])
    finally:
        server.shutdown()
        server.server_close()
    assert posted == [("/auth-token", {"username": ["intbrainlab"],
                                       "password": ["international"]})]
