"""Convolution by dot products: codes as bytes, put together again from bit-planes where need be, times weight codes.

Its time does not grow with the bits, so it is the kernel for many of them, and for what is bytes already: the residual
stream, and the image that the stem reads.
A dot product treats neighbouring input channels that share 32 bits, one output channel in each lane: four channels as
bytes, weights being signed, or two as 16-bit numbers where the CPU cannot multiply such bytes.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .feature_maps import columns, margin, write_codes
from .jit import part, routine

LANES = simd.dot_lanes()
"""Output channels computed side by side."""

PIXELS = simd.DOT_PIXELS
"""Pixels computed together, which share what is loaded of the weights."""

DotFilters = namedtuple("DotFilters", "weights zero most multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : array of int8 or int16, shape (ceil(out / lanes), kernel, groups of a row, lanes, channels of a group)
    ``2 q - largest q`` of the codes q, or, where the type has no room for that, q less half of how many there are. The
    groups of a row run over its pixels and their channels, padded with 0 up to a whole group: over each pixel's
    channels in a feature map, over all 3 * kernel values in the image.
zero : uint8 or int16
    0, of the type that the activation codes get.
most : int
    Dot products that may be added before a lane of `simd.zero_dots` overflows, whatever the codes.
levels : int32 or None
    None where the stored weights w are ``2 q - largest q``; otherwise
    ``sum(a (2 q - largest q)) = 2 sum(a w) - levels * sum(a)``.
The other fields are those of `popcount.PopcountFilters`.
"""


def types(weight_bits, input_bits):
    """Types of codes and of weights, and whether these are ``2 q - largest q``."""
    largest_code, largest_weight = 2**input_bits - 1, 2**weight_bits - 1
    for signed, magnitude in (True, largest_weight), (False, 2 ** (weight_bits - 1)):
        # Where bytes are multiplied by pairs (AVX2), 16 bits must hold two products.
        pair_fits = simd.has_byte_pair_product() and 2 * largest_code * magnitude <= np.iinfo(np.int16).max
        if -magnitude >= np.iinfo(np.int8).min and (simd.has_byte_dot_product() or pair_fits):
            return np.uint8, np.int8, signed
    return np.int16, np.int16, True


@part
def workspace(planes, filters, rows, pixels):
    """Codes of as many rows as a window has, the number of the next row to be made, and where the window's rows begin.

    The rows take turns: row y of the planes is in place ``y % kernel``.
    """
    _, kernel_size, groups, _, group = filters.weights.shape
    depth = groups // kernel_size * group
    # Codes are written 64 at a time, the last ones of a pixel over its end, and read as far as `multiply_rows` says.
    row = (columns(planes) + (PIXELS - 1) * filters.stride) * depth + 64
    return np.full((kernel_size, row), filters.zero), np.zeros(1, np.intp), np.empty(kernel_size, np.intp)


@part
def begin_rows(planes, filters, space, y, rows):
    """Make the codes of the rows that output row `y` needs and earlier ones did not."""
    codes, upcoming, starts = space
    kernel_size, row_size = codes.shape
    depth = filters.weights.shape[2] // kernel_size * filters.weights.shape[4]
    border = margin(planes) - filters.padding
    first = y * filters.stride + border
    for row in range(max(first, upcoming[0]), first + kernel_size):
        for column in range(columns(planes)):
            write_codes(planes, row, column, codes, row % kernel_size * row_size + column * depth)
    upcoming[0] = first + kernel_size
    for row in range(kernel_size):
        starts[row] = (first + row) % kernel_size * row_size + border * depth


@part
def convolve_pixels(planes, filters, space, y, rows, x0, x1, channel, sums):
    """Sums of all channels of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    codes, _, starts = space
    step = filters.weights.shape[2] // filters.kernel * filters.weights.shape[4] * filters.stride
    multiply_rows(codes, starts, step, filters.weights, filters.most, x0, x1, sums)
    return 0


@routine
def multiply_rows(codes, starts, step, weights, most, x0, x1, sums):
    """Sums of products of weights and the windows of pixels x0 to x1: int32, shape (x1 - x0 + PIXELS - 1, out).

    codes : array of the type of `DotFilters.zero`
        Read up to the windows of PIXELS - 1 pixels after the last one, whatever is there.
    starts : intp, shape (kernel,)
        Where each row of the window of pixel 0 begins in `codes`; that of pixel x lies ``x * step`` further.
    weights, most :
        As in `DotFilters`.
    """
    blocks, kernel_size, groups = weights.shape[:3]
    group = simd.values_in_32_bits(weights)
    out = sums.shape[1]
    for x in range(x0, x1, PIXELS):
        position = 0
        for block in range(blocks):
            totals, dots = simd.zero_sums(weights), simd.zero_dots(weights)
            room = most
            for row in range(kernel_size):
                start, done = starts[row] + x * step, 0
                while done < groups:
                    until = min(done + room, groups)
                    for code in range(start + done * group, start + until * group, group):
                        simd.not_unrolled(weights)
                        weight = simd.load_weights(weights, position)
                        position += LANES * group
                        dots = simd.add_dot_products(dots, codes, code, step, weight)
                    room -= until - done
                    done = until
                    if simd.dots_may_overflow(weights) and room == 0:
                        totals, dots = simd.add_dots(totals, dots), simd.zero_dots(weights)
                        room = most
            simd.store_each(sums, (x - x0) * out + block * LANES, out, simd.add_dots(totals, dots))
