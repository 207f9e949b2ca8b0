"""Winograd's minimal filtering of the stem: a 7x7 convolution of stride 2, three rows and three columns of it together.

A filter of stride 2 is the sum of two of stride 1, one on the even and one on the odd values, of four taps each: an
eighth is 0. Three neighbouring results of four taps, ``y[k] = sum(d[k + t] g[t])``, read six values, and cost six
products instead of twelve::

    24 y = A ((G g) * (B d))

``B``, in `_factors`, and ``G``, `FILTER_FACTORS`, are values of polynomials at 0, 1, -1, 2, -2 and infinity; ``A`` is
in `_results`. With rows and columns alike nine results cost 36 sums of 2 * 2 * 3 products, fewer where the eighth tap
is, where the stem itself has nine of 7 * 7 * 3: together 0.28 times as many. All are integers, and nothing is rounded:
what ``B`` makes of an image and ``G`` of weights fits in 16 bits. Sums may leave 32 bits, but each result is found
again from their lowest 32 (`simd.exact_quotient`). This is for CPUs that cannot multiply 8 bits any faster than 16.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section 4, F(3, 4).
"""

from collections import namedtuple

import numpy as np

from . import dot, simd
from .jit import part, routine

TYPES = np.int16, np.int16, False
"""Of values and weights, see `dot.types`: of ``2 q - largest q`` some of what is multiplied would need 17 bits."""

TOGETHER = 3
"""Rows, and columns, of results that are made together."""

FILTER_FACTORS = np.array(
    [[6, 0, 0, 0], [-1, -1, -1, -1], [-1, 1, -1, 1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 3]], np.int16
)
"""``G``: what is multiplied of a filter's four taps. ``A`` has the rest of the factors that make all of it integers."""

PRODUCTS, TAPS = FILTER_FACTORS.shape
"""Products, and taps, of a row or column."""

WINDOW = 2 * 2 * 3
"""Values that one of the sums reads: even and odd rows, then columns, then colours."""

ZERO_TAP = PRODUCTS - 1
"""The product that is of the last tap alone, which is 0 of odd rows and of odd columns: these it leaves out."""

