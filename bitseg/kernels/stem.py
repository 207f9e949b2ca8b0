"""The first layer: 8-bit weights on the 8-bit image, and max-pooling of its codes."""

from collections import namedtuple

import numpy as np

from . import simd
from .bitplanes import pack_pixels
from .convolution import round_to_codes
from .jit import kernel

StemFilters = namedtuple("StemFilters", "weights multiplier offset kernel")
"""Weights of the first layer.

weights : float32, shape (kernel, 3 * kernel, 64 * ceil(out / 64)), whole numbers -255 to 255.
multiplier, offset : float32, shape (64 * ceil(out / 64),)
kernel : int
"""


@kernel
def stem_rows(image, filters, largest, y0, y1, stream):
    """Rows y0 to y1 of a stride-2 convolution of an image, rounded to stream codes.

    image : float32, shape (height, width * 3), whole numbers 0 to 255, border included. Every product and partial sum
    is a whole number below 2**24, so float32 is exact in any order, fused or not.
    stream : uint8, shape (height', width', 64 n).
    """
    _, width, channels = stream.shape
    span = filters.weights.shape[1]
    last = width - 1
    for y in range(y0, y1):
        for x in range(0, width, 6):
            # At the right edge the last pixel is computed again instead of one outside.
            p0, p1, p2 = x, min(x + 1, last), min(x + 2, last)
            p3, p4, p5 = min(x + 3, last), min(x + 4, last), min(x + 5, last)
            for o in range(0, channels, 16):
                sum0 = simd.broadcast_f32x16(np.float32(0))
                sum1, sum2, sum3, sum4, sum5 = sum0, sum0, sum0, sum0, sum0
                for ky in range(filters.kernel):
                    row = (2 * y + ky) * image.shape[1]
                    for k in range(row, row + span):
                        weight = simd.load_f32x16(filters.weights, (ky * span + k - row) * channels + o)
                        sum0 = simd.multiply_add_exact(simd.load_broadcast_f32x16(image, k + 6 * p0), weight, sum0)
                        sum1 = simd.multiply_add_exact(simd.load_broadcast_f32x16(image, k + 6 * p1), weight, sum1)
                        sum2 = simd.multiply_add_exact(simd.load_broadcast_f32x16(image, k + 6 * p2), weight, sum2)
                        sum3 = simd.multiply_add_exact(simd.load_broadcast_f32x16(image, k + 6 * p3), weight, sum3)
                        sum4 = simd.multiply_add_exact(simd.load_broadcast_f32x16(image, k + 6 * p4), weight, sum4)
                        sum5 = simd.multiply_add_exact(simd.load_broadcast_f32x16(image, k + 6 * p5), weight, sum5)
                result = y * width * channels + o
                simd.store(stream, result + p0 * channels, _round_sum(sum0, filters, o, largest))
                simd.store(stream, result + p1 * channels, _round_sum(sum1, filters, o, largest))
                simd.store(stream, result + p2 * channels, _round_sum(sum2, filters, o, largest))
                simd.store(stream, result + p3 * channels, _round_sum(sum3, filters, o, largest))
                simd.store(stream, result + p4 * channels, _round_sum(sum4, filters, o, largest))
                simd.store(stream, result + p5 * channels, _round_sum(sum5, filters, o, largest))


@kernel
def _round_sum(total, filters, channel, largest):
    value = simd.multiply_float(total, simd.load_f32x16(filters.multiplier, channel))
    value = simd.add_float(value, simd.load_f32x16(filters.offset, channel))
    return simd.i32x16_to_u8x16(round_to_codes(value, largest))


@kernel
def max_pool_rows(codes, rounding, y0, y1, stream, result):
    """Rows y0 to y1 of 3x3 max-pooling at stride 2, whose window reaches past the right and lower edge only.

    codes : uint8, shape (height, width, 64 n); stream : uint8, shape (ceil(height / 2), ceil(width / 2), 64 n).
    """
    height, width, channels = codes.shape
    columns = stream.shape[1]
    activation = np.empty((columns, channels), np.uint8)
    scale = simd.broadcast_f32x16(rounding.activation_multiplier)
    for y in range(y0, y1):
        for x in range(columns):
            for c in range(0, channels, 16):
                largest = simd.load_u8x16(codes, (2 * y * width + 2 * x) * channels + c)
                for i in range(2 * y, min(2 * y + 3, height)):
                    for j in range(2 * x, min(2 * x + 3, width)):
                        largest = simd.maximum_u8(largest, simd.load_u8x16(codes, (i * width + j) * channels + c))
                simd.store(stream, (y * columns + x) * channels + c, largest)
                value = simd.multiply_float(simd.i32x16_to_f32x16(simd.u8x16_to_i32x16(largest)), scale)
                code = round_to_codes(value, rounding.activation_largest)
                simd.store(activation, x * channels + c, simd.i32x16_to_u8x16(code))
        pack_pixels(activation, result, y, 0, columns)
