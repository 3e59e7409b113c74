"""How long the server waits for a bin before it calls the input stale."""

import pytest

from neds_rt.patience import BLOCK, Patience

MS = 1_000_000
BIN = 20 * MS


def learned(waits, blocks=2):
    patience = Patience(BIN)
    for _ in range(blocks):
        for k in range(BLOCK):
            patience.waited(waits[k % len(waits)] * MS)
    return patience.limit_ns / MS


@pytest.mark.parametrize(("waits", "limit"), [
    ([20], 40),  # a bin at a time: two bins
    ([23, 23, 23, 46], 69),  # in blocks of an acquisition program
    ([20] * 31 + [900], 40),  # with two stalls a block
    ([20] * 14 + [900], 40),  # with five
    ([20] * 9 + [60], 90),  # six waits of a block are its way
    ([700], 500),  # never longer than this
])
def test_it_follows_the_source(waits, limit):
    assert learned(waits) == limit


def test_it_is_generous_before_it_knows_better_and_slow_to_forget():
    patience = Patience(BIN)
    assert patience.limit_ns == 500 * MS
    for wait in [100] * BLOCK + [20] * BLOCK:
        patience.waited(wait * MS)
    assert patience.limit_ns == 150 * MS  # of the block before
    for _ in range(BLOCK):
        patience.waited(20 * MS)
    assert patience.limit_ns == 40 * MS


def test_bins_that_come_together_are_no_backlog():
    patience = Patience(BIN)
    for _ in range(2 * BLOCK):
        patience.waited(10 * MS, bins=5)  # a recording played at ten times its speed
    assert patience.limit_ns == 150 * MS
    assert patience.backlog == 7


def test_a_number_is_kept_to():
    patience = Patience(BIN, 0.3)
    for _ in range(3 * BLOCK):
        patience.waited(20 * MS)
    assert patience.limit_ns == 300 * MS
    assert Patience(BIN, 1e-6).limit_ns == 25 * MS
