"""Bit convolution by table look-up: the sums of AND and popcount, read from 16-entry tables.

For four channels with activation nibbles A_j the sum ``sum_j 2**j popcount(A_j & w)`` has only 16 possible weight
nibbles w: one byte each of a 16-byte table, which every filter and tap uses. A byte shuffle reads it for 32 output
channels at once. Needs AVX2 or NEON; activations have at most 4 bits, so that an entry fits a byte.

Tables are made of a feature map for as many rows as a window has. Of one or two bits there are only 16 or 256 different
ones: where few filters and taps read a table, each nibble's is looked for among these instead.
"""

from collections import namedtuple

import numpy as np
from numba.core import types

from . import simd
from .jit import chosen_by_types, part, routine
from .sharing import first_missing

LANES = 32
"""Output channels computed side by side: the bytes of a vector."""

PIXELS = simd.lookup_pixels(1)
"""Pixels computed together, at most, which share what is loaded of the weights; the more arrays, the fewer."""

MOST_ACTIVATION_BITS = 4

LookupFilters = namedtuple(
    "LookupFilters", "weights planes tables entries multiplier offset kernel levels stride padding"
)
"""Weights of one convolution.

weights : tuple of uint8 arrays, each of shape (kernel, blocks, kernel * 8 * ceil(in / 32), 32)
    A byte holds the bits of 4 input channels, lowest first. The last axis runs over 32 output channels, in the order
    0, 16, 1, 17, ..., so that even and odd lanes are 16 channels in a row each. The arrays are the planes of the
    weights; of a single plane with an even number of blocks, the even and the odd ones. What is loaded of a feature
    map serves all of them. They are read from first to last, so that the processor fetches ahead what is not in its
    caches.
planes : tuple of int
    0 to the bits of the weights - 1: its length belongs to its type.
tables : array of uint8 or None
    `TABLES`, if they are not to be made.
entries : int
    Table entries of a window's row that may be added before a lane of 8 bits overflows, whatever the activations; an
    even number, for two at a time.
levels : int16 or int32
    Of the smaller type where the signed sums t fit it: the type of the sums.
The other fields are those of `popcount.PopcountFilters`.
"""

NIBBLE_ONES = np.array([nibble.bit_count() for nibble in range(16)], np.uint8)
_NIBBLE_COUNTS = np.array([[(a & w).bit_count() for w in range(16)] for a in range(16)], np.uint8)
TABLES = (_NIBBLE_COUNTS + 2 * _NIBBLE_COUNTS[:, None]).reshape(-1)
"""From ``16 * (16 * b + a)`` on: the table ``popcount(. & a) + 2 popcount(. & b)`` of one or two planes."""

_BYTE_TABLES = np.array([[*_NIBBLE_COUNTS[a & 15], *_NIBBLE_COUNTS[a >> 4]] for a in range(256)], np.uint8)
PLANE_TABLES = np.stack([_BYTE_TABLES << bit for bit in range(MOST_ACTIVATION_BITS)])
"""``PLANE_TABLES[j, a]``: the two tables of ``2**j popcount(. & w)`` for the low and the high nibble of byte a."""


@part
def workspace(planes, filters, rows, pixels):
    """Tables; where those of each nibble begin in them; which rows are ready; where the window's rows begin.

    The rows take turns: row y of the planes is in place ``y % kernel``. Where a window is one pixel, there are only
    the pixels that are convolved at a time. Tables that are made lie one after the other.
    """
    kernel_size, _, span, _ = filters.weights[0].shape
    columns = planes.sums.shape[1] if kernel_size > 1 else pixels
    starts = np.empty(kernel_size, np.intp)
    for row in range(kernel_size):
        starts[row] = 0
    ready = np.empty(2, np.intp)
    ready[0] = ready[1] = 0
    tables, offsets = _tables(filters.tables, columns * span)
    return tables, offsets, ready, starts


def _tables(ready, count):
    """Tables, and places for where `count` of them begin, or None where so many are made."""


