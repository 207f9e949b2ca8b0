"""Kernels as Python sees them: compiled for their arguments, bound to them, and run in a row, without the GIL."""

import mmap
import os
import sys
from collections import Counter, namedtuple
from contextlib import suppress
from functools import cache

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.compiler import Flags, compile_internal
from numba.extending import intrinsic, typeof_impl
from numba.np import numpy_support

from .cache import cache_for, folder_of
from .counters import LOOKS, add, look_again, read
from .jit import OPTIONS, change_values, without_owner


def kernel(function):
    """Make a function a `Kernel`."""
    _kernels.append(Kernel(function))
    return _kernels[-1]


class Kernel:
    """A function that is compiled for the types of its arguments, and returns nothing.

    Attributes
    ----------
    name : str
    """

    def __init__(self, function):
        self.name, self._entry_points = function.__name__, {}
        self._compiled = _with_cache(numba.njit(_entry_point(function), **OPTIONS), function)

    def __call__(self, *arguments):
        """Run it once."""
        Program([(self, arguments)]).run()

    def entry_point(self, arguments, kind=None):
        """The function that binds arguments of these very types to the kernel, without a look at them.

        Looking takes Numba some 4 microseconds for a kernel's nested tuples.

        Parameters
        ----------
        arguments : tuple
        kind : object
            Their `_kind`, where it is known already.

        Returns
        -------
        callable
            Takes `arguments`, and gives a piece of memory and two addresses: that of a native function, and that of
            the memory, in which the function finds what it needs of the arguments.
        """
        kind = kind or _kind(arguments)
        if not self.has_entry_point(kind):
            self._entry_points[kind] = self._compiled.compile((numba_type(arguments),))
        return self._entry_points[kind]

    def has_entry_point(self, kind):
        """Whether this process has the one for arguments of this `_kind`."""
        return kind in self._entry_points

    @property
    def compilations(self):
        """How many times it was compiled in this process, because it was not in the cache."""
        return sum(self._compiled.stats.cache_misses.values())

    @property
    def cache_folder(self):
        """Folder where compiled code is kept, or None."""
        return folder_of(self._compiled._cache)


@typeof_impl.register(Kernel)
def _refuse(kernel, context):
    """No type: other compiled functions cannot call it."""
    raise ValueError(f"{kernel.name} is a kernel, called from Python alone: put what others need of it into a part")


Worker = namedtuple("Worker", "number")
"""A thread that runs a program. Whatever number a kernel's arguments have, it gets that of the thread."""

NOT_ENOUGH_MEMORY = "not enough memory for what a kernel needs while it runs"


class Program:
    """Kernels with their arguments, to be run one after the other.

    Between two of them Python has no part: a thread that asked for its lock would wait for others that hold it.

    Parameters
    ----------
    calls : list of (Kernel, tuple)
        Kernels and their arguments, which this object keeps alive; arrays in `memory` it does not.
    memory : ndarray of uint8, contiguous, or None
        Where arrays lie that can be elsewhere when the kernels run, see `run`.
    kept : object
        What has to be kept alive of the arguments where there is a `memory`.

    Raises
    ------
    MemoryError
        There is not enough to put the arguments in.
    """

    def __init__(self, calls, memory=None, kept=None):
        bound = [bind(arguments) for bind, (_, arguments) in zip(entry_points(calls), calls)]
        self._kept = [arguments for arguments, _, _ in bound], calls if memory is None else kept
        self._steps = np.array([addresses for _, *addresses in bound], np.int64)
        self._first, self._size = (0, 0) if memory is None else (memory.ctypes.data, len(memory))

    def __len__(self):
        return len(self._steps)

    def run(self, first=0, end=None, gate=None, memory=None, failed=None, worker=0, bell=None):
        """Run the kernels from number `first` on, before number `end`. Several threads may do so at the same time.

        Parameters
        ----------
        first, end : int
        gate : Gate or None
            No kernel begins any more once this is closed.
        memory : ndarray of uint8 or None
            Arrays of the memory that was given at first are at the same place in this one.
        failed : callable or None
            Called after a kernel failed, while this thread still is inside the gate.
        worker : int
            The thread's number, see `Worker`.
        bell : Bell or None
            Rung by worker 0 before the first kernel of the program. Others look after the last one, when they are
            outside the gate, whether it has been rung since they began, for some time.

        Raises
        ------
        MemoryError
            There is not enough for what a kernel needs while it runs.
        """
        end = len(self) if end is None else end
        gate = Gate() if gate is None else gate
        moved = 0 if memory is None else memory.ctypes.data - self._first
        counters = gate.counters, _NO_BELL if bell is None else bell.counters
        if not _native_run_steps()(*counters, self._steps, first, end, self._first, self._size, moved, worker):
            if failed is not None:
                failed()
            gate.leave()
            raise MemoryError(NOT_ENOUGH_MEMORY)


