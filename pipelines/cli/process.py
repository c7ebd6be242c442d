"""The process of a command: its signals, its streams, its end. Whatever calls a job otherwise has none of this."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn, TextIO

from pipelines import signals
from smec_core.temporary import keep_own_folder

STDOUT, STDERR = 1, 2
READER_GONE = (errno.EPIPE, errno.EIO)
"""What a write meets when whoever read a pipe, or the terminal, is gone."""


def main() -> NoReturn:
    """Entry point of `smec`: runs the command, and ends the process with its exit code."""
    signals.install()
    # a cluster is what a job connects to: Ray's first call is not to start one of its own
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    code = 1
    with suppress(KeyboardInterrupt):
        _open_streams()
        keep_own_folder()
        code = _run()
    while True:
        # a signal may still come; once `end` has begun it changes the exit code no more
        with suppress(KeyboardInterrupt):
            signals.end(code)


def _run() -> int:
    try:
        from pipelines.cli.main import app

        app()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"smec: the output cannot be written ({error.strerror})", file=sys.stderr)
        code = code or 1
    return code


class _Stream(io.FileIO):
    """A stream whose reader may go: what a job makes is in files, so it goes on without its lines."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: Any) -> int:
        """Writes, or drops, bytes."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in READER_GONE:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            elif self.fileno() != STDERR:
                # a full disk
                raise
            return len(data)


def _open_streams() -> None:
    """Opens what is closed, before a file of the job gets its number, and outlasts readers that go."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # the lowest number that is free
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _opened(STDOUT, sys.stdout), _opened(STDERR, sys.stderr)


def _opened(number: int, stream: TextIO | None) -> TextIO:
    encoding, errors = (stream.encoding, stream.errors) if stream else ("utf-8", "backslashreplace")
    buffer = io.BufferedWriter(_Stream(number))
    is_line_wise = number == STDERR or os.isatty(number)
    return io.TextIOWrapper(buffer, encoding=encoding, errors=errors, line_buffering=is_line_wise)