@chosen_by_types(_tables)
def _overloaded_tables(ready, count):
    if isinstance(ready, types.NoneType):
        return lambda ready, count: (np.empty(count * 16, np.uint8), None)
    return lambda ready, count: (ready, np.empty(count, np.uint32))


@part
def begin_rows(planes, filters, space, y, rows):
    """Make ready the rows that output row `y` needs and the one before did not."""
    _, _, ready, starts = space
    kernel_size, _, span, _ = filters.weights[0].shape
    columns, nibbles = planes.sums.shape[1], span // kernel_size
    if kernel_size > 1:
        border = planes.margin - filters.padding
        first = y * filters.stride + border
        end = first + kernel_size
        for row in range(first_missing(ready, first, end), end):
            _make_row(planes, filters.tables, space, row, 0, 1, row % kernel_size * columns * nibbles, columns, nibbles)
        for row in range(kernel_size):
            starts[row] = ((first + row) % kernel_size * columns + border) * nibbles


@part
def _make_row(planes, ready, space, row, column, step, position, count, nibbles):
    """Tables, or their offsets, of `count` pixels of a row of the planes, every `step`-th from `column` on."""
    tables, offsets, _, _ = space
    halves = planes.words[0].shape[2] * 2
    first = (row * planes.sums.shape[1] + column) * halves
    for pixel in range(first, first + count * step * halves, step * halves):
        for half in range(pixel, pixel + nibbles // 8):
            if ready is not None:
                simd.store_offsets(offsets, position, planes.words, half)
            if ready is None:
                for byte in range(4):
                    simd.store_tables(tables, (position + 2 * byte) * 16, planes.words, half * 4 + byte, PLANE_TABLES)
            position += 8


@part
def convolve_pixels(planes, filters, space, y, rows, x0, x1, channel, sums):
    """Sums of all channels of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    tables, offsets, _, starts = space
    kernel_size, _, span, _ = filters.weights[0].shape
    nibbles = span // kernel_size
    step = filters.stride * nibbles
    first = x0 * step
    if kernel_size == 1:
        border = planes.margin - filters.padding
        row, column = y * filters.stride + border, x0 * filters.stride + border
        _make_row(planes, filters.tables, space, row, column, filters.stride, 0, x1 - x0, nibbles)
        first, step = 0, nibbles
    _look_up_rows(tables, offsets, starts, first, step, filters.weights, filters.planes, filters.entries, x1 - x0, sums)
    return 0


@routine
def _look_up_rows(tables, offsets, starts, first, step, weights, planes, entries, count, sums):
    """Sums of some pixels' windows: all pixels with a row of some filters, which stay in the first-level cache.

    starts : intp, shape (kernel,)
        Where the tables of each row of a window begin; those of pixel x of `count` lie ``first + x * step`` further.
    """
    kernel_size, blocks, span, _ = weights[0].shape
    pixels, lanes = max(1, PIXELS // len(weights)), len(weights) // len(planes) * LANES
    out = sums.shape[1]
    for row in range(kernel_size):
        start = starts[row] + first
        last = start + (count - 1) * step
        for block in range(blocks):
            place = (row * blocks + block) * span * LANES
            for x in range(0, count, pixels):
                # At the right edge the last pixel is computed again instead of one outside.
                places = simd.window_places(weights, start + x * step, last, step)
                position = x * out + block * lanes
                for done in range(0, span, entries):
                    counts = simd.zero_bytes(weights)
                    for k in range(done, min(done + entries, span)):
                        nibbles_each = simd.load_bytes_each(weights, place + k * LANES)
                        counts = simd.look_up(counts, tables, offsets, places, k, nibbles_each)
                    # Each pixel has sums of its own, even if there are fewer.
                    if row + done == 0:
                        simd.set_byte_counts(sums, position, out, counts, weights, planes)
                    else:
                        simd.add_byte_counts(sums, position, out, counts, weights, planes)
