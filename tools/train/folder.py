"""The folder of a run, in which one process at a time trains: with torchrun, the processes of one run."""

from contextlib import contextmanager
from pathlib import Path

from . import distributed
from .errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
"""File by which others are kept out. It stays there: one that removed it would let others in."""


@contextmanager
def held_folder(folder):
    """Make a folder, if it is not there, and keep other processes from training in it meanwhile.

    On Windows, and on file systems without locks, nobody is kept out.

    Parameters
    ----------
    folder : path

    Raises
    ------
    TrainingError
        Another process holds it, or it cannot be written to: in all processes of a run, of which the first one asks.
    """
    lock = refusal = None
    if distributed.rank() == 0:
        try:
            lock = _locked(folder)
        except TrainingError as error:
            refusal = str(error)
    refusal = distributed.of_the_first(refusal)
    if refusal is not None:
        raise TrainingError(refusal)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _locked(folder):
    """A file that holds the folder as long as it is open."""
    advice = "choose another folder"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made a folder ({error.strerror}); {advice}") from None
    try:
        file = open(Path(folder, LOCK), "ab")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written to ({error.strerror}); {advice}") from None
    try:
        if fcntl is not None:
            # Not flock, which the processes that make batches would hold on to.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise TrainingError(f"{folder}: another process is training there; wait for it, or {advice}") from None
    except OSError:
        pass  # a file system without locks
    return file
