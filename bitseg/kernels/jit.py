"""How kernels are compiled: without the GIL, and kept on disk where there is a place for them."""

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import cgutils, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, NullCache
from numba.core.runtime import rtsys
from numba.extending import intrinsic, overload, register_jitable
from numba.np import numpy_support

CACHE_LINE = 64

# The wrapper for C would be a sixth of the time to compile.
_OPTIONS = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def routine(function):
    """A part that stays a function of its own in each kernel that calls it, so that its loops get all registers."""
    return register_jitable(**_OPTIONS)(function)


def part(function):
    """Compile a function that kernels call, as part of each: without a way in from Python, which takes longer."""
    return register_jitable(**_OPTIONS, forceinline=True)(function)


def chosen_by_types(function):
    """A part of which there are several: the decorated function returns the one for the types of its arguments.

    Arguments have the names that those of `function` have, which says what all of them do.
    """
    return overload(function, jit_options={**_OPTIONS, "forceinline": True})


def kernel(function):
    """Compile a function with Numba when it is first called from Python; threads may run it at the same time.

    Compiled code is kept in ``__pycache__``, or else in the user's cache folder. Where neither can be written (a
    container with a read-only file system) it is compiled in memory, anew in each process.
    """
    compiled = numba.njit(function, **_OPTIONS)
    try:
        compiled._cache = _KernelCache(function)
    except RuntimeError:  # Numba's word for "no place to keep it"
        compiled._cache = _NoCache()
    _kernels.append(compiled)
    return compiled


@part
def empty_aligned(size, dtype):
    """An array of one axis that begins where a cache line does, for kernels as from Python."""
    memory = np.empty(size + CACHE_LINE, dtype)
    first = -memory.ctypes.data % CACHE_LINE // memory.itemsize
    return memory[first : first + size]


@intrinsic
def borrowed(typing_context, value):
    """The same array, or tuple of anything, without its owner: Numba then counts no references to it.

    Counting is an atomic instruction for each array at each call of a part, and was a sixth of some kernels' time. The
    caller keeps what it passes to a kernel alive; what a kernel allocates itself it passes to `keep` at its end.
    """

    def code(context, builder, signature, values):
        return _without_owner(context, builder, signature.args[0], values[0])

    return value(value), code


def _without_owner(context, builder, kind, value):
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        items = zip(kind, cgutils.unpack_tuple(builder, value))
        return context.make_tuple(builder, kind, [_without_owner(context, builder, *item) for item in items])
    return value


@intrinsic
def keep(typing_context, value):
    """A use of a value, before which Numba does not free it."""
    return types.void(value), lambda context, builder, signature, values: context.get_dummy_value()


def entry_point(function, arguments):
    """A kernel compiled for arguments of these very types, and for no others: it is called without a look at them.

    Looking takes Numba some 4 microseconds for a kernel's nested tuples, for all of a network's up to 5 % of its time.

    Parameters
    ----------
    function : callable
        A kernel; anything else is given back.
    arguments : tuple

    Returns
    -------
    callable
    """
    if not isinstance(function, numba.core.dispatcher.Dispatcher):
        return function
    key = function, _kind(arguments)
    if key not in _entry_points:
        _entry_points[key] = function.compile(tuple(map(numba_type, arguments)))
    return _entry_points[key]


def numba_type(value):
    """``numba.typeof(value)``, which for an array imports all of numpy.ma: a tenth of the time to load a model."""
    if isinstance(value, np.ndarray):
        dtype, layout = numpy_support.from_dtype(value.dtype), numpy_support.map_layout(value)
        return types.Array(dtype, value.ndim, layout, readonly=not value.flags.writeable)
    if isinstance(value, tuple):
        return types.BaseTuple.from_types([numba_type(item) for item in value], type(value))
    return numba.typeof(value)


def entry_points(calls):
    """The `entry_point` of each of a list of pairs, a function and its arguments.

    Where `compile_in_two_processes` allows it and one has to be compiled, a second process compiles some kernels
    meanwhile, in all their types, and leaves them in the cache. Each index of the cache then has one writer.
    """
    global _before_first
    helper = _Helper([call for call in calls if call[0].__name__ not in _HALF])
    _before_first = helper.start if _in_two_processes else None
    try:
        ours = [entry_point(*call) if call[0].__name__ in _HALF else None for call in calls]
    finally:
        _before_first = None
        helper.wait()
    return [found or entry_point(*call) for found, call in zip(ours, calls)]


