"""Kernels as Python sees them: compiled for their arguments, bound to them, and run in a row, without the GIL."""

import ctypes
import mmap
import os
import signal
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
from numba.np.arrayobj import populate_array

from .cache import cache_for, folder_of
from .counters import LOOKS, add, compare_exchange, look_again, read
from .jit import OPTIONS, change_values, part, routine, without_owner


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
        What each `Run` begins with, see `_PIECES`.

    Raises
    ------
    MemoryError
        There is not enough to put the arguments in.
    """

    def __init__(self, calls, pieces=(), kept=None, counters=None):
        bound = [bind(arguments) for bind, (_, arguments) in zip(entry_points(calls), calls)]
        # Not as helpers and signals first need them: a process that ends while a thread compiles would crash.
        for function in _MORE:
            _native(function)
        self._kept = [arguments for arguments, _, _ in bound], *((kept,) if pieces else (calls, counters))
        self._steps = np.array([addresses for _, *addresses in bound], np.int64)
        self.record = np.zeros((_PIECES + _MOST_PIECES, _COLUMNS), np.int64)
        self.record[_STEPS, :2] = self._steps.ctypes.data, len(calls)
        if counters is not None:
            self.record[_COUNTERS, :2] = counters.ctypes.data, counters.size
        for row, piece in enumerate(pieces, _PIECES):
            self.record[row, :2] = piece.ctypes.data, piece.nbytes

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


class Run:
    """One run of a program, in which several threads may take part.

    Parameters
    ----------
    program : Program
    pieces : sequence of ndarray of uint8, contiguous, one axis
        In each of them arrays are where they were in that piece which the program was given. None: nothing has moved.
    """

    def __init__(self, program, pieces=()):
        # Helpers may use them until `close` has returned.
        self._kept, self._record = (program, pieces), program.record.copy()
        _native(_begin)(self._record, (*pieces, *[_NO_BYTES] * (_MOST_PIECES - len(pieces))))

    @property
    def closed(self):
        """Whether nobody begins a kernel any more."""
        return self._record[_CLOSED, 0] != 0

    @property
    def failed(self):
        """Whether some kernel did."""
        return self._record[_FAILED, 0] != 0

    def call(self, board, number):
        """Let so many helpers take part, of those who listen.

        Parameters
        ----------
        board : Board
        number : int

        Returns
        -------
        int
            How many that are.
        """
        return _native(_call)(self._record, board.rows, number)

    def work(self, first=0, end=None, worker=0, board=None):
        """Run the kernels from number `first` on, before number `end`: of a thread that takes part.

        Parameters
        ----------
        first, end : int
        worker : int
            The thread's number, see `Worker`.
        board : Board or None
            Of a helper, with a number above 0: it then listens for some time, and takes part in runs it is called to.

        Raises
        ------
        MemoryError
            There is not enough for what a kernel needs while it runs.
        """
        end = self._record[_STEPS, 1] if end is None else end
        _native(_work)(self._record, _rows(board), first, end, worker)
        if board is None and self.failed:
            raise MemoryError(NOT_ENOUGH_MEMORY)

    def finish(self, first=0, board=None):
        """Run the kernels from number `first` on, as the thread that called the helpers of a board, and close the run.

        Nobody begins a kernel any more then, and no thread is at one: those called need not come, and one that comes
        later holds no more than the record.
        """
        # Python has no part in between: an exception from a signal would leave to helpers a run that has ended.
        _native(_finish)(self._record, _rows(board), first, self._record[_STEPS, 1])
        self._kept = None

    def abandon(self, board=None):
        """Close the run, and let nobody wait for rows that a thread had taken: they will not come."""
        if not self.closed:
            _native(_abandon)(self._record, _rows(board))
        self._kept = None


class Board:
    """By which a thread calls helpers that have just worked and still look for more, before they sleep.

    To wake one that sleeps takes some 60 microseconds, and one that has to ask for Python's lock comes as late.

    Parameters
    ----------
    helpers : int

    Attributes
    ----------
    rows : int64, shape (helpers + 1, n)
        In the first column, of each helper, `_AWAY`, `_LISTENS`, or the address of the record of the run that it is
        called to; in the last row how much else there is to do.
    """

    def __init__(self, helpers):
        self.rows = np.zeros((helpers + 1, _COLUMNS), np.int64)

    def more_to_do(self, number):
        """Add to how much there is that helpers learn of elsewhere: while there is any, none listens."""
        _native(_more_to_do)(self.rows, number)


_AWAY, _LISTENS = 0, 1

_COLUMNS = 8
"""Of a run's record and of a board, where each row has a cache line."""

