"""Runs of a program: threads that take part, helpers that listen for the next one, and what they find in memory.

All that happens between the kernels of a run is compiled: a thread that asked for Python's lock would wait for others
that hold it.
"""

from functools import cache

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .compilation import with_cache
from .counters import LOOKS, add, compare_exchange, look_again, read
from .jit import OPTIONS, part, routine

NOT_ENOUGH_MEMORY = "not enough memory for what a kernel needs while it runs"


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
        native(_begin)(self._record, (*pieces, *[_NO_BYTES] * (MOST_PIECES - len(pieces))))

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
        return native(_call)(self._record, board.rows, number)

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
        native(_work)(self._record, _rows(board), first, end, worker)
        if board is None and self.failed:
            raise MemoryError(NOT_ENOUGH_MEMORY)

    def finish(self, first=0, board=None):
        """Run the kernels from number `first` on, as the thread that called the helpers of a board, and close the run.

        Nobody begins a kernel any more then, and no thread is at one: those called need not come, and one that comes
        later holds no more than the record.
        """
        # Python has no part in between: an exception from a signal would leave to helpers a run that has ended.
        native(_finish)(self._record, _rows(board), first, self._record[_STEPS, 1])
        self._kept = None

    def abandon(self, board=None):
        """Close the run, and let nobody wait for rows that a thread had taken: they will not come."""
        if not self.closed:
            native(_abandon)(self._record, _rows(board))
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
        In the first column, of each helper, `AWAY`, `LISTENS`, or the address of the record of the run that it is
        called to; in the last row how much else there is to do.
    """

    def __init__(self, helpers):
        self.rows = np.zeros((helpers + 1, COLUMNS), np.int64)

    def more_to_do(self, number):
        """Add to how much there is that helpers learn of elsewhere: while there is any, none listens."""
        native(_more_to_do)(self.rows, number)


def record_of(steps, counters, pieces):
    """What a run of a program begins with.

    Parameters
    ----------
    steps : int64, shape (n, 2)
        Addresses of a `BOUND` function, and of its arguments, for each kernel.
    counters : ndarray of int64, contiguous, or None
    pieces : sequence of ndarray, contiguous
        As for `program.Program`.

    Returns
    -------
    int64, shape (rows, `COLUMNS`)
        Rows as below, see `PIECES`.
    """
    record = np.zeros((PIECES + MOST_PIECES, COLUMNS), np.int64)
    record[_STEPS, :2] = steps.ctypes.data, len(steps)
    if counters is not None:
        record[_COUNTERS, :2] = counters.ctypes.data, counters.size
    for row, piece in enumerate(pieces, PIECES):
        record[row, :2] = piece.ctypes.data, piece.nbytes
    return record


AWAY, LISTENS = 0, 1

COLUMNS = 8
"""Of a run's record and of a board, where each row has a cache line."""

_INSIDE, _CLOSED, _FAILED, _STEPS, _COUNTERS, PIECES = range(6)
"""Rows of a run's record: how many threads are at work or called, whether it is closed and how often it has failed;
address and number of a program's steps, and of the counters that kernels wait for; and, of each piece, address and size
of the first one, and by how many bytes it has moved."""

MOST_PIECES = 3

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
    for number in range(MOST_PIECES):
        piece, row = pieces[number], PIECES + number
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
        if called < number and read(board, row, 0) == LISTENS:
            add(run, _INSIDE, 0, 1)
            if compare_exchange(board, row, 0, LISTENS, run.ctypes.data):
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
        while place != AWAY:
            called = _numbers_at(place, PIECES + MOST_PIECES, COLUMNS)
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
    """Where the record of a run is to which this helper is called; `AWAY` if it has not been for some time."""
    compare_exchange(board, row, 0, AWAY, LISTENS)
    looks = 0
    while True:
        place = read(board, row, 0)
        if place == LISTENS:
            looks = look_again(looks)
            ends = looks >= LOOKS_FOR_MORE or read(board, len(board) - 1, 0) > 0
            if ends and compare_exchange(board, row, 0, LISTENS, AWAY):
                return AWAY
        # It may have been called back.
        elif compare_exchange(board, row, 0, place, AWAY):
            return place


@routine
def _close(run, board):
    """Call back those who have not come, and return when all others have left."""
    for row in range(len(board) - 1):
        if compare_exchange(board, row, 0, run.ctypes.data, LISTENS):
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

NATIVE = {
    _begin: [types.UniTuple(types.uint8[::1], MOST_PIECES)],
    _call: [_NUMBERS, types.intp],
    _work: [_NUMBERS, *[types.intp] * 3],
    _finish: [_NUMBERS, types.intp, types.intp],
    _abandon: [_NUMBERS],
    _more_to_do: [types.int64],
}
"""Types of what functions that Python calls take beside a run's record or a board's rows."""


@cache
def native(function):
    """One of these, compiled and kept as kernels are."""
    compiled = with_cache(numba.njit(function, nogil=True, **OPTIONS), function)
    return compiled.compile((_NUMBERS, *NATIVE[function]))


BOUND = ir.FunctionType(ir.IntType(1), [cgutils.intp_t] * 3)
"""A native function that says whether it failed. It takes the addresses of a kernel's arguments and of a run's record,
and the number of the `Worker`."""


@intrinsic
def _fails(typing_context, function, arguments, record, worker):
    def code(context, builder, signature, values):
        return builder.call(builder.inttoptr(values[0], BOUND.as_pointer()), values[1:])

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
