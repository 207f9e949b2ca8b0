"""Winograd's minimal filtering of the stem: a 7x7 convolution of stride 2, three rows and three columns of it together.

Three results ``y0 = d0 g0 + d1 g1``, ``y1 = d1 g0 + d2 g1`` and ``y2 = d2 g0 + d3 g1`` of a filter with two taps cost
four products instead of six::

    m0 = (d0 - d2) 2 g0,  m1 = (d1 + d2) (g0 + g1),  m2 = (d1 - d2) (g0 - g1),  m3 = (d3 - d1) 2 g1
    2 y0 = m0 + m1 - m2,  2 y1 = m1 + m2,  2 y2 = m1 - m2 + m3

A longer filter, here of eight taps whose last is 0, is a sum of such pairs of taps, which add up to the same four
products. With rows and columns alike nine results cost 16 sums of 4 * 4 * 3 products, where the stem itself has nine
of 7 * 7 * 3: 0.58 times as many. All are integers: nothing is rounded. Sums of four values and of four weights need 16
bits, so this is for CPUs that cannot multiply 8 bits any faster.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section 4.1, F(3, 2).
"""

from collections import namedtuple

import numpy as np

from . import dot, simd
from .jit import part

TOGETHER = 3
"""Rows of results that are made together: neighbours, so that the taps of a pair are two rows of the image apart."""

PRODUCTS = 4
"""What these need, of each pair of taps."""

ROW_TAPS, COLUMN_TAPS = (0, 1, 4, 5), (0, 1, 2, 3)
"""The first taps of the pairs; the second ones lie 2 rows, or 4 columns, further.

Columns of results are made together with the next but one and the next but three, so that first taps are neighbours.
"""

WINDOW = len(ROW_TAPS) * len(COLUMN_TAPS) * 3
"""Values that one of the sums reads: rows, then columns, then colours."""

COLUMNS = 6 * dot.PIXELS
"""Columns that are convolved at a time: a multiple of `SPAN`."""

SPAN = 2 * TOGETHER
"""Columns in which two groups of those that are made together lie."""

WinogradFilters = namedtuple("WinogradFilters", "weights zero most multiplier offset kernel levels stride padding")
"""Weights of the stem: those of `dot.DotFilters`, but for

weights : array of int16, shape (PRODUCTS**2, ceil(out / lanes), 1, WINDOW / 2, lanes, 2)
    Of each of the sums, in the order of `spread`, as `dot.DotFilters` has them.
"""


def spread(weights):
    """What the sums multiply with, from stored weights (out, 7, 7, 3): int16, shape (PRODUCTS**2, out, WINDOW)."""
    weights = np.pad(weights.astype(np.int16), ((0, 0), (0, 1), (0, 1), (0, 0)))
    rows = _each_product(weights.take(ROW_TAPS, 1), weights.take(np.add(ROW_TAPS, 2), 1))
    columns = _each_product(rows.take(COLUMN_TAPS, 3), rows.take(np.add(COLUMN_TAPS, 4), 3))
    return columns.swapaxes(0, 1).reshape(PRODUCTS**2, len(weights), WINDOW)


def _each_product(g0, g1):
    return np.stack([2 * g0, g0 + g1, g0 - g1, 2 * g1])


@part
def workspace(image, filters):
    """What `begin_rows` makes of the image, the windows of one sum, and all sums, of `COLUMNS` columns."""
    bases = COLUMNS // TOGETHER
    # Windows of columns past the last are read, too.
    rows = np.zeros((PRODUCTS * len(ROW_TAPS), image.values.shape[1] + 6 * (SPAN + 4)), np.int16)
    windows = np.zeros((bases + dot.PIXELS) * WINDOW, np.int16)
    products = np.empty((PRODUCTS**2, bases + dot.PIXELS - 1, filters.multiplier.size), np.int32)
    return rows, windows, products


