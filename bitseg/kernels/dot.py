"""Convolution by dot products: codes as bytes, put together again from bit-planes where need be, times weight codes.

Its time does not grow with the bits, so it is the kernel for many of them, and for what is bytes already: the residual
stream, and the image that the stem reads.
A dot product treats neighbouring input channels that share 32 bits, one output channel in each lane: four channels as
bytes, weights being signed but on ARM, or two as 16-bit numbers where the CPU cannot multiply such bytes.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .feature_maps import columns, margin, write_codes
from .jit import chosen_by_types, part, routine
from .sharing import first_missing

LANES = simd.dot_lanes()
"""Output channels computed side by side, but `PAIRS_LANES` where bytes are multiplied by pairs."""

PAIRS_LANES = 8 * simd.PAIRS_VECTORS

PIXELS = simd.DOT_PIXELS
"""Pixels computed together, at most, which share what is loaded of the weights."""

DotFilters = namedtuple("DotFilters", "weights zero run multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : array of int8, uint8 or int16, shape (ceil(out / lanes), kernel, groups of a row, lanes, channels of a group)
    ``2 q - largest q`` of the codes q, or, where the type has no room for that, q less half of how many there are, or,
    without a sign, q. The groups of a row run over its pixels and their channels, padded with 0 up to a whole group:
    over each pixel's channels in a feature map, over all 3 * kernel values in the image. Where bytes are multiplied by
    pairs the first two axes change places: so they are read from first to last, see `lookup.LookupFilters`.
zero : uint8 or int16
    0, of the type that the activation codes get.
run : tuple of int
    0 to how many groups less one `simd.add_pairs` may treat at a time, where it does: its length belongs to its type.
levels : int32 or None
    None where the stored weights w are ``2 q - largest q``; otherwise
    ``sum(a (2 q - largest q)) = 2 sum(a w) - levels * sum(a)``.
The other fields are those of `popcount.PopcountFilters`.
"""


def types(weight_bits, input_bits):
    """Types of codes and of weights, and whether these are ``2 q - largest q``."""
    if simd.multiplies_unsigned_bytes():
        return np.uint8, np.uint8, False
    largest_code, largest_weight = 2**input_bits - 1, 2**weight_bits - 1
    for signed, magnitude in (True, largest_weight), (False, 2 ** (weight_bits - 1)):
        # Where bytes are multiplied by pairs (AVX2), 16 bits must hold two products.
        pair_fits = simd.has_byte_pair_product() and 2 * largest_code * magnitude <= np.iinfo(np.int16).max
        if -magnitude >= np.iinfo(np.int8).min and (simd.has_byte_dot_product() or pair_fits):
            return np.uint8, np.int8, signed
    return np.int16, np.int16, True


@part
def workspace(planes, filters, rows, pixels):
    """Codes of as many rows as a window has, which rows are ready, and where the window's rows begin.

    The rows take turns: row y of the planes is in place ``y % kernel``.
    """
    kernel_size, groups, group = filters.kernel, filters.weights.shape[2], filters.weights.shape[4]
    depth = groups // kernel_size * group
    # Codes are written 64 at a time, the last ones of a pixel over its end, and read as far as `multiply_rows` says.
    row = (columns(planes) + (PIXELS - 1) * filters.stride) * depth + 64
    return np.full((kernel_size, row), filters.zero), np.zeros(2, np.intp), np.empty(kernel_size, np.intp)


@part
def begin_rows(planes, filters, space, y, rows):
    """Make the codes of the rows that output row `y` needs and the one before did not."""
    codes, ready, starts = space
    kernel_size, row_size = codes.shape
    depth = filters.weights.shape[2] // kernel_size * filters.weights.shape[4]
    border = margin(planes) - filters.padding
    first = y * filters.stride + border
    end = first + kernel_size
    for row in range(first_missing(ready, first, end), end):
        for column in range(columns(planes)):
            write_codes(planes, row, column, codes, row % kernel_size * row_size + column * depth)
    for row in range(kernel_size):
        starts[row] = (first + row) % kernel_size * row_size + border * depth


@part
def convolve_pixels(planes, filters, space, y, rows, x0, x1, channel, sums):
    """Sums of all channels of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    codes, _, starts = space
    step = filters.weights.shape[2] // filters.kernel * filters.weights.shape[4] * filters.stride
    multiply_rows(codes, starts, step, filters.weights, filters.run, x0, x1, sums)
    return 0


def multiply_rows(codes, starts, step, weights, run, x0, x1, sums):
    """Sums of products of weights and the windows of pixels x0 to x1: int32, shape (x1 - x0 + PIXELS - 1, out).

    codes : array of the type of `DotFilters.zero`
        Read up to the windows of PIXELS - 1 pixels after the last one, whatever is there.
    starts : intp, shape (kernel,)
        Where each row of the window of pixel 0 begins in `codes`; that of pixel x lies ``x * step`` further.
    weights, run :
        As in `DotFilters`.
    """


@chosen_by_types(multiply_rows)
def _overloaded_multiply_rows(codes, starts, step, weights, run, x0, x1, sums):
    multiply = _multiply_by_pairs if simd.multiplies_pairs(weights.dtype.bitwidth) else _multiply
    return lambda codes, starts, step, weights, run, x0, x1, sums: multiply(
        codes, starts, step, weights, run, x0, x1, sums
    )


@routine
def _multiply(codes, starts, step, weights, run, x0, x1, sums):
    """A few pixels at a time, for which weights are loaded once."""
    blocks, kernel_size, groups = weights.shape[:3]
    group = simd.values_in_32_bits(weights)
    out = sums.shape[1]
    for x in range(x0, x1, PIXELS):
        position = 0
        for block in range(blocks):
            dots = simd.zero_dots()
            for row in range(kernel_size):
                start = starts[row] + x * step
                for code in range(start, start + groups * group, group):
                    simd.not_unrolled(weights)
                    dots = simd.add_dot_products(dots, codes, code, step, simd.load_weights(weights, position))
                    position += LANES * group
            simd.store_each(sums, (x - x0) * out + block * LANES, out, dots)


@routine
def _multiply_by_pairs(codes, starts, step, weights, run, x0, x1, sums):
    """One pixel after the other with a row of some filters: those weights stay in the first-level cache."""
    kernel_size, blocks, groups = weights.shape[:3]
    out, together = sums.shape[1], groups - groups % len(run)
    for row in range(kernel_size):
        for block in range(blocks):
            first = (row * blocks + block) * groups * PAIRS_LANES * 4
            for x in range(x0, x1):
                start, position, place = starts[row] + x * step, first, (x - x0) * out + block * PAIRS_LANES
                totals = simd.zero_pairs() if row == 0 else simd.load_pairs(sums, place)
                for code in range(start, start + together * 4, len(run) * 4):
                    totals = simd.add_pairs(totals, codes, code, weights, position, run)
                    position += len(run) * PAIRS_LANES * 4
                for code in range(start + together * 4, start + groups * 4, 4):
                    totals = simd.add_pairs(totals, codes, code, weights, position, run[:1])
                    position += PAIRS_LANES * 4
                simd.store_each(sums, place, 8, totals)
