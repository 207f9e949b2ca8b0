"""Convolution of a feature map and what follows it: scale, add the shortcut, round, pack.

A kernel works on the rows of the output that it gets, a few pixels or channels at a time, so that their sums stay in
the first-level cache: no full-size integer or float map is written to memory. The sums themselves come from
`popcount`, `lookup`, `dot` or `tile`; the type of the filters says from which, and all give the same.

Arguments that may be None choose what is compiled: of branches on them Numba keeps those that apply.
"""

from collections import namedtuple

import numpy as np
from numba.core import types
from numba.np import numpy_support

from . import dot, lookup, popcount, simd, tile
from .bitplanes import clear_border, end_pixel, first_half, pack_pixels
from .feature_maps import add_sums, columns, margin
from .jit import borrowed, chosen_by_types, empty_aligned, keep, part
from .program import kernel
from .sharing import end_of_taken, next_row, take_row

LANES = 32
"""Channels that are treated at a time after the sums; the sums of a pixel are filled up to a multiple of it."""

SUMS_IN_CACHE = 8192
"""Sums of so many channels and pixels are kept at a time: 16 KB or 32 KB, at most the usual first-level cache."""

Rounding = namedtuple("Rounding", "largest steps activation_multiplier activation_largest")
"""How real values become stream codes, and these the activation codes that convolutions read.

largest : float32 or None
    Largest stream code, ``2**bits - 1``. None: 255, of real values that are below 2**31.
steps : int8, shape (2**bits - 1, 32), or None
    128 less each: an activation code is the number of steps that its stream code exceeds; the same in all columns.
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


def portion_size(filters, width):
    """Rows, pixels of a row, and channels that are convolved before what follows.

    Their sums, and what the kernel needs, stay in the first-level cache, those of `tile` in the second-level one. Where
    not all pixels of a row are, one row is.
    """


def pixels_with_sums(filters, rows, pixels):
    """For how many pixels there are sums, where so many rows and pixels of each are convolved at a time."""


def workspace(planes, filters, rows, pixels):
    """Scratch memory of the sums' kernel for one call, and what state of the processor it needs; see `finish`."""


def begin_rows(planes, filters, space, y, rows):
    """Make ready for the pixels of so many output rows from `y` on; rows come in order."""


def convolve_pixels(planes, filters, space, y, rows, x0, x1, channel, sums):
    """Integer sums of output pixels x0 to x1 of so many rows from `y` on.

    channel : int
        The first of as many channels as `sums` has.
    sums : array, shape (`pixels_with_sums`, channels), see `empty_sums`
        Receives ``sum(a * w)`` for the stored weights w, which are the codes q or differ from them by a constant, or,
        where `filters.levels` is None, are ``2 q - largest q``.

    Returns
    -------
    int
        How many pixels further in `sums` each next row begins.
    """


def finish(filters, space):
    """Leave the processor as it was before `workspace`; a kernel for which there was not enough memory does not."""


def empty_sums(filters, pixels, channels):
    """Memory for sums, of the type of `filters.levels` or int32, from the start of a cache line on."""


def find_centers(planes, filters, y, totals, centers):
    """What makes the sums of output row `y` signed: ``t = sum(a (2 q - largest q)) = 2 sum(a w) - center``.

    Nothing is done where `filters.levels` is None: the sums have their sign.

    totals : int32, shape (columns,)
        Scratch memory.
    """


