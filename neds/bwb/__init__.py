"""IBL BrainWideBench (BWB): its tasks, splits, windows, files and scores, and NEDS run on them.

Written after the benchmark's published contract (package `ibl-bwb-eval` 0.1.0) and data pipeline;
`tools/bwb_score.py` holds our files and scores against that package. `tasks` is the table that all
else reads.
"""