class Gate:
    """Where all threads that take part in a run come in and leave again.

    Attributes
    ----------
    counters : int64
        How many are inside, and whether it is closed.
    """

    def __init__(self):
        self.counters = np.zeros((2, _COUNTERS), np.int64)

    def close(self):
        """Let nobody begin a kernel any more, and return when none is left inside."""
        self._add(_CLOSED, 1)

    def leave(self):
        """Of a thread inside which nothing is left to be done."""
        self._add(_INSIDE, -1)

    def _add(self, row, value):
        _native_change_gate()(self.counters, row, value)


class Bell:
    """By which one thread calls others that have just worked and still look for more, before they sleep.

    To wake one that sleeps takes some 60 microseconds; and at the end of a run it would take Python's lock, and
    with it as long again, from the thread that waits for the result.

    Attributes
    ----------
    counters : int64
        How many times it was rung.
    """

    def __init__(self):
        self.counters = np.zeros((1, _COUNTERS), np.int64)


_INSIDE, _CLOSED, _COUNTERS = 0, 1, 8
"""Rows of a gate's counters, each of which has a cache line; only the first column counts."""

_NO_BELL = np.zeros((0, _COUNTERS), np.int64)

LOOKS_FOR_MORE = 20 * LOOKS
"""Looks at a bell before the thread sleeps: some 0.2 milliseconds, in which another image may come."""


@cache
def _native_run_steps():
    return _native(_run_steps, types.int64[:, ::1], types.int64[:, ::1], *[types.intp] * 6)


@cache
def _native_change_gate():
    return _native(_change_gate, types.intp, types.int64)


def _native(function, *more):
    """A function of a gate's counters and more arguments, compiled and kept as kernels are."""
    compiled = _with_cache(numba.njit(function, nogil=True, **OPTIONS), function)
    return compiled.compile((types.int64[:, ::1], *more))


def _run_steps(gate, bell, steps, first, end, memory, size, moved, worker):
    """Call native functions, each with the address in the second column; False, still inside, after one that fails."""
    listens = len(bell) > 0 and worker > 0 and end == len(steps)
    heard = read(bell, 0, 0) if listens else 0
    if len(bell) and worker == 0 and first == 0:
        add(bell, 0, 0, 1)
    add(gate, _INSIDE, 0, 1)
    for step in range(first, end):
        if read(gate, _CLOSED, 0):
            break
        if _fails(steps[step, 0], steps[step, 1], memory, size, moved, worker):
            return False
    add(gate, _INSIDE, 0, -1)
    looks = 0
    while listens and looks < LOOKS_FOR_MORE and read(bell, 0, 0) == heard:
        looks = look_again(looks)
    return True


def _change_gate(gate, row, value):
    add(gate, row, 0, value)
    looks = 0
    while row == _CLOSED and read(gate, _INSIDE, 0):
        looks = look_again(looks)


_BOUND = ir.FunctionType(ir.IntType(1), [cgutils.intp_t] * 5)
"""A native function that says whether it failed. It takes the address of a kernel's arguments; address and size of a
piece of memory; by how many bytes what lies there has moved; and the number of the `Worker`."""