@chosen_by_types(portion_size)
def _portion_size(filters, width):
    if filters.instance_class is tile.TileFilters:
        return tile.portion_size
    together = _MODULES[filters.instance_class].PIXELS

    def all_channels(filters, width):
        channels = filters.multiplier.size
        return 1, min(width, max(1, SUMS_IN_CACHE // together // channels) * together), channels

    return all_channels


@chosen_by_types(pixels_with_sums)
def _pixels_with_sums(filters, rows, pixels):
    if filters.instance_class is tile.TileFilters:
        return tile.pixels_with_sums
    # At the end of a row more pixels are convolved than there are.
    return lambda filters, rows, pixels: pixels + MOST_PIXELS - 1


@chosen_by_types(workspace)
def _workspace(planes, filters, rows, pixels):
    return _MODULES[filters.instance_class].workspace


@chosen_by_types(begin_rows)
def _begin_rows(planes, filters, space, y, rows):
    return _MODULES[filters.instance_class].begin_rows


@chosen_by_types(convolve_pixels)
def _convolve_pixels(planes, filters, space, y, rows, x0, x1, channel, sums):
    return _MODULES[filters.instance_class].convolve_pixels


@chosen_by_types(finish)
def _finish(filters, space):
    if filters.instance_class is tile.TileFilters:
        return tile.finish
    return lambda filters, space: None


@chosen_by_types(empty_sums)
def _empty_sums(filters, pixels, channels):
    levels = _levels(filters)
    sum_type = np.int32 if levels == types.none else numpy_support.as_dtype(levels)
    return lambda filters, pixels, channels: empty_aligned(pixels * channels, sum_type).reshape(pixels, channels)


def _levels(filters):
    """Numba type of `filters.levels`."""
    return filters[filters.fields.index("levels")]


@chosen_by_types(find_centers)
def _find_centers(planes, filters, y, totals, centers):
    if _levels(filters) == types.none:
        return lambda planes, filters, y, totals, centers: None
    return _sum_windows


@part
def _sum_windows(planes, filters, y, totals, centers):
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
    value = simd.signed_sums_to_f32x32(sums, position, center, filters.levels)
    value = simd.multiply_float(value, simd.load_f32x32(filters.multiplier, channel))
    return simd.add_float(value, simd.load_f32x32(filters.offset, channel))


@part
def scratch(planes, filters, width, rows, pixels, channels):
    """Memory of one call: sums of a portion, totals and centers of its rows, the kernel's own."""
    sums = empty_sums(filters, pixels_with_sums(filters, rows, pixels), channels)
    totals = np.empty(columns(planes), np.int32)
    return sums, totals, np.empty((rows, width), np.int32), workspace(planes, filters, rows, pixels)


@part
def begin_portion(planes, filters, memory, y, end):
    """Make `scratch` memory ready for output rows `y` to `end`."""
    _, totals, centers, space = memory
    begin_rows(planes, filters, space, y, end - y)
    for row in range(y, end):
        find_centers(planes, filters, row, totals, centers[row - y])


@kernel
def convolve_to_planes(filters, steps, largest, planes, share, result):
    """Convolve, scale, round to codes, pack into the planes `result`.

    steps : int16 or int32, shape (2**bits - 1, channels), or None
        A code is the number of steps that its sum t exceeds: what scaling and rounding it would give.
    largest : float32
        Largest code; used where there are no steps.
    """
    width, channels = columns(result) - 2 * margin(result), filters.multiplier.size
    rows, pixels, at_a_time = portion_size(filters, width)
    owned = scratch(planes, filters, width, rows, pixels, at_a_time)
    memory = borrowed(owned)
    sums, _, centers, space = memory
    if steps is None:
        codes = np.empty((rows, pixels, channels), np.uint8)
    y = take_row(share)
    while y < share.height:
        end = end_of_taken(share, y, rows)
        begin_portion(planes, filters, memory, y, end)
        for row in range(y, end):
            clear_border(result, row, channels)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            for channel in range(0, channels, at_a_time):
                pitch = convolve_pixels(planes, filters, space, y, end - y, x0, x1, channel, sums)
                for row in range(y, end):
                    if steps is not None:
                        first = (row - y) * pitch
                        _pack_sums(centers[row - y], filters, steps, sums, first, channel, row, x0, x1, result)
                    if steps is None:
                        for x in range(x0, x1):
                            for c in range(0, at_a_time, LANES):
                                position = ((row - y) * pitch + x - x0) * at_a_time + c
                                value = scale(sums, position, centers[row - y, x], filters, channel + c)
                                position = ((row - y) * pixels + x - x0) * channels + channel + c
                                simd.store(codes, position, simd.round_to_u8x32(value, largest))
            if steps is None:
                for row in range(y, end):
                    pack_pixels(codes[row - y], result, row, x0, x1)
        y = next_row(share, end - 1)
    finish(filters, space)
    keep(owned)


@part
def _pack_sums(centers, filters, steps, sums, first, channel, y, x0, x1, result):
    """Sums of pixels x0 to x1 of row `y`, from number `first` on, to codes by comparison, packed."""
    channels = sums.shape[1]
    half, halves = first_half(result, y, x0)
    half += channel // LANES
    for x in range(x0, x1):
        center, total = centers[x], 0
        for c in range(0, channels, LANES):
            value = simd.load_signed_sums(sums, (first + x - x0) * channels + c, center, filters.levels, steps)
            total += simd.store_steps(result.words, half + c // LANES, value, steps, channel + c)
        end_pixel(result, y, x, channel, total)
        half += halves


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
    _, width, channels = stream.shape
    rows, pixels, at_a_time = portion_size(filters, width)
    step = at_a_time
    if projection is not None:
        block_rows, block_pixels, block_at_a_time = portion_size(projection, width)
        rows, pixels, step = min(rows, block_rows), min(pixels, block_pixels), min(step, block_at_a_time)
    owned = scratch(planes, filters, width, rows, pixels, at_a_time)
    memory = borrowed(owned)
    sums, _, centers, space = memory
    if projection is not None:
        block_owned = scratch(block_input, projection, width, rows, pixels, block_at_a_time)
        block_memory = borrowed(block_owned)
        projected, _, block_centers, block_space = block_memory
    y = take_row(share)
    while y < share.height:
        end = end_of_taken(share, y, rows)
        begin_portion(planes, filters, memory, y, end)
        if projection is not None:
            begin_portion(block_input, projection, block_memory, y, end)
        if result is not None:
            for row in range(y, end):
                clear_border(result, row, channels)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            for channel in range(0, channels, step):
                done = channel % at_a_time
                if done == 0:
                    pitch = convolve_pixels(planes, filters, space, y, end - y, x0, x1, channel, sums)
                if projection is not None:
                    block_done = channel % block_at_a_time
                    if block_done == 0:
                        block_pitch = convolve_pixels(
                            block_input, projection, block_space, y, end - y, x0, x1, channel, projected
                        )
                for row in range(y, end):
                    if result is not None:
                        half, halves = first_half(result, row, x0)
                        half += channel // LANES
                    for x in range(x0, x1):
                        center, total = centers[row - y, x], 0
                        place = ((row - y) * pitch + x - x0) * at_a_time + done
                        if projection is not None:
                            block_place = ((row - y) * block_pitch + x - x0) * block_at_a_time + block_done
                        stream_place = (row * width + x) * channels + channel
                        for c in range(0, step, LANES):
                            value = scale(sums, place + c, center, filters, channel + c)
                            if shortcut is not None:
                                incoming = simd.load_u8x32(shortcut, stream_place + c)
                                value = simd.add_float(value, simd.multiply_codes(incoming, shortcut_multiplier))
                            if projection is not None:
                                block_center = block_centers[row - y, x]
                                added = scale(projected, block_place + c, block_center, projection, channel + c)
                                value = simd.add_float(value, added)
                            codes = simd.round_to_u8x32(value, rounding.largest)
                            simd.store(stream, stream_place + c, codes)
                            if result is not None:
                                total += _pack_codes(codes, rounding.steps, result, half + c // LANES)
                        if result is not None:
                            _end_packed_codes(rounding.steps, result, row, x, channel, total)
                            half += halves
            if result is not None:
                for row in range(y, end):
                    _pack_products(stream, rounding, rounding.steps, result, row, x0, x1)
        y = next_row(share, end - 1)
    if projection is not None:
        finish(projection, block_space)
        keep(block_owned)
    finish(filters, space)
    keep(owned)


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
        _end_packed_codes(rounding.steps, result, y, x, 0, total)
        half += halves
    _pack_products(stream, rounding, rounding.steps, result, y, x0, x1)


@part
def _pack_codes(codes, steps, result, half):
    """32 stream codes as activation codes, packed, where they are found by `Rounding.steps`; their sum."""
    if steps is None:
        return 0
    return simd.store_steps(result.words, half, codes, steps, 0)


@part
def _end_packed_codes(steps, result, y, x, channel, total):
    """`end_pixel` where `_pack_codes` has packed codes."""
    if steps is not None:
        end_pixel(result, y, x, channel, total)


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
    classes, _, width = scores.shape
    rows, pixels, at_a_time = portion_size(filters, width)
    owned = scratch(planes, filters, width, rows, pixels, at_a_time)
    memory = borrowed(owned)
    sums, _, centers, space = memory
    values = np.empty((pixels, LANES), np.float32)
    y = take_row(share)
    while y < share.height:
        end = end_of_taken(share, y, rows)
        begin_portion(planes, filters, memory, y, end)
        for x0 in range(0, width, pixels):
            x1 = min(x0 + pixels, width)
            for channel in range(0, classes, LANES):
                done = channel % at_a_time
                if done == 0:
                    pitch = convolve_pixels(planes, filters, space, y, end - y, x0, x1, channel, sums)
                for row in range(y, end):
                    for x in range(x0, x1):
                        position = ((row - y) * pitch + x - x0) * at_a_time + done
                        value = scale(sums, position, centers[row - y, x], filters, channel)
                        simd.store(values, (x - x0) * LANES, simd.to_channel_order(value))
                    # Class by class: the same place in all classes would be the same few lines of the cache.
                    for c in range(channel, min(channel + LANES, classes)):
                        scores_of_row = scores[c, row, x0:x1]
                        for x in range(np.uint32(len(scores_of_row))):
                            scores_of_row[x] = values[x, c - channel]
        y = next_row(share, end - 1)
    finish(filters, space)
    keep(owned)
