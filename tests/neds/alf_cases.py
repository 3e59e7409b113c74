"""A made IBL session in ALF: two probes, trials of every fate, a wheel and both cameras."""

import numpy as np

SUBJECT, DATE = "MM_007", "2024-05-06"
TRIALS = 30


def trials_table(seed=0):
    """30 trials, of which seven are bad in one way each (`BAD` says which and how)."""
    rng = np.random.default_rng(seed)
    stim = 5 + np.arange(TRIALS) * 3.0 + rng.uniform(0, 0.3, TRIALS)
    stim[12] = stim[11] + 1.7  # its window overlaps the one before
    table = {
        "stimOn_times": stim, "goCue_times": stim + 0.001, "firstMovement_times": stim + 0.3,
        "feedback_times": stim + 0.6, "response_times": stim + 0.6,
        "feedbackType": np.where(np.arange(TRIALS) % 5, 1.0, -1.0),
        "choice": np.where(np.arange(TRIALS) % 2, 1.0, -1.0),
        "probabilityLeft": np.repeat([0.5, 0.2, 0.8], TRIALS // 3),
        "contrastLeft": np.where(np.arange(TRIALS) % 2, 0.25, np.nan),
        "contrastRight": np.where(np.arange(TRIALS) % 2, np.nan, 1.0),
        "rewardVolume": np.where(np.arange(TRIALS) % 5, 1.5, 0.0),
        "intervals": np.stack([stim - 0.6, stim + 1.4], axis=1),
    }
    table["firstMovement_times"][2] = stim[2] - 0.1
    table["firstMovement_times"][3] = stim[3] + 10.5
    table["feedback_times"][4] = stim[4] + 11
    table["stimOn_times"][5] = np.nan
    table["choice"][6] = 0
    table["firstMovement_times"][7] = np.nan
    table["goCue_times"][8] = np.nan  # not asked for: kept
    table["probabilityLeft"][9] = np.nan
    return table


BAD = {2: "moved before", 3: "first movement", 4: "feedback more", 5: "no stimOn_times",
       6: "no choice", 7: "no firstMovement_times", 9: "no probabilityLeft"}


def write(folder, prefix, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{prefix}{name}.npy", array)


def make_alf(root, seed=0, seconds=100.0, cameras=("left", "right"), number="001"):
    """Write the session below `root` and return its folder."""
    rng = np.random.default_rng(seed)
    folder = root / "lab" / "Subjects" / SUBJECT / DATE / number
    for probe in range(2):
        n = 6
        times = np.sort(rng.uniform(0, seconds, 4000))
        clusters = rng.integers(0, n, len(times))
        clusters[clusters == 4] = 0  # cluster 4 never fires
        at = folder / "alf" / f"probe{probe:02d}" / "pykilosort"
        write(at, "", {
            "spikes.times": times, "spikes.clusters": clusters.astype(np.uint16),
            "clusters.channels": np.arange(n) * 2, "clusters.depths": np.arange(n) * 20.0})
        if probe == 0:
            write(at, "", {"channels.brainLocationAcronyms_ccf_2017":
                           np.array(["CA1"] * 6 + ["DG"] * 6)})
    alf = folder / "alf"
    write(alf, "_ibl_trials.", trials_table(seed))
    ticks = np.sort(rng.uniform(0.5, seconds - 0.5, 6000))
    write(alf, "_ibl_wheel.", {"timestamps": ticks, "position": np.cumsum(
        rng.standard_normal(len(ticks))) * 0.01})
    for view, rate in (("left", 60.0), ("right", 150.0)):
        if view in cameras:
            times = np.arange(0.2, seconds, 1 / rate)
            write(alf, f"_ibl_{view}Camera.", {"times": times})
            write(alf, f"{view}Camera.", {"ROIMotionEnergy": rng.random(len(times)) + (
                10 if view == "right" else 0)})
    return folder
