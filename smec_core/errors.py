"""The kinds of failure that a user can act on; anything else is a defect."""

from collections.abc import Mapping
from typing import Any

from smec_core.masking import mask
from smec_core.shown import safe_line

LONGEST_REASON = 1000
"""Characters of what a library says that a message of ours repeats."""


class SmecError(Exception):
    """A run failed. The message is one line: what failed and what to do.

    Whatever it repeats of a file or of a library, it can be shown as it is: secrets are masked, and what a terminal
    would obey is escaped.
    """

    exit_code = 1
    """Of a command that ends by it."""
    figures: Mapping[str, Any] | None = None
    """What the command has to say all the same, for --json."""

    def __str__(self) -> str:
        return safe_line(self.message())

    def message(self) -> str:
        """What it is made of."""
        return super().__str__()


class InputError(SmecError):
    """Bad usage or bad input: a file, row, column or config key that must be fixed first."""

    exit_code = 2


class RowError(InputError):
    """A row of a file that cannot be used, and why."""

    def __init__(self, file: str, row: int, column: str, why: str) -> None:
        # all of them as arguments, so that it can be pickled
        super().__init__(file, row, column, why)
        self.place = f"{file}: row {row}"
        self.reason = f"column {column}: {why}"

    def message(self) -> str:
        """Where, and why."""
        return f"{self.place}, {self.reason}"


class DamagedError(InputError):
    """Stored state that is not what was written. Trying again does not help."""

    def __init__(self, path: str, problem: str, cure: str = "restore it from a copy") -> None:
        # all of them as arguments, so that it can be pickled
        super().__init__(path, problem, cure)
        self.path, self.problem, self.cure = path, problem, cure

    def message(self) -> str:
        """Where, what, and what to do."""
        return f"{self.path}: {self.problem}; {self.cure}"


class LeaseError(SmecError):
    """Another training has the run of this name, or took it over."""

    exit_code = 4


class StoreError(InputError, OSError):
    """An object store refuses: no access, no such bucket, a key that cannot be.

    It is also an OSError, so that callers that read or write can catch it and add to the message.
    """


class StoreUnreachable(SmecError, OSError):
    """An object store does not answer; a later try may succeed."""


class GateError(SmecError):
    """A new model was refused, and the one before it stays in force."""

    exit_code = 3
    figures: Mapping[str, Any]

    def __init__(self, message: str, figures: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


def extra(name: str) -> str:
    """How an extra of this package is installed, for messages: the package is on no index."""
    return f"pip install -e '.[{name}]' in the clone of smec, or 'FILE.whl[{name}]' of the wheel"


def one_line(error: BaseException) -> str:
    """The message of an error, which libraries break into lines, as one that may be shown and stored."""
    return safe_line(" ".join(mask(str(error)).split()), LONGEST_REASON) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, of libraries that say the rest to developers, as it may be shown."""
    return safe_line((str(error).strip().splitlines() or [type(error).__name__])[0], LONGEST_REASON)
