"""Bit convolution by AND and popcount, and what follows it: scale, add the shortcut, round, pack.

A kernel works on rows y0 to y1 of the output, a few pixels at a time, so that the sums of all their channels stay in
the first-level cache: no full-size integer or float map is written to memory.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .bitplanes import pack_pixels, rescale
from .jit import kernel

LANES = 8
"""Output channels computed side by side: the 64-bit lanes of a vector."""

SUMS_IN_CACHE = 8192
"""Sums (int32) kept at a time: 32 KB, the usual size of a first-level cache."""

Filters = namedtuple("Filters", "words multiplier offset kernel levels stride padding")
"""Weights of one convolution, laid out for `convolve_pixels`.

words : tuple of uint64 arrays, one for each bit, shape (ceil(out / 8), kernel, kernel * ceil(in / 64), 8).
    The last axis runs over 8 output channels. A tuple for the reason given at `bitplanes.Planes`.
multiplier, offset : float32, shape (64 * ceil(out / 64),)
    Turn the integer sum t into ``t * multiplier + offset``; 0 past the last channel.
kernel, stride, padding : int
levels : int
    Largest weight code, ``2**bits - 1``.
"""

Rounding = namedtuple("Rounding", "largest activation_multiplier activation_largest")
"""How real values become codes: float32 scalars.

