"""Activation codes as bit-planes: split into bits, 64 channels to a word."""

from collections import namedtuple

from . import simd
from .jit import kernel, part

Planes = namedtuple("Planes", "words sums margin")
"""A feature map as bit-planes, with a border of `margin` zero pixels that serves as the padding of convolutions.

words : tuple of uint64 arrays, one for each bit, shape (height + 2 margin, width + 2 margin, ceil(channels / 64)).
    Word w of plane j holds bit j of channels 64 w to 64 w + 63, lowest first; channels past the end are 0. A tuple,
    because its length belongs to its type: kernels are compiled for each number of bits, with unrolled loops.
sums : int32, shape (height + 2 margin, width + 2 margin).
    Sum of the codes of a pixel's channels.
"""

MOST_BITS_BY_STEPS = 3
"""Up to so many bits a code is found by comparing its value with the ``2**bits - 1`` steps at which it changes."""


@kernel
def pack_pixels(codes, planes, y, x0, x1):
    """Pack codes, uint8 of shape (at least x1 - x0, 64 * words), into pixels x0 to x1 of row `y`, and sum them."""
    words = codes.shape[1] // 64
    columns = planes.sums.shape[1]
    for x in range(x0, x1):
        pixel = (y + planes.margin) * columns + x + planes.margin
        total = 0
        for w in range(words):
            vector = simd.load_u8x64(codes, ((x - x0) * words + w) * 64)
            total += simd.store_bits(planes.words, pixel * words + w, vector)
        planes.sums[y + planes.margin, x + planes.margin] = total


@part
def clear_border(planes, y):
    """Zero the border beside row `y`, with the first row that above it, with the last one that below it."""
    margin = planes.margin
    rows, columns = planes.sums.shape
    first = 0 if y == 0 else y + margin
    end = rows if y + 2 * margin + 1 == rows else y + margin + 1
    for row in range(first, end):
        inside = margin <= row < rows - margin
        for x in range(columns):
            if not (inside and margin <= x < columns - margin):
                planes.sums[row, x] = 0
                for plane in planes.words:
                    plane[row, x] = 0
