"""Bit convolution by AND and popcount: words of bits, an output channel in each lane of a vector of words.

It needs nothing but a population count, which LLVM has for every CPU. Words have 32 bits where the CPU counts the bits
of 32-bit lanes in one instruction: counts are then the int32 that the sums are, and 32 channels fill a word. Elsewhere
64 bits are cheaper to count.
"""

from collections import namedtuple

import numpy as np

from . import simd
from .jit import part

WORD = np.dtype(np.uint32 if simd.has_vector_popcount() else np.uint64)
"""Words of the filters."""

LANES = 64 // WORD.itemsize
"""Output channels computed side by side: the lanes of a 512-bit vector of words."""

PIXELS = 4
"""Pixels computed together, which share what is loaded of the weights."""

PopcountFilters = namedtuple("PopcountFilters", "weights multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : tuple of arrays of `WORD`, one for each bit, shape (ceil(out / lanes), kernel, kernel, words of in, lanes).
    The last axis runs over output channels. A tuple for the reason given at `bitplanes.Planes`.
multiplier, offset : float32, shape (32 * ceil(out / 32),)
    Turn the integer sum t into ``t * multiplier + offset``; 0 past the last channel.
kernel, stride, padding : int
levels : int32
    Largest weight code, ``2**bits - 1``: times the sum of a window it is the center of its sums.
"""


@part
def workspace(planes, filters, rows, pixels):
    """Where the words of a window lie, counted from its first word: intp, shape (kernel * kernel * words of in,)."""
    _, kernel_size, _, words, lanes = filters.weights[0].shape
    columns, pixel = planes.sums.shape[1], _words_of_pixel(planes, lanes)
    offsets = np.empty(kernel_size * kernel_size * words, np.intp)
    tap = 0
    for row in range(kernel_size):
        for column in range(kernel_size):
            for word in range(words):
                offsets[tap] = (row * columns + column) * pixel + word
                tap += 1
    return offsets


@part
def _words_of_pixel(planes, lanes):
    """Words of the filters' size between one pixel of the planes and the next; the planes have words of 64 bits."""
    return planes.words[0].shape[2] * (lanes // 8)


@part
def begin_rows(planes, filters, space, y, rows):
    """Nothing is made for each row."""


@part
def convolve_pixels(planes, filters, space, y, rows, x0, x1, channel, sums):
    """Sums of all channels of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`."""
    blocks, _, _, _, lanes = filters.weights[0].shape
    columns, pixel = planes.sums.shape[1], _words_of_pixel(planes, lanes)
    step = filters.stride * pixel
    border = planes.margin - filters.padding
    first = ((y * filters.stride + border) * columns + border) * pixel
    out, last, taps = sums.shape[1], x1 - 1, len(space)
    for x in range(x0, x1, PIXELS):
        # At the right edge the last pixel is computed again instead of one outside.
        p0, p1, p2, p3 = x, min(x + 1, last), min(x + 2, last), min(x + 3, last)
        a0, a1, a2, a3 = first + p0 * step, first + p1 * step, first + p2 * step, first + p3 * step
        s0, s1, s2, s3 = (p0 - x0) * out, (p1 - x0) * out, (p2 - x0) * out, (p3 - x0) * out
        for block in range(blocks):
            count0 = simd.zero_counts(planes.words, filters.weights)
            count1, count2, count3 = count0, count0, count0
            for tap in range(taps):
                weight = simd.load_words(filters.weights, (block * taps + tap) * lanes)
                offset = space[tap]
                word = simd.broadcast_words(planes.words, a0 + offset, filters.weights)
                count0 = simd.count_matches(count0, word, weight)
                word = simd.broadcast_words(planes.words, a1 + offset, filters.weights)
                count1 = simd.count_matches(count1, word, weight)
                word = simd.broadcast_words(planes.words, a2 + offset, filters.weights)
                count2 = simd.count_matches(count2, word, weight)
                word = simd.broadcast_words(planes.words, a3 + offset, filters.weights)
                count3 = simd.count_matches(count3, word, weight)
            o = block * lanes
            simd.store_counts(sums, s0 + o, count0)
            simd.store_counts(sums, s1 + o, count1)
            simd.store_counts(sums, s2 + o, count2)
            simd.store_counts(sums, s3 + o, count3)
    return 0
