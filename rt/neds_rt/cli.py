"""The command `neds-rt`: a table of sub-commands, each in its own module, imported when called."""

from __future__ import annotations

import sys

COMMANDS = {
    "demo": ("neds_rt.commands.demo", "synthetic probe, server and client, live in the terminal"),
    "serve": ("neds_rt.commands.serve", "decode a live spike stream"),
    "model": ("neds_rt.commands.model", "change the model of a running server, without a gap"),
    "replay": ("neds_rt.commands.replay", "play a prepared session as a live probe"),
    "record": ("neds_rt.commands.record", "record what sources deliver as a session"),
    "doctor": ("neds_rt.commands.doctor", "examine a rig: ports, plugins, what is mis-selected"),
    "sink": ("neds_rt.commands.sink", "carry decodes on to LSL, UDP or Open Ephys"),
    "bench": ("neds_rt.commands.bench", "measure latency beside an echo server"),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of `neds-rt`; returns the exit code."""
    from neds_rt.dispatch import run_command

    return run_command("neds-rt", COMMANDS, sys.argv[1:] if argv is None else argv)
