"""Convolution of a feature map and what follows it: scale, add the shortcut, round, pack.

A kernel works on the rows of the output that it gets, a few pixels at a time, so that the sums of all their channels
stay in the first-level cache: no full-size integer or float map is written to memory. The sums themselves come from
`popcount`, `lookup` or `dot`; the type of the filters says from which, and all give the same.

Arguments that may be None choose what is compiled: of branches on them Numba keeps those that apply.
"""

from collections import namedtuple

import numpy as np
from numba.extending import overload

from . import dot, lookup, popcount, simd
from .bitplanes import clear_border, first_half, pack_pixels
from .feature_maps import add_sums, columns, margin
from .jit import borrowed, keep, kernel, part
from .sharing import next_row, take_row

LANES = 32
"""Channels that are treated at a time after the sums; the sums of a pixel are filled up to a multiple of it."""

SUMS_IN_CACHE = 8192
"""Sums of so many channels and pixels are kept at a time: 16 KB or 32 KB, at most the usual first-level cache."""

Rounding = namedtuple("Rounding", "largest steps activation_multiplier activation_largest")
"""How real values become stream codes, and these the activation codes that convolutions read.

largest : float32
    Largest stream code, ``2**bits - 1``.
steps : uint8, shape (2**bits - 1, 32), or None
    An activation code is the number of steps that its stream code exceeds; the same in all columns.
activation_multiplier, activation_largest : float32
    From stream codes to activation codes; used where there are no steps.
"""

_MODULES = {popcount.PopcountFilters: popcount, lookup.LookupFilters: lookup, dot.DotFilters: dot}


MOST_PIXELS = max(module.PIXELS for module in _MODULES.values())
"""Pixels that a kernel computes together, at most."""


def pixels_at_a_time(filters):
    """How many pixels of a row are convolved before what follows: their sums, and what the kernel needs, stay in the
    first-level cache."""


def workspace(planes, filters, pixels):
    """Scratch memory of the sums' kernel for one call, which convolves up to so many pixels at a time."""


def begin_row(planes, filters, space, y):
    """Make ready for the pixels of output row `y`; rows come in order."""


def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Integer sums of output pixels x0 to x1 of row `y`.

    sums : array of the type of `filters.levels`, shape (at least x1 - x0 + MOST_PIXELS - 1, out)
        Receives ``sum(a * w)`` for the stored weights w, which are the codes q or differ from them by a constant.
    """


@overload(pixels_at_a_time)
def _pixels_at_a_time(filters):
    together = _MODULES[filters.instance_class].PIXELS
    return lambda filters: max(1, SUMS_IN_CACHE // together // filters.multiplier.size) * together


@overload(workspace)
def _workspace(planes, filters, pixels):
    implementation = _MODULES[filters.instance_class].workspace
    return lambda planes, filters, pixels: implementation(planes, filters, pixels)


@overload(begin_row)
def _begin_row(planes, filters, space, y):
    implementation = _MODULES[filters.instance_class].begin_row
    return lambda planes, filters, space, y: implementation(planes, filters, space, y)


@overload(convolve_pixels)
def _convolve_pixels(planes, filters, space, y, x0, x1, sums):
    implementation = _MODULES[filters.instance_class].convolve_pixels
    return lambda planes, filters, space, y, x0, x1, sums: implementation(planes, filters, space, y, x0, x1, sums)


@part
def find_centers(planes, filters, y, totals, centers):
    """What makes the sums of output row `y` signed: ``t = sum(a (2 q - largest q)) = 2 sum(a w) - center``.

    totals : int32, shape (columns,)
        Scratch memory.
    """
    left = margin(planes) - filters.padding
    top = y * filters.stride + left
    totals[:] = 0
    for row in range(top, top + filters.kernel):
        add_sums(planes, row, totals)
    centers[:] = 0
    for column in range(left, left + filters.kernel):
        _add_every(filters.stride, totals[column:], centers)
    for x in range(len(centers)):
        centers[x] *= np.int32(filters.levels)


@part
def _add_every(stride, totals, centers):
    """Add every `stride`-th total to the centers; a stride that the compiler knows becomes vectors."""
    # Numbers without a sign cannot count from an array's end, which would have to be looked at each time.
    if stride == 1:
        for x in range(np.uint32(len(centers))):
            centers[x] += totals[x]
    elif stride == 2:
        for x in range(np.uint32(len(centers))):
            centers[x] += totals[np.uint32(2) * x]
    else:
        for x in range(np.uint32(len(centers))):
            centers[x] += totals[np.uint32(stride) * x]


@part
def scale(sums, position, center, filters, channel):
    """``t * multiplier + offset`` for 32 channels, ``t = 2 sum(a w) - center``; each step rounded to float32."""
    value = simd.to_f32x32(simd.load_signed_sums(sums, position, center))
    value = simd.multiply_float(value, simd.load_f32x32(filters.multiplier, channel))
    return simd.add_float(value, simd.load_f32x32(filters.offset, channel))


@part
def scratch(planes, filters, width, pixels):
    """Memory of one call: sums of the pixels convolved at a time, totals and centers of a row, the kernel's own."""
    # Kernels compute some pixels together, at the end of a row more than there are.
    sums = np.full((pixels + MOST_PIXELS - 1, filters.multiplier.size), filters.levels)
    totals = np.empty(columns(planes), np.int32)
    return sums, totals, np.empty(width, np.int32), workspace(planes, filters, pixels)


