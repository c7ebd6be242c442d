"""How a command of smec ends on SIGTERM, SIGINT and SIGHUP: one line, then clean-up, then 128 and the signal's number.

Only the process of a command calls `install`; who calls a job from code of their own keeps their handlers.

The signals are blocked, in all threads, and a thread waits for them. So it does not matter what the main thread is at,
and neither Ray's own handlers nor the page that its C++ code prints on SIGTERM ever come in between. The thread says
the line and wakes the main thread, in which `Interrupted` is raised, once: further signals do not tear the clean-up
apart, until the third, or until time is up. A handler that a job sets with `signal.signal` is called as ever, in the
main thread. A signal that is ignored when the command starts, as by nohup, stays so.
"""

import atexit
import json
import os
import signal
import sys
import threading
from _thread import interrupt_main
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# ignored by whoever has no handler for it, so that it does no harm anywhere
WAKE = signal.SIGURG
PATIENCE_SECONDS = 20.0
"""How long clean-up may take; then the process ends as it is, and the next start removes what it leaves."""
FORCING = 3
"""The signal that ends the process at once: this one of those that came."""
LOOK_SECONDS = 0.25
LAST_SECONDS = 3.0
SAY_SECONDS = 2.0


class Interrupted(KeyboardInterrupt):
    """A signal has come: raised in the main thread, for what a Ctrl-C is raised for in other programs."""


def _write(text: str) -> None:
    """Prints a line without any of Python's locks."""
    line = f"smec: {text}"
    if os.environ.get("SMEC_LOG") == "json":
        line = json.dumps({"time": datetime.now(UTC).isoformat(), "level": "error", "message": text})
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


class _Ending:
    """What this process knows of the signals that it got."""

    def __init__(self) -> None:
        self.taken: list[signal.Signals] = []
        self.number: int | None = None
        self.then, self.patience = "nothing was done yet", PATIENCE_SECONDS
        self.say: Callable[[str], object] = _write
        self.count = 0
        self.code: int | None = None
        self.is_open = self.is_raised = self.is_last = self.is_said = self.is_cut = False
        self.for_others: deque[int] = deque()
        self.saying = threading.Lock()

    def wait(self) -> None:
        """What the thread does: takes each signal, and sees that the first has arrived in the main thread."""
        missed = 0
        while True:
            if self.number is None:
                self.take(signal.sigwait(self.taken))
                continue
            found = signal.sigtimedwait(self.taken, LOOK_SECONDS)
            if found is not None:
                self.take(found.si_signo)
                continue
            # code that was not ours has dropped what was raised in it, as a destructor does
            missed = 0 if self.is_last or not self.is_open or _is_ending() else missed + 1
            if missed > 1:
                self.is_raised, missed = False, 0
                self.wake()

    def take(self, number: int) -> None:
        """Takes a signal."""
        handler = signal.getsignal(number)
        if handler is signal.SIG_IGN:
            return
        if callable(handler) and handler is not _interrupt and not _is_of_ray(handler):
            self.for_others.append(number)
            self.wake()
            return
        self.count += 1
        if self.count == FORCING:
            threading.Thread(target=self.force, args=("the third signal",), daemon=True).start()
        if self.count > 1:
            return
        timer = threading.Timer(self.patience, self.force, [f"clean-up took longer than {self.patience:.0f} s"])
        timer.daemon = True
        timer.start()
        if self.is_last:
            # the job is done, and its exit code is what it has to say
            return
        self.number = number
        self.wake()
        self.tell()

    def wake(self) -> None:
        """Lets the main thread run `_deliver`, also out of a system call."""
        ident = threading.main_thread().ident
        if ident is not None:
            with suppress(ProcessLookupError):
                signal.pthread_kill(ident, WAKE)

    def tell(self) -> None:
        """Says the line, once, whoever comes first."""
        if self.number is None:
            return
        line = f"ended by {signal.Signals(self.number).name}; {self.then}"
        if not self.saying.acquire(timeout=SAY_SECONDS):
            # the other thread waits for a lock, which may be one that an interrupt has left taken for good
            if not self.is_said:
                self.is_said = True
                _write(line)
            return
        try:
            if not self.is_said:
                # whatever it is, the command ends
                with suppress(Exception):
                    self.say(line)
                    self.is_said = True
        finally:
            self.saying.release()

    def force(self, why: str) -> None:
        """Ends the process as it is."""
        number = self.number or signal.SIGTERM
        code = 128 + number if self.number or self.code is None else self.code
        last = threading.Timer(LAST_SECONDS, os._exit, [code])
        last.daemon = True
        last.start()
        if self.is_said or self.is_last:
            _write(f"left as it is: {why}; the next start removes what is left")
        else:
            _write(f"ended by {signal.Signals(number).name}; {self.then}")
        with suppress(Exception):
            _end_children()
        with suppress(Exception):
            from smec_core.temporary import remove_own_folders

            remove_own_folders()
        os._exit(code)


