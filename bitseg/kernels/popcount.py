"""Bit convolution by AND and popcount, and what follows it: scale, add the shortcut, round, pack.

A kernel works on rows y0 to y1 of the output. The sums of one row live in a small scratch array; no full-size
integer or float map is written to memory.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .bitplanes import pack_row, rescale_row
from .jit import kernel

LANES = 8
"""Output channels computed side by side: the 64-bit lanes of a vector."""

Filters = namedtuple("Filters", "words multiplier offset channels levels stride padding")
"""Weights of one convolution, laid out for `convolve_row`.

words : uint64, shape (ceil(out / 8), bits, kernel, kernel * ceil(in / 64), 8).
    The last axis runs over 8 output channels.
multiplier, offset : float32, shape (64 * ceil(out / 64),)
    Turn the integer sum t into ``t * multiplier + offset``; 0 past the last channel.
channels : int
    Output channels.
levels : int
    Largest weight code, ``2**bits - 1``.
stride, padding : int
"""

Rounding = namedtuple("Rounding", "largest activation_multiplier activation_largest")
"""How real values become codes: float32 scalars.

largest : largest code of the result, ``2**bits - 1``.
activation_multiplier, activation_largest : from stream codes to the codes that convolutions read.
"""


@kernel
def convolve_row(planes, filters, y, width, sums):
    """Signed integer sums of output row `y`: ``sums[x, o] = sum(a * (2 q - levels))``, int32, shape (width, out)."""
    blocks, weight_bits, kernel_size, span, _ = filters.words.shape
    _, bits, padded_width, words = planes.words.shape
    top = y * filters.stride + planes.margin - filters.padding
    left = planes.margin - filters.padding
    step = filters.stride * words
    row_words = padded_width * words
    out = sums.shape[1]
    for block in range(blocks):
        for x in range(0, width, 4):
            # At the right edge the last pixel is computed again instead of one outside.
            x1, x2, x3 = min(x + 1, width - 1), min(x + 2, width - 1), min(x + 3, width - 1)
            total0 = simd.broadcast_u64x8(np.uint64(0))
            total1, total2, total3 = total0, total0, total0
            for i in range(weight_bits):
                for j in range(bits):
                    count0 = simd.broadcast_u64x8(np.uint64(0))
                    count1, count2, count3 = count0, count0, count0
                    for ky in range(kernel_size):
                        base = ((top + ky) * bits + j) * row_words + left * words
                        weight_base = ((block * weight_bits + i) * kernel_size + ky) * span * LANES
                        a0, a1, a2, a3 = base + x * step, base + x1 * step, base + x2 * step, base + x3 * step
                        for k in range(span):
                            weight = simd.load_u64x8(filters.words, weight_base + k * LANES)
                            count0 = simd.add(count0, _matches(planes.words, a0 + k, weight))
                            count1 = simd.add(count1, _matches(planes.words, a1 + k, weight))
                            count2 = simd.add(count2, _matches(planes.words, a2 + k, weight))
                            count3 = simd.add(count3, _matches(planes.words, a3 + k, weight))
                    shift = simd.broadcast_u64x8(np.uint64(i + j))
                    total0 = simd.add(total0, simd.shift_left(count0, shift))
                    total1 = simd.add(total1, simd.shift_left(count1, shift))
                    total2 = simd.add(total2, simd.shift_left(count2, shift))
                    total3 = simd.add(total3, simd.shift_left(count3, shift))
            simd.store(sums, x * out + block * LANES, simd.u64x8_to_i32x8(total0))
            simd.store(sums, x1 * out + block * LANES, simd.u64x8_to_i32x8(total1))
            simd.store(sums, x2 * out + block * LANES, simd.u64x8_to_i32x8(total2))
            simd.store(sums, x3 * out + block * LANES, simd.u64x8_to_i32x8(total3))
    _center_row(planes, filters, top, left, width, kernel_size, sums)


@kernel
def _matches(words, offset, weight):
    activation = simd.broadcast_u64x8(words.flat[offset])
    return simd.popcount(simd.bitwise_and(activation, weight))


@kernel
def _center_row(planes, filters, top, left, width, kernel_size, sums):
    """From ``sum(a q)`` to ``sum(a (2 q - levels))``: the window's sum of codes is shared by all channels."""
    out = sums.shape[1]
    for x in range(width):
        window = 0
        for ky in range(kernel_size):
            for kx in range(kernel_size):
                window += planes.sums[top + ky, left + x * filters.stride + kx]
        center = simd.broadcast_i32x16(np.int32(filters.levels * window))
        for o in range(0, out, 16):
            total = simd.load_i32x16(sums, x * out + o)
            simd.store(sums, x * out + o, simd.subtract(simd.add(total, total), center))