@part
def begin_rows(image, filters, space, y):
    """Make of the image what the rows of the result from `y` on multiply: `_factor` of each kind."""
    rows, _, _ = space
    width = image.values.shape[1]
    for pair in range(4):
        top = 2 * y + ROW_TAPS[pair]
        first, second = _start_of_row(image, top), _start_of_row(image, top + 2)
        third, fourth = _start_of_row(image, top + 4), _start_of_row(image, top + 6)
        for start in range(0, width, 16):
            # Nothing past the last value: it could be too large for the sums of the columns that are cancelled again.
            x = min(start, width - 16)
            d0, d1 = simd.load_s16x16(image.values, first + x), simd.load_s16x16(image.values, second + x)
            d2, d3 = simd.load_s16x16(image.values, third + x), simd.load_s16x16(image.values, fourth + x)
            place = pair * rows.shape[1] + x
            simd.store(rows, place, _factor(0, d0, d1, d2, d3))
            simd.store(rows, place + 4 * rows.shape[1], _factor(1, d0, d1, d2, d3))
            simd.store(rows, place + 8 * rows.shape[1], _factor(2, d0, d1, d2, d3))
            simd.store(rows, place + 12 * rows.shape[1], _factor(3, d0, d1, d2, d3))


@part
def _start_of_row(image, row):
    """Where a row begins; the last one instead of those past it, of which no result counts."""
    return min(row, image.values.shape[0] - 1) * image.values.shape[1]


@part
def _factor(kind, d0, d1, d2, d3):
    """What the product of a kind multiplies, of four values that lie two rows or four columns apart."""
    if kind == 0:
        return simd.subtract(d0, d2)
    if kind == 1:
        return simd.add(d1, d2)
    if kind == 2:
        return simd.subtract(d1, d2)
    return simd.subtract(d3, d1)


@part
def convolve_columns(image, filters, space, x0, x1, sums):
    """Sums of three rows, columns x0 to x1, and on to a multiple of `SPAN` after x0: int32, shape (3, columns, out)."""
    _, windows, products = space
    bases, start = -(-(x1 - x0) // SPAN) * 2, np.zeros(1, np.intp)
    for product in range(PRODUCTS**2):
        _gather(space, product // PRODUCTS, product % PRODUCTS, x0, bases)
        dot.multiply_rows(windows, start, WINDOW, filters.weights[product], filters.most, 0, bases, products[product])
    channels = sums.shape[2]
    kind, row = products.shape[1] * channels, sums.shape[1] * channels
    for base in range(bases):
        for c in range(0, channels, 16):
            place, left = base * channels + c, (base // 2 * SPAN + base % 2) * channels + c
            above0, here0, below0 = _rows_of(products, place, PRODUCTS * kind)
            above1, here1, below1 = _rows_of(products, place + kind, PRODUCTS * kind)
            above2, here2, below2 = _rows_of(products, place + 2 * kind, PRODUCTS * kind)
            above3, here3, below3 = _rows_of(products, place + 3 * kind, PRODUCTS * kind)
            _store_columns(sums, left, 2 * channels, above0, above1, above2, above3)
            _store_columns(sums, left + row, 2 * channels, here0, here1, here2, here3)
            _store_columns(sums, left + 2 * row, 2 * channels, below0, below1, below2, below3)


@part
def _results(m0, m1, m2, m3):
    """Twice the three results of four products."""
    difference = simd.subtract(m1, m2)
    return simd.add(m0, difference), simd.add(m1, m2), simd.add(difference, m3)


@part
def _rows_of(products, place, step):
    """`_results` of products that lie `step` apart."""
    m0, m1 = simd.load_i32x16(products, place), simd.load_i32x16(products, place + step)
    return _results(m0, m1, simd.load_i32x16(products, place + 2 * step), simd.load_i32x16(products, place + 3 * step))


@part
def _store_columns(sums, place, step, m0, m1, m2, m3):
    """`_results` of rows' results, of which each is twice what it should be, too, `step` apart."""
    left, middle, right = _results(m0, m1, m2, m3)
    simd.store(sums, place, simd.quarter(left))
    simd.store(sums, place + step, simd.quarter(middle))
    simd.store(sums, place + 2 * step, simd.quarter(right))


@part
def _gather(space, row_kind, column_kind, x0, bases):
    """The windows of one of the sums side by side, each of `WINDOW` values."""
    rows, windows, _ = space
    for base in range(bases):
        for pair in range(4):
            # Twelve values count, four more are overwritten by what comes next.
            place = (4 * row_kind + pair) * rows.shape[1] + 6 * (x0 + base // 2 * SPAN + base % 2)
            d0, d1 = simd.load_s16x16(rows, place), simd.load_s16x16(rows, place + 12)
            d2, d3 = simd.load_s16x16(rows, place + 24), simd.load_s16x16(rows, place + 36)
            simd.store(windows, base * WINDOW + pair * 12, _factor(column_kind, d0, d1, d2, d3))
