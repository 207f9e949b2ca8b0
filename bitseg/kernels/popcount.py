"""Bit convolution by AND and popcount: words of 64 channels, 8 output channels across the lanes of a vector.

It needs nothing but a population count, which LLVM has for every CPU; with AVX-512's own it is the fastest kernel.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .jit import kernel

LANES = 8
"""Output channels computed side by side: the 64-bit lanes of a vector."""

PopcountFilters = namedtuple("PopcountFilters", "weights multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : tuple of uint64 arrays, one for each bit, shape (ceil(out / 8), kernel, kernel * ceil(in / 64), 8).
    The last axis runs over 8 output channels. A tuple for the reason given at `bitplanes.Planes`.
multiplier, offset : float32, shape (64 * ceil(out / 64),)
    Turn the integer sum t into ``t * multiplier + offset``; 0 past the last channel.
kernel, stride, padding : int
levels : int
    Largest weight code, ``2**bits - 1``.
"""


@kernel
def workspace(planes, filters):
    """Where the words of a window lie, counted from its first word: intp, shape (kernel * span,)."""
    _, kernel_size, span, _ = filters.weights[0].shape
    columns, words = planes.words[0].shape[1:]
    offsets = np.empty(kernel_size * span, np.intp)
    for row in range(kernel_size):
        for k in range(span):
            offsets[row * span + k] = row * columns * words + k
    return offsets


@kernel
def begin_row(planes, filters, offsets, y):
    """Nothing is made for each row."""


@kernel
def convolve_pixels(planes, filters, offsets, y, x0, x1, sums):
    """Sums of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    columns, words = planes.words[0].shape[1:]
    step = filters.stride * words
    border = planes.margin - filters.padding
    first = ((y * filters.stride + border) * columns + border) * words
    out, last, blocks, taps = sums.shape[1], x1 - 1, filters.weights[0].shape[0], len(offsets)
    for x in range(x0, x1, 4):
        # At the right edge the last pixel is computed again instead of one outside.
        p0, p1, p2, p3 = x, min(x + 1, last), min(x + 2, last), min(x + 3, last)
        a0, a1, a2, a3 = first + p0 * step, first + p1 * step, first + p2 * step, first + p3 * step
        s0, s1, s2, s3 = (p0 - x0) * out, (p1 - x0) * out, (p2 - x0) * out, (p3 - x0) * out
        for block in range(blocks):
            count0 = simd.zero_counts(planes.words, filters.weights)
            count1, count2, count3 = count0, count0, count0
            for tap in range(taps):
                weight = simd.load_u64x8_each(filters.weights, (block * taps + tap) * LANES)
                offset = offsets[tap]
                count0 = simd.count_matches(count0, simd.broadcast_u64x8_each(planes.words, a0 + offset), weight)
                count1 = simd.count_matches(count1, simd.broadcast_u64x8_each(planes.words, a1 + offset), weight)
                count2 = simd.count_matches(count2, simd.broadcast_u64x8_each(planes.words, a2 + offset), weight)
                count3 = simd.count_matches(count3, simd.broadcast_u64x8_each(planes.words, a3 + offset), weight)
            o = block * LANES
            simd.store(sums, s0 + o, simd.weigh_counts(count0))
            simd.store(sums, s1 + o, simd.weigh_counts(count1))
            simd.store(sums, s2 + o, simd.weigh_counts(count2))
            simd.store(sums, s3 + o, simd.weigh_counts(count3))
