"""Compiled kernels on disk: written where there is a place for them, read again, renewed when any kernel changes."""

import hashlib
import inspect
import os
import pickle
import sys
import zlib
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

import llvmlite.binding as llvm
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, NullCache
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs


def cache_for(function, before_compiling):
    """A cache for what Numba compiles of a function.

    It is in the folder that NUMBA_CACHE_DIR names, or else in ``__pycache__``, or else in the user's cache folder. The
    first two, where they cannot be written, are read: another user may have filled them. Where none can be (a container
    with a read-only file system), what is in neither is compiled by each process anew.

    Parameters
    ----------
    function : callable
    before_compiling : callable
        Called when something is not in the cache, where it will be kept.
    """
    if _SOURCES is None:
        return _NoCache()
    try:
        return _Cache(function, before_compiling)
    except RuntimeError:  # where NUMBA_CACHE_LOCATOR_CLASSES finds no place
        return _NoCache()


def folder_of(cache):
    """Folder of a cache; None where there is none, or something that was compiled could not be kept there."""
    return Path(cache.folder) if isinstance(cache, _Cache) and cache.keeps_all and os.path.isdir(cache.folder) else None


def _kernel_sources():
    """Hash of all kernels' source: a kernel contains the code of those it calls, in whatever file.

    Of compiled modules where no source is (a zip archive may have either), and of the program where it has them in
    itself. None where there is nothing to see a change by.
    """
    contents = []
    with suppress(OSError):
        contents = [file.read_bytes() for file in _modules(files(__package__))]
    if not contents and getattr(sys, "frozen", False):
        contents = [Path(sys.executable).read_bytes()]
    return hashlib.sha256(b"".join(contents)).hexdigest() if contents else None


def _modules(folder):
    """Files of the modules in a package's folder and those in it, always in the same order."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith((".py", ".pyc")):
            yield file
        elif file.is_dir() and file.name != "__pycache__":
            yield from _modules(file)


_SOURCES = _kernel_sources()

announces = True
"""Whether to say on stderr that kernels are compiled, once."""


def _announce(place):
    global announces
    if announces:
        announces = False
        # Without a stderr `print` would take stdout, where the result goes.
        if sys.stderr is not None:
            with suppress(OSError, ValueError):  # full, closed
                print(f"bitseg: compiling for this CPU {place}; this takes some seconds", file=sys.stderr)


# Its name began with an underscore up to Numba 0.61.
_InTreeLocator = next(kind for kind in CompileResultCacheImpl._locator_classes if "InTree" in kind.__name__)


def _locators():
    """Numba's, but for a user's cache folder where the system knows no home: Numba would make one named ~."""
    locators = CompileResultCacheImpl._locator_classes
    if os.path.isabs(AppDirs("numba", appauthor=False).user_cache_dir):
        return locators
    return [locator for locator in locators if "UserWide" not in locator.__name__]


class _ReadOnlyLocator(_InTreeLocator):  # type: ignore[valid-type, misc]
    """The package's own folder where no other one can be written."""

    def ensure_cache_path(self):
        """Nothing."""


class _MachineCode(CompileResultCacheImpl):
    """What is kept of a kernel: machine code alone.

    Numba also keeps what linking it into other functions takes, which no kernel is: its bitcode, and the modules of all
    that it calls. Reading them took as long as all the rest of a kernel.
    """

    _locator_classes = [*_locators(), _ReadOnlyLocator]  # noqa: RUF012 -- as Numba has it

    def reduce(self, compiled):
        (name, kind, (machine_code, _)), *rest, environments = super().reduce(compiled)
        description = compiled.fndesc
        symbols = description.mangled_name, description.llvm_cpython_wrapper_name, description.env_name
        stubs = "".join(f'@"{symbol}" = global i8 0\n' for symbol in symbols)
        bitcode = llvm.parse_assembly(stubs).as_bitcode()
        used = tuple(environment for environment in environments if environment.consts)
        return (name, kind, (machine_code, bitcode)), *rest, used


class _Files(IndexDataCacheFile):
    """A file for each key, found by it alone, so that any number of processes can compile at the same time.

    Numba numbers its files and keeps a list of them. Of two processes that add to it at once both take the same number,
    and one may find the other's machine code there.
    """

    def __init__(self, folder, name, more_folders):
        super().__init__(folder, name, _SOURCES)
        self._name, self._folders = name, [folder, *more_folders]
        self.folder = folder

    def _file_of(self, key):
        signature, target, _ = key
        # Kernels that Numba was told to optimise otherwise are kept apart.
        made_for = repr(
            (signature, target, config.OPT, config.LOOP_VECTORIZE, config.SLP_VECTORIZE, config.BOUNDSCHECK)
        )
        return f"{self._name}.{hashlib.sha256(made_for.encode()).hexdigest()[:16]}.nbc"

    def save(self, key, data):
        content = dumps(data)
        # Machine code with a bit that has changed would crash.
        made_of = self._version, self._source_stamp, key, zlib.crc32(content)
        self._save_data(self._file_of(key), (*made_of, content))

    def load(self, key):
        for folder in self._folders:
            with suppress(Exception):  # what is damaged raises anything
                *made_of, content = self._load_data(os.path.join(folder, self._file_of(key)))
                if made_of == [self._version, self._source_stamp, key, zlib.crc32(content)]:
                    found = pickle.loads(content)
                    self.folder = folder
                    return found
        return None

    def flush(self):
        """Nothing: what is damaged is written anew."""


class _Cache(FunctionCache):
    """Numba's cache, but stale when any kernel changed (Numba looks at one file), and never a reason to fail."""

    _impl_class = _MachineCode

    def __init__(self, function, before_compiling):
        super().__init__(function)
        self._before_compiling = before_compiling
        locator = self._impl.locator
        self._writable = not isinstance(locator, _ReadOnlyLocator)
        if not os.path.isdir(self.cache_path):  # that of a zip archive is not made before
            try:
                locator.ensure_cache_path()
            except OSError:
                self._writable = False
        self._cache_file = _Files(self.cache_path, self._impl.filename_base, _read_only_folders(locator, function))
        self.keeps_all = True

    @property
    def folder(self):
        """Where the latest kernel was found, or one would be kept."""
        return self._cache_file.folder

    def load_overload(self, sig, target_context):
        try:
            # Of what Numba does first machine code needs its runtime, not what it takes to compile: 0.2 seconds.
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                found = self._load_overload(sig, target_context)
        except Exception:  # a damaged cache file raises anything; the kernel is compiled and kept again
            found = None
        if found is None:
            _announce("once" if self._writable else IN_MEMORY)
            if self._writable:
                self._before_compiling()
        return found

    def save_overload(self, sig, data):
        try:
            if self._writable:
                super().save_overload(sig, data)
        except Exception:  # a full disk, a Numba that keeps other things: the next process compiles again
            self._writable = False
        self.keeps_all &= self._writable


def _read_only_folders(locator, function):
    """Folders that somebody else may have filled who installed the package, if none was chosen and can be written."""
    file = inspect.getfile(function)
    folders = [_InTreeLocator(function, file).get_cache_path()]
    if config.CACHE_DIR:
        folders.append(os.path.join(config.CACHE_DIR, locator.get_suitable_cache_subpath(file)))
    chosen = config.CACHE_DIR and locator.get_cache_path() == folders[1]
    # Code of a frozen program has a path that would be looked for in the current folder.
    return [] if chosen or not os.path.isabs(file) else folders


class _NoCache(NullCache):
    def load_overload(self, sig, target_context):
        _announce(IN_MEMORY)


IN_MEMORY = "in memory, because no cache folder can be written"