largest : largest code of the result, ``2**bits - 1``.
activation_multiplier, activation_largest : from stream codes to the codes that convolutions read.
"""


@kernel
def convolve_pixels(planes, filters, y, x0, x1, sums):
    """Integer sums of output pixels x0 to x1 of row `y`.

    sums : int32, shape (at least x1 - x0, out). Receives ``sum(a * (2 q - levels))``.
    """
    blocks, kernel_size, span, _ = filters.words[0].shape
    columns, words = planes.words[0].shape[1:]
    top = y * filters.stride + planes.margin - filters.padding
    left = planes.margin - filters.padding
    step = filters.stride * words
    row = columns * words
    out = sums.shape[1]
    first = top * row + left * words
    last = x1 - 1
    for block in range(blocks):
        for x in range(x0, x1, 4):
            # At the right edge the last pixel is computed again instead of one outside.
            p0, p1, p2, p3 = x, min(x + 1, last), min(x + 2, last), min(x + 3, last)
            a0, a1, a2, a3 = first + p0 * step, first + p1 * step, first + p2 * step, first + p3 * step
            weight_position = block * kernel_size * span * LANES
            count0 = simd.zero_counts(planes.words, filters.words)
            count1, count2, count3 = count0, count0, count0
            for _ in range(kernel_size):
                for k in range(span):
                    weight = simd.load_u64x8_each(filters.words, weight_position)
                    weight_position += LANES
                    count0 = simd.count_matches(count0, simd.broadcast_u64x8_each(planes.words, a0 + k), weight)
                    count1 = simd.count_matches(count1, simd.broadcast_u64x8_each(planes.words, a1 + k), weight)
                    count2 = simd.count_matches(count2, simd.broadcast_u64x8_each(planes.words, a2 + k), weight)
                    count3 = simd.count_matches(count3, simd.broadcast_u64x8_each(planes.words, a3 + k), weight)
                a0, a1, a2, a3 = a0 + row, a1 + row, a2 + row, a3 + row
            o = block * LANES
            simd.store(sums, (p0 - x0) * out + o, simd.weigh_counts(count0))
            simd.store(sums, (p1 - x0) * out + o, simd.weigh_counts(count1))
            simd.store(sums, (p2 - x0) * out + o, simd.weigh_counts(count2))
            simd.store(sums, (p3 - x0) * out + o, simd.weigh_counts(count3))
    # From sum(a q) to sum(a (2 q - levels)): the window's sum of codes is shared by all channels.
    for x in range(x0, x1):
        window = 0
        for ky in range(kernel_size):
            for kx in range(kernel_size):
                window += planes.sums[top + ky, left + x * filters.stride + kx]
        center = simd.broadcast_i32x16(np.int32(filters.levels * window))
        for o in range((x - x0) * out, (x - x0 + 1) * out, 16):
            total = simd.load_i32x16(sums, o)
            simd.store(sums, o, simd.subtract(simd.add(total, total), center))


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
def _scratch(channels, width):
    """Sums and codes of as many pixels as fit the cache."""
    pixels = min(width, max(4, SUMS_IN_CACHE // channels))
    return np.zeros((pixels, channels), np.int32), np.empty((pixels, channels), np.uint8)


@kernel
def convolve_to_planes(planes, filters, rounding, y0, y1, width, result):
    """Rows y0 to y1: convolve, scale, round to codes, pack into the planes `result`."""
    channels = filters.multiplier.size
    sums, codes = _scratch(channels, width)
    for y in range(y0, y1):
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, y, x0, x1, sums)
            for x in range(x1 - x0):
                for o in range(0, channels, 16):
                    position = x * channels + o
                    value = _scale(sums, position, filters, o)
                    simd.store(codes, position, round_to_codes(value, rounding.largest))
            pack_pixels(codes, result, y, x0, x1)


@kernel
def _finish_stream(stream, y, x0, x1, rounding, codes, result):
    """From stream codes of pixels x0 to x1 to activation planes."""
    _, width, channels = stream.shape
    first = (y * width + x0) * channels
    rescale(stream, first, (x1 - x0) * channels, rounding.activation_multiplier, rounding.activation_largest, codes)
    pack_pixels(codes, result, y, x0, x1)


@kernel
def convolve_to_stream(planes, filters, rounding, y0, y1, stream, result):
    """Rows y0 to y1: convolve, scale, round to stream codes, and from there to activation planes."""
    _, width, channels = stream.shape
    sums, codes = _scratch(channels, width)
    for y in range(y0, y1):
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, y, x0, x1, sums)
            first = (y * width + x0) * channels
            for x in range(x1 - x0):
                for o in range(0, channels, 16):
                    position = x * channels + o
                    value = _scale(sums, position, filters, o)
                    simd.store(stream, first + position, round_to_codes(value, rounding.largest))
            _finish_stream(stream, y, x0, x1, rounding, codes, result)


@kernel
def convolve_and_add(planes, filters, shortcut, shortcut_multiplier, rounding, y0, y1, stream, result):
    """As `convolve_to_stream`, but ``shortcut code * shortcut_multiplier`` is added before rounding."""
    _, width, channels = stream.shape
    sums, codes = _scratch(channels, width)
    scale = simd.broadcast_f32x16(shortcut_multiplier)
    for y in range(y0, y1):
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, y, x0, x1, sums)
            first = (y * width + x0) * channels
            for x in range(x1 - x0):
                for o in range(0, channels, 16):
                    position = x * channels + o
                    codes_in = simd.u8x16_to_i32x16(simd.load_u8x16(shortcut, first + position))
                    identity = simd.multiply_float(simd.i32x16_to_f32x16(codes_in), scale)
                    value = simd.add_float(_scale(sums, position, filters, o), identity)
                    simd.store(stream, first + position, round_to_codes(value, rounding.largest))
            _finish_stream(stream, y, x0, x1, rounding, codes, result)


@kernel
def convolve_and_project(planes, filters, block_planes, projection, rounding, y0, y1, stream, result):
    """As `convolve_to_stream`, but a second convolution of the block's own input is added before rounding."""
    _, width, channels = stream.shape
    sums, codes = _scratch(channels, width)
    projected = np.zeros_like(sums)
    for y in range(y0, y1):
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, y, x0, x1, sums)
            convolve_pixels(block_planes, projection, y, x0, x1, projected)
            first = (y * width + x0) * channels
            for x in range(x1 - x0):
                for o in range(0, channels, 16):
                    position = x * channels + o
                    value = _scale(sums, position, filters, o)
                    value = simd.add_float(value, _scale(projected, position, projection, o))
                    simd.store(stream, first + position, round_to_codes(value, rounding.largest))
            _finish_stream(stream, y, x0, x1, rounding, codes, result)


@kernel
def convolve_to_scores(planes, filters, y0, y1, scores):
    """Rows y0 to y1: convolve and scale to float32 scores of shape (classes, height, width)."""
    classes, _, width = scores.shape
    sums, _ = _scratch(filters.multiplier.size, width)
    for y in range(y0, y1):
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, y, x0, x1, sums)
            for c in range(classes):
                for x in range(x0, x1):
                    scores[c, y, x] = np.float32(sums[x - x0, c]) * filters.multiplier[c] + filters.offset[c]
