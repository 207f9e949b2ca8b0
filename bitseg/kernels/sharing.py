"""Rows of a step shared out among threads: each takes the next few that nobody has taken, until none is left.

Nobody is told to take part. A thread that comes late, or never, leaves more rows to the others.
"""

import os
from collections import namedtuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .jit import part, routine
from .program import kernel

Share = namedtuple("Share", "counters step height rows before")
"""How a step is shared out.

counters : int64, shape (steps, COUNTERS)
    Rows taken and rows finished of each step, in columns `TAKEN` and `FINISHED`, a cache line each.
step : int
height : int
    Rows of the step.
rows : int
    How many a thread takes at a time.
before : int
    Rows of the step before, which must be finished; 0 for the first step.
"""

TAKEN, FINISHED, COUNTERS = 0, 8, 16

LOOKS = 20_000
"""Looks at a counter before the processor is given to somebody else: some 10 microseconds."""

if hasattr(os, "sched_yield"):
    _give_way = types.ExternalFunction("sched_yield", types.int32())
else:

    @part
    def _give_way():
        """The system takes the processor away by itself, if later."""


def _place(context, builder, array_type, array, row, column):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [builder.add(builder.mul(row, ir.IntType(64)(COUNTERS)), column)])


@intrinsic
def _add(typing_context, counters, row, column, value):
    """Add to a counter and return what it was, in one step for all threads."""

    def code(context, builder, signature, values):
        place = _place(context, builder, signature.args[0], *values[:3])
        return builder.atomic_rmw("add", place, values[3], "seq_cst")

    return types.int64(counters, types.intp, types.intp, types.int64), code


@intrinsic
def _read(typing_context, counters, row, column):
    """Read a counter; what other threads wrote before they added to it is then visible."""

    def code(context, builder, signature, values):
        return builder.load_atomic(_place(context, builder, signature.args[0], *values), "acquire", 8)

    return types.int64(counters, types.intp, types.intp), code


@kernel
def wait_for(counters, step, height):
    """Return when that many rows of a step are finished."""
    _wait_for(counters, step, height)


@routine
def _wait_for(counters, step, height):
    looks = 0
    while _read(counters, step, FINISHED) < height:
        looks += 1
        if looks % LOOKS == 0:
            _give_way()


@part
def take_row(share):
    """The first row for this thread, once the step before is finished; the height of the step if none is left."""
    if share.before:
        _wait_for(share.counters, share.step - 1, share.before)
    return min(_add(share.counters, share.step, TAKEN, share.rows), share.height)


@part
def next_row(share, y):
    """The row for this thread after it has finished row `y`; the height of the step if there is none."""
    if (y + 1) % share.rows and y + 1 < share.height:
        return y + 1
    _add(share.counters, share.step, FINISHED, y % share.rows + 1)
    return min(_add(share.counters, share.step, TAKEN, share.rows), share.height)


@part
def end_of_taken(share, y, most):
    """The row after the last one that this thread has taken together with row `y`, or after so many from it on."""
    return min(y + most, (y // share.rows + 1) * share.rows, share.height)
