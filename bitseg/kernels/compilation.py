"""Compiling what is not in the cache, at the start of a program in two processes, and how much that was."""

import ctypes
import mmap
import os
import signal
import sys
from contextlib import suppress

from .cache import cache_for, folder_of


def with_cache(compiled, function):
    """Give Numba's dispatcher of a function a cache that is counted here; the dispatcher."""
    compiled._cache = cache_for(function, _start_helper)
    _dispatchers.append(compiled)
    return compiled


def compile_in_two_processes():
    """Allow a fork where much has to be compiled: for programs of one thread, such as the command line at its start."""
    global _in_two_processes
    _in_two_processes = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


def uses_two_processes():
    """Whether a second process compiles as well."""
    return _in_two_processes


def compile_all(tasks):
    """Compile what is not in the cache, from the first task on; a forked process does from the last one back.

    If that fails, not all is compiled.

    Parameters
    ----------
    tasks : list of callables
        Neighbours should share much, which a process compiles once.
    """
    global _before_first
    helper = _Helper(tasks)
    _before_first = helper.start
    try:
        helper.compile(range(len(tasks)))
    except BaseException:
        helper.stop()
        raise
    finally:
        _before_first = None
        helper.wait()


def compilations():
    """How many functions this process and its helpers have compiled so far because they were not in the cache."""
    return _compiled_by_helpers + sum(sum(compiled.stats.cache_misses.values()) for compiled in _dispatchers)


def cache_folder():
    """Folder where compiled kernels are kept; None where none can be written, or one was not kept for lack of space."""
    folders = [folder_of(compiled._cache) for compiled in _dispatchers]
    return folders[0] if all(folders) else None


class _Helper:
    """A forked process that does some of a list of tasks while this one does others."""

    def __init__(self, tasks):
        self.tasks, self.process = tasks, None
        # Both see and mark who has begun what. If both begin the same at once, both compile it, to no harm.
        self.begun = mmap.mmap(-1, len(tasks))

    def start(self):
        parent = os.getpid()
        with suppress(OSError):  # as many processes as there may be
            self.process = os.fork()
        if self.process == 0:
            before = compilations()
            try:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    if signal.getsignal(number) != signal.SIG_IGN:
                        signal.signal(number, signal.SIG_DFL)  # not what the parent would say and tidy up
                # It has open what is the parent's, and others may wait until nobody has.
                ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
                if os.getppid() == parent:
                    self.compile(reversed(range(len(self.tasks))))
            finally:
                # Nothing of what the parent has open is flushed, closed or reported here. The status is a number.
                os._exit(min(compilations() - before, 255))

    def compile(self, numbers):
        for number in numbers:
            if not self.begun[number]:
                self.begun[number] = True
                self.tasks[number]()

    def stop(self):
        with suppress(ProcessLookupError):
            if self.process:
                os.kill(self.process, signal.SIGKILL)

    def wait(self):
        global _compiled_by_helpers
        if self.process:
            # Where a parent's children are not to be waited for (SIGCHLD ignored) nobody learns how it ended.
            with suppress(ChildProcessError):
                _, status = os.waitpid(self.process, 0)
                _compiled_by_helpers += max(0, os.waitstatus_to_exitcode(status))


_END_WITH_PARENT = 1
"""Linux's PR_SET_PDEATHSIG: a signal that a process gets when its parent's thread ends."""


def _start_helper():
    global _before_first
    start, _before_first = _before_first, None
    if start is not None:
        start()


_dispatchers: list = []
"""Numba's, of kernels and of other functions that Python calls."""

_in_two_processes = False
_before_first = None
_compiled_by_helpers = 0
