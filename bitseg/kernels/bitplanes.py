"""Activation codes as bit-planes, one row at a time: round, split into bits, pack 64 channels to a word."""

from collections import namedtuple

import numpy as np

from . import simd
from .jit import kernel

Planes = namedtuple("Planes", "words sums margin")
"""A feature map as bit-planes, with a border of `margin` zero pixels that serves as the padding of convolutions.

words : uint64, shape (height + 2 margin, bits, width + 2 margin, ceil(channels / 64)).
    Word w of plane j holds bit j of channels 64 w to 64 w + 63, lowest first; channels past the end are 0.
sums : int32, shape (height + 2 margin, width + 2 margin).
    Sum of the codes of a pixel's channels.
"""


@kernel
def pack_row(codes, planes, y):
    """Pack one row of codes, uint8 of shape (width, 64 * words), into row `y` of the planes, and sum them."""
    _, bits, _, words = planes.words.shape
    width = codes.shape[0]
    row = planes.words[y + planes.margin]
    for x in range(width):
        total = 0
        for w in range(words):
            vector = simd.load_u8x64(codes, x * codes.shape[1] + 64 * w)
            for j in range(bits):
                one_bit = simd.bitwise_and(vector, simd.broadcast_u8x64(np.uint8(1 << j)))
                word = simd.nonzero_mask(one_bit)
                row[j, x + planes.margin, w] = word
                total += count_ones(word) << j
        planes.sums[y + planes.margin, x + planes.margin] = total


@kernel
def count_ones(word):
    """Number of set bits of a uint64."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def rescale_row(codes, multiplier, largest, result):
    """``rint(clip(code * multiplier, 0, largest))`` for a row of codes, both uint8 of shape (width, channels)."""
    scale = simd.broadcast_f32x16(multiplier)
    low, high = simd.broadcast_f32x16(np.float32(0)), simd.broadcast_f32x16(largest)
    for i in range(0, codes.size, 16):
        value = simd.i32x16_to_f32x16(simd.u8x16_to_i32x16(simd.load_u8x16(codes, i)))
        value = simd.clip(simd.multiply_float(value, scale), low, high)
        simd.store(result, i, simd.i32x16_to_u8x16(simd.f32x16_to_i32x16(simd.rint(value))))
