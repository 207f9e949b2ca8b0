"""The first layer: 8-bit weights on the 8-bit image, and max-pooling of its codes."""

from collections import namedtuple

import numpy as np

from . import simd
from .bitplanes import pack_pixels, rescale
from .jit import kernel
from .popcount import round_to_codes

StemFilters = namedtuple("StemFilters", "weights multiplier offset kernel")
"""Weights of the first layer.

weights : int16, shape (kernel, pairs, 64 * ceil(out / 64), 2), whole numbers -255 to 255.
    The 3 * kernel taps of a row of the window in order, two by two; an odd one is paired with 0.
multiplier, offset : float32, shape (64 * ceil(out / 64),)
kernel : int
"""


@kernel
def stem_rows(image, filters, largest, y0, y1, stream):
    """Rows y0 to y1 of a stride-2 convolution of an image, rounded to stream codes.

    image : int16, shape (height, width * 3), border included and one element more than the last window needs.
    stream : uint8, shape (height', width', 64 n).
    """
    _, width, channels = stream.shape
    pairs = filters.weights.shape[1]
    last = width - 1
    for y in range(y0, y1):
        for x in range(0, width, 4):
            # At the right edge the last pixel is computed again instead of one outside.
            p0, p1, p2, p3 = x, min(x + 1, last), min(x + 2, last), min(x + 3, last)
            for o in range(0, channels, 32):
                sum00 = simd.broadcast_i32x16(np.int32(0))
                sum01, sum10, sum11, sum20, sum21, sum30, sum31 = sum00, sum00, sum00, sum00, sum00, sum00, sum00
                for ky in range(filters.kernel):
                    row = (2 * y + ky) * image.shape[1]
                    for k in range(pairs):
                        w = ((ky * pairs + k) * channels + o) * 2
                        weight0 = simd.load_i16x32(filters.weights, w)
                        weight1 = simd.load_i16x32(filters.weights, w + 32)
                        pixel = simd.broadcast_pair(image, row + 6 * p0 + 2 * k)
                        sum00 = simd.multiply_add_pairs(sum00, pixel, weight0)
                        sum01 = simd.multiply_add_pairs(sum01, pixel, weight1)
                        pixel = simd.broadcast_pair(image, row + 6 * p1 + 2 * k)
                        sum10 = simd.multiply_add_pairs(sum10, pixel, weight0)
                        sum11 = simd.multiply_add_pairs(sum11, pixel, weight1)
                        pixel = simd.broadcast_pair(image, row + 6 * p2 + 2 * k)
                        sum20 = simd.multiply_add_pairs(sum20, pixel, weight0)
                        sum21 = simd.multiply_add_pairs(sum21, pixel, weight1)
                        pixel = simd.broadcast_pair(image, row + 6 * p3 + 2 * k)
                        sum30 = simd.multiply_add_pairs(sum30, pixel, weight0)
                        sum31 = simd.multiply_add_pairs(sum31, pixel, weight1)
                row = y * width
                _finish(sum00, sum01, filters, o, largest, stream, (row + p0) * channels + o)
                _finish(sum10, sum11, filters, o, largest, stream, (row + p1) * channels + o)
                _finish(sum20, sum21, filters, o, largest, stream, (row + p2) * channels + o)
                _finish(sum30, sum31, filters, o, largest, stream, (row + p3) * channels + o)


@kernel
def _finish(sum0, sum1, filters, channel, largest, stream, position):
    """Scale and round the sums of 32 channels of a pixel."""
    simd.store(stream, position, _round_sum(sum0, filters, channel, largest))
    simd.store(stream, position + 16, _round_sum(sum1, filters, channel + 16, largest))


@kernel
def _round_sum(total, filters, channel, largest):
    value = simd.multiply_float(simd.i32x16_to_f32x16(total), simd.load_f32x16(filters.multiplier, channel))
    return round_to_codes(simd.add_float(value, simd.load_f32x16(filters.offset, channel)), largest)


@kernel
def max_pool_rows(codes, rounding, y0, y1, stream, result):
    """Rows y0 to y1 of 3x3 max-pooling at stride 2, whose window reaches past the right and lower edge only.

    codes : uint8, shape (height, width, 64 n); stream : uint8, shape (ceil(height / 2), ceil(width / 2), 64 n).
    """
    height, width, channels = codes.shape
    activation = np.empty(stream.shape[1:], np.uint8)
    for y in range(y0, y1):
        row = stream[y]
        for x in range(stream.shape[1]):
            for c in range(0, channels, 64):
                largest = simd.broadcast_u8x64(np.uint8(0))
                for i in range(2 * y, min(2 * y + 3, height)):
                    for j in range(2 * x, min(2 * x + 3, width)):
                        largest = simd.maximum_u8(largest, simd.load_u8x64(codes, (i * width + j) * channels + c))
                simd.store(row, x * channels + c, largest)
        first = y * stream.shape[1] * channels
        rescale(stream, first, row.size, rounding.activation_multiplier, rounding.activation_largest, activation)
        pack_pixels(activation, result, y, 0, stream.shape[1])
