"""Print a script that teaches a shell the commands of `neds-rt` and their options.

It is made from the commands' own parsers, so it has what this version has; make it anew after an
update. Lines to have it in every new shell:

    echo 'source <(neds-rt completion bash)' >> ~/.bashrc
    neds-rt completion zsh > "${fpath[1]}/_neds-rt"
    neds-rt completion fish > ~/.config/fish/completions/neds-rt.fish
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds-rt completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell's script")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from neds_rt.cli import COMMANDS
    from neds_rt.completion import completion_script

    print(completion_script(args.shell, "neds-rt", COMMANDS), end="")
    return 0
