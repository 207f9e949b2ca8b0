"""A network as a list of steps on buffers of its own, made once for an input size and run for every image of it."""

import bisect
import time
import weakref
from _thread import start_new_thread
from collections import namedtuple
from itertools import accumulate, chain, product
from queue import SimpleQueue

import numpy as np

from ..kernels.jit import CACHE_LINE, empty_aligned
from ..kernels.program import Program, Worker
from ..kernels.run import NOT_ENOUGH_MEMORY, Board, Run
from ..kernels.sharing import Share, counters_shape, wait_for

NANOSECONDS_WORTH_A_THREAD = 2_500
"""Rows are taken by about this much work at a time: taking some costs a thread some tenths of a microsecond."""

NANOSECONDS_WORTH_A_HELPER = 200_000
"""With less work in all no other thread takes part: waking one takes some 40 microseconds."""

PARTS_OF_A_THREAD = 3
"""Into about so many parts for each thread is a step divided, so that a thread that is slower or late gets fewer."""

TIMES_A_TAKE = 25
"""Rows are taken by so many times the work that is done anew with each take."""

STEPWISE_NANOSECONDS = 3e8
"""A longer run returns to Python after each step, where somebody may want to interrupt it."""

HUGE_PAGE = 2 * 2**20

KEPT_BYTES = 64 * 2**20
"""Memory that stays after a larger image, for smaller ones: a network takes 3 MB for 384x384."""

Step = namedtuple(
    "Step", "kernel constants inputs height nanoseconds outputs updated each_take window", defaults=[None, 0, None]
)
"""One call of a kernel: ``kernel(*constants, *inputs, share, *outputs)`` on `height` rows, about `nanoseconds` of work.

The constants are those of the layer; what another step has written is in the inputs. `updated` is None, or an input in
whose place the first output may be written: of either the kernel needs a value no longer once it has written the other.
`each_take` are the nanoseconds it spends each time it takes rows, however few.
`window` is a `Window`, or None: row y may need any row of the inputs.
"""

Window = namedtuple("Window", "stride first last")
"""Row y needs rows ``stride * y + first`` to ``stride * y + last`` of the step's first input, as far as they exist."""


class Plan:
    """Steps that are run one after the other, each by all threads together.

    Every thread goes through all of the steps: in each it takes rows until none is left, then goes on to the next one,
    where it waits for the others as far as it needs their rows. None is needed: whoever does not come, because all
    processors are busy or because the process is the child of a fork, leaves its rows to the others.

    Parameters
    ----------
    steps : list of Step
    threads : int
        Threads that the rows are divided for.
    placed : Placed or None
        Where the steps read and write, if that may be another piece of memory in each run; several callers may then
        run the plan at the same time. None: one at a time.

    Attributes
    ----------
    size : int
        Bytes of memory that a run needs.
    most_helpers : int
        Threads beside the caller's that could find any work.
    """

    def __init__(self, steps, threads, placed=None):
        rows = [_rows_at_a_time(step, threads) for step in steps] if placed is None else placed.rows
        parts = _parts(steps, rows)
        counters = np.zeros(counters_shape(parts, threads), np.int64) if placed is None else placed.counters
        # One thread has finished all that it needs.
        needed = _needed(steps, rows, parts) if threads > 1 else [()] * len(steps)
        calls = []
        for number, step in enumerate(steps):
            share = Share(counters, number, step.height, rows[number], Worker(0), threads, *needed[number])
            calls.append((step.kernel, (*step.constants, *step.inputs, share, *step.outputs)))
        calls.append((wait_for, (counters, len(steps) - 1, parts[-1])))
        if placed is None:
            self.size, self._program = 0, Program(calls, counters=counters)
        else:
            pieces, constants = (placed.memory, placed.image, placed.result), [step.constants for step in steps]
            self.size, self._program = len(placed.memory), Program(calls, pieces, constants, counters)
            self._image_shape, self._result = placed.image.shape, (placed.result.shape, placed.result.dtype)
        work = sum(step.nanoseconds for step in steps)
        self.most_helpers = min(threads, max(parts)) - 1 if work >= NANOSECONDS_WORTH_A_HELPER else 0
        self._stepwise = work > STEPWISE_NANOSECONDS

    def execute(self, image, pool, memory, times=None):
        """Run all steps on an image, in `size` bytes of memory from the start of a cache line on; their result.

        Other arguments as for `run`.

        Raises
        ------
        ValueError
            The plan is for images of another shape.
        """
        if image.shape != self._image_shape:
            raise ValueError(f"an image of shape {image.shape}, but a plan for {self._image_shape}: make one for it")
        result = np.empty(*self._result)
        image = np.ascontiguousarray(image, np.uint8).reshape(-1)
        self.run(pool, (memory, image, result.reshape(-1).view(np.uint8)), times)
        return result

    def run(self, pool, pieces=(), times=None):
        """Run all steps, with the help of threads of a pool.

        Parameters
        ----------
        pool : Helpers or None
            Needed where `most_helpers` is above 0.
        pieces : sequence of ndarray of uint8, one axis
            For steps that were placed: memory, image and result of this run.
        times : list or None
            Receives the time, of `time.perf_counter`, at which no row was left in each step.
        """
        run, board = Run(self._program, pieces), None
        try:
            if self.most_helpers:
                board = pool.board
                pool.call(run, self.most_helpers)
            self._work(run, board, times)
        except BaseException:
            run.abandon(board)
            raise
        if run.failed:
            raise MemoryError(NOT_ENOUGH_MEMORY)

    def _work(self, run, board, times):
        alone = len(self._program) - 1 if self._stepwise or times is not None else 0
        for step in range(alone):
            run.work(step, step + 1)
            if times is not None:
                times.append(time.perf_counter())
        run.finish(alone, board)