_ending = _Ending()


def install() -> None:
    """Takes the signals, from here on until `end`; the main thread calls it before there is any other."""
    _ending.taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if not _ending.taken:
        return
    signal.signal(WAKE, _deliver)
    for number in _ending.taken:
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ending.taken)
    os.register_at_fork(after_in_child=_as_others)
    sys.unraisablehook = _drop
    threading.Thread(target=_ending.wait, name="signals", daemon=True).start()


def begin(say: Callable[[str], object]) -> None:
    """From here on a signal is raised in the main thread; one that has come already is now.

    Args:
        say: prints a line.
    """
    shown = threading.excepthook
    # errors of threads, after a signal, are of what is half made
    threading.excepthook = lambda error: None if came() else shown(error)
    _ending.say, _ending.is_open = say, True
    _raise()


def then(text: str) -> None:
    """Says what there is after a signal: what another start does, or whatever goes on."""
    _ending.then = text


def allow(seconds: float) -> None:
    """Says how long clean-up may take after a signal."""
    _ending.patience = seconds


def is_installed() -> bool:
    """Whether this is the process of a command."""
    return bool(_ending.taken)


def interrupt() -> None:
    """Raises a KeyboardInterrupt in the main thread, out of another one; in a command also where SIGINT is ignored."""
    if is_installed():
        _ending.is_cut = True
        _ending.wake()
    else:
        interrupt_main()


def came() -> bool:
    """Whether a signal has come that ends this process."""
    return _ending.number is not None


def end(code: int) -> NoReturn:
    """Ends the process of a command: all clean-up that is registered with atexit, then the exit code.

    Not as Python ends: that waits for threads that nobody needs any more, and a signal would come in between.
    """
    _ending.code, _ending.is_last = code, True
    if _ending.number is not None:
        _ending.tell()
        if os.environ.get("SMEC_DEBUG") != "1":
            # Ray's C++ code tells of connections that are cut
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        # what was raised before is_last was seen
        with suppress(KeyboardInterrupt):
            atexit._run_exitfuncs()
            break
    if "ray" in sys.modules:
        # a start that was cut short
        with suppress(Exception):
            _end_children()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if _ending.number is not None:
        _ending.tell()
        code = 128 + _ending.number
    os._exit(code)


def _interrupt(*unused: object) -> NoReturn:
    # Python's own call, in place of a signal: by interrupt_main
    raise KeyboardInterrupt


def _deliver(_: int, frame: FrameType | None) -> None:
    while _ending.for_others:
        number = _ending.for_others.popleft()
        handler = signal.getsignal(number)
        if callable(handler):
            handler(number, frame)
    if _ending.is_cut:
        _ending.is_cut = False
        raise KeyboardInterrupt
    _raise()


def _raise() -> None:
    if _ending.number is not None and _ending.is_open and not _ending.is_raised and not _ending.is_last:
        _ending.is_raised = True
        raise Interrupted(f"ended by {signal.Signals(_ending.number).name}")


def _is_ending() -> bool:
    """Whether the main thread has an interrupt under way."""
    found: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    error = found[1] if isinstance(found, tuple) else found
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_of_ray(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")).startswith("ray.")


def _drop(unraisable: Any) -> None:
    """What Python calls with an error that it cannot raise: an interrupt is raised again, by the thread.

    Others, after a signal, are of what is half made.
    """
    if not came():
        sys.__unraisablehook__(unraisable)


def _as_others() -> None:
    """In a child process: signals do what they do to any, but a terminal that closes ends Ray's only through us."""
    for number in _ending.taken:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    signal.signal(WAKE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ending.taken)


def _end_children() -> None:
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(children, LAST_SECONDS / 2)