@kernel
def convolve_to_planes(filters, steps, largest, planes, share, width, result):
    """Convolve, scale, round to codes, pack into the planes `result`.

    steps : array of the type of the sums, shape (2**bits - 1, channels), or None
        A code is the number of steps that its sum t exceeds: what scaling and rounding it would give.
    largest : float32
        Largest code; used where there are no steps.
    """
    planes, filters, share, result = borrowed((planes, filters, share, result))
    channels, pixels = filters.multiplier.size, min(width, pixels_at_a_time(filters))
    memory = scratch(planes, filters, width, pixels)
    sums, totals, centers, space = borrowed(memory)
    codes = np.empty((pixels, channels), np.uint8)
    y = take_row(share)
    while y < share.height:
        begin_row(planes, filters, space, y)
        find_centers(planes, filters, y, totals, centers)
        clear_border(result, y)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            if steps is not None:
                _pack_sums(centers, steps, sums, y, x0, x1, result)
            if steps is None:
                for x in range(x0, x1):
                    for c in range(0, channels, LANES):
                        position = (x - x0) * channels + c
                        value = scale(sums, position, centers[x], filters, c)
                        simd.store(codes, position, simd.round_to_u8x32(value, largest))
                pack_pixels(codes, result, y, x0, x1)
        y = next_row(share, y)
    keep(memory)


