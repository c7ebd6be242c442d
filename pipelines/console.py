"""What a person, or a log collector, reads while a job runs; always on stderr, since stdout is for results.

All of it goes through the logger `smec`. One handler writes lines for people, styled on a terminal; with SMEC_LOG=json
in the environment another writes each event as one line of JSON: `time`, `level`, `message`, what the process is at
(`command`, `run`), and of a training its pass, stage and step.

Nothing goes out raw, whoever says it: secrets are masked, and what a terminal would obey or a log take for the start of
a line is escaped (smec_core/shown.py), in our lines and tables as in those of libraries.
"""

import json
import logging
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from pipelines import signals
from smec_core.errors import InputError
from smec_core.shown import safe_line, safe_lines
from smec_core.training.tracker import Record, StepCount

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table
    from rich.text import Text

LOGGER, INDENT = "smec", "    "
PLACE = ("pass", "stage", "projection", "epoch", "step")
STYLES = {logging.INFO: ("", None), logging.WARNING: ("warning: ", "yellow"), logging.ERROR: ("smec: ", "red")}
"""What a line for people begins with, and its colour."""

# of the process and not of a thread: the threads that send figures or hold a lease speak of the same run
_fields: dict[str, Any] = {}
_said = {"at": 0.0}
"""When the last line was written, by the monotonic clock."""


@cache
def _kind() -> "type[Console]":
    from rich.console import Console

    class SafeConsole(Console):
        """Prints text, also in tables, as it is: without markup, names of emoji, and what a terminal would obey."""

        def render_str(self, text: str, **options: Any) -> "Text":
            """Makes a text that can be styled."""
            return super().render_str(safe_line(text), **options | {"markup": False, "emoji": False})

    return SafeConsole


@cache
def console() -> "Console":
    """The one console, on stderr: stdout is for results."""
    return _kind()(stderr=True, highlight=False, soft_wrap=True)


def is_json() -> bool:
    """Whether SMEC_LOG asks for lines of JSON."""
    return os.environ.get("SMEC_LOG") == "json"


class RichHandler(logging.Handler):
    """Writes lines for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        _said["at"] = time.monotonic()
        if not is_json():
            for line in _traceback(record):
                console().print(f"{INDENT}{line}")
            start, style = STYLES.get(record.levelno, ("", None))
            console().print(f"{start}{safe_line(record.getMessage())}", style=style)


class JsonHandler(logging.Handler):
    """Writes lines of JSON, those of libraries with the name of their logger."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        if not is_json():
            return
        fields: dict[str, Any] = getattr(record, "fields", {"logger": record.name})
        now, level = datetime.now(UTC).isoformat(timespec="milliseconds"), record.levelname.lower()
        event = {"time": now, "level": level, **_fields, **fields, "message": record.getMessage()}
        shown = {name: _plain(value) for name, value in event.items()}
        if lines := _traceback(record):
            shown["traceback"] = "\n".join(lines)
        # in one piece: other threads write, too
        sys.stderr.write(json.dumps(shown) + "\n")
        sys.stderr.flush()


def _plain(value: Any) -> Any:
    """What JSON has: it has no NaN."""
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return safe_line(str(value))