@intrinsic
def _fails(typing_context, function, arguments, memory, size, moved, worker):
    def code(context, builder, signature, values):
        return builder.call(builder.inttoptr(values[0], _BOUND.as_pointer()), values[1:])

    return types.boolean(function, arguments, memory, size, moved, worker), code


def _entry_point(function):
    """What is compiled of a kernel, see `Kernel.entry_point`."""

    @intrinsic
    def size_of(typing_context, arguments):
        def code(context, builder, signature, values):
            return context.get_constant(types.intp, context.get_abi_sizeof(values[0].type))

        return types.intp(arguments), code

    @intrinsic
    def bind(typing_context, memory, arguments):
        def code(context, builder, signature, values):
            place = context.make_array(memory)(context, builder, values[0]).data
            builder.store(values[1], builder.bitcast(place, values[1].type.as_pointer()), align=1)
            addresses = _bound(context, builder, function, arguments), place
            return cgutils.pack_array(builder, [builder.ptrtoint(address, cgutils.intp_t) for address in addresses])

        return types.UniTuple(types.intp, 2)(memory, arguments), code

    def entry_point(arguments):
        memory = np.empty(size_of(arguments), np.uint8)
        address, place = bind(memory, arguments)
        return memory, address, place

    # Native code is known by these names.
    entry_point.__name__, entry_point.__qualname__ = function.__name__, function.__qualname__
    entry_point.__module__ = function.__module__
    return entry_point


def _bound(context, builder, function, arguments):
    """Compile a Python function as a `_BOUND` one that finds arguments of this tuple type in memory."""
    bound = ir.Function(builder.module, _BOUND, f"{builder.function.name}.bound")
    bound.linkage = "internal"
    inside = ir.IRBuilder(bound.append_basic_block())
    place, *move, worker = bound.args

    def change(kind, value):
        if isinstance(kind, types.Array):
            return _moved(context, inside, kind, value, *move)
        if getattr(kind, "instance_class", None) is Worker:
            return context.make_tuple(inside, kind, [worker])
        return None

    found = inside.load(inside.inttoptr(place, context.get_value_type(arguments).as_pointer()), align=1)
    values = cgutils.unpack_tuple(inside, change_values(context, inside, arguments, found, change))
    compiled = _into_library(context, function, arguments)
    status, _ = context.call_internal_no_propagate(inside, compiled, types.none(*arguments), values)
    inside.ret(status.is_error)
    return bound


def _moved(context, builder, kind, value, memory, size, moved):
    """An array of a kernel's arguments: without its owner, and moved where it lies in the memory."""
    array = without_owner(context, builder, kind, value)
    address = builder.ptrtoint(array.data, cgutils.intp_t)
    inside = builder.icmp_unsigned("<", builder.sub(address, memory), size)
    data = builder.bitcast(array.data, cgutils.voidptr_t)
    data = builder.gep(data, [builder.select(inside, moved, cgutils.intp_t(0))])
    array.data = builder.bitcast(data, array.data.type)
    return array._getvalue()


def _into_library(context, function, arguments):
    """Compile a Python function into the library of the one that is being compiled, where it is optimised only once."""
    flags = Flags()
    flags.nrt, flags.error_model, flags.forceinline = True, OPTIONS["error_model"], True
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    library = context.active_code_library
    compiled = compile_internal(
        context.typing_context, context, library, function, tuple(arguments), types.none, flags, locals={}
    )
    # Nobody else calls it: what is inlined need not be there as well.
    library._final_module.get_function(compiled.fndesc.llvm_func_name).linkage = "linkonce_odr"
    return compiled.fndesc


def numba_type(value):
    """``numba.typeof(value)``, which for an array imports all of numpy.ma: a tenth of the time to load a model."""
    if isinstance(value, np.ndarray):
        dtype, layout = numpy_support.from_dtype(value.dtype), numpy_support.map_layout(value)
        return types.Array(dtype, value.ndim, layout, readonly=not value.flags.writeable)
    if isinstance(value, tuple):
        return types.BaseTuple.from_types([numba_type(item) for item in value], type(value))
    return numba.typeof(value)


