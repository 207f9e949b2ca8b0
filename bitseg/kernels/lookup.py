"""Bit convolution by table look-up: the sums of AND and popcount, read from 16-entry tables.

For four channels with activation nibbles A_j the sum ``sum_j 2**j popcount(A_j & w)`` has only 16 possible weight
nibbles w: one byte each of a 16-byte table, which every filter and tap uses. A byte shuffle reads it for 32 output
channels at once. Needs AVX2; activations have at most 4 bits, so that an entry fits a byte.

Of one or two bits there are 16 or 256 different tables: they are made once, and a feature map becomes a map of where
each nibble's table begins. Of three or four bits the tables themselves are made, for as many rows as a window has.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .jit import part

LANES = 32
"""Output channels computed side by side: the bytes of a vector."""

PIXELS = 4
"""Pixels computed together, which share what is loaded of the weights."""

MOST_ACTIVATION_BITS = 4

LookupFilters = namedtuple("LookupFilters", "weights planes multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : tuple of uint8 arrays, each of shape (blocks, kernel, kernel * 8 * ceil(in / 32), 32)
    A byte holds the bits of 4 input channels, lowest first. The last axis runs over 32 output channels, in the order
    0, 16, 1, 17, ..., so that even and odd lanes are 16 channels in a row each. The arrays are the planes of the
    weights; of a single plane with an even number of blocks, the even and the odd ones. What is loaded of a feature
    map serves all of them.
planes : tuple of int
    0 to the bits of the weights - 1: its length belongs to its type.
levels : int16 or int32
    Of the smaller type where the signed sums t fit it: the type of the sums.
The other fields are those of `popcount.PopcountFilters`.
"""

_NIBBLE_COUNTS = np.array([[(a & w).bit_count() for w in range(16)] for a in range(16)], np.uint8)
TABLES = (_NIBBLE_COUNTS + 2 * _NIBBLE_COUNTS[:, None]).reshape(256, 16)
"""``TABLES[16 * b + a]``: the table ``popcount(. & a) + 2 popcount(. & b)`` of one or two planes."""

_BYTE_TABLES = np.array([[*_NIBBLE_COUNTS[a & 15], *_NIBBLE_COUNTS[a >> 4]] for a in range(256)], np.uint8)
PLANE_TABLES = np.stack([_BYTE_TABLES << bit for bit in range(MOST_ACTIVATION_BITS)])
"""``PLANE_TABLES[j, a]``: the two tables of ``2**j popcount(. & w)`` for the low and the high nibble of byte a."""


@part
def workspace(planes, filters, pixels):
    """Tables; where those of each nibble begin in them; the number of the next row; where the window's rows begin.

    The rows take turns: row y of the planes is in place ``y % kernel``. Where a window is one pixel, there are only
    the pixels that are convolved at a time.
    """
    _, kernel_size, span, _ = filters.weights[0].shape
    columns = planes.sums.shape[1] if kernel_size > 1 else pixels
    nibbles = span // kernel_size
    offsets = np.empty((kernel_size, columns, nibbles), np.uint32)
    # Loops, because Numba compiles them in a tenth of the time of slices, reshape, arange and copy.
    if len(planes.words) <= 2:
        tables = np.empty(TABLES.size, np.uint8)
        for row in range(TABLES.shape[0]):
            for entry in range(16):
                tables[16 * row + entry] = TABLES[row, entry]
    else:
        tables = np.empty(offsets.size * 16, np.uint8)
        for row in range(kernel_size):
            for column in range(columns):
                for nibble in range(nibbles):
                    offsets[row, column, nibble] = 16 * ((row * columns + column) * nibbles + nibble)
    starts = np.empty(kernel_size, np.intp)
    for row in range(kernel_size):
        starts[row] = 0
    upcoming = np.empty(1, np.intp)
    upcoming[0] = 0
    return tables, offsets, upcoming, starts


