"""Convolution of a feature map and what follows it: scale, add the shortcut, round, pack.

A kernel works on the rows of the output that it gets, a few pixels at a time, so that the sums of all their channels
stay in the first-level cache: no full-size integer or float map is written to memory. The sums themselves come from
`popcount`, `lookup`, `dot` or `tile`; the type of the filters says from which, and all give the same.

Arguments that may be None choose what is compiled: of branches on them Numba keeps those that apply.
"""

from collections import namedtuple

import numpy as np
from numba.np import numpy_support

from . import dot, lookup, popcount, simd, tile
from .bitplanes import clear_border, first_half, pack_pixels
from .feature_maps import add_sums, columns, margin
from .jit import aligned, borrowed, chosen_by_types, keep, kernel, part
from .sharing import end_of_taken, next_row, take_row

LANES = 32
"""Channels that are treated at a time after the sums; the sums of a pixel are filled up to a multiple of it."""

SUMS_IN_CACHE = 8192
"""Sums of so many channels and pixels are kept at a time: 16 KB or 32 KB, at most the usual first-level cache."""

Rounding = namedtuple("Rounding", "largest steps activation_multiplier activation_largest")
"""How real values become stream codes, and these the activation codes that convolutions read.

largest : float32 or None
    Largest stream code, ``2**bits - 1``. None: 255, of real values that are below 2**31.
steps : uint8, shape (2**bits - 1, 32), or None
    An activation code is the number of steps that its stream code exceeds; the same in all columns.
activation_multiplier, activation_largest : float32
    From stream codes to activation codes; used where there are no steps.
"""

_MODULES = {
    popcount.PopcountFilters: popcount,
    lookup.LookupFilters: lookup,
    dot.DotFilters: dot,
    tile.TileFilters: tile,
}

MOST_PIXELS = max(module.PIXELS for module in (popcount, lookup, dot))
"""Pixels that a kernel computes together, at most."""


def pixels_at_a_time(filters):
    """How many pixels of a row are convolved before what follows: their sums, and what the kernel needs, stay in the
    cache."""


def pixels_with_sums(filters, width, pixels):
    """For how many pixels there are sums, where rows of `width` are convolved up to so many pixels at a time."""


def workspace(planes, filters, width, pixels):
    """Scratch memory of the sums' kernel for one call, and what state of the processor it needs; see `finish`."""


def begin_row(planes, filters, space, y, end):
    """Make ready for the pixels of output row `y`; rows come in order, and all up to `end` one after the other."""


def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Integer sums of output pixels x0 to x1 of row `y`; the number of the pixel in `sums` that has those of x0.

    sums : array of the type of `filters.levels`, shape (`pixels_with_sums`, out)
        Receives ``sum(a * w)`` for the stored weights w, which are the codes q or differ from them by a constant.
    """


def finish(filters, space):
    """Leave the processor as it was before `workspace`."""


def empty_sums(filters, pixels):
    """Memory for the sums of so many pixels."""


@chosen_by_types(pixels_at_a_time)
def _pixels_at_a_time(filters):
    if filters.instance_class is tile.TileFilters:
        return tile.pixels_at_a_time
    together = _MODULES[filters.instance_class].PIXELS
    return lambda filters: max(1, SUMS_IN_CACHE // together // filters.multiplier.size) * together


@chosen_by_types(pixels_with_sums)
def _pixels_with_sums(filters, width, pixels):
    if filters.instance_class is tile.TileFilters:
        return tile.pixels_with_sums
    # At the end of a row more pixels are convolved than there are.
    return lambda filters, width, pixels: pixels + MOST_PIXELS - 1


@chosen_by_types(workspace)
def _workspace(planes, filters, width, pixels):
    return _MODULES[filters.instance_class].workspace


@chosen_by_types(begin_row)
def _begin_row(planes, filters, space, y, end):
    return _MODULES[filters.instance_class].begin_row


@chosen_by_types(convolve_pixels)
def _convolve_pixels(planes, filters, space, y, x0, x1, sums):
    return _MODULES[filters.instance_class].convolve_pixels


@chosen_by_types(finish)
def _finish(filters, space):
    if filters.instance_class is tile.TileFilters:
        return lambda filters, space: tile.finish(space)
    return lambda filters, space: None


@chosen_by_types(empty_sums)
def _empty_sums(filters, pixels):
    sum_type = numpy_support.as_dtype(filters[filters.fields.index("levels")])
    spare = 64 // sum_type.itemsize

    def empty(filters, pixels):
        channels = filters.multiplier.size
        return aligned(np.empty(pixels * channels + spare, sum_type)).reshape(pixels, channels)

    return empty


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
    value = simd.signed_sums_to_f32x32(sums, position, center)
    value = simd.multiply_float(value, simd.load_f32x32(filters.multiplier, channel))
    return simd.add_float(value, simd.load_f32x32(filters.offset, channel))


@part
def scratch(planes, filters, width, pixels):
    """Memory of one call: sums of the pixels convolved at a time, totals and centers of a row, the kernel's own."""
    sums = empty_sums(filters, pixels_with_sums(filters, width, pixels))
    totals = np.empty(columns(planes), np.int32)
    return sums, totals, np.empty(width, np.int32), workspace(planes, filters, width, pixels)


