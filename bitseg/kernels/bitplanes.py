"""Activation codes as bit-planes: split into bits, 64 channels to a word."""

from collections import namedtuple

from . import simd
from .jit import part, routine
from .program import kernel

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
def pack_rows(codes, planes):
    """Pack codes, uint8 of shape (height, width, 32 n), and sum them, pixel by pixel."""
    height, width, _ = codes.shape
    for y in range(height):
        pack_pixels(codes[y], planes, y, 0, width)


@routine
def pack_pixels(codes, planes, y, x0, x1):
    """Pack codes, uint8 of shape (at least x1 - x0, 32 n), into pixels x0 to x1 of row `y`, and sum them."""
    channels = codes.shape[1]
    half, halves = first_half(planes, y, x0)
    for x in range(x0, x1):
        total = 0
        for c in range(0, channels, 32):
            total += simd.store_bits(planes.words, half + c // 32, simd.load_u8x32(codes, (x - x0) * channels + c))
        end_pixel(planes, y, x, 0, total)
        half += halves


@part
def first_half(planes, y, x):
    """Number of a pixel's first half word, counted from the first of the planes, and how many halves a pixel has.

    For a row of pixels, not for each: Numba counts references to all arrays of a tuple that it passes on.
    """
    columns, words = planes.words[0].shape[1:]
    return ((y + planes.margin) * columns + x + planes.margin) * words * 2, words * 2


@part
def end_pixel(planes, y, x, channel, total):
    """Write the sum of a pixel's codes, or, of those from another than the first channel on, add it."""
    row, column = y + planes.margin, x + planes.margin
    if channel:
        planes.sums[row, column] += total
    else:
        planes.sums[row, column] = total


@part
def clear_border(planes, y, channels):
    """Zero what no codes are written to.

    That is the border beside row `y`, with the first row that above it, with the last one that below it, and the half
    words past the last of the channels, a multiple of 32.
    """
    margin = planes.margin
    rows, columns = planes.sums.shape
    words = planes.words[0].shape[2]
    first = 0 if y == 0 else y + margin
    end = rows if y + 2 * margin + 1 == rows else y + margin + 1
    for row in range(first, end):
        # Of a row beside the map the pixels after the left border are skipped.
        skipped = columns - 2 * margin if margin <= row < rows - margin else 0
        for number in range(columns - skipped):
            column = number if number < margin else number + skipped
            planes.sums[row, column] = 0
            for word in range(words):
                simd.clear_half(planes.words, ((row * columns + column) * words + word) * 2)
                simd.clear_half(planes.words, ((row * columns + column) * words + word) * 2 + 1)
    if channels % 64:
        half, halves = first_half(planes, y, 0)
        for last in range(half + halves - 1, half + (columns - 2 * margin) * halves, halves):
            simd.clear_half(planes.words, last)
