"""What the page of `neds-rt dashboard` is made of: the history it plots, its words, escaped."""

import numpy as np
import pytest

from neds_rt.dashboard import cards
from neds_rt.dashboard.history import History, RasterHistory, stretches_of
from neds_rt.status import FailoverStatus, ModalityStatus, ProbeStatus, RasterStatus, RecorderStatus
from neds_rt.wire import Decode, Value
from tests.rt.test_status import status_of

ODD = '<img src=x onerror="alert(1)">&'


def decode(k, reason="ok", session="s", values=None, **changes):
    return Decode(**({
        "v": 1, "seq": k, "session": session, "bin": k, "t_s": k * 0.02, "spike_age_us": 900.0,
        "service_us": 120.0, "recv_ns": k * 20_000_000, "pub_ns": k * 20_000_000, "model": "m",
        "valid": reason == "ok", "reason": reason, "values": values or {},
    } | changes))


def history_of(reasons, delay=lambda k: 0.001):
    """A history of decodes every 20 ms, server clock from 0, ours 100 s ahead of it."""
    history = History()
    for k, reason in enumerate(reasons):
        history.add(decode(k, reason), 100.0 + 0.02 * k + delay(k))
    return history


def test_times_are_those_of_the_server_whenever_messages_arrive():
    late = np.random.default_rng(0).uniform(0.001, 0.015, 50)
    late[7] = 0.001
    shot = history_of(["ok"] * 50, lambda k: late[k]).snapshot(101.0)
    np.testing.assert_allclose(np.diff(shot.x), 0.02, atol=0.0151)
    np.testing.assert_allclose(shot.x[8:], 0.02 * np.arange(8, 50) + 0.001 - 1.0, atol=1e-9)


def test_stretches_join_decodes_of_one_reason():
    reasons = ["warming up"] * 3 + ["ok"] * 4 + ["gap"] * 2 + ["ok"]
    shot = history_of(reasons).snapshot(100.2)
    assert [s.reason for s in shot.stretches] == ["warming up", "ok", "gap", "ok"]
    for left, right in zip(shot.stretches, shot.stretches[1:], strict=False):
        assert left.right == pytest.approx(right.left)
    gap = shot.stretches[2]
    assert gap.right - gap.left == pytest.approx(0.04)
    assert shot.since_s == pytest.approx(100.2 - (100.0 + 9 * 0.02 + 0.001))


def test_silence_is_a_stretch_of_its_own():
    shot = history_of(["ok"] * 5).snapshot(103.0)
    assert shot.stretches[-1].reason == "no decodes"
    assert shot.stretches[-1].right == 0.0
    assert shot.silent_s == pytest.approx(103.0 - 100.081)
    assert stretches_of(np.zeros(0), [], 9.0) == []


def test_a_new_server_starts_a_new_history():
    history = history_of(["ok"] * 20)
    history.add(decode(0, "stale", pub_ns=7), 200.0)
    shot = history.snapshot(200.0)
    assert [d.reason for d in shot.decodes] == ["stale"]
    assert shot.x[0] == 0.0


def test_values_become_lines_and_what_is_missing_is_nan():
    values = [
        {"v": Value(mean=[1.0, 2.0], sd=[0.1, 0.2]), "h": Value(angle=np.pi / 2, r=1.0),
         "c": Value(p=[0.3, 0.7], label="x")},
        {}, {"v": Value(mean=[3.0], sd=[]), "h": Value(p=[1.0]), "c": Value(mean=[1.0])},
    ]
    history = History()
    for k, value in enumerate(values):
        history.add(decode(k, values=value), 100.0 + k * 0.02)
    shot = history.snapshot(100.1)
    mean, sd = shot.continuous(ModalityStatus("v", "continuous", 2))
    np.testing.assert_array_equal(mean, [[1, np.nan, 3], [2, np.nan, np.nan]])
    np.testing.assert_array_equal(sd[0], [0.1, np.nan, np.nan])
    np.testing.assert_allclose(shot.angle(ModalityStatus("h", "circular", 2)),
                               [90, np.nan, np.nan])
    p = shot.probabilities(ModalityStatus("c", "categorical", 2))
    np.testing.assert_array_equal(p, [[0.3, np.nan, np.nan], [0.7, np.nan, np.nan]])


def raster(bins, rows=2):
    cells = bytes((k + r) % 250 for k in bins for r in range(rows))
    return RasterStatus(rows, rows, list(bins), [0] * len(bins), cells)


