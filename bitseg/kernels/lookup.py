"""Bit convolution by table look-up: the sums of AND and popcount, read from 16-entry tables.

For four channels with activation nibbles A_j the sum ``sum_j 2**j popcount(A_j & w)`` has only 16 possible weight
nibbles w: one byte each of a 16-byte table, made once for a pixel and used by every filter and tap. A byte shuffle
reads it for 32 output channels at once. Needs AVX2; activations have at most 4 bits, so that an entry fits a byte.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .jit import part

LANES = 32
"""Output channels computed side by side: the bytes of a vector."""

MOST_ACTIVATION_BITS = 4
LARGEST_SUM = 0xFFFF
"""Sums of one weight plane are collected in 16 bits."""

LookupFilters = namedtuple("LookupFilters", "weights multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : tuple of uint8 arrays, one for each bit, shape (ceil(out / 32), kernel, kernel * ceil(in / 8), 32).
    A byte holds the bits of 8 input channels, lowest first. The last axis runs over 32 output channels, in the order
    0, 16, 1, 17, ..., so that even and odd lanes are 16 channels in a row each.
The other fields are those of `popcount.PopcountFilters`.
"""

_NIBBLE_COUNTS = np.array([[(a & w).bit_count() for w in range(16)] for a in range(16)], np.uint8)
_BYTE_TABLES = np.array([[*_NIBBLE_COUNTS[a & 15], *_NIBBLE_COUNTS[a >> 4]] for a in range(256)], np.uint8)
TABLES = np.stack([_BYTE_TABLES << bit for bit in range(MOST_ACTIVATION_BITS)])
"""``TABLES[j, a]``: the two tables of ``2**j popcount(. & w)`` for the low and the high nibble of byte a, 32 bytes."""


@part
def workspace(planes, filters):
    """Tables of as many rows as a window has, and the number of the next row to be made.

    The rows take turns: row y of the planes is in place ``y % kernel``. Shape (kernel, columns, ceil(in / 8), 32).
    """
    _, kernel_size, span, _ = filters.weights[0].shape
    tables = np.empty((kernel_size, planes.sums.shape[1], span // kernel_size, 32), np.uint8)
    return tables, np.zeros(1, np.intp)


@part
def begin_row(planes, filters, space, y):
    """Make the tables of the rows that output row `y` needs and earlier ones did not."""
    tables, upcoming = space
    first = y * filters.stride + planes.margin - filters.padding
    kernel_size, columns, groups, _ = tables.shape
    words = planes.words[0].shape[2]
    for row in range(max(first, upcoming[0]), first + kernel_size):
        position = (row % kernel_size) * columns * groups * 32
        for column in range(columns):
            word = (row * columns + column) * words
            for group in range(groups):
                simd.store_tables(tables, position, planes.words, word + group // 8, (group % 8) * 8, TABLES)
                position += 32
    upcoming[0] = first + kernel_size


@part
def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Sums of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    tables, _ = space
    kernel_size, columns, groups, _ = tables.shape
    pixel = groups * 32
    step = filters.stride * pixel
    border = planes.margin - filters.padding
    first_row = y * filters.stride + border
    span = kernel_size * groups
    # Bytes that may be added before a lane of 8 bits could overflow: each adds two table entries.
    most = 255 // (8 * ((1 << len(planes.words)) - 1))
    out, last, blocks = sums.shape[1], x1 - 1, filters.weights[0].shape[0]
    for x in range(x0, x1, 4):
        # At the right edge the last pixel is computed again instead of one outside.
        p0, p1, p2, p3 = x, min(x + 1, last), min(x + 2, last), min(x + 3, last)
        for block in range(blocks):
            wide0 = simd.zero_wide(filters.weights)
            wide1, wide2, wide3 = wide0, wide0, wide0
            weight_position = block * kernel_size * span * LANES
            for ky in range(kernel_size):
                base = (((first_row + ky) % kernel_size) * columns + border) * pixel
                t0, t1, t2, t3 = base + p0 * step, base + p1 * step, base + p2 * step, base + p3 * step
                done = 0
                while done < span:
                    until = min(done + most, span)
                    narrow0 = simd.zero_narrow(filters.weights)
                    narrow1, narrow2, narrow3 = narrow0, narrow0, narrow0
                    for k in range(done * 32, until * 32, 32):
                        nibbles = simd.load_nibbles_each(filters.weights, weight_position)
                        weight_position += LANES
                        narrow0 = simd.look_up(narrow0, tables, t0 + k, nibbles)
                        narrow1 = simd.look_up(narrow1, tables, t1 + k, nibbles)
                        narrow2 = simd.look_up(narrow2, tables, t2 + k, nibbles)
                        narrow3 = simd.look_up(narrow3, tables, t3 + k, nibbles)
                    wide0, wide1 = simd.widen(wide0, narrow0), simd.widen(wide1, narrow1)
                    wide2, wide3 = simd.widen(wide2, narrow2), simd.widen(wide3, narrow3)
                    done = until
            o = block * LANES
            simd.store_wide(sums, (p0 - x0) * out + o, wide0)
            simd.store_wide(sums, (p1 - x0) * out + o, wide1)
            simd.store_wide(sums, (p2 - x0) * out + o, wide2)
            simd.store_wide(sums, (p3 - x0) * out + o, wide3)
