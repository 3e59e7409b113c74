"""The exception tree both commands share, and the exit code each kind ends with.

    NedsError            exit 2, one line, no traceback
    ├── BadInput         a file, argument, endpoint or bundle that is not what it should be
    ├── StartError       exit 3: everything was well formed but the program could not start
    ├── CheckFailed      exit 4: the program ran and failed its own check
    └── EngineFailed     exit 4: an engine raised while it was served
"""


class NedsError(Exception):
    """An error the user can act on; its text is one line, printed without a traceback."""

    exit_code = 2


class BadInput(NedsError):
    """Input that is not what it should be: says where, which field, what was found and expected."""

    def __init__(self, where: object, field: str, found: object, expected: str) -> None:
        super().__init__(one_line(f"{where}: {field}: found {found}, expected {expected}"))


class StartError(NedsError):
    """A well-formed request that cannot be started, for example because a port is in use."""

    exit_code = 3


class CheckFailed(NedsError):
    """The program ran and missed its own target."""

    exit_code = 4


class EngineFailed(NedsError):
    """An engine raised, or gave something that is no output, after serving had begun."""

    exit_code = 4

    def __init__(self, engine: str, error: BaseException) -> None:
        super().__init__(one_line(f"engine {engine} failed: {type(error).__name__}: {error}"))


def one_line(text: str) -> str:
    """Return `text` in one line, without the codes that a terminal or a log would act upon."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