GROUPS = np.full((PRODUCTS, PRODUCTS), WINDOW // 2)
"""Pairs of values that each of the sums multiplies, the first ones of its window."""
GROUPS[ZERO_TAP] = GROUPS[:, ZERO_TAP] = WINDOW // 4
GROUPS[ZERO_TAP, ZERO_TAP] = -(-WINDOW // 8)

COLUMNS = 2 * dot.PIXELS * TOGETHER
"""Columns that are convolved at a time."""

WinogradFilters = namedtuple("WinogradFilters", "weights zero multiplier offset kernel levels stride padding")
"""Weights of the stem: those of `dot.DotFilters`, but for

weights : array of int16, shape (ceil(out / lanes), PRODUCTS**2, WINDOW / 2, lanes, 2)
    As `dot.DotFilters` has them, with the sums of `spread` in place of a window's rows.
"""


def spread(weights):
    """What the sums multiply with, from stored weights (out, 7, 7, 3): int16, shape (out, PRODUCTS**2, WINDOW).

    Weights up to 145 have no factor that leaves 16 bits.
    """
    weights = np.pad(weights.astype(np.int16), ((0, 0), (0, 1), (0, 1), (0, 0)))
    taps = weights.reshape(len(weights), TAPS, 2, TAPS, 2, 3)
    factors = np.einsum("mt,ns,otpsqc->omnpqc", FILTER_FACTORS, FILTER_FACTORS, taps)
    factors = factors.reshape(len(weights), PRODUCTS, PRODUCTS, WINDOW)
    # First those of even columns where no others count.
    even_columns = np.arange(WINDOW).reshape(2, 2, 3)[:, 0].reshape(-1)
    factors[:, :, ZERO_TAP, : WINDOW // 2] = factors[:, :, ZERO_TAP].take(even_columns, -1)
    return factors.reshape(len(weights), PRODUCTS**2, WINDOW)


@part
def workspace(image, filters):
    """Memory of one call: `_factors` of rows, of their columns as well, the products of a few, and results of rows."""
    # Windows of columns past the last are read, too, and nothing in them may be larger than an image's values.
    width = image.values.shape[1] + 6 * (COLUMNS + dot.PIXELS * TOGETHER)
    rows = np.zeros((PRODUCTS, 2, width), np.int16)
    windows = np.zeros((PRODUCTS**2, (COLUMNS // TOGETHER + 2) * WINDOW), np.int16)
    products = np.empty((PRODUCTS, dot.PIXELS, dot.LANES), np.int32)
    return rows, windows, products, np.empty((PRODUCTS, TOGETHER, dot.PIXELS, dot.LANES), np.int32)


@part
def begin_rows(image, filters, space, y):
    """Make of the image what the rows of the result from `y` on multiply: `_factors` of its even and its odd rows."""
    rows = space[0]
    width = image.values.shape[1]
    for odd in range(2):
        top = 2 * y + odd
        for start in range(0, width, 16):
            # Nothing past the last value.
            x = min(start, width - 16)
            d0, d1 = _load_row(image, top, x), _load_row(image, top + 2, x)
            d2, d3 = _load_row(image, top + 4, x), _load_row(image, top + 6, x)
            d4, d5 = _load_row(image, top + 8, x), _load_row(image, top + 10, x)
            simd.store_each(rows, odd * rows.shape[2] + x, 2 * rows.shape[2], _factors(d0, d1, d2, d3, d4, d5))


@part
def _load_row(image, row, x):
    """16 values of a row; of the last one instead of those past it, of which no result counts."""
    return simd.load_s16x16(image.values, min(row, image.values.shape[0] - 1) * image.values.shape[1] + x)


@part
def _factors(d0, d1, d2, d3, d4, d5):
    """``B d``: what is multiplied of six values in a row or column, at most 8 times as large."""
    even, odd = simd.subtract(d4, simd.shift_left(d2, 2)), simd.subtract(d3, simd.shift_left(d1, 2))
    outer, inner = simd.subtract(d4, d2), simd.subtract(d3, d1)
    twice = simd.add(inner, inner)
    first = simd.add(simd.shift_left(simd.subtract(d0, d2), 2), outer)
    last = simd.subtract(simd.subtract(d5, d3), simd.shift_left(inner, 2))
    near, far = (simd.add(even, odd), simd.subtract(even, odd)), (simd.add(outer, twice), simd.subtract(outer, twice))
    return first, *near, *far, last


@part
def convolve_columns(image, filters, space, x0, x1, sums):
    """Sums of three rows, columns x0 to x1, and on to a multiple of three after x0: int32, shape (3, columns, out)."""
    rows, windows, products, results = space
    bases = -(-(x1 - x0) // TOGETHER)
    _gather(rows, windows, x0, bases)
    _multiply(windows, filters.weights, bases, products, results, sums)


@part
def _gather(rows, windows, x0, bases):
    """The windows of each of the sums side by side, of `WINDOW` values each."""
    kind = windows.shape[1]
    for product in range(PRODUCTS):
        for base in range(bases):
            for odd in range(1 if product == ZERO_TAP else 2):
                # Six values count, in the end three; the others are overwritten by what comes next.
                first = (2 * product + odd) * rows.shape[2] + 6 * (x0 + base * TOGETHER)
                d0, d1 = simd.load_s16x16(rows, first), simd.load_s16x16(rows, first + 6)
                d2, d3 = simd.load_s16x16(rows, first + 12), simd.load_s16x16(rows, first + 18)
                d4, d5 = simd.load_s16x16(rows, first + 24), simd.load_s16x16(rows, first + 30)
                factors = _factors(d0, d1, d2, d3, d4, d5)
                place = product * PRODUCTS * kind + base * WINDOW
                simd.store_each(windows, place + 6 * odd, kind, factors[:ZERO_TAP])
                simd.store(windows, place + 3 * odd + ZERO_TAP * kind, factors[ZERO_TAP])


@routine
def _multiply(windows, weights, bases, products, results, sums):
    """Sums, as of `convolve_columns`, of so many windows of each kind."""
    channels, lanes = sums.shape[2], dot.PIXELS * dot.LANES
    for block in range(weights.shape[0]):
        for base in range(0, bases, dot.PIXELS):
            for row in range(PRODUCTS):
                for column in range(PRODUCTS):
                    kind = row * PRODUCTS + column
                    position = (block * PRODUCTS**2 + kind) * weights.shape[2] * dot.LANES * 2
                    first = kind * windows.shape[1] + base * WINDOW
                    _store_products(windows, first, weights, position, GROUPS[row, column], products, column * lanes)
                for lane in range(0, lanes, 16):
                    simd.store_each(results, row * TOGETHER * lanes + lane, lanes, _results(products, lane, lanes))
            for each in range(min(dot.PIXELS, bases - base)):
                for lane in range(0, dot.LANES, 16):
                    found = each * dot.LANES + lane
                    place = (base + each) * TOGETHER * channels + block * dot.LANES + lane
                    _store_sums(results, found, sums, place, 0)
                    _store_sums(results, found + lanes, sums, place + channels, 1)
                    _store_sums(results, found + 2 * lanes, sums, place + 2 * channels, 2)


@part
def _store_products(windows, first, weights, position, groups, products, place):
    """Sums of so many pairs of values of the windows of `dot.PIXELS` pixels, from `first` on, times weights."""
    dots = simd.add_dot_products(simd.zero_dots(), windows, first, WINDOW, simd.load_weights(weights, position))
    # If it knew how many there are LLVM would do all products first, and then have no registers for them.
    for value in range(first + 2, first + 2 * groups, 2):
        simd.not_unrolled(weights)
        position += dot.LANES * 2
        dots = simd.add_dot_products(dots, windows, value, WINDOW, simd.load_weights(weights, position))
    simd.store_each(products, place, dot.LANES, dots)


@part
def _results(products, place, step):
    """``A m`` of six products, `step` apart, with no factor that all have: 24, 12 and 6 times the three results."""
    m1, m2 = simd.load_i32x16(products, place + step), simd.load_i32x16(products, place + 2 * step)
    m3, m4 = simd.load_i32x16(products, place + 3 * step), simd.load_i32x16(products, place + 4 * step)
    m0, m5 = simd.load_i32x16(products, place), simd.load_i32x16(products, place + 5 * step)
    near, far = simd.add(m1, m2), simd.add(m3, m4)
    first = simd.add(simd.add(m0, simd.shift_left(near, 2)), far)
    second = simd.add(simd.shift_left(simd.subtract(m1, m2), 1), simd.subtract(m3, m4))
    return first, second, simd.add(simd.add(near, far), simd.shift_left(m5, 1))


@part
def _store_sums(results, place, sums, position, column):
    """The results of rows in one of three columns: what they are a multiple of is 9 times a power of two."""
    first, second, third = _results(results, place, TOGETHER * dot.PIXELS * dot.LANES)
    row = sums.shape[1] * sums.shape[2]
    simd.store(sums, position, simd.exact_quotient(first, 9, 6 - column))
    simd.store(sums, position + row, simd.exact_quotient(second, 9, 5 - column))
    simd.store(sums, position + 2 * row, simd.exact_quotient(third, 9, 4 - column))
