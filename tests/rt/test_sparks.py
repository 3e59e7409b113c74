"""Decodes in the terminal: curves by time, red where not valid, and where they come from."""

import numpy as np
import pytest
from rich.console import Console

from neds_rt.dashboard.history import History
from neds_rt.errors import BadInput
from neds_rt.sparks import BLOCKS, NO_VALUE, NOT_VALID, VALID, spark, traces
from neds_rt.status import FailoverStatus, ModalityStatus
from neds_rt.terminal import Decodes, render
from neds_rt.wire import Value
from neds_rt.words import engine_rows
from tests.rt.serving import wait_for
from tests.rt.test_dashboard import decode
from tests.rt.test_status import status_of
from tests.rt.watched import Watched

KINDS = [ModalityStatus("velocity", "continuous", 2, "cm/s"),
         ModalityStatus("heading", "circular", 2),
         ModalityStatus("choice", "categorical", 2, "", ["left", "right"])]


def styles(text):
    """The style of every character."""
    found = [""] * len(text.plain)
    for span in text.spans:
        found[span.start : span.end] = [str(span.style)] * (span.end - span.start)
    return found


def printed(thing, width=110):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(thing)
    return console.export_text()


def test_a_character_is_a_stretch_of_time():
    x = np.array([-9.9, -5.5, -5.1, -1.5, -0.5])
    values = np.array([0.0, 3.0, 7.0, np.nan, 3.5])
    valid = np.array([True, True, False, True, True])
    text = spark(x, values, valid, 10, 0.0, 7.0)
    # The last value counts; one that is missing is a dot, a stretch without decodes is blank.
    assert text.plain == "▁   █   " + NO_VALUE + "▅"
    assert [s for s, c in zip(styles(text), text.plain, strict=True) if c != " "] == [
        VALID, NOT_VALID, VALID, VALID]


def test_what_is_older_or_outside_or_all_the_same_is_drawn_somewhere_sane():
    x, valid = np.array([-50.0, -1e-9, 0.0]), np.ones(3, bool)
    assert spark(x, np.array([1.0, 2.0, 99.0]), valid, 4, 2.0, 2.0).plain == "   " + BLOCKS[0]
    assert spark(np.zeros(0), np.zeros(0), np.zeros(0, bool), 4, 0.0, 1.0).plain == " " * 4


def shot_of(values, reasons, now=100.2):
    history = History()
    for k, (value, reason) in enumerate(zip(values, reasons, strict=True)):
        history.add(decode(k, reason, values=value), 100.0 + 0.02 * k)
    return history.snapshot(now)


VALUES = [{"velocity": Value(mean=[float(k), -1.0], sd=[]), "heading": Value(angle=0.5 * k, r=1.0),
           "choice": Value(p=[0.1, 0.9] if k else [0.8, 0.2], label="")} for k in range(4)]


def test_every_behaviour_has_its_lines_and_newest_values():
    text = printed(traces(shot_of(VALUES, ["ok"] * 4), KINDS, 20))
    for line in ("velocity 0", "velocity 1", "3 cm/s", "-1 cm/s", "85.9°", "right 0.9"):
        assert line in text
    many = printed(traces(shot_of(VALUES, ["ok"] * 4), KINDS * 4, 20))
    assert "and 8 more" in many
    nothing = printed(traces(History().snapshot(1.0), KINDS, 20))
    assert "left –" in nothing


def test_the_picture_says_why_decodes_are_not_valid():
    shot = shot_of(VALUES, ["ok", "ok", "ok", "drift"])
    text = printed(render(status_of(modalities=KINDS), 0.1, shot))
    assert "decodes, last 10.0 s: drift" in text
    assert "velocity 1" in text
    assert "no decodes" in printed(render(status_of(modalities=KINDS), 0.1, shot_of(
        VALUES, ["ok"] * 4, now=105.0)))
    assert "velocity" not in printed(render(status_of(modalities=KINDS), 0.1))
    assert "keys, please" in printed(render(status_of(), 0.1, None, "keys, please"))


@pytest.mark.parametrize("width", [20, 40, 80, 300])
def test_it_fits_any_terminal(width):
    shot = shot_of(VALUES, ["ok"] * 4)
    text = printed(render(status_of(modalities=KINDS), 0.1, shot, width=width), width)
    assert max(map(len, text.splitlines())) <= width


def test_names_are_only_text():
    odd = [ModalityStatus("[red]x[/red]", "continuous", 1, "[bold]")]
    shot = shot_of([{"[red]x[/red]": Value(mean=[1.0], sd=[])}], ["[blink]"])
    text = printed(render(status_of(modalities=odd), 0.1, shot))
    for word in ("[red]x[/red]", "1 [bold]", "[blink]"):
        assert word in text


def test_decodes_are_those_of_the_server_that_the_status_names(tmp_path):
    with Watched(tmp_path) as rig, Decodes("auto") as decodes:
        status = status_of(endpoint=rig.decodes)
        wait_for(lambda: len(decodes.shot(status).decodes) > 5)
        assert decodes.shot(status).last.valid is not None
        assert decodes.note == ""
    with Decodes("off") as decodes:
        assert decodes.shot(status) is None


def test_a_server_elsewhere_needs_keys_and_says_so():
    with Decodes("auto") as decodes:
        assert decodes.shot(status_of(endpoint="tcp://192.0.2.1:5580")) is None
        assert "--curve-key" in decodes.note
    with pytest.raises(BadInput, match="tcp://HOST:PORT"):
        Decodes("nonsense")


@pytest.mark.parametrize(("failover", "words", "bad"), [
    (FailoverStatus("cuda", "native"), "standby native is ready", False),
    (FailoverStatus("native"), "no standby", False),
    (FailoverStatus("native", "", 1, 0, "the GPU is gone", True),
     "FAILED OVER to native: the GPU is gone, 1 so far", True),
    (FailoverStatus("cuda", "native", 2, 3, "why"), "standby native is ready, 2 so far", False),
])
def test_the_state_of_the_engine_in_words(failover, words, bad):
    rows = {name: (text, wrong) for name, text, wrong in engine_rows(
        status_of(failover=failover, device="CPU, avx2"))}
    assert rows["fail-over"] == (words, bad)
    assert rows["device"] == ("CPU, avx2", False)
    assert rows["engine"] == ("native, float32", False)
    assert rows["model"] == ("ab" * 6, False)
    assert rows["swaps so far"] == (str(failover.swaps), False)
