"""Winograd's minimal filtering of the stem: a 7x7 convolution of stride 2, two rows and two columns of it together.

Two results ``y0 = d0 g0 + d1 g1`` and ``y1 = d1 g0 + d2 g1`` of a filter with two taps cost three products instead of
four::

    m0 = (d0 - d1) g0,  m1 = d1 (g0 + g1),  m2 = (d1 - d2) g1;    y0 = m0 + m1,  y1 = m1 - m2

A longer filter, here of eight taps whose last is 0, is a sum of such pairs of taps, which add up to the same three
products. With rows and columns alike four results cost nine sums of 4 * 4 * 3 products, where the stem itself has four
of 7 * 7 * 3: 0.73 times as many. All are integers: nothing is rounded. Differences of four values and sums of four
weights need 16 bits, so this is for CPUs that cannot multiply 8 bits any faster.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section 4.1, F(2, 2).
"""

from collections import namedtuple

import numpy as np

from . import dot, simd
from .jit import part

TOGETHER = 2
"""Rows of results that are made together: neighbours, so that the taps of a pair are two rows of the image apart."""

ROW_TAPS, COLUMN_TAPS = (0, 1, 4, 5), (0, 1, 2, 3)
"""The first taps of the pairs; the second ones lie 2 rows, or 4 columns, further.

Columns of results are made together with the next but one, so that first taps are neighbours.
"""

WINDOW = len(ROW_TAPS) * len(COLUMN_TAPS) * 3
"""Values that one of the nine sums reads: rows, then columns, then colours."""

COLUMNS = 8 * dot.PIXELS
"""Columns that are convolved at a time."""

WinogradFilters = namedtuple("WinogradFilters", "weights zero most multiplier offset kernel levels stride padding")
"""Weights of the stem: those of `dot.DotFilters`, but for

weights : array of int16, shape (9, ceil(out / lanes), 1, WINDOW / 2, lanes, 2)
    Of each of the nine sums, in the order of `spread`, as `dot.DotFilters` has them.
"""


def spread(weights):
    """What the nine sums multiply with, from stored weights (out, 7, 7, 3): int16, shape (9, out, WINDOW)."""
    weights = np.pad(weights.astype(np.int16), ((0, 0), (0, 1), (0, 1), (0, 0)))
    rows = _each_product(weights.take(ROW_TAPS, 1), weights.take(np.add(ROW_TAPS, 2), 1))
    columns = _each_product(rows.take(COLUMN_TAPS, 3), rows.take(np.add(COLUMN_TAPS, 4), 3))
    return columns.swapaxes(0, 1).reshape(9, len(weights), WINDOW)


def _each_product(g0, g1):
    return np.stack([g0, g0 + g1, g1])


@part
def workspace(image, filters):
    """Three kinds of four rows of the image, the windows of one sum, and the nine sums, of `COLUMNS` columns."""
    bases = COLUMNS // TOGETHER
    rows = np.zeros((12, image.values.shape[1] + 16), np.int16)
    windows = np.zeros((bases + dot.PIXELS) * WINDOW, np.int16)
    products = np.empty((9, bases + dot.PIXELS - 1, filters.multiplier.size), np.int32)
    return rows, windows, products


@part
def begin_rows(image, filters, space, y):
    """Make of the image what rows `y` and ``y + 1`` of the result multiply: ``d0 - d1``, ``d1`` and ``d1 - d2``."""
    rows, _, _ = space
    size, below = rows.shape[1], 2 * image.values.shape[1]
    for pair in range(4):
        first = (2 * y + ROW_TAPS[pair]) * image.values.shape[1]
        for x in range(0, image.values.shape[1], 16):
            d0, d1 = simd.load_s16x16(image.values, first + x), simd.load_s16x16(image.values, first + below + x)
            d2 = simd.load_s16x16(image.values, first + 2 * below + x)
            simd.store(rows, pair * size + x, simd.subtract(d0, d1))
            simd.store(rows, (4 + pair) * size + x, d1)
            simd.store(rows, (8 + pair) * size + x, simd.subtract(d1, d2))


@part
def convolve_columns(image, filters, space, x0, x1, sums):
    """Sums of columns x0 to x1, multiples of 4, of the two rows: int32, shape (2, COLUMNS or more, out)."""
    _, windows, products = space
    bases, start = (x1 - x0) // TOGETHER, np.zeros(1, np.intp)
    for product in range(9):
        _gather(space, product // 3, product % 3, x0, bases)
        dot.multiply_rows(windows, start, WINDOW, filters.weights[product], filters.most, 0, bases, products[product])
    channels = sums.shape[2]
    kind, row = products.shape[1] * channels, sums.shape[1] * channels
    for base in range(bases):
        for c in range(0, channels, 16):
            place, left = base * channels + c, (base + base // 2 * 2) * channels + c
            above0, below0 = _two_results(products, place, 3 * kind)
            above1, below1 = _two_results(products, place + kind, 3 * kind)
            above2, below2 = _two_results(products, place + 2 * kind, 3 * kind)
            simd.store(sums, left, simd.add(above0, above1))
            simd.store(sums, left + 2 * channels, simd.subtract(above1, above2))
            simd.store(sums, left + row, simd.add(below0, below1))
            simd.store(sums, left + row + 2 * channels, simd.subtract(below1, below2))


@part
def _two_results(products, place, step):
    """``m0 + m1`` and ``m1 - m2`` of products that lie `step` apart."""
    m1 = simd.load_i32x16(products, place + step)
    above = simd.add(simd.load_i32x16(products, place), m1)
    return above, simd.subtract(m1, simd.load_i32x16(products, place + 2 * step))


@part
def _gather(space, row_kind, column_kind, x0, bases):
    """The windows of one of the nine sums side by side, each of `WINDOW` values."""
    rows, windows, _ = space
    size = rows.shape[1]
    for base in range(bases):
        for pair in range(4):
            # Twelve values count, four more are overwritten by what comes next.
            place = (4 * row_kind + pair) * size + 6 * (x0 + base + base // 2 * 2)
            values = simd.load_s16x16(rows, place + 12)
            if column_kind == 0:
                values = simd.subtract(simd.load_s16x16(rows, place), values)
            if column_kind == 2:
                values = simd.subtract(values, simd.load_s16x16(rows, place + 24))
            simd.store(windows, base * WINDOW + pair * 12, values)
