"""How a command ends when it is asked to: by Ctrl-C, by ``kill``, or because its terminal is closed."""

import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from contextlib import suppress

INTERRUPTED = 128 + signal.SIGINT
"""Exit status of an interrupt from the keyboard; shells say 128 and the number of the signal of any such end."""

_COMPILER = "numba.core.compiler", "llvmlite."
"""How names of modules begin of which one is at work while a kernel is compiled or read from the cache."""


def end_when_asked():
    """End the process as an error does when it is interrupted (SIGINT), asked to end (SIGTERM), or its terminal is
    closed (SIGHUP).

    Otherwise it would end at once, and leave what it has written of a file, and other processes that work for it. The
    exit status is what a shell would say of such an end.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if not isinstance(sys.unraisablehook, _AskAgain):
        sys.unraisablehook = _AskAgain(sys.unraisablehook)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # Not where it is ignored, as by what a shell starts in the background.
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


def interrupted():
    """What to say of an interrupt."""
    # A terminal shows ^C first, in the same line.
    return "\nInterrupted" if sys.stderr.isatty() else "Interrupted"


class _Interrupted(KeyboardInterrupt):
    """SIGINT came."""


class _Asked(SystemExit):
    """Another of the signals came."""


def _end(number, frame):
    if _compiles(frame):
        # An exception would leave LLVM's objects half freed, which crashes. No result is open yet; a helper ends with
        # this process.
        _end_at_once(number)
    if number == signal.SIGINT:
        raise _Interrupted
    raise _Asked(128 + number)


class _AskAgain:
    """What Python calls with an exception that is lost, in a destructor or a callback: one of `_end` comes once more.

    before : callable
        Is called with all others.
    """

    def __init__(self, before):
        self._before = before

    def __call__(self, unraisable):
        error = unraisable.exc_value
        if not isinstance(error, _Interrupted | _Asked):
            self._before(unraisable)
            return
        number = signal.SIGINT if isinstance(error, _Interrupted) else error.code - 128
        try:
            # Here it would be lost as well.
            start_new_thread(_send, (number,))
        except RuntimeError:  # the system allows no more
            _end_at_once(number)


def _send(number):
    time.sleep(0.001)
    os.kill(os.getpid(), number)


def _end_at_once(number):
    if number == signal.SIGINT:
        with suppress(OSError, ValueError):  # full, closed
            os.write(2, f"{interrupted()}\n".encode())
    os._exit(128 + number)


def _compiles(frame):
    """Whether a frame is the compiler's, or called by it."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_COMPILER):
            return True
        frame = frame.f_back
    return False
