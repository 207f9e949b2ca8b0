"""The first layer: 8-bit weights on the 8-bit image, and max-pooling of its codes."""

from collections import namedtuple

import numpy as np

from . import simd
from .bitplanes import pack_row, rescale_row
from .jit import kernel
from .popcount import round_to_codes

StemFilters = namedtuple("StemFilters", "weights multiplier offset kernel")
"""weights : float32, shape (kernel, kernel * 3, 64 * ceil(out / 64)), whole numbers -255 to 255."""


@kernel
def stem_rows(image, filters, largest, y0, y1, stream):
    """Rows y0 to y1 of a stride-2 convolution of an image, rounded to stream codes.

    image : float32, shape (height, width * 3), whole numbers 0 to 255, border included. Every product and partial
    sum is a whole number below 2**24, so float32 is exact in any order.
    """
    _, width, channels = stream.shape
    span = filters.weights.shape[1]
    for y in range(y0, y1):
        for x in range(width):
            for o in range(0, channels, 64):
                sum0 = simd.broadcast_f32x16(np.float32(0))
                sum1, sum2, sum3 = sum0, sum0, sum0
                for ky in range(filters.kernel):
                    base = (2 * y + ky) * image.shape[1] + 6 * x
                    for k in range(span):
                        pixel = simd.broadcast_f32x16(image.flat[base + k])
                        w = (ky * span + k) * channels + o
                        sum0 = simd.multiply_add_exact(pixel, simd.load_f32x16(filters.weights, w), sum0)
                        sum1 = simd.multiply_add_exact(pixel, simd.load_f32x16(filters.weights, w + 16), sum1)
                        sum2 = simd.multiply_add_exact(pixel, simd.load_f32x16(filters.weights, w + 32), sum2)
                        sum3 = simd.multiply_add_exact(pixel, simd.load_f32x16(filters.weights, w + 48), sum3)
                position = (y * width + x) * channels + o
                simd.store(stream, position, _finish(sum0, filters, o, largest))
                simd.store(stream, position + 16, _finish(sum1, filters, o + 16, largest))
                simd.store(stream, position + 32, _finish(sum2, filters, o + 32, largest))
                simd.store(stream, position + 48, _finish(sum3, filters, o + 48, largest))


@kernel
def _finish(value, filters, channel, largest):
    value = simd.multiply_float(value, simd.load_f32x16(filters.multiplier, channel))
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
        rescale_row(row, rounding.activation_multiplier, rounding.activation_largest, activation)
        pack_row(activation, result, y)
