"""Print a script that teaches a shell the commands of `neds` and their options.

It is made from the commands' own parsers, so it has what this version has; make it anew after an
update. Lines to have it in every new shell:

    echo 'source <(neds completion bash)' >> ~/.bashrc
    neds completion zsh > "${fpath[1]}/_neds"
    neds completion fish > ~/.config/fish/completions/neds.fish
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `neds completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell's script")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from neds.cli import COMMANDS
    from neds_rt.completion import completion_script

    print(completion_script(args.shell, "neds", COMMANDS), end="")
    return 0
