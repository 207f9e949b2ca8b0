"""Convolution by dot products: codes put together again from bit-planes, multiplied with the weight codes.

Its time does not grow with the bits, so it is the kernel for many of them; and that of the stem, whose input is bytes.
A dot product treats neighbouring input channels that share 32 bits, one output channel in each of 16 lanes.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .jit import part

LANES = 16
"""Output channels computed side by side."""

# With the dot product of bytes (VNNI) four codes share 32 bits, weights being signed. Else two, of 16 bits each.
WEIGHT = np.int8 if simd.has_byte_dot_product() else np.int16
CODE = np.uint8 if simd.has_byte_dot_product() else np.int16

GROUP = 4 if simd.has_byte_dot_product() else 2
"""Input channels of one dot product."""

DotFilters = namedtuple("DotFilters", "weights multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : array of `WEIGHT`, shape (ceil(out / 16), kernel, groups of a row, 16, GROUP).
    Codes q, less 128 where they would not fit. The groups of a row run over its pixels and their channels, padded with
    0 up to a whole group: over each pixel's channels in a feature map, over all 3 * kernel values in the image.
levels : int
    ``sum(a (2 q - largest q)) = 2 sum(a w) - levels * sum(a)`` for the stored weights w.
The other fields are those of `popcount.PopcountFilters`.
"""


@part
def workspace(planes, filters):
    """Codes of as many rows as a window has, the number of the next row to be made, and where the window's rows begin.

    The rows take turns: row y of the planes is in place ``y % kernel``.
    """
    kernel_size, groups = filters.weights.shape[1:3]
    # Codes are written 64 at a time, the last ones of a pixel over its end.
    row = planes.sums.shape[1] * (groups // kernel_size) * GROUP + 64
    return np.empty((kernel_size, row), CODE), np.zeros(1, np.intp), np.empty(kernel_size, np.intp)


@part
def begin_row(planes, filters, space, y):
    """Make the codes of the rows that output row `y` needs and earlier ones did not."""
    codes, upcoming, starts = space
    kernel_size, row_size = codes.shape
    depth = filters.weights.shape[2] // kernel_size * GROUP
    columns, words = planes.words[0].shape[1:]
    border = planes.margin - filters.padding
    first = y * filters.stride + border
    for row in range(max(first, upcoming[0]), first + kernel_size):
        for column in range(columns):
            position = row % kernel_size * row_size + column * depth
            for word in range(words):
                simd.store_codes(codes, position + word * 64, planes.words, (row * columns + column) * words + word)
    upcoming[0] = first + kernel_size
    for row in range(kernel_size):
        starts[row] = (first + row) % kernel_size * row_size + border * depth


@part
def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Sums of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    codes, _, starts = space
    step = filters.weights.shape[2] // filters.kernel * GROUP * filters.stride
    multiply_rows(codes, starts, step, filters.weights, x0, x1, sums)


@part
def multiply_rows(codes, starts, step, weights, x0, x1, sums):
    """Sums of products of weights and the windows of pixels x0 to x1: int32, shape (at least x1 - x0, out).

    codes : array of `CODE`
    starts : intp, shape (kernel,)
        Where each row of the window of pixel 0 begins in `codes`; that of pixel x lies ``x * step`` further.
    """
    blocks, kernel_size, groups = weights.shape[:3]
    out, last = sums.shape[1], x1 - 1
    for x in range(x0, x1, 6):
        # At the right edge the last pixel is computed again instead of one outside.
        p0, p1, p2 = x, min(x + 1, last), min(x + 2, last)
        p3, p4, p5 = min(x + 3, last), min(x + 4, last), min(x + 5, last)
        position = 0
        for block in range(blocks):
            sum0 = simd.broadcast_i32x16(np.int32(0))
            sum1, sum2, sum3, sum4, sum5 = sum0, sum0, sum0, sum0, sum0
            for row in range(kernel_size):
                start = starts[row]
                for code in range(start, start + groups * GROUP, GROUP):
                    weight = simd.load_weights(weights, position)
                    position += LANES * GROUP
                    sum0 = simd.add_dot_products(sum0, codes, code + p0 * step, weight)
                    sum1 = simd.add_dot_products(sum1, codes, code + p1 * step, weight)
                    sum2 = simd.add_dot_products(sum2, codes, code + p2 * step, weight)
                    sum3 = simd.add_dot_products(sum3, codes, code + p3 * step, weight)
                    sum4 = simd.add_dot_products(sum4, codes, code + p4 * step, weight)
                    sum5 = simd.add_dot_products(sum5, codes, code + p5 * step, weight)
            o = block * LANES
            simd.store(sums, (p0 - x0) * out + o, sum0)
            simd.store(sums, (p1 - x0) * out + o, sum1)
            simd.store(sums, (p2 - x0) * out + o, sum2)
            simd.store(sums, (p3 - x0) * out + o, sum3)
            simd.store(sums, (p4 - x0) * out + o, sum4)
            simd.store(sums, (p5 - x0) * out + o, sum5)
