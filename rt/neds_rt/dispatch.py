"""Dispatch of sub-commands for `neds` and `neds-rt`: late imports, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as every other error of the commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}, see {self.prog} --help\n")


def run_command(program: str, commands: dict[str, tuple[str, str]], argv: list[str]) -> int:
    """Run `argv[0]` from the table `commands` (name -> (module, help)) and return its exit code.

    Only the chosen command's module is imported, so `--help` stays fast. A `NedsError` becomes one
    line on standard error and its own exit code; Ctrl-C ends with 130.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(program, commands))
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"{program} {version('neds')}")
        return 0
    name = argv[0]
    if name not in commands:
        print(f"{program}: unknown command {name!r}, expected one of {', '.join(commands)}",
              file=sys.stderr)
        return 2
    args = command_parser(program, commands, name).parse_args(argv[1:])
    module = importlib.import_module(commands[name][0])

    from neds_rt.errors import NedsError

    try:
        return int(module.run(args))
    except NedsError as error:
        print(f"{program} {name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def command_parser(
    program: str, commands: dict[str, tuple[str, str]], name: str
) -> argparse.ArgumentParser:
    """Return the parser of one command of the table; its module is imported."""
    module = importlib.import_module(commands[name][0])
    parser = _Parser(
        prog=f"{program} {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def _overview(program: str, commands: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, commands)) + 2
    lines = [f"usage: {program} COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<{width}}{text}" for name, (_, text) in commands.items()]
    lines += ["", f"`{program} COMMAND --help` lists the options of one command."]
    return "\n".join(lines)