def compile_in_two_processes():
    """Allow `entry_points` to fork: for programs of one thread, such as the command line at its start."""
    global _in_two_processes
    _in_two_processes = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


class _Helper:
    """A forked process that compiles kernels; if it fails, they are compiled here."""

    def __init__(self, calls):
        self.calls, self.process = calls, None

    def start(self):
        global _compiled_by_helpers
        with suppress(OSError):  # as many processes as there may be
            self.process = os.fork()
        if self.process == 0:
            try:
                for call in self.calls:
                    entry_point(*call)
            finally:
                # Nothing of what the parent has open is flushed, closed or reported here.
                os._exit(0)
        if self.process:
            _compiled_by_helpers += len({(function, _kind(arguments)) for function, arguments in self.calls})

    def wait(self):
        if self.process:
            os.waitpid(self.process, 0)


def _kind(value):
    """What decides a value's Numba type, in a hundredth of the time that finding that out takes Numba."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.ndim, value.flags.num
    if isinstance(value, tuple):
        return type(value), *map(_kind, value)
    return type(value)


def compilations():
    """How many kernels this process and its helpers have compiled so far because they were not in the cache."""
    return _compiled_by_helpers + sum(sum(compiled.stats.cache_misses.values()) for compiled in _kernels)


def cache_folder():
    """Folder where compiled kernels are kept; None where none can be written, or one was not kept for lack of space."""
    caches = [compiled._cache for compiled in _kernels]
    kept = all(isinstance(cache, _KernelCache) and cache._enabled for cache in caches)
    return Path(caches[0].cache_path) if kept else None


def _kernel_sources():
    """Hash of all kernels' source: a kernel contains the code of those it calls, in whatever file."""
    content = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(content).hexdigest()


_SOURCES = _kernel_sources()
_kernels: list = []
_entry_points: dict = {}
_announced = False
_in_two_processes = False
_before_first = None
_compiled_by_helpers = 0

_HALF = "convolve_to_planes", "convolve_to_stream"
"""Kernels that take half of the time to compile, all their types together."""


def _announce(place):
    global _announced
    if not _announced:
        _announced = True
        print(f"bitseg: compiling for this CPU {place}; this takes some seconds", file=sys.stderr)


def _start_helper():
    global _before_first
    start, _before_first = _before_first, None
    if start is not None:
        start()


class _MachineCode(CompileResultCacheImpl):
    """What is kept of a kernel: machine code alone.

    Numba also keeps what linking it into other functions takes, which no kernel is: its bitcode, and the modules of all
    that it calls. Reading them took as long as all the rest of a kernel.
    """

    def reduce(self, compiled):
        (name, kind, (machine_code, _)), *rest, environments = super().reduce(compiled)
        description = compiled.fndesc
        symbols = description.mangled_name, description.llvm_cpython_wrapper_name, description.env_name
        stubs = "".join(f'@"{symbol}" = global i8 0\n' for symbol in symbols)
        bitcode = llvm.parse_assembly(stubs).as_bitcode()
        used = tuple(environment for environment in environments if environment.consts)
        return (name, kind, (machine_code, bitcode)), *rest, used

    def rebuild(self, target_context, payload):
        return _unlinkable(super().rebuild(target_context, payload))


def _unlinkable(compiled):
    """A compiled kernel that no function can be linked with: of one from the cache there is nothing to link."""

    def refuse():
        name = compiled.fndesc.qualname
        raise TypeError(f"{name} is a kernel, called from Python alone: put what others need of it into a part")

    compiled.library._get_module_for_linking = refuse
    return compiled


class _KernelCache(FunctionCache):
    """Numba's cache, but stale when any kernel changed (Numba looks at one file), and never a reason to fail."""

    _impl_class = _MachineCode

    def __init__(self, function):
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self.cache_path, self._impl.filename_base, _SOURCES)

    def load_overload(self, sig, target_context):
        try:
            # Of what Numba does first machine code needs its runtime, not what it takes to compile: 0.2 seconds.
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                found = self._load_overload(sig, target_context)
        except Exception:  # a damaged cache file raises anything; the kernel is compiled and kept again
            found = None
            with suppress(OSError):
                self.flush()
        if found is None:
            _announce("once")
            _start_helper()
        return found

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception:  # a full disk, a Numba that keeps other things: the next process compiles again
            self.disable()
        _unlinkable(data)


class _NoCache(NullCache):
    def load_overload(self, sig, target_context):
        _announce("in memory, because no cache folder can be written")
