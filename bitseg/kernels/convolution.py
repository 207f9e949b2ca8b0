"""Convolution of bit-planes and what follows it: scale, add the shortcut, round, pack.

A kernel works on the rows of the output that it gets, a few pixels at a time, so that the sums of all their channels
stay in the first-level cache: no full-size integer or float map is written to memory. The sums themselves come from
`popcount`, `lookup` or `dot`; the type of the filters says from which, and all give the same.

Arguments that may be None choose what is compiled: of branches on them Numba keeps those that apply.
"""

from collections import namedtuple

import numpy as np
from numba.extending import overload

from . import dot, lookup, popcount, simd
from .bitplanes import clear_border, pack_pixels
from .jit import kernel, part
from .sharing import next_row, take_row

SUMS_IN_CACHE = 8192
"""Sums (int32) kept at a time: 32 KB, the usual size of a first-level cache."""

Rounding = namedtuple("Rounding", "largest steps activation_multiplier activation_largest")
"""How real values become stream codes, and these the activation codes that convolutions read.

largest : float32
    Largest stream code, ``2**bits - 1``.
steps : uint8, shape (2**bits - 1, 64), or None
    An activation code is the number of steps that its stream code exceeds; the same in all columns.
activation_multiplier, activation_largest : float32
    From stream codes to activation codes; used where there are no steps.
"""

_MODULES = {popcount.PopcountFilters: popcount, lookup.LookupFilters: lookup, dot.DotFilters: dot}


def workspace(planes, filters):
    """Scratch memory of the sums' kernel for one call."""


def begin_row(planes, filters, space, y):
    """Make ready for the pixels of output row `y`; rows come in order."""


def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Integer sums of output pixels x0 to x1 of row `y`.

    sums : int32, shape (at least x1 - x0, out)
        Receives ``sum(a * w)`` for the stored weights w, which are the codes q or differ from them by a constant.
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


@part
def _center(planes, filters, y, x):
    """What makes the sum of an output pixel signed: ``t = sum(a (2 q - largest q)) = 2 sum(a w) - center``."""
    top = y * filters.stride + planes.margin - filters.padding
    left = x * filters.stride + planes.margin - filters.padding
    window = 0
    for row in range(top, top + filters.kernel):
        for column in range(left, left + filters.kernel):
            window += planes.sums[row, column]
    return np.int32(filters.levels * window)


@part
def scale(sums, position, center, filters, channel):
    """``t * multiplier + offset`` for 16 channels, ``t = 2 sum(a w) - center``; each step rounded to float32."""
    total = simd.load_i32x16(sums, position)
    total = simd.subtract(simd.add(total, total), simd.broadcast_i32x16(center))
    value = simd.multiply_float(simd.i32x16_to_f32x16(total), simd.load_f32x16(filters.multiplier, channel))
    return simd.add_float(value, simd.load_f32x16(filters.offset, channel))


@part
def round_to_codes(value, largest):
    """``rint(clip(value, 0, largest))`` of 16 float32 values, as uint8."""
    value = simd.maximum(value, simd.broadcast_f32x16(np.float32(0)))
    return simd.round_to_u8x16(simd.minimum(value, simd.broadcast_f32x16(largest)))


