"""Convolution of bit-planes and what follows it: scale, add the shortcut, round, pack.

A kernel works on rows y0 to y1 of the output, a few pixels at a time, so that the sums of all their channels stay in
the first-level cache: no full-size integer or float map is written to memory. The sums themselves come from `popcount`
or `lookup`; the type of the filters says from which, and both give the same.
"""

from collections import namedtuple

import numpy as np
from numba.extending import overload

from . import lookup, popcount, simd
from .bitplanes import pack_pixels
from .jit import kernel

SUMS_IN_CACHE = 8192
"""Sums (int32) kept at a time: 32 KB, the usual size of a first-level cache."""

Rounding = namedtuple("Rounding", "largest activation_multiplier activation_largest")
"""How real values become codes: float32 scalars.

largest : largest code of the result, ``2**bits - 1``.
activation_multiplier, activation_largest : from stream codes to the codes that convolutions read.
"""

_MODULES = {popcount.PopcountFilters: popcount, lookup.LookupFilters: lookup}


def workspace(planes, filters):
    """Scratch memory of the sums' kernel for one call."""


def begin_row(planes, filters, space, y):
    """Make ready for the pixels of output row `y`; rows come in order."""


def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Unsigned integer sums of output pixels x0 to x1 of row `y`.

    sums : int32, shape (at least x1 - x0, out). Receives ``sum(a * q)``; the rest is done by `_scale`.
    """


@overload(workspace)
def _workspace(planes, filters):
    implementation = _MODULES[filters.instance_class].workspace
    return lambda planes, filters: implementation(planes, filters)


@overload(begin_row)
def _begin_row(planes, filters, space, y):
    implementation = _MODULES[filters.instance_class].begin_row
    return lambda planes, filters, space, y: implementation(planes, filters, space, y)


@overload(convolve_pixels)
def _convolve_pixels(planes, filters, space, y, x0, x1, sums):
    implementation = _MODULES[filters.instance_class].convolve_pixels
    return lambda planes, filters, space, y, x0, x1, sums: implementation(planes, filters, space, y, x0, x1, sums)


@kernel
def _center(planes, filters, y, x):
    """``levels * sum(a)`` over the window of an output pixel: ``sum(a (2 q - levels)) = 2 sum(a q) - center``."""
    top = y * filters.stride + planes.margin - filters.padding
    left = x * filters.stride + planes.margin - filters.padding
    window = 0
    for row in range(top, top + filters.kernel):
        for column in range(left, left + filters.kernel):
            window += planes.sums[row, column]
    return simd.broadcast_i32x16(np.int32(filters.levels * window))


@kernel
def _scale(sums, position, center, filters, channel):
    """``t * multiplier + offset`` for 16 channels, ``t = 2 sum(a q) - center``; each step rounded to float32."""
    total = simd.load_i32x16(sums, position)
    value = simd.i32x16_to_f32x16(simd.subtract(simd.add(total, total), center))
    value = simd.multiply_float(value, simd.load_f32x16(filters.multiplier, channel))
    return simd.add_float(value, simd.load_f32x16(filters.offset, channel))


@kernel
def round_to_codes(value, largest):
    """``rint(clip(value, 0, largest))`` of 16 float32 values, as int32."""
    value = simd.clip(value, simd.broadcast_f32x16(np.float32(0)), simd.broadcast_f32x16(largest))
    return simd.f32x16_to_i32x16(simd.rint(value))


@kernel
def store_stream(value, rounding, stream, stream_position, activation, position):
    """Round 16 values to stream codes and these to activation codes; write both."""
    code = round_to_codes(value, rounding.largest)
    simd.store(stream, stream_position, simd.i32x16_to_u8x16(code))
    scale = simd.broadcast_f32x16(rounding.activation_multiplier)
    value = simd.multiply_float(simd.i32x16_to_f32x16(code), scale)
    code = round_to_codes(value, rounding.activation_largest)
    simd.store(activation, position, simd.i32x16_to_u8x16(code))


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
    space = workspace(planes, filters)
    for y in range(y0, y1):
        begin_row(planes, filters, space, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            for x in range(x0, x1):
                center = _center(planes, filters, y, x)
                for o in range(0, channels, 16):
                    position = (x - x0) * channels + o
                    code = round_to_codes(_scale(sums, position, center, filters, o), rounding.largest)
                    simd.store(codes, position, simd.i32x16_to_u8x16(code))
            pack_pixels(codes, result, y, x0, x1)


@kernel
def convolve_to_stream(planes, filters, rounding, y0, y1, stream, result):
    """Rows y0 to y1: convolve, scale, round to stream codes, and from there to activation planes."""
    _, width, channels = stream.shape
    sums, codes = _scratch(channels, width)
    space = workspace(planes, filters)
    for y in range(y0, y1):
        begin_row(planes, filters, space, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            for x in range(x0, x1):
                center = _center(planes, filters, y, x)
                for o in range(0, channels, 16):
                    position = (x - x0) * channels + o
                    value = _scale(sums, position, center, filters, o)
                    store_stream(value, rounding, stream, (y * width + x) * channels + o, codes, position)
            pack_pixels(codes, result, y, x0, x1)


@kernel
def convolve_and_add(planes, filters, shortcut, shortcut_multiplier, rounding, y0, y1, stream, result):
    """As `convolve_to_stream`, but ``shortcut code * shortcut_multiplier`` is added before rounding."""
    _, width, channels = stream.shape
    sums, codes = _scratch(channels, width)
    space = workspace(planes, filters)
    scale = simd.broadcast_f32x16(shortcut_multiplier)
    for y in range(y0, y1):
        begin_row(planes, filters, space, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            for x in range(x0, x1):
                center = _center(planes, filters, y, x)
                for o in range(0, channels, 16):
                    position, stream_position = (x - x0) * channels + o, (y * width + x) * channels + o
                    incoming = simd.u8x16_to_i32x16(simd.load_u8x16(shortcut, stream_position))
                    identity = simd.multiply_float(simd.i32x16_to_f32x16(incoming), scale)
                    value = simd.add_float(_scale(sums, position, center, filters, o), identity)
                    store_stream(value, rounding, stream, stream_position, codes, position)
            pack_pixels(codes, result, y, x0, x1)


@kernel
def convolve_and_project(planes, filters, block_planes, projection, rounding, y0, y1, stream, result):
    """As `convolve_to_stream`, but a second convolution of the block's own input is added before rounding."""
    _, width, channels = stream.shape
    sums, codes = _scratch(channels, width)
    space = workspace(planes, filters)
    projected, block_space = np.zeros_like(sums), workspace(block_planes, projection)
    for y in range(y0, y1):
        begin_row(planes, filters, space, y)
        begin_row(block_planes, projection, block_space, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            convolve_pixels(block_planes, projection, block_space, y, x0, x1, projected)
            for x in range(x0, x1):
                center, projected_center = _center(planes, filters, y, x), _center(block_planes, projection, y, x)
                for o in range(0, channels, 16):
                    position = (x - x0) * channels + o
                    shortcut = _scale(projected, position, projected_center, projection, o)
                    value = simd.add_float(_scale(sums, position, center, filters, o), shortcut)
                    store_stream(value, rounding, stream, (y * width + x) * channels + o, codes, position)
            pack_pixels(codes, result, y, x0, x1)


@kernel
def convolve_to_scores(planes, filters, y0, y1, scores):
    """Rows y0 to y1: convolve and scale to float32 scores of shape (classes, height, width)."""
    classes, _, width = scores.shape
    channels = filters.multiplier.size
    sums, _ = _scratch(channels, width)
    space = workspace(planes, filters)
    values = np.empty(channels, np.float32)
    for y in range(y0, y1):
        begin_row(planes, filters, space, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            for x in range(x0, x1):
                center = _center(planes, filters, y, x)
                for o in range(0, classes, 16):
                    simd.store(values, o, _scale(sums, (x - x0) * channels + o, center, filters, o))
                for c in range(classes):
                    scores[c, y, x] = values[c]
