"""Scripts for the completion of bash, zsh and fish, written from the parsers of the commands.

An option that takes one of several words completes to these, one that takes anything else to files.
The scripts hold all words: completing starts no Python.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable
from typing import NamedTuple

from neds_rt.dispatch import command_parser


class Option(NamedTuple):
    """One option of a command: its spellings (none for what comes without one), the words it may be
    given (none: a file), whether it takes a value at all, and its line of help."""

    spellings: tuple[str, ...]
    words: tuple[str, ...]
    takes_value: bool
    help: str


class Command(NamedTuple):
    """A command's name, line of help and options."""

    name: str
    help: str
    options: list[Option]


def completion_script(shell: str, program: str, commands: dict[str, tuple[str, str]]) -> str:
    """Return the script of `shell`, "bash", "zsh" or "fish", for all commands of `program`."""
    known = [Command(name, text, list(_options(command_parser(program, commands, name))))
             for name, (_, text) in commands.items()]
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](program, known)


def _options(parser: argparse.ArgumentParser) -> Iterable[Option]:
    for action in parser._actions:
        words = tuple(map(str, action.choices or ()))
        text = action.help or ""
        if "%" in text:  # what argparse fills in
            text = parser._get_formatter()._expand_help(action)
        yield Option(tuple(action.option_strings), words, action.nargs != 0,
                     " ".join(text.split()))


def _function(program: str) -> str:
    return "_" + re.sub(r"\W", "_", program)


def _bash(program: str, commands: list[Command]) -> str:
    cases, values = [], []
    for command in commands:
        dashed = " ".join(s for option in command.options for s in option.spellings)
        plain = " ".join(w for o in command.options if not o.spellings for w in o.words)
        cases.append(f"    {command.name}) dashed={shlex.quote(dashed)}; "
                     f"words={shlex.quote(plain)} ;;")
        for option in command.options:
            if option.spellings and option.takes_value:
                pattern = "|".join(f"{command.name}:{s}" for s in option.spellings)
                chosen = shlex.quote(" ".join(option.words))
                values.append(f"    {pattern}) words={chosen}; value=1 ;;")
    name = _function(program)
    return "\n".join([
        f"# Completion of {program} in bash.",
        f"{name}() {{",
        '  local current="${COMP_WORDS[COMP_CWORD]}" words="" dashed="" value=""',
        "  COMPREPLY=()",
        "  if ((COMP_CWORD == 1)); then",
        f"    words={shlex.quote(' '.join(c.name for c in commands) + ' --help --version')}",
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "    return",
        "  fi",
        '  case "${COMP_WORDS[1]}:${COMP_WORDS[COMP_CWORD-1]}" in',
        *values,
        "  esac",
        '  if [[ -z $value ]]; then case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac; fi",
        '  [[ -n $dashed && $current == -* ]] && words=$dashed',
        '  [[ -z $words ]] || COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        f"complete -o default -F {name} {program}",
        "",
    ])


def _zsh(program: str, commands: list[Command]) -> str:
    cases = []
    for command in commands:
        cases.append(f"    {command.name}) _arguments -s \\")
        cases += [f"      {_zsh_argument(option)} \\" for option in command.options]
        cases.append("      && return 0 ;;")
    names = [f"    {_quoted(f'{c.name}:{c.help}')}" for c in commands]
    name = _function(program)
    return "\n".join([
        f"#compdef {program}",
        f"{name}() {{",
        "  local -a commands=(",
        *names,
        "  )",
        "  if (( CURRENT == 2 )); then",
        f"    _describe '{program} command' commands",
        "    return",
        "  fi",
        "  local command=${words[2]}",
        "  shift words",
        "  (( CURRENT-- ))",
        "  case $command in",
        *cases,
        "  esac",
        "}",
        f'if [[ $funcstack[1] == {name} ]]; then {name} "$@"; else compdef {name} {program}; fi',
        "",
    ])


def _zsh_argument(option: Option) -> str:
    def plain(text: str) -> str:
        return re.sub(r"([\[\]:\\])", r"\\\1", text)

    action = f"({' '.join(plain(w) for w in option.words)})" if option.words else "_files"
    if not option.spellings:
        return _quoted(f"*:{plain(option.help)[:40]}:{action}")
    value = f":value:{action}" if option.takes_value else ""
    return " ".join(_quoted(f"*{s}[{plain(option.help)}]{value}") for s in option.spellings)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(program: str, commands: list[Command]) -> str:
    names = " ".join(c.name for c in commands)
    lines = [f"# Completion of {program} in fish.",
             f"complete -c {program} -e",
             f"complete -c {program} -n 'not __fish_seen_subcommand_from {names}' -f"]
    lines += [f"complete -c {program} -n 'not __fish_seen_subcommand_from {names}' "
              f"-a {c.name} -d {_fish_quoted(c.help)}" for c in commands]
    for command in commands:
        where = f"complete -c {program} -n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            given = [f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}"
                     for s in option.spellings]
            if option.words:
                given.append(f"{'-x ' if option.spellings else ''}"
                             f"-a {_fish_quoted(' '.join(option.words))}")
            elif option.takes_value and option.spellings:
                given.append("-r")
            if given:
                lines.append(" ".join([where, *given, "-d", _fish_quoted(option.help)]))
    return "\n".join([*lines, ""])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
