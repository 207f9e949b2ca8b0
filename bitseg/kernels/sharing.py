"""Rows of a step shared out among threads: each takes the next few that nobody has taken, until none is left.

Nobody is told to take part. A thread that comes late, or never, leaves more rows to the others.
"""

from collections import namedtuple

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .jit import kernel

Share = namedtuple("Share", "counters step height rows")
"""How a step is shared out.

counters : int64, shape (steps, COUNTERS)
    Rows taken and rows finished of each step, in columns `TAKEN` and `FINISHED`, a cache line each.
step : int
height : int
    Rows of the step.
rows : int
    How many a thread takes at a time.
"""

TAKEN, FINISHED, COUNTERS = 0, 8, 16

LOOKS = 20_000
"""Looks at a counter before the processor is given to somebody else: some 10 microseconds."""


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
def take_row(share):
    """The first row for this thread, or the height of the step: none is left."""
    return min(_add(share.counters, share.step, TAKEN, share.rows), share.height)


@kernel
def next_row(share, y):
    """The row for this thread after it has finished row `y`; the height of the step if there is none."""
    if (y + 1) % share.rows and y + 1 < share.height:
        return y + 1
    _add(share.counters, share.step, FINISHED, y % share.rows + 1)
    return take_row(share)


@kernel
def is_finished(share):
    """Whether all rows of a step are finished; waits for a few microseconds at most."""
    for _ in range(LOOKS):
        if _read(share.counters, share.step, FINISHED) == share.height:
            return True
    return False
