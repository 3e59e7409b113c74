"""The command `neds`: a table of sub-commands, each in its own module, imported when called."""

from __future__ import annotations

import sys

from neds_rt.dispatch import run_command

COMMANDS = {
    "prepare": ("neds.commands.prepare", "read recordings into the session store"),
    "templates": ("neds.commands.templates", "templates of sorted units, to find them live"),
    "detect": ("neds.commands.detect", "find sorted units in a raw recording as live"),
    "synth": ("neds.commands.synth", "make synthetic animals with known rates"),
    "train": ("neds.commands.train", "train a model on one recording"),
    "pretrain": ("neds.commands.pretrain", "train one model on many animals"),
    "finetune": ("neds.commands.finetune", "teach a pretrained model new sessions"),
    "calibrate": ("neds.commands.calibrate", "a decoder for a new animal from minutes of data"),
    "evaluate": ("neds.commands.evaluate", "score a trained model on held-back data"),
    "regions": ("neds.commands.regions", "read brain regions from unit embeddings"),
    "sweep": ("neds.commands.sweep", "search the best recipe with Optuna"),
    "export": ("neds.commands.export", "freeze a model and one animal into a bundle"),
    "export-trt": ("neds.commands.export_trt", "the same with TensorRT plans for GPUs"),
    "info": ("neds.commands.info", "describe a session, checkpoint or bundle"),
    "completion": ("neds.commands.completion", "print a script for the shell's completion"),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of `neds`; returns the exit code."""
    return run_command("neds", COMMANDS, sys.argv[1:] if argv is None else argv)