class Helpers:
    """Threads that take part in runs of plans, started as they are called.

    An executor of the standard library would take a tenth of a millisecond longer for each run.

    Parameters
    ----------
    number : int
        How many there may be.

    Attributes
    ----------
    board : run.Board
        By which they are called while they still look for more work.
    """

    def __init__(self, number):
        self.board, self._started, self._runs = Board(number), False, SimpleQueue()
        # Each caller takes another one, without a lock, which a fork could find taken.
        self._not_started = list(range(number, 0, -1))
        weakref.finalize(self, self._runs.put, None)

    def call(self, run, number):
        """Let so many threads take part in a `run.Run`, each as soon as it is free."""
        for _ in range(run.call(self.board, number), number):
            self._start()
            # Else nobody would ever take it, and what it holds.
            if self._started:
                self.board.more_to_do(1)
                self._runs.put(run)

    def _start(self):
        """Start one more thread, if there is one left to be started, and the system allows it."""
        try:
            worker = self._not_started.pop()
        except IndexError:
            return
        before, self._started = self._started, True
        try:
            # None is waited for when the process ends. A `threading.Thread` waits until it has begun: an exception
            # from a signal would come in between, and nobody would know of the thread.
            start_new_thread(_serve, (self._runs, worker, self.board))
        except RuntimeError:
            self._started = before
            self._not_started.append(worker)


def _serve(runs, worker, board):
    while run := runs.get():
        board.more_to_do(-1)
        run.work(worker=worker, board=board)
        # What it holds is not needed until the next one.
        del run
    # To the next thread, which is to end as well.
    runs.put(None)