@kernel
def convolve_to_planes(filters, steps, largest, planes, share, width, result):
    """Convolve, scale, round to codes, pack into the planes `result`.

    steps : int16 or int32, shape (2**bits - 1, channels), or None
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
        begin_row(planes, filters, space, y, end_of_taken(share, y))
        find_centers(planes, filters, y, totals, centers)
        clear_border(result, y)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            place = convolve_pixels(planes, filters, space, y, x0, x1, sums)
            if steps is not None:
                _pack_sums(centers, steps, sums, place, y, x0, x1, result)
            if steps is None:
                for x in range(x0, x1):
                    for c in range(0, channels, LANES):
                        value = scale(sums, (place + x - x0) * channels + c, centers[x], filters, c)
                        simd.store(codes, (x - x0) * channels + c, simd.round_to_u8x32(value, largest))
                pack_pixels(codes, result, y, x0, x1)
        y = next_row(share, y)
    finish(filters, space)
    keep(memory)


@part
def _pack_sums(centers, steps, sums, place, y, x0, x1, result):
    """Sums of pixels x0 to x1 of row `y`, from number `place` on, to codes by comparison, packed."""
    channels = sums.shape[1]
    half, halves = first_half(result, y, x0)
    for x in range(x0, x1):
        center, total = centers[x], 0
        for c in range(0, channels, LANES):
            value = simd.load_signed_sums(sums, (place + x - x0) * channels + c, center, steps)
            total += simd.store_steps(result.words, half + c // LANES, value, steps, c)
        half = _end_pixel(steps, result, y, x, half, halves, total, channels)


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
        begin_row(planes, filters, space, y, end_of_taken(share, y))
        find_centers(planes, filters, y, totals, centers)
        if projection is not None:
            begin_row(block_planes, block_filters, block_space, y, end_of_taken(share, y))
            find_centers(block_planes, block_filters, y, block_totals, block_centers)
        if result is not None:
            clear_border(activations, y)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            place = convolve_pixels(planes, filters, space, y, x0, x1, sums)
            if projection is not None:
                block_place = convolve_pixels(block_planes, block_filters, block_space, y, x0, x1, projected)
            if result is not None:
                half, halves = first_half(activations, y, x0)
            for x in range(x0, x1):
                center, total = centers[x], 0
                for c in range(0, channels, LANES):
                    stream_position = (y * width + x) * channels + c
                    value = scale(sums, (place + x - x0) * channels + c, center, filters, c)
                    if shortcut is not None:
                        incoming = simd.load_u8x32(shortcut, stream_position)
                        value = simd.add_float(value, simd.multiply_codes(incoming, shortcut_multiplier))
                    if projection is not None:
                        position = (block_place + x - x0) * channels + c
                        value = simd.add_float(value, scale(projected, position, block_centers[x], block_filters, c))
                    codes = simd.round_to_u8x32(value, rounding.largest)
                    simd.store(stream, stream_position, codes)
                    if result is not None:
                        total += _pack_codes(codes, rounding.steps, activations, half + c // LANES)
                if result is not None:
                    half = _end_pixel(rounding.steps, activations, y, x, half, halves, total, channels)
            if result is not None:
                _pack_products(stream, rounding, rounding.steps, activations, y, x0, x1)
        y = next_row(share, y)
    if projection is not None:
        finish(block_filters, block_space)
        keep(block_memory)
    finish(filters, space)
    keep(memory)


@part
def pack_stream(stream, rounding, result, y, x0, x1):
    """Pixels x0 to x1 of row `y` of the stream as activation codes, packed."""
    _, width, channels = stream.shape
    half, halves = first_half(result, y, x0)
    for x in range(x0, x1):
        total = 0
        for c in range(0, channels, LANES):
            codes = simd.load_u8x32(stream, (y * width + x) * channels + c)
            total += _pack_codes(codes, rounding.steps, result, half + c // LANES)
        half = _end_pixel(rounding.steps, result, y, x, half, halves, total, channels)
    _pack_products(stream, rounding, rounding.steps, result, y, x0, x1)


@part
def _pack_codes(codes, steps, result, half):
    """32 stream codes as activation codes, packed, where they are found by `Rounding.steps`; their sum."""
    if steps is None:
        return 0
    return simd.store_steps(result.words, half, codes, steps, 0)


@part
def _end_pixel(steps, result, y, x, half, halves, total, channels):
    """Write what packing leaves of a pixel: its sum, and a half word without channels; the next pixel's first half."""
    if steps is not None:
        if channels % 64:
            simd.clear_half(result.words, half + halves - 1)
        result.sums[y + result.margin, x + result.margin] = total
    return half + halves


@part
def _pack_products(stream, rounding, steps, result, y, x0, x1):
    """Pixels x0 to x1 of row `y` of the stream as activation codes, packed, where there are no `Rounding.steps`."""
    if steps is None:
        _, width, channels = stream.shape
        first = (y * width + x0) * channels
        codes = np.empty((x1 - x0, channels), np.uint8)
        for position in range(0, codes.size, LANES):
            value = simd.multiply_codes(simd.load_u8x32(stream, first + position), rounding.activation_multiplier)
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
        begin_row(planes, filters, space, y, end_of_taken(share, y))
        find_centers(planes, filters, y, totals, centers)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            place = convolve_pixels(planes, filters, space, y, x0, x1, sums)
            for x in range(x0, x1):
                for c in range(0, classes, LANES):
                    value = scale(sums, (place + x - x0) * channels + c, centers[x], filters, c)
                    simd.store(values, (x - x0) * channels + c, simd.to_channel_order(value))
            # Class by class: the same place in all classes would be the same few lines of the cache.
            for c in range(classes):
                row = scores[c, y, x0:x1]
                for x in range(np.uint32(len(row))):
                    row[x] = values[x, c]
        y = next_row(share, y)
    finish(filters, space)
    keep(memory)
