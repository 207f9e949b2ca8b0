"""Writing files whole or not at all."""

import errno
import io
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path


def check_writable(path, error_class):
    """Find out, before any work is done, whether a file can be written.

    Parameters
    ----------
    path : path
        File to be written.
    error_class : type
        Subclass of `errors.BitsegError` to raise.

    Raises
    ------
    error_class
        The folder is missing or write-protected, or something of this name cannot be replaced.
    """
    path = Path(path)
    try:
        named = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        named = False
    if not named:
        raise error_class(f"{str(path)!r}: no file can have this name; choose another")
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise error_class(f"{path}: the name is too long; choose a shorter one") from error
    # os.path, because Path.is_dir raises where a parent folder may not be entered.
    if not os.path.isdir(path.parent):
        raise error_class(f"{path}: the folder {path.parent} does not exist; create it first")
    exists = os.path.exists(path)
    if exists and not os.path.isfile(path):
        raise error_class(f"{path}: a folder or device has this name; choose another")
    for target in (path.parent, path) if exists else (path.parent,):
        if not os.access(target, os.W_OK):
            raise error_class(f"{path}: {target} is write-protected; choose another place or change its permissions")


def write_all(file, data):
    """Write bytes to a binary file, all of them: one without a buffer may take a part at a time.

    Raises
    ------
    OSError
        The operating system refuses, for example because the disk is full.
    """
    if not isinstance(file, io.RawIOBase):
        file.write(data)
        return
    rest = memoryview(data)
    while rest:
        written = file.write(rest)
        if written is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        rest = rest[written:]


@contextmanager
def write_safely(path, error_class):
    """Open a file that takes its name only once it is complete; after an error nothing of it remains.

    Parameters
    ----------
    path : path
        File to be written; an existing one stays as it was until then, and leaves it its permissions.
    error_class : type
        Subclass of `errors.BitsegError` to raise.

    Yields
    ------
    binary file
        Open for writing.

    Raises
    ------
    error_class
        As in `check_writable`, or the operating system refuses to write, for example because the disk is full.
    """
    check_writable(path, error_class)
    # Through a symbolic link, as plain writing would go. Not tempfile, whose files only their owner may read.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".bitseg-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            with suppress(FileNotFoundError):
                shutil.copymode(target, temporary)
            yield file
        os.replace(temporary, target)
    except OSError as error:
        raise error_class(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