@part
def scratch_sums(channels, width):
    """Sums of as many pixels as fit the cache."""
    return np.zeros((min(width, max(4, SUMS_IN_CACHE // channels)), channels), np.int32)


@kernel
def convolve_to_planes(planes, filters, steps, largest, share, width, result):
    """Convolve, scale, round to codes, pack into the planes `result`.

    steps : int32, shape (2**bits - 1, channels), or None
        A code is the number of steps that its sum t exceeds: what scaling and rounding it would give.
    largest : float32
        Largest code; used where there are no steps.
    """
    channels = filters.multiplier.size
    sums = scratch_sums(channels, width)
    codes = np.empty(sums.shape, np.uint8)
    space = workspace(planes, filters)
    y = take_row(share)
    while y < share.height:
        begin_row(planes, filters, space, y)
        clear_border(result, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            if steps is not None:
                _pack_sums(planes, filters, steps, sums, y, x0, x1, result)
            if steps is None:
                for x in range(x0, x1):
                    center = _center(planes, filters, y, x)
                    for o in range(0, channels, 16):
                        position = (x - x0) * channels + o
                        value = scale(sums, position, center, filters, o)
                        simd.store(codes, position, round_to_codes(value, largest))
                pack_pixels(codes, result, y, x0, x1)
        y = next_row(share, y)


@part
def _pack_sums(planes, filters, steps, sums, y, x0, x1, result):
    """Sums of pixels x0 to x1 of row `y` to codes by comparison, packed."""
    channels = sums.shape[1]
    columns, words = result.words[0].shape[1:]
    for x in range(x0, x1):
        center = simd.broadcast_i32x64(_center(planes, filters, y, x))
        pixel = (y + result.margin) * columns + x + result.margin
        total = 0
        for w in range(words):
            value = simd.load_i32x64(sums, (x - x0) * channels + w * 64)
            value = simd.subtract(simd.add(value, value), center)
            total += simd.store_steps(result.words, pixel * words + w, value, steps, w * 64)
        result.sums[y + result.margin, x + result.margin] = total


@kernel
def convolve_to_stream(planes, filters, shortcut, shortcut_multiplier, projection, rounding, share, stream, result):
    """Convolve, scale, add what the block's shortcut gives, round to stream codes and activation planes.

    shortcut, shortcut_multiplier : uint8 as `stream`, and float32, or both None
        Stream codes of which ``code * shortcut_multiplier`` is added.
    projection : (Planes, filters) or None
        Another convolution, which is added.
    """
    _, width, channels = stream.shape
    sums = scratch_sums(channels, width)
    space = workspace(planes, filters)
    if projection is not None:
        block_planes, block_filters = projection
        block_space, projected = workspace(block_planes, block_filters), np.zeros_like(sums)
    y = take_row(share)
    while y < share.height:
        begin_row(planes, filters, space, y)
        if projection is not None:
            begin_row(block_planes, block_filters, block_space, y)
        clear_border(result, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            if projection is not None:
                convolve_pixels(block_planes, block_filters, block_space, y, x0, x1, projected)
            for x in range(x0, x1):
                center = _center(planes, filters, y, x)
                if projection is not None:
                    block_center = _center(block_planes, block_filters, y, x)
                for o in range(0, channels, 16):
                    position, stream_position = (x - x0) * channels + o, (y * width + x) * channels + o
                    value = scale(sums, position, center, filters, o)
                    if shortcut is not None:
                        incoming = simd.i32x16_to_f32x16(
                            simd.u8x16_to_i32x16(simd.load_u8x16(shortcut, stream_position))
                        )
                        factor = simd.broadcast_f32x16(shortcut_multiplier)
                        value = simd.add_float(value, simd.multiply_float(incoming, factor))
                    if projection is not None:
                        value = simd.add_float(value, scale(projected, position, block_center, block_filters, o))
                    simd.store(stream, stream_position, round_to_codes(value, rounding.largest))
            pack_stream(stream, rounding, rounding.steps, result, y, x0, x1)
        y = next_row(share, y)


@part
def pack_stream(stream, rounding, steps, result, y, x0, x1):
    """Pixels x0 to x1 of row `y` of the stream as activation codes, packed; `steps` are those of `rounding`."""
    _, width, channels = stream.shape
    first = (y * width + x0) * channels
    if steps is not None:
        columns, words = result.words[0].shape[1:]
        for x in range(x0, x1):
            pixel = (y + result.margin) * columns + x + result.margin
            total = 0
            for w in range(words):
                value = simd.load_u8x64(stream, first + (x - x0) * channels + w * 64)
                total += simd.store_steps(result.words, pixel * words + w, value, steps, 0)
            result.sums[y + result.margin, x + result.margin] = total
    if steps is None:
        codes = np.empty((x1 - x0, channels), np.uint8)
        factor = simd.broadcast_f32x16(rounding.activation_multiplier)
        for position in range(0, codes.size, 16):
            value = simd.i32x16_to_f32x16(simd.u8x16_to_i32x16(simd.load_u8x16(stream, first + position)))
            value = simd.multiply_float(value, factor)
            simd.store(codes, position, round_to_codes(value, rounding.activation_largest))
        pack_pixels(codes, result, y, x0, x1)


@kernel
def convolve_to_scores(planes, filters, share, scores):
    """Convolve and scale to float32 scores of shape (classes, height, width)."""
    classes, _, width = scores.shape
    channels = filters.multiplier.size
    sums = scratch_sums(channels, width)
    space = workspace(planes, filters)
    values = np.empty((len(sums), -(-classes // 16) * 16), np.float32)
    y = take_row(share)
    while y < share.height:
        begin_row(planes, filters, space, y)
        for x0 in range(0, width, len(sums)):
            x1 = min(x0 + len(sums), width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            for x in range(x0, x1):
                center = _center(planes, filters, y, x)
                for o in range(0, classes, 16):
                    value = scale(sums, (x - x0) * channels + o, center, filters, o)
                    simd.store(values, (x - x0) * values.shape[1] + o, value)
            # Class by class: the same place in all classes would be the same few lines of the cache.
            for c in range(classes):
                for x in range(x0, x1):
                    scores[c, y, x] = values[x - x0, c]
        y = next_row(share, y)