def _rows_at_a_time(step, threads):
    """How many rows a thread takes at a time, so that equally fast ones end together: no 6 and 4 of 10 rows."""
    parts = threads * PARTS_OF_A_THREAD
    if step.each_take:
        parts = max(threads, min(parts, step.nanoseconds // (TIMES_A_TAKE * step.each_take)))
    parts = min(parts, step.nanoseconds // NANOSECONDS_WORTH_A_THREAD, step.height)
    if threads == 1 or parts < 2:
        return step.height
    wanted, equal = -(-step.height // int(parts)), -(-step.height // threads)

    def longest(rows):
        """Rows of the thread that gets most."""
        return -(-step.height // (rows * threads)) * rows

    return min([*range(wanted, max(wanted // 2, 1) - 1, -1), equal], key=longest)


def _parts(steps, rows):
    """How many parts each step has of so many rows."""
    return [-(-step.height // taken) for step, taken in zip(steps, rows)]


def _needed(steps, rows, parts):
    """What each step needs of the two before it: the last fields of a `Share`."""
    finished = [0, 0, *parts]
    reads = [[_bounds(value) for value in step.inputs] for step in steps]
    writes = [_bounds(step.outputs) for step in steps]
    needed = [()]
    for number in range(1, len(steps)):
        step, written = steps[number], writes[number - 1]
        height = steps[number - 1].height
        window = Window(0, 0, height - 1)
        # Both may be under way at the same time: all is needed if one writes where the other reads or writes.
        if not _overlap(writes[number], [*written, *chain(*reads[number - 1])]):
            uses = [_overlap(bounds, written) for bounds in reads[number]]
            if not any(uses):
                height = 0
            elif step.window and not any(uses[1:]):
                window = step.window
        needed.append((finished[number], height, rows[number - 1], *window))
    return needed


def _bounds(value):
    """Addresses of the first byte, and of that after the last one, of each array in nested tuples."""
    starts = [(array.__array_interface__["data"][0], array.nbytes) for array in _arrays(value)]
    return [(start, start + size) for start, size in starts]


def _overlap(some, others):
    return any(start < other_end and other < end for (start, end), (other, other_end) in product(some, others))


def empty_bytes(size):
    """Memory from the beginning of a cache line on, or, from 1 MB on, of a huge page.

    Linux uses these where NumPy asks for them, from 4 MB on. A network takes about 1 % less time where what it writes
    lies on them, and 1 to 5 % less where its weights do.
    """
    if size < 2**20:
        return empty_aligned(size, np.uint8)
    memory = np.empty(max(size + HUGE_PAGE, 4 * 2**20), np.uint8)
    first = -memory.ctypes.data % HUGE_PAGE
    return memory[first : first + size]


def in_one_piece(value):
    """Nested tuples with copies of their arrays, which lie in one piece of memory, one after the other."""
    arrays = list({id(array): array for array in _arrays(value)}.values())
    ends = list(accumulate(map(_memory, arrays), initial=0))
    memory = empty_bytes(ends[-1])
    copies = {}
    for array, place in zip(arrays, ends):
        copies[id(array)] = copy = np.ndarray(array.shape, array.dtype, memory, place)
        copy[...] = array
    return _replaced(value, copies)


class Workspace:
    """Memory that one run at a time has to itself.

    It is the same for all plans, and so stays in the caches, whatever the size of the next image.
    """

    def __init__(self):
        self._memory = empty_bytes(0)

    def memory(self, size):
        """So many bytes at least. What has grown beyond `KEPT_BYTES` shrinks again."""
        if not size <= len(self._memory) <= max(size, KEPT_BYTES):
            self._memory = empty_bytes(size)
        return self._memory


_NO_MEMORY = bytes(16)


def placeholder(shape, dtype):
    """An array without memory, which `with_shared_memory` replaces; it can be read but means nothing."""
    return np.ndarray(shape, dtype, _NO_MEMORY, strides=(0,) * len(shape))


Placed = namedtuple("Placed", "memory image result counters rows")
"""A piece of memory and a plan's counters in it; image and result, which each run has elsewhere; and how many rows of
each step a thread takes at a time."""


def with_shared_memory(steps, image, allocate, threads=1):
    """Give steps other arrays to read and write, in one piece of memory where none lies on another that is needed.

    What a step makes of an input that nobody needs afterwards takes its place, if it may. Arrays of one lifetime lie
    side by side. The largest of such blocks come first, each as low as it fits.

    Parameters
    ----------
    steps : list of Step
    image : ndarray
        Read by the steps. It and the first output of the last step do not lie in that memory.
    allocate : callable
        Gives that memory: at least so many bytes of uint8, from the beginning of a cache line.
    threads : int
        Threads that a plan of the steps will be for.

    Returns
    -------
    list of Step
    Placed
    """
    rows = [_rows_at_a_time(step, threads) for step in steps]
    counters = placeholder(counters_shape(_parts(steps, rows), threads), np.int64)
    result = steps[-1].outputs[0]
    buffers = {id(array): np.empty(array.shape, array.dtype) for array in (image, result)}
    elsewhere = tuple(buffers.values())
    lifetimes = {id(counters): _Lifetime(counters, 0, len(steps))} | _lifetimes(steps)
    del lifetimes[id(result)]
    taken = _take_places(steps, lifetimes)
    # Of several threads some are busy with a step when others begin the next one.
    size, places = _places(lifetimes.values(), 1 if threads > 1 else 0)
    memory = allocate(size)[:size]
    for array, place in places:
        buffers[id(array)] = np.ndarray(array.shape, array.dtype, memory, place)
    for output, updated in taken:
        buffers[output] = buffers[updated]
    steps = [
        step._replace(inputs=_replaced(step.inputs, buffers), outputs=_replaced(step.outputs, buffers))
        for step in steps
    ]
    return steps, Placed(memory, *elsewhere, buffers[id(counters)], rows)


_Lifetime = namedtuple("_Lifetime", "array first last")
"""An array, and the numbers of the steps that write it first and use it last."""

_Block = namedtuple("_Block", "start end first last")
"""Where arrays of one lifetime lie, in bytes, and that lifetime."""


def _lifetimes(steps):
    """The `_Lifetime` of each array that steps write, by its id."""
    lifetimes = {}
    for number, step in enumerate(steps):
        for array in _arrays(step.outputs):
            lifetimes.setdefault(id(array), _Lifetime(array, number, number))
        for array in _arrays((step.inputs, step.outputs)):
            if id(array) in lifetimes:
                lifetimes[id(array)] = lifetimes[id(array)]._replace(last=number)
    return lifetimes


def _take_places(steps, lifetimes):
    """Let outputs take the places of inputs that nobody needs afterwards, which then live as long as the output.

    Returns
    -------
    list of (int, int)
        Ids of output and input, in the order of the steps.
    """
    taken = []
    for number, step in reversed(list(enumerate(steps))):
        updated, output = id(step.updated), id(step.outputs[0])
        if updated in lifetimes and output in lifetimes and lifetimes[updated].last == number:
            lifetimes[updated] = lifetimes[updated]._replace(last=lifetimes.pop(output).last)
            taken.insert(0, (output, updated))
    return taken


def _places(lifetimes, more):
    """Bytes that all arrays need, and each array with its first byte, if lifetimes last so many steps more."""
    blocks, placed, places = {}, [], []
    for array, first, last in lifetimes:
        blocks.setdefault((first, last + more), []).append(array)
    for (first, last), arrays in sorted(blocks.items(), key=lambda block: -sum(map(_memory, block[1]))):
        ends = list(accumulate(map(_memory, arrays), initial=0))
        start = 0
        for other in placed:
            if other.first <= last and first <= other.last:
                if other.start >= start + ends[-1]:
                    break
                start = max(start, other.end)
        bisect.insort(placed, _Block(start, start + ends[-1], first, last))
        places += [(array, start + place) for array, place in zip(arrays, ends)]
    return max(block.end for block in placed), places


def _memory(array):
    """Bytes of an array and of what is spare behind its last value, in whole cache lines."""
    size = array.base.nbytes if isinstance(array.base, np.ndarray) else array.nbytes
    return -(-size // CACHE_LINE) * CACHE_LINE


def _arrays(value):
    """All arrays in nested tuples."""
    if isinstance(value, np.ndarray):
        return [value]
    return [array for item in value for array in _arrays(item)] if isinstance(value, tuple) else []


def _replaced(value, buffers):
    """Nested tuples with buffers in place of the arrays whose id is a key."""
    if isinstance(value, np.ndarray):
        return buffers.get(id(value), value)
    if isinstance(value, tuple):
        items = [_replaced(item, buffers) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