@kernel
def _scale(sums, position, filters, channel):
    """``t * multiplier + offset`` for 16 channels, each step rounded to float32."""
    value = simd.i32x16_to_f32x16(simd.load_i32x16(sums, position))
    value = simd.multiply_float(value, simd.load_f32x16(filters.multiplier, channel))
    return simd.add_float(value, simd.load_f32x16(filters.offset, channel))


@kernel
def round_to_codes(value, largest):
    """``rint(clip(value, 0, largest))`` of 16 float32 values, as uint8."""
    value = simd.clip(value, simd.broadcast_f32x16(np.float32(0)), simd.broadcast_f32x16(largest))
    return simd.i32x16_to_u8x16(simd.f32x16_to_i32x16(simd.rint(value)))


@kernel
def convolve_to_planes(planes, filters, rounding, y0, y1, width, result):
    """Rows y0 to y1: convolve, scale, round to codes, pack into the planes `result`."""
    channels = filters.multiplier.size
    sums = np.zeros((width, channels), np.int32)
    codes = np.empty((width, channels), np.uint8)
    for y in range(y0, y1):
        convolve_row(planes, filters, y, width, sums)
        for x in range(width):
            for o in range(0, channels, 16):
                position = x * channels + o
                simd.store(codes, position, round_to_codes(_scale(sums, position, filters, o), rounding.largest))
        pack_row(codes, result, y)


@kernel
def convolve_to_stream(planes, filters, rounding, y0, y1, stream, result):
    """Rows y0 to y1: convolve, scale, round to stream codes, and from there to activation planes."""
    _, width, channels = stream.shape
    sums = np.zeros((width, channels), np.int32)
    codes = np.empty((width, channels), np.uint8)
    for y in range(y0, y1):
        convolve_row(planes, filters, y, width, sums)
        row = stream[y]
        for x in range(width):
            for o in range(0, channels, 16):
                position = x * channels + o
                simd.store(row, position, round_to_codes(_scale(sums, position, filters, o), rounding.largest))
        rescale_row(row, rounding.activation_multiplier, rounding.activation_largest, codes)
        pack_row(codes, result, y)


@kernel
def convolve_and_add(planes, filters, shortcut, shortcut_multiplier, rounding, y0, y1, stream, result):
    """As `convolve_to_stream`, but ``shortcut code * shortcut_multiplier`` is added before rounding."""
    _, width, channels = stream.shape
    sums = np.zeros((width, channels), np.int32)
    codes = np.empty((width, channels), np.uint8)
    scale = simd.broadcast_f32x16(shortcut_multiplier)
    for y in range(y0, y1):
        convolve_row(planes, filters, y, width, sums)
        row, shortcut_row = stream[y], shortcut[y]
        for x in range(width):
            for o in range(0, channels, 16):
                position = x * channels + o
                identity = simd.i32x16_to_f32x16(simd.u8x16_to_i32x16(simd.load_u8x16(shortcut_row, position)))
                value = simd.add_float(_scale(sums, position, filters, o), simd.multiply_float(identity, scale))
                simd.store(row, position, round_to_codes(value, rounding.largest))
        rescale_row(row, rounding.activation_multiplier, rounding.activation_largest, codes)
        pack_row(codes, result, y)


@kernel
def convolve_and_project(planes, filters, block_planes, projection, rounding, y0, y1, stream, result):
    """As `convolve_to_stream`, but a second convolution of the block's own input is added before rounding."""
    _, width, channels = stream.shape
    sums = np.zeros((width, channels), np.int32)
    projected = np.zeros((width, channels), np.int32)
    codes = np.empty((width, channels), np.uint8)
    for y in range(y0, y1):
        convolve_row(planes, filters, y, width, sums)
        convolve_row(block_planes, projection, y, width, projected)
        row = stream[y]
        for x in range(width):
            for o in range(0, channels, 16):
                position = x * channels + o
                value = _scale(sums, position, filters, o)
                value = simd.add_float(value, _scale(projected, position, projection, o))
                simd.store(row, position, round_to_codes(value, rounding.largest))
        rescale_row(row, rounding.activation_multiplier, rounding.activation_largest, codes)
        pack_row(codes, result, y)


@kernel
def convolve_to_scores(planes, filters, y0, y1, scores):
    """Rows y0 to y1: convolve and scale to float32 scores of shape (classes, height, width)."""
    classes, _, width = scores.shape
    channels = filters.multiplier.size
    sums = np.zeros((width, channels), np.int32)
    for y in range(y0, y1):
        convolve_row(planes, filters, y, width, sums)
        for x in range(width):
            for c in range(classes):
                scores[c, y, x] = np.float32(sums[x, c]) * filters.multiplier[c] + filters.offset[c]