@part
def begin_row(planes, filters, space, y):
    """Make ready the rows that output row `y` needs and earlier ones did not."""
    _, offsets, upcoming, starts = space
    kernel_size, columns, nibbles = offsets.shape
    if kernel_size > 1:
        border = planes.margin - filters.padding
        first = y * filters.stride + border
        for row in range(max(first, upcoming[0]), first + kernel_size):
            _make_row(planes, space, row, 0, 1, row % kernel_size, columns)
        upcoming[0] = first + kernel_size
        for row in range(kernel_size):
            starts[row] = ((first + row) % kernel_size * columns + border) * nibbles


@part
def _make_row(planes, space, row, column, step, place, count):
    """Tables, or their offsets, of `count` pixels of a row of the planes, every `step`-th from `column` on."""
    tables, offsets, _, _ = space
    _, columns, nibbles = offsets.shape
    position = place * columns * nibbles
    halves = planes.words[0].shape[2] * 2
    first = (row * planes.sums.shape[1] + column) * halves
    for pixel in range(first, first + count * step * halves, step * halves):
        for half in range(pixel, pixel + nibbles // 8):
            if len(planes.words) <= 2:
                simd.store_offsets(offsets, position, planes.words, half)
            else:
                for byte in range(4):
                    simd.store_tables(tables, (position + 2 * byte) * 16, planes.words, half * 4 + byte, PLANE_TABLES)
            position += 8


@part
def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Sums of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    tables, offsets, _, starts = space
    kernel_size, _, nibbles = offsets.shape
    # Pixel x of the output begins at pixel `(x - origin) * stride` of the offsets.
    origin, step = 0, filters.stride * nibbles
    if kernel_size == 1:
        border = planes.margin - filters.padding
        row, column = y * filters.stride + border, x0 * filters.stride + border
        _make_row(planes, space, row, column, filters.stride, 0, x1 - x0)
        origin, step = x0, nibbles
    span = kernel_size * nibbles
    # Table entries that may be added before a lane of 8 bits could overflow; an even number, for two at a time.
    most = 255 // (4 * ((1 << len(planes.words)) - 1)) // 2 * 2
    out, last, blocks = sums.shape[1], x1 - 1, filters.weights[0].shape[0]
    lanes = len(filters.weights) // len(filters.planes) * LANES
    # All pixels with one row of some filters, before the next: those weights stay in the first-level cache.
    for ky in range(kernel_size):
        for block in range(blocks):
            weights = (block * kernel_size + ky) * span * LANES
            for x in range(x0, x1, PIXELS):
                # At the right edge the last pixel is computed again instead of one outside.
                p1, p2, p3 = min(x + 1, last), min(x + 2, last), min(x + 3, last)
                first0, first1 = starts[ky] + (x - origin) * step, starts[ky] + (p1 - origin) * step
                first2, first3 = starts[ky] + (p2 - origin) * step, starts[ky] + (p3 - origin) * step
                position = (x - x0) * out + block * lanes
                for done in range(0, span, most):
                    count0 = simd.zero_bytes(filters.weights)
                    count1, count2, count3 = count0, count0, count0
                    for k in range(done, min(done + most, span)):
                        nibbles_each = simd.load_bytes_each(filters.weights, weights + k * LANES)
                        count0 = simd.look_up(count0, tables, offsets, first0 + k, nibbles_each)
                        count1 = simd.look_up(count1, tables, offsets, first1 + k, nibbles_each)
                        count2 = simd.look_up(count2, tables, offsets, first2 + k, nibbles_each)
                        count3 = simd.look_up(count3, tables, offsets, first3 + k, nibbles_each)
                    # Each of the four has sums of its own, even if there are fewer pixels.
                    if ky + done == 0:
                        simd.set_byte_counts(sums, position, count0, filters.planes)
                        simd.set_byte_counts(sums, position + out, count1, filters.planes)
                        simd.set_byte_counts(sums, position + 2 * out, count2, filters.planes)
                        simd.set_byte_counts(sums, position + 3 * out, count3, filters.planes)
                    else:
                        simd.add_byte_counts(sums, position, count0, filters.planes)
                        simd.add_byte_counts(sums, position + out, count1, filters.planes)
                        simd.add_byte_counts(sums, position + 2 * out, count2, filters.planes)
                        simd.add_byte_counts(sums, position + 3 * out, count3, filters.planes)
