"""Rows of a step shared out among threads: each takes the next few that nobody has taken, until none is left.

Nobody is told to take part. A thread that comes late, or never, leaves more rows to the others. A thread goes on to the
next step while others are still busy with this one, and waits for those rows that it needs.

Each thread begins with a region of its own, of every step the same share of the height: it finds most of what it reads
in its own cache. When nothing is left of that, it helps in the regions of others.
"""

from collections import namedtuple

from .counters import add, look_again, read
from .jit import part, routine
from .program import kernel

Share = namedtuple(
    "Share",
    "counters step height rows worker workers finished before rows_before stride first last",
    defaults=(0, 0, 0, 0, 0, 0),
)
"""How a step is shared out; without the last six it needs nothing of those before it.

counters : int64, see `counters_shape`
    A row for each step. In the first columns, for each part of its rows, whether it is finished: not 0. In the last
    ones, each in a cache line of its own, how many parts of each region are taken.
step : int
height : int
    Rows of the step.
rows : int
    How many a thread takes at a time: a part, of which the last may have fewer.
worker : program.Worker
    Whose region comes first. Where there are more threads than regions, since several callers share them, number 0, the
    caller, still has one that is no helper's.
workers : int
    Regions. Region r of them ends before part ``parts * (r + 1) // workers``.
finished : int
    Parts of the last step but one, all of which must be finished before this one begins; 0: there is none.
before, rows_before : int
    Rows of the step before, and how many of them are a part. None are waited for if `before` is 0.
stride, first, last : int
    Row y needs those from ``stride * y + first`` to ``stride * y + last`` of the step before, as far as they exist.
"""

LINE = 8
"""Counters of a cache line."""


def counters_shape(parts, workers):
    """Shape of the `Share.counters` of steps of so many parts each."""
    return len(parts), (-(-max(parts) // LINE) + workers) * LINE


@kernel
def wait_for(counters, step, parts):
    """Return when all of a step is finished."""
    _wait_for(counters, step, 0, parts)


@routine
def _wait_for(counters, step, first, end):
    """Return when parts `first` to `end` of a step are finished."""
    for number in range(first, end):
        looks = 0
        while read(counters, step, number) == 0:
            looks = look_again(looks)


@part
def take_row(share):
    """The first row for this thread, once what it needs is there; the height of the step if none is left."""
    if share.finished:
        # With those all earlier ones are: this thread has waited for them before.
        _wait_for(share.counters, share.step - 2, 0, share.finished)
    return _take(share)


@part
def next_row(share, y):
    """The row for this thread after it has finished row `y`; the height of the step if there is none.

    Rows come in order, but for those of another's region.
    """
    if (y + 1) % share.rows and y + 1 < share.height:
        return y + 1
    add(share.counters, share.step, y // share.rows, 1)
    return _take(share)


@routine
def _take(share):
    parts = -(-share.height // share.rows)
    own = share.worker.number
    if own >= share.workers > 1:
        own = 1 + (own - 1) % (share.workers - 1)
    for turn in range(share.workers):
        region = (own + turn) % share.workers
        column = share.counters.shape[1] - (region + 1) * LINE
        number = parts * region // share.workers + add(share.counters, share.step, column, 1)
        if number < parts * (region + 1) // share.workers:
            y = number * share.rows
            _wait_for_needed(share, y)
            return y
    return share.height


@part
def _wait_for_needed(share, y):
    """Return when what the part from row `y` on needs of the step before is there."""
    if share.before:
        last_row = min(y + share.rows, share.height) - 1
        first = min(max(share.stride * y + share.first, 0), share.before - 1)
        last = max(min(share.stride * last_row + share.last, share.before - 1), 0)
        _wait_for(share.counters, share.step - 1, first // share.rows_before, last // share.rows_before + 1)


@part
def end_of_taken(share, y, most):
    """The row after the last one that this thread has taken together with row `y`, or after so many from it on."""
    return min(y + most, (y // share.rows + 1) * share.rows, share.height)


@part
def first_missing(ready, first, end):
    """Of rows `first` to `end`, the first that has yet to be made ready, in a ring that has room for all of them.

    ready : intp, shape (2,)
        From which row on, and up to which, there are rows ready. Becomes `first` and `end`.
    """
    missing = ready[1] if ready[0] <= first <= ready[1] else first
    ready[0], ready[1] = first, end
    return missing
