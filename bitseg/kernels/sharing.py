"""Rows of a step shared out among threads: each takes the next few that nobody has taken, until none is left.

Nobody is told to take part. A thread that comes late, or never, leaves more rows to the others. A thread goes on to the
next step while others are still busy with this one, and waits for those rows that it needs.
"""

from collections import namedtuple

from .counters import add, look_again, read
from .jit import part, routine
from .program import kernel

Share = namedtuple(
    "Share", "counters step height rows finished before rows_before stride first last", defaults=(0, 0, 0, 0, 0, 0)
)
"""How a step is shared out; without the last six it needs nothing of those before it.

counters : int64, shape (steps, FINISHED + parts)
    Rows taken of each step in column `TAKEN`; from column `FINISHED` on, for each part of its rows, whether it is
    finished: not 0.
step : int
height : int
    Rows of the step.
rows : int
    How many a thread takes at a time: a part, of which the last may have fewer.
finished : int
    Parts of the last step but one, all of which must be finished before this one begins; 0: there is none.
before, rows_before : int
    Rows of the step before, and how many of them are a part. None are waited for if `before` is 0.
stride, first, last : int
    Row y needs those from ``stride * y + first`` to ``stride * y + last`` of the step before, as far as they exist.
"""

TAKEN, FINISHED = 0, 8
"""Columns of counters; what is taken has a cache line to itself."""


@kernel
def wait_for(counters, step, parts):
    """Return when all of a step is finished."""
    _wait_for(counters, step, 0, parts)


@routine
def _wait_for(counters, step, first, end):
    """Return when parts `first` to `end` of a step are finished."""
    for number in range(first, end):
        looks = 0
        while read(counters, step, FINISHED + number) == 0:
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
    """The row for this thread after it has finished row `y`; the height of the step if there is none."""
    if (y + 1) % share.rows and y + 1 < share.height:
        return y + 1
    add(share.counters, share.step, FINISHED + y // share.rows, 1)
    return _take(share)


@part
def _take(share):
    y = add(share.counters, share.step, TAKEN, share.rows)
    if y >= share.height:
        return share.height
    if share.before:
        last_row = min(y + share.rows, share.height) - 1
        first = min(max(share.stride * y + share.first, 0), share.before - 1)
        last = max(min(share.stride * last_row + share.last, share.before - 1), 0)
        _wait_for(share.counters, share.step - 1, first // share.rows_before, last // share.rows_before + 1)
    return y


@part
def end_of_taken(share, y, most):
    """The row after the last one that this thread has taken together with row `y`, or after so many from it on."""
    return min(y + most, (y // share.rows + 1) * share.rows, share.height)
