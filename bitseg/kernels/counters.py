"""Counters that several threads change and wait for: int64 arrays of two axes, of which one is a row and a column."""

import os

from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import part

LOOKS = 20_000
"""Looks at a counter before the processor is given to somebody else: some 10 microseconds."""

if hasattr(os, "sched_yield"):
    _give_way = types.ExternalFunction("sched_yield", types.int32())
else:

    @part
    def _give_way():
        """The system takes the processor away by itself, if later."""


@intrinsic
def add(typing_context, counters, row, column, value):
    """Add to a counter and return what it was, in one step for all threads."""

    def code(context, builder, signature, values):
        place = _place(context, builder, signature.args[0], *values[:3])
        return builder.atomic_rmw("add", place, values[3], "seq_cst")

    return types.int64(counters, types.intp, types.intp, types.int64), code


@intrinsic
def read(typing_context, counters, row, column):
    """Read a counter; what other threads wrote before they added to it is then visible."""

    def code(context, builder, signature, values):
        return builder.load_atomic(_place(context, builder, signature.args[0], *values), "seq_cst", 8)

    return types.int64(counters, types.intp, types.intp), code


@intrinsic
def compare_exchange(typing_context, counters, row, column, old, new):
    """Give a counter a new value if it has the old one, in one step for all threads; whether it had."""

    def code(context, builder, signature, values):
        place = _place(context, builder, signature.args[0], *values[:3])
        return builder.extract_value(builder.cmpxchg(place, *values[3:], "seq_cst"), 1)

    return types.boolean(counters, types.intp, types.intp, types.int64, types.int64), code


def _place(context, builder, array_type, array, row, column):
    found = context.make_array(array_type)(context, builder, array)
    columns = cgutils.unpack_tuple(builder, found.shape)[1]
    return builder.gep(found.data, [builder.add(builder.mul(row, columns), column)])


@part
def look_again(looks):
    """Between two looks at a counter that others are to change: how many there have been."""
    if (looks + 1) % LOOKS == 0:
        _give_way()
    return looks + 1