@part
def _pack_sums(centers, steps, sums, y, x0, x1, result):
    """Sums of pixels x0 to x1 of row `y` to codes by comparison, packed."""
    channels = sums.shape[1]
    half, halves = first_half(result, y, x0)
    for x in range(x0, x1):
        total = 0
        for c in range(0, channels, LANES):
            value = simd.load_signed_sums(sums, (x - x0) * channels + c, centers[x])
            total += simd.store_steps(result.words, half + c // LANES, value, steps, c)
        if channels % 64:
            simd.clear_half(result.words, half + halves - 1)
        half += halves
        result.sums[y + result.margin, x + result.margin] = total


@kernel
def convolve_to_stream(
    filters, rounding, shortcut_multiplier, projection, planes, shortcut, block_input, share, stream, result
):
    """Convolve, scale, add what the block's shortcut gives, round to stream codes and activation planes.

    shortcut, shortcut_multiplier : uint8 as `stream`, and float32, or both None
        Stream codes of which ``code * shortcut_multiplier`` is added.
    block_input, projection : feature map, and filters, or both None
        Another convolution, which is added.
    result : Planes or None
        Receives the activations, where anything reads them.
    """
    planes, filters, share, stream = borrowed((planes, filters, share, stream))
    _, width, channels = stream.shape
    pixels = min(width, pixels_at_a_time(filters))
    if projection is not None:
        pixels = min(pixels, pixels_at_a_time(projection))
    memory = scratch(planes, filters, width, pixels)
    sums, totals, centers, space = borrowed(memory)
    if projection is not None:
        block_planes, block_filters = borrowed((block_input, projection))
        block_memory = scratch(block_planes, block_filters, width, pixels)
        projected, block_totals, block_centers, block_space = borrowed(block_memory)
    if result is not None:
        activations = borrowed(result)
    y = take_row(share)
    while y < share.height:
        begin_row(planes, filters, space, y)
        find_centers(planes, filters, y, totals, centers)
        if projection is not None:
            begin_row(block_planes, block_filters, block_space, y)
            find_centers(block_planes, block_filters, y, block_totals, block_centers)
        if result is not None:
            clear_border(activations, y)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            if projection is not None:
                convolve_pixels(block_planes, block_filters, block_space, y, x0, x1, projected)
            for x in range(x0, x1):
                for c in range(0, channels, LANES):
                    position, stream_position = (x - x0) * channels + c, (y * width + x) * channels + c
                    value = scale(sums, position, centers[x], filters, c)
                    if shortcut is not None:
                        incoming = simd.to_f32x32(simd.load_u8x32(shortcut, stream_position))
                        factor = simd.broadcast_f32x32(shortcut_multiplier)
                        value = simd.add_float(value, simd.multiply_float(incoming, factor))
                    if projection is not None:
                        value = simd.add_float(value, scale(projected, position, block_centers[x], block_filters, c))
                    simd.store(stream, stream_position, simd.round_to_u8x32(value, rounding.largest))
            if result is not None:
                pack_stream(stream, rounding, rounding.steps, activations, y, x0, x1)
        y = next_row(share, y)
    keep(memory)
    if projection is not None:
        keep(block_memory)


@part
def pack_stream(stream, rounding, steps, result, y, x0, x1):
    """Pixels x0 to x1 of row `y` of the stream as activation codes, packed; `steps` are those of `rounding`."""
    _, width, channels = stream.shape
    first = (y * width + x0) * channels
    if steps is not None:
        half, halves = first_half(result, y, x0)
        for x in range(x0, x1):
            total = 0
            for c in range(0, channels, LANES):
                value = simd.load_u8x32(stream, first + (x - x0) * channels + c)
                total += simd.store_steps(result.words, half + c // LANES, value, steps, 0)
            if channels % 64:
                simd.clear_half(result.words, half + halves - 1)
            half += halves
            result.sums[y + result.margin, x + result.margin] = total
    if steps is None:
        codes = np.empty((x1 - x0, channels), np.uint8)
        factor = simd.broadcast_f32x32(rounding.activation_multiplier)
        for position in range(0, codes.size, LANES):
            value = simd.multiply_float(simd.to_f32x32(simd.load_u8x32(stream, first + position)), factor)
            simd.store(codes, position, simd.round_to_u8x32(value, rounding.activation_largest))
        pack_pixels(codes, result, y, x0, x1)


@kernel
def convolve_to_scores(filters, planes, share, scores):
    """Convolve and scale to float32 scores of shape (classes, height, width)."""
    planes, filters, share = borrowed((planes, filters, share))
    classes, _, width = scores.shape
    channels, pixels = filters.multiplier.size, min(width, pixels_at_a_time(filters))
    memory = scratch(planes, filters, width, pixels)
    sums, totals, centers, space = borrowed(memory)
    values = np.empty((pixels, channels), np.float32)
    y = take_row(share)
    while y < share.height:
        begin_row(planes, filters, space, y)
        find_centers(planes, filters, y, totals, centers)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            convolve_pixels(planes, filters, space, y, x0, x1, sums)
            for x in range(x0, x1):
                for c in range(0, classes, LANES):
                    position = (x - x0) * channels + c
                    simd.store(values, position, scale(sums, position, centers[x], filters, c))
            # Class by class: the same place in all classes would be the same few lines of the cache.
            for c in range(classes):
                for x in range(x0, x1):
                    scores[c, y, x] = values[x - x0, c]
        y = next_row(share, y)
    keep(memory)
