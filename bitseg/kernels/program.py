"""Kernels as Python sees them: compiled for their arguments, bound to them, and run in a row, without the GIL."""

from collections import Counter, namedtuple
from functools import partial

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.compiler import Flags, compile_internal
from numba.extending import intrinsic, typeof_impl
from numba.np import numpy_support

from .compilation import compile_all, uses_two_processes, with_cache
from .jit import OPTIONS, change_values, without_owner
from .run import BOUND, COLUMNS, MOST_PIECES, NATIVE, PIECES, Run, native, record_of


def kernel(function):
    """Make a function a `Kernel`."""
    return Kernel(function)


class Kernel:
    """A function that is compiled for the types of its arguments, and returns nothing.

    Attributes
    ----------
    name : str
    """

    def __init__(self, function):
        self.name, self._entry_points = function.__name__, {}
        self._compiled = with_cache(numba.njit(_entry_point(function), **OPTIONS), function)

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


@typeof_impl.register(Kernel)
def _refuse(kernel, context):
    """No type: other compiled functions cannot call it."""
    raise ValueError(f"{kernel.name} is a kernel, called from Python alone: put what others need of it into a part")


Worker = namedtuple("Worker", "number")
"""A thread that runs a program. Whatever number a kernel's arguments have, it gets that of the thread."""


class Program:
    """Kernels with their arguments, to be run one after the other.

    Between two of them Python has no part: a thread that asked for its lock would wait for others that hold it.

    Parameters
    ----------
    calls : list of (Kernel, tuple)
        Kernels and their arguments, which this object keeps alive; arrays and counters in the `pieces` it does not.
    pieces : sequence of ndarray, contiguous
        Three at most. Where arrays lie that can be elsewhere when the kernels run, see `Run`.
    kept : object
        What has to be kept alive of arguments and counters where there are `pieces`.
    counters : ndarray of int64, contiguous, or None
        What kernels wait for: zeros when a run begins, and large numbers when a kernel failed, so that nobody waits.

    Attributes
    ----------
    record : ndarray of int64
        What each `Run` begins with, see `run.record_of`.

    Raises
    ------
    MemoryError
        There is not enough to put the arguments in.
    """

    def __init__(self, calls, pieces=(), kept=None, counters=None):
        bound = [bind(arguments) for bind, (_, arguments) in zip(entry_points(calls), calls)]
        # Not as helpers and signals first need them: a process that ends while a thread compiles would crash.
        for function in NATIVE:
            native(function)
        self._kept = [arguments for arguments, _, _ in bound], *((kept,) if pieces else (calls, counters))
        self._steps = np.array([addresses for _, *addresses in bound], np.int64)
        self.record = record_of(self._steps, counters, pieces)

    def __len__(self):
        return len(self._steps)

    def run(self, first=0, end=None):
        """Run the kernels from number `first` on, before number `end`, where every array was at first.

        Raises
        ------
        MemoryError
            There is not enough for what a kernel needs while it runs.
        """
        Run(self).work(first, end)


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
    """Compile a Python function as a `BOUND` one that finds arguments of this tuple type in memory."""
    bound = ir.Function(builder.module, BOUND, f"{builder.function.name}.bound")
    bound.linkage = "internal"
    inside = ir.IRBuilder(bound.append_basic_block())
    place, record, worker = bound.args
    rows = inside.inttoptr(record, cgutils.intp_t.as_pointer())
    numbers = [
        [inside.load(inside.gep(rows, [cgutils.intp_t(COLUMNS * row + column)])) for column in range(3)]
        for row in range(PIECES, PIECES + MOST_PIECES)
    ]

    def change(kind, value):
        if isinstance(kind, types.Array):
            return _moved(context, inside, kind, value, numbers)
        if getattr(kind, "instance_class", None) is Worker:
            return context.make_tuple(inside, kind, [worker])
        return None

    found = inside.load(inside.inttoptr(place, context.get_value_type(arguments).as_pointer()), align=1)
    values = cgutils.unpack_tuple(inside, change_values(context, inside, arguments, found, change))
    compiled = _into_library(context, function, arguments)
    status, _ = context.call_internal_no_propagate(inside, compiled, types.none(*arguments), values)
    inside.ret(status.is_error)
    return bound


def _moved(context, builder, kind, value, pieces):
    """An array of a kernel's arguments: without its owner, and moved with the piece of memory in which it lies."""
    array = without_owner(context, builder, kind, value)
    address = builder.ptrtoint(array.data, cgutils.intp_t)
    data = builder.bitcast(array.data, cgutils.voidptr_t)
    for first, size, moved in pieces:
        inside = builder.icmp_unsigned("<", builder.sub(address, first), size)
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

    Where `compilation.compile_in_two_processes` allows it and one has to be compiled, a second process compiles some
    of them meanwhile and leaves them in the cache.
    """
    kinds = [_kind(arguments) for _, arguments in calls]
    if uses_two_processes():
        each = {(call[0].name, kind): call for call, kind in zip(calls, kinds) if not call[0].has_entry_point(kind)}
        if each:
            compile_all(_compilations(each.values()))
    return [kernel.entry_point(arguments, kind) for (kernel, arguments), kind in zip(calls, kinds)]


def _compilations(calls):
    """What has to be compiled for calls and runs, as tasks. Filters of a kind, which share much, are neighbours."""
    families = Counter(_family(arguments) for _, arguments in calls)
    calls = sorted(calls, key=lambda call: (-families[_family(call[1])], _family(call[1]), call[0].name))
    kernels = [partial(kernel.entry_point, arguments) for kernel, arguments in calls]
    return [*kernels, *(partial(native, function) for function in NATIVE)]


def _family(arguments):
    return type(arguments[0]).__name__


_C_CONTIGUOUS, _F_CONTIGUOUS, _WRITEABLE = 0x1, 0x2, 0x400
"""NumPy's bits of ``flags.num``."""