_INSIDE, _CLOSED, _FAILED, _STEPS, _COUNTERS, _PIECES = range(6)
"""Rows of a run's record: how many threads are at work or called, whether it is closed and how often it has failed;
address and number of a program's steps, and of the counters that kernels wait for; and, of each piece, address and size
of the first one, and by how many bytes it has moved."""

_MOST_PIECES = 3

_NO_BYTES = np.empty(0, np.uint8)

_NO_ROWS = Board(0).rows


def _rows(board):
    """Those of a `Board`, or of one without helpers."""
    return _NO_ROWS if board is None else board.rows


_NO_LONGER = np.iinfo(np.int64).max // 2
"""What a counter becomes that shall keep nobody waiting."""

LOOKS_FOR_MORE = 20 * LOOKS
"""Looks at the board before a helper sleeps: some 0.2 milliseconds, in which another image may come."""


def _begin(run, pieces):
    """Note where the pieces are, and set the counters, which may lie in one of them, to zero."""
    counters = run[_COUNTERS, 0]
    for number in range(_MOST_PIECES):
        piece, row = pieces[number], _PIECES + number
        if len(piece):
            run[row, 2] = piece.ctypes.data - run[row, 0]
        if 0 <= counters - run[row, 0] < run[row, 1]:
            run[_COUNTERS, 0] = counters + run[row, 2]
    _counters_of(run)[:] = 0


@part
def _counters_of(run):
    return _numbers_at(run[_COUNTERS, 0], 1, run[_COUNTERS, 1])


def _call(run, board, number):
    """Call so many listeners, each of whom is counted among those inside from now on; how many there were."""
    called = 0
    for row in range(len(board) - 1):
        if called < number and read(board, row, 0) == _LISTENS:
            add(run, _INSIDE, 0, 1)
            if compare_exchange(board, row, 0, _LISTENS, run.ctypes.data):
                called += 1
            else:
                add(run, _INSIDE, 0, -1)
    return called


def _work(run, board, first, end, worker):
    """Take part in a run, and, as a helper, in those that it is called to until it has not been for some time."""
    add(run, _INSIDE, 0, 1)
    _run_steps(run, first, end, worker)
    if worker > 0 and len(board) > 1:
        place = _listen(board, worker - 1)
        while place != _AWAY:
            called = _numbers_at(place, _PIECES + _MOST_PIECES, _COLUMNS)
            _run_steps(called, 0, called[_STEPS, 1], worker)
            place = _listen(board, worker - 1)


@routine
def _run_steps(run, first, end, worker):
    """Call native functions, as a thread that is counted among those inside, which it leaves."""
    steps = _numbers_at(run[_STEPS, 0], run[_STEPS, 1], 2)
    for step in range(first, end):
        if read(run, _CLOSED, 0):
            break
        if _fails(steps[step, 0], steps[step, 1], run.ctypes.data, worker):
            _fail(run)
            break
    add(run, _INSIDE, 0, -1)


@part
def _fail(run):
    add(run, _FAILED, 0, 1)
    _counters_of(run)[:] = _NO_LONGER


@routine
def _listen(board, row):
    """Where the record of a run is to which this helper is called; `_AWAY` if it has not been for some time."""
    compare_exchange(board, row, 0, _AWAY, _LISTENS)
    looks = 0
    while True:
        place = read(board, row, 0)
        if place == _LISTENS:
            looks = look_again(looks)
            ends = looks >= LOOKS_FOR_MORE or read(board, len(board) - 1, 0) > 0
            if ends and compare_exchange(board, row, 0, _LISTENS, _AWAY):
                return _AWAY
        # It may have been called back.
        elif compare_exchange(board, row, 0, place, _AWAY):
            return place


