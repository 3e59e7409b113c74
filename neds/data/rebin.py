"""Counts in larger bins, for recordings that come already binned.

A coarse bin K of factor f holds the bins f K .. f K + f - 1 of the absolute grid, so sessions that
are rebinned alike share one grid with each other and with the runtime. Behaviours keep their own
time stamps: `Session.binned` then takes them at the end of the coarse bin.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from neds.data.session import Counts, Session
from neds_rt.errors import BadInput

MOST = int(np.iinfo(np.uint16).max)
"""Counts saturate here, as binning of spike events does."""


def rebin_factor(session: Session, bin_size_s: float) -> int:
    """How many bins of a binned recording make one of `bin_size_s` seconds; 1 for spike events.

    Raises `BadInput` unless it is a whole number.
    """
    if not isinstance(session.spikes, Counts):
        return 1
    own = session.spikes.bin_size_s
    factor = round(bin_size_s / own)
    if factor < 1 or abs(bin_size_s - factor * own) > 1e-6 * bin_size_s:
        raise BadInput(session.session, "bin_size_s", f"bins of {own:g} s",
                       f"bins of which a whole number makes {bin_size_s:g} s")
    return factor


def rebinned(session: Session, bin_size_s: float) -> tuple[Session, int]:
    """The session in bins of `bin_size_s` seconds, and how many of its own bins were left over.

    Counts of the bins inside a coarse bin are added up; a coarse bin that a gap or a border of the
    recording cuts is left out. Spike events come back as they are. Raises `BadInput` as
    `rebin_factor` does, and when no coarse bin is whole.
    """
    factor = rebin_factor(session, bin_size_s)
    if factor == 1 or not isinstance(session.spikes, Counts):
        return session, 0
    rows, first = whole_groups(session.spikes.bin, factor)
    if not len(first):
        raise BadInput(session.session, "bin_size_s", f"no {factor} consecutive bins",
                       "a recording that holds one coarse bin")
    fine = session.spikes.counts
    summed = np.zeros((len(first), fine.shape[1]), np.int64)
    for step in range(factor):  # one pass a step: no copy of all rows in a wide type
        summed += fine[first + step]
    spikes = Counts(counts=np.minimum(summed, MOST).astype(np.uint16),
                    bin=rows, bin_size_s=bin_size_s)
    left = len(fine) - factor * len(first)
    return replace(session, spikes=spikes, domain=None), left


def whole_groups(bins: NDArray[np.int64], factor: int) -> tuple[NDArray[np.int64],
                                                               NDArray[np.int64]]:
    """Coarse bins (n,) that are wholly there, and the row (n,) at which each starts in `bins`."""
    starts = np.flatnonzero(bins % factor == 0)
    starts = starts[starts + factor <= len(bins)]
    # `bins` increases, so a group is whole when its last row is where it must be.
    starts = starts[bins[starts + factor - 1] == bins[starts] + factor - 1]
    return bins[starts] // factor, starts
