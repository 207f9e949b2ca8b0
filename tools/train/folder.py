"""The folder of a run, in which one process at a time trains."""

import os
from pathlib import Path

from .errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
"""File by which other processes are kept out. It stays there: one that removed it would let others in."""

_held = {}


def hold_folder(folder):
    """Make a folder, if it is not there, and keep other processes from training in it until this one ends.

    Parameters
    ----------
    folder : path

    Raises
    ------
    TrainingError
        Another process holds it, or it cannot be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made a folder ({error.strerror}); choose another --output") from None
    path = Path(os.path.realpath(folder), LOCK)
    if fcntl is None or path in _held:
        return
    try:
        file = open(path, "ab")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written to ({error.strerror}); choose another --output") from None
    try:
        # Not flock, which the processes that make batches would hold on to.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise TrainingError(f"{folder}: another process is training there; choose another --output") from None
    except OSError:
        pass  # a file system without locks
    _held[path] = file