@routine
def _close(run, board):
    """Call back those who have not come, and return when all others have left."""
    for row in range(len(board) - 1):
        if compare_exchange(board, row, 0, run.ctypes.data, _LISTENS):
            add(run, _INSIDE, 0, -1)
    add(run, _CLOSED, 0, 1)
    looks = 0
    while read(run, _INSIDE, 0):
        looks = look_again(looks)


def _finish(run, board, first, end):
    """Take part in a run as the thread that called others to it, and close it."""
    add(run, _INSIDE, 0, 1)
    _run_steps(run, first, end, 0)
    _close(run, board)


def _abandon(run, board):
    """Let nobody wait, and close a run: not one that is closed, whose counters' memory may be another's."""
    _fail(run)
    _close(run, board)


def _more_to_do(board, number):
    add(board, len(board) - 1, 0, number)


_NUMBERS = types.int64[:, ::1]

_MORE = {
    _begin: [types.UniTuple(types.uint8[::1], _MOST_PIECES)],
    _call: [_NUMBERS, types.intp],
    _work: [_NUMBERS, *[types.intp] * 3],
    _finish: [_NUMBERS, types.intp, types.intp],
    _abandon: [_NUMBERS],
    _more_to_do: [types.int64],
}
"""Types of what functions that Python calls take beside a run's record or a board's rows."""


@cache
def _native(function):
    """One of these, compiled and kept as kernels are."""
    compiled = _with_cache(numba.njit(function, nogil=True, **OPTIONS), function)
    return compiled.compile((_NUMBERS, *_MORE[function]))


_BOUND = ir.FunctionType(ir.IntType(1), [cgutils.intp_t] * 3)
"""A native function that says whether it failed. It takes the addresses of a kernel's arguments and of a run's record,
and the number of the `Worker`."""


@intrinsic
def _fails(typing_context, function, arguments, record, worker):
    def code(context, builder, signature, values):
        return builder.call(builder.inttoptr(values[0], _BOUND.as_pointer()), values[1:])

    return types.boolean(function, arguments, record, worker), code


@intrinsic
def _numbers_at(typing_context, address, rows, columns):
    """The array of int64 that lies at an address."""

    def code(context, builder, signature, values):
        array = context.make_array(_NUMBERS)(context, builder)
        address, *shape = values
        size = cgutils.intp_t(8)
        strides = builder.mul(shape[1], size), size
        data = builder.inttoptr(address, array.data.type)
        populate_array(array, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
        return array._getvalue()

    return _NUMBERS(types.intp, types.intp, types.intp), code


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
    place, record, worker = bound.args
    rows = inside.inttoptr(record, cgutils.intp_t.as_pointer())
    numbers = [
        [inside.load(inside.gep(rows, [cgutils.intp_t(_COLUMNS * row + column)])) for column in range(3)]
        for row in range(_PIECES, _PIECES + _MOST_PIECES)
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
    except BaseException:
        helper.stop()
        raise
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
        parent = os.getpid()
        with suppress(OSError):  # as many processes as there may be
            self.process = os.fork()
        if self.process == 0:
            before = compilations()
            try:
                # It has open what is the parent's, and others may wait until nobody has.
                ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
                if os.getppid() == parent:
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


def _with_cache(compiled, function):
    compiled._cache = cache_for(function, _start_helper)
    _dispatchers.append(compiled)
    return compiled


def compilations():
    """How many functions this process and its helpers have compiled so far because they were not in the cache."""
    return _compiled_by_helpers + sum(sum(compiled.stats.cache_misses.values()) for compiled in _dispatchers)


def cache_folder():
    """Folder where compiled kernels are kept; None where none can be written, or one was not kept for lack of space."""
    folders = [folder_of(compiled._cache) for compiled in _dispatchers]
    return folders[0] if all(folders) else None


_C_CONTIGUOUS, _F_CONTIGUOUS, _WRITEABLE = 0x1, 0x2, 0x400
"""NumPy's bits of ``flags.num``."""

_dispatchers: list = []
"""Numba's, of kernels and of other functions that Python calls."""

_in_two_processes = False
_before_first = None
_compiled_by_helpers = 0