def _kind(value):
    """What decides a value's Numba type, and nothing else, in a hundredth of the time that type takes to find."""
    if isinstance(value, np.ndarray):
        flags = value.flags.num
        return value.dtype, value.ndim, flags & _C_CONTIGUOUS or flags & _F_CONTIGUOUS, flags & _WRITEABLE
    if isinstance(value, tuple):
        return type(value), *map(_kind, value)
    return type(value)


def entry_points(calls):
    """The `Kernel.entry_point` of each of a list of pairs, a kernel and its arguments.

    Where `compile_in_two_processes` allows it and one has to be compiled, a second process compiles some of them
    meanwhile and leaves them in the cache.
    """
    kinds = [_kind(arguments) for _, arguments in calls]
    if _in_two_processes:
        each = {(call[0].name, kind): call for call, kind in zip(calls, kinds) if not call[0].has_entry_point(kind)}
        if each:
            _compile_from_both_ends(each.values())
    return [kernel.entry_point(arguments, kind) for (kernel, arguments), kind in zip(calls, kinds)]


def compile_in_two_processes():
    """Allow `entry_points` to fork: for programs of one thread, such as the command line at its start."""
    global _in_two_processes
    _in_two_processes = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1


def _compile_from_both_ends(calls):
    """Compile what is not in the cache, from the first call on; a forked process does from the last one back.

    If that fails, not all is compiled. Neighbours share much, which a process compiles once: filters of a kind.
    """
    global _before_first
    families = Counter(_family(arguments) for _, arguments in calls)
    helper = _Helper(sorted(calls, key=lambda call: (-families[_family(call[1])], _family(call[1]), call[0].name)))
    _before_first = helper.start
    try:
        helper.compile(range(len(calls)))
    finally:
        _before_first = None
        helper.wait()


def _family(arguments):
    return type(arguments[0]).__name__


class _Helper:
    """A forked process that compiles some of a list of kernels with their arguments while this one compiles others."""

    def __init__(self, calls):
        self.calls, self.process = calls, None
        # Both see and mark who has begun what. If both begin the same at once, both compile it, to no harm.
        self.begun = mmap.mmap(-1, len(calls))

    def start(self):
        with suppress(OSError):  # as many processes as there may be
            self.process = os.fork()
        if self.process == 0:
            before = compilations()
            try:
                self.compile(reversed(range(len(self.calls))))
            finally:
                # Nothing of what the parent has open is flushed, closed or reported here. The status is a number.
                os._exit(min(compilations() - before, 255))

    def compile(self, numbers):
        for number in numbers:
            if not self.begun[number]:
                self.begun[number] = True
                kernel, arguments = self.calls[number]
                kernel.entry_point(arguments)

    def wait(self):
        global _compiled_by_helpers
        if self.process:
            _, status = os.waitpid(self.process, 0)
            _compiled_by_helpers += max(0, os.waitstatus_to_exitcode(status))


def _start_helper():
    global _before_first
    start, _before_first = _before_first, None
    if start is not None:
        start()


def _with_cache(compiled, function):
    compiled._cache = cache_for(function, _start_helper)
    return compiled


def compilations():
    """How many kernels this process and its helpers have compiled so far because they were not in the cache."""
    return _compiled_by_helpers + sum(kernel.compilations for kernel in _kernels)


def cache_folder():
    """Folder where compiled kernels are kept; None where none can be written, or one was not kept for lack of space."""
    folders = [kernel.cache_folder for kernel in _kernels]
    return folders[0] if all(folders) else None


_C_CONTIGUOUS, _F_CONTIGUOUS, _WRITEABLE = 0x1, 0x2, 0x400
"""NumPy's bits of ``flags.num``."""

_kernels: list = []
_in_two_processes = False
_before_first = None
_compiled_by_helpers = 0