def _traceback(record: logging.LogRecord) -> list[str]:
    """The lines of a record's traceback."""
    if not record.exc_info or record.exc_info[0] is None:
        return []
    return safe_lines("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))


class SafeRecord(logging.LogRecord):
    """What a library logs, by whatever handler: the first line is its own, and all others are indented."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.name != LOGGER and (lines := _traceback(self)):
            # handlers take it from here
            self.exc_text = "\n".join(f"{INDENT}{line}" for line in lines)

    def getMessage(self) -> str:
        """The message."""
        text = super().getMessage()
        return text if self.name == LOGGER else f"\n{INDENT}".join(safe_lines(text))


# in the processes of Ray's workers, too, whose logs Ray keeps and shows
logging.setLogRecordFactory(SafeRecord)
log = logging.getLogger(LOGGER)
"""Where all lines go."""
log.setLevel(logging.INFO)
log.propagate = False
log.handlers = [RichHandler(), JsonHandler()]


@contextmanager
def context(**fields: str) -> Iterator[None]:
    """Adds fields, as `run`, to every line of JSON until it ends, and to that of the error that ends it."""
    before = dict(_fields)
    _fields.update(fields)
    try:
        yield
    except BaseException as error:
        error.__dict__.setdefault("said_in", dict(_fields))
        raise
    finally:
        _fields.clear()
        _fields.update(before)


def say(text: str, **fields: Any) -> None:
    """Prints a line of progress; `fields` are for JSON."""
    log.info(text, extra={"fields": fields})


def warn(text: str) -> None:
    """Prints a warning."""
    log.warning(text, extra={"fields": {}})


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Says after each few seconds without a line what goes on, where that cannot tell how far it is."""
    ended, started = threading.Event(), time.monotonic()

    def tell() -> None:
        # after a signal only its own line is said
        while not ended.wait(RowProgress.EVERY_SECONDS / 5) and not signals.came():
            now = time.monotonic()
            # a little later than what can tell more
            if now - max(started, _said["at"]) > 1.3 * RowProgress.EVERY_SECONDS:
                say(f"{what}, {now - started:,.0f} s so far")

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def say_failed(error: BaseException, text: str) -> None:
    """Prints why a command ends."""
    exc_info = error if os.environ.get("SMEC_DEBUG") == "1" else None
    log.error(text, exc_info=exc_info, extra={"fields": getattr(error, "said_in", {})})


def show(table: "Table") -> None:
    """Prints a result on stdout."""
    printer, bare = _kind()(highlight=False), copy(table)
    bare.title = bare.caption = None
    # a line each: broken at words, one of a foreign name could begin a line
    if table.title:
        printer.print(table.title, style="italic", soft_wrap=True)
    if not printer.is_terminal:  # a log has no edge, at which digits would be cut off
        wide = printer.options.update(width=10_000)
        printer.width = max(printer.width, printer.measure(bare, options=wide).maximum)
    printer.print(bare)
    if table.caption:
        printer.print(table.caption, style="dim italic", soft_wrap=True)


def begin(command: str) -> None:
    """Prepares the process of a command for its output.

    Raises:
        InputError: SMEC_LOG has an unknown value.
    """
    asked = os.environ.get("SMEC_LOG", "")
    if asked not in ("", "text", "json"):
        raise InputError(f"SMEC_LOG={asked}: unknown; text, the default, or json")
    _fields["command"] = command
    # matplotlib warns at length where the home folder cannot be written to
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.formatwarning = _format_warning
    threading.excepthook = lambda args: _say_defect(args.exc_value)
    sys.excepthook = lambda kind, error, frames: _say_defect(error)
    if is_json():
        logging.basicConfig(handlers=[JsonHandler()], level=logging.WARNING, force=True)
        logging.captureWarnings(True)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{INDENT}{category.__name__}: {safe_line(str(message))}\n"


def _say_defect(error: BaseException | None) -> None:
    log.error(f"unexpected {type(error).__name__}: {error}", exc_info=error, extra={"fields": {}})


def adopt_loggers() -> None:
    """Gives what the libraries imported so far log the form of our lines, if that is JSON."""
    if not is_json():
        return
    for logger in map(logging.getLogger, list(logging.root.manager.loggerDict)):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                logger.propagate = True


class Progress:
    """The latest step of a training: a live line on a terminal, a line every five seconds elsewhere."""

    EVERY_SECONDS = 5.0

    def __init__(self, stages: Sequence[tuple[str, int, int]] = ()) -> None:
        """Takes pass, dim and most steps of each stage."""
        self._count = StepCount(stages)
        self._first: tuple[float, int] | None = None
        self._status: Status | None = None
        self._printed = -self.EVERY_SECONDS

    def __enter__(self) -> Self:
        if not is_json() and console().is_terminal:
            self._status = console().status("waiting for the workers")
            self._status.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, record: Record) -> None:
        """Takes one record of the training; those without a loss are not shown."""
        done, step, now = self._count.add(record), int(record["step"]), time.monotonic()
        if "loss" not in record:
            return
        started, first = self._first = self._first or (now, step)
        # after a loss of workers steps are taken again
        rate = max(step - first, 0) / max(now - started, 1e-9)
        left = (
            f", at this pace at most {(self._count.total - done) / rate:,.0f} s to go"
            if rate and self._count.total
            else ""
        )
        text = (
            f"{record['pass']} pass, stage {record['stage']}, {record['projection']}, epoch {record['epoch']}, "
            f"step {record['step']}: loss {record['loss']:.4f}, {record['rows_per_s']:.0f} rows/s{left}"
        )
        if self._status is not None:
            _said["at"] = time.monotonic()
            self._status.update(console().render_str(text))
        elif time.monotonic() - self._printed > self.EVERY_SECONDS:
            say(text, **{name: record[name] for name in (*PLACE, "loss", "rows_per_s")})
            self._printed = time.monotonic()


class RowProgress:
    """Says every few seconds how far a job is, and how long it still takes."""

    EVERY_SECONDS = 5.0

    def __init__(self, verb: str, total: int, unit: str = "rows") -> None:
        self.verb, self.unit = verb, unit
        self.total = total
        self.rows = 0
        self._started = self._said = time.perf_counter()

    def leave_out(self, rows: int) -> None:
        """Rows that are done already."""
        self.total -= rows
        say(f"{rows:,} {self.unit} were {self.verb} by an earlier start")

    def add(self, rows: int) -> None:
        """Counts rows, and says so when it is time."""
        self.rows += rows
        now = time.perf_counter()
        if now - self._said >= self.EVERY_SECONDS and self.rows < self.total:
            self._said = now
            rate = self.rows / (now - self._started)
            left, unit = (self.total - self.rows) / max(rate, 1), self.unit
            say(f"{self.verb} {self.rows:,} of {self.total:,} {unit}, {rate:,.0f} {unit}/s, {left:,.0f} s to go")


class Pace:
    """How long what is left may take, by what was done since this was made."""

    def __init__(self) -> None:
        self._started, self._done = time.monotonic(), 0

    def done(self, left: int) -> str:
        """Counts one as done; says how many are left and for how long."""
        self._done += 1
        seconds = (time.monotonic() - self._started) / self._done * left
        return f"{left} to go" + (f", about {seconds:,.0f} s" if left else "")
