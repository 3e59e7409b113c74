"""Shell completion from the parsers, run by the shells that are here; examples in every help."""

import re
import shutil
import subprocess

import pytest

import neds.cli
import neds_rt.cli
from neds_rt.completion import completion_script
from neds_rt.dispatch import command_parser
from tools.check_docs import wrong_commands

PROGRAMS = {"neds": neds.cli, "neds-rt": neds_rt.cli}
COMMANDS = [(program, name) for program, cli in PROGRAMS.items() for name in cli.COMMANDS]


def completed(program, *words):
    """What bash offers after these words, the last of which is being typed."""
    script = completion_script("bash", program, PROGRAMS[program].COMMANDS)
    typed = " ".join(f"'{word}'" for word in (program, *words))
    ask = (f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _{program.replace('-', '_')}; "
           'printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-u", "-c", f"{script}\n{ask}"],
                          capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize("program", PROGRAMS)
def test_bash_completes_commands(program):
    assert completed(program, "") == [*PROGRAMS[program].COMMANDS, "--help", "--version"]
    assert completed(program, "nothing-of-the-kind") == []


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_bash_completes_every_long_option(program, name):
    parser = command_parser(program, PROGRAMS[program].COMMANDS, name)
    options = {o for a in parser._actions for o in a.option_strings if o.startswith("--")}
    assert set(completed(program, name, "--")) == options


def test_bash_completes_words_of_an_option_and_leaves_files_to_bash():
    assert completed("neds-rt", "serve", "--keep-warm", "") == ["auto", "on", "off"]
    assert completed("neds-rt", "serve", "--keep-warm", "of") == ["off"]
    assert completed("neds-rt", "completion", "z") == ["zsh"]
    assert completed("neds-rt", "serve", "--model", "") == []
    assert completed("neds", "train", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_command_prints_what_a_shell_can_read(program, shell, capsys):
    assert PROGRAMS[program].main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in PROGRAMS[program].COMMANDS:
        assert re.search(rf"\b{name}\b", script)
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True,
                              timeout=20)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_help_has_an_example_that_could_be_typed(program, name):
    text = command_parser(program, PROGRAMS[program].COMMANDS, name).description
    examples = re.findall(rf"^ {{2,}}(?:echo '.*|(?:torchrun .* -m )?{program} {name} .*(?:\\\n.*)*"
                          rf"|{program} {name})$", text, re.M)
    assert examples, "no example in the help"
    for example in examples:
        assert list(wrong_commands(example)) == []