def test_rasters_that_overlap_become_one_picture():
    history = RasterHistory(window_s=0.2)
    history.add(raster(range(3, 8)), 0.02)
    history.add(raster(range(5, 11)), 0.02)
    history.add(raster(range(13, 15)), 0.02)  # two that were not seen
    counts, newest = history.picture(0.02)
    assert newest == 14
    assert counts.shape == (2, 10)
    np.testing.assert_array_equal(counts[0], [5, 6, 7, 8, 9, 10, 0, 0, 13, 14])
    history.add(raster(range(2)), 0.02)  # another session
    counts, newest = history.picture(0.02)
    assert newest == 1
    assert counts[0].tolist() == [0] * 8 + [0, 1]


def test_many_bins_share_columns():
    history = RasterHistory(window_s=10.0)
    history.add(raster(range(100)), 0.005)
    counts, _ = history.picture(0.005)
    assert counts.shape[1] == 500
    assert counts[0].sum() == min(255, 99 + 98 + 97 + 96) + sum(
        min(255, sum(range(k, k + 4))) for k in range(0, 96, 4))


@pytest.mark.parametrize(("reasons", "now", "word", "tab"), [
    (["ok"] * 3, 100.1, "DECODES VALID", "●"),
    (["ok", "gap"], 100.1, "DECODES NOT VALID: gap", "✕"),
    (["ok"] * 3, 104.0, "NOT VALID HERE: the server sends, none arrives", "✕"),
])
def test_banner(reasons, now, word, tab):
    html, title = cards.banner(history_of(reasons).snapshot(now), status_of(), 0.1)
    assert word in html
    assert title.startswith(tab)


def test_banner_without_a_server():
    nothing = History().snapshot(1.0)
    assert "NO SERVER" in cards.banner(nothing, None, float("inf"))[0]
    gone = history_of(["ok"]).snapshot(110.0)
    html = cards.banner(gone, status_of(), 9.0)[0]
    assert "NOT VALID: server silent" in html
    assert "no status for 9 s" in html
    assert "pictures below are 7 s old" in cards.banner(gone, status_of(), 0.1, 7.3)[0]


def test_a_probe_is_red_when_it_is_silent_or_its_status_is_old():
    live = status_of()
    assert 'class="probe live"' in cards.probes(live, 0.1)
    assert 'class="probe silent"' in cards.probes(live, 5.0)
    probe = ProbeStatus("a", "u", 4, "silent", frame_age_s=0.7)
    assert 'class="probe silent"' in cards.probes(status_of(probes=[probe]), 0.0)
    probe = ProbeStatus("a", "u", 4, "waiting", "no plugin there")
    html = cards.probes(status_of(probes=[probe]), 0.0)
    assert 'class="probe waiting"' in html
    assert "no plugin there" in html


def test_a_probe_shows_the_trouble_of_its_source_and_no_normal_work():
    work = {name: 10_000 for name in ("messages", "spikes", "blocks", "ttl_events", "fetches", "x")}
    probe = ProbeStatus("a", "u", 4, "live", counters=work | {"lost_messages": 1234},
                        trouble=["lost_messages"])
    status = status_of(probes=[probe])
    assert "lost_messages 1,234" in cards.probes(status, 0.1)
    assert "10,000" not in cards.probes(status, 0.1)
    assert '<span class=bad>a: lost_messages 1,234</span>' in cards.server(status, 0)


def test_html_in_anything_a_server_says_is_only_text():
    status = status_of(
        engine=ODD, precision=ODD, device=ODD, model=ODD, endpoint=ODD, reason=ODD, valid=False,
        counters={ODD: 3}, reasons={ODD: 3}, clocks=ODD,
        probes=[ProbeStatus(ODD, ODD, 1, ODD, ODD, counters={ODD: 1}, trouble=[ODD])],
        recorder=RecorderStatus(ODD, ODD), failover=FailoverStatus(ODD, ODD, 1, 1, ODD))
    shot = history_of([ODD]).snapshot(100.01)
    shot.decodes[-1] = decode(9, ODD, session=ODD)
    pages = [cards.banner(shot, status, 0.1)[0], cards.figures(status, 0.1),
             cards.probes(status, 0.1), cards.stages(status), cards.engine(status),
             cards.server(status, 2)]
    assert not any("<img" in page for page in pages)
    assert sum("&lt;img" in page for page in pages) == 4


def test_the_engine_has_a_card_of_its_own():
    ready = FailoverStatus("cuda", "native", 0, 2)
    html = cards.engine(status_of(device="GPU, sm90", engine="cuda", failover=ready))
    for words in ("cuda, float32", "GPU, sm90", "ab" * 6, "standby native is ready", ">2<"):
        assert words in html
    assert "class=bad" not in html
    failed = FailoverStatus("native", "", 1, 2, "the GPU is gone", True)
    html = cards.engine(status_of(failover=failed))
    assert "<span class=bad>FAILED OVER to native: the GPU is gone" in html
    assert "no status so far" in cards.engine(None)
