"""Convolution by products of matrices in AMX's tiles: codes as bytes times weight codes as bytes.

Its time hardly grows with the bits. Weights are kept at their bits and become bytes 32 channels at a time, which many
pixels then share: those of as many rows as a thread has to do, `SHARING` in all.
"""

from collections import namedtuple

import numpy as np

from . import amx
from .feature_maps import columns, margin, write_codes
from .jit import empty_aligned, part, routine
from .sharing import first_missing

PAIR = 32
"""Channels of two tiles of weights, which are multiplied together."""

CHANNELS = 128
"""Channels that are convolved at a time, at most: `PAIR` times a power of two."""

SHARING = 128
"""Pixels that share weights that have become bytes, or more where `SUMS_IN_CACHE` has room."""

SUMS_IN_CACHE = 8192
"""Sums of channels and pixels, 32 KB, at least; `SHARING` pixels of `CHANNELS` have twice as many."""

PANEL = 9
"""Steps, of 64 codes of a window each, whose weights become bytes at a time: 18 KB of the first-level cache."""

TileFilters = namedtuple("TileFilters", "weights zero bits depth multiplier offset kernel levels stride padding")
"""Weights of one convolution.

weights : array of uint8, shape (out / 32, steps of a window, 2, rows, 64)
    Codes of two times 16 channels with each 64 values of a window, as `amx.unpack` and `amx.add_products` take them. A
    row of a window is filled up to whole steps with zeros.
zero : uint8
    0, of the type of the activation codes.
bits : int
    1, 2, 4 or 8 for each code of a weight.
depth : int
    Codes from one pixel to the next.
The other fields are those of `popcount.PopcountFilters`.
"""

SUMS00, SUMS01, SUMS10, SUMS11 = amx.SUMS
CODES0, CODES1 = amx.CODES
WEIGHTS0, WEIGHTS1 = amx.WEIGHTS


@part
def pixels_of_tile(pixels):
    """How many pixels a tile has, so that tiles of so many pixels in a row are equally full."""
    tiles = -(-pixels // amx.ROWS)
    return -(-pixels // tiles)


@part
def portion_size(filters, width):
    """As `convolution.portion_size`."""
    at_a_time = CHANNELS
    while filters.multiplier.size % at_a_time:  # channels are a multiple of a pair's
        at_a_time //= 2
    most = max(SUMS_IN_CACHE // at_a_time, SHARING)
    pixels = min(width, most)
    return most // width if pixels == width else 1, pixels, at_a_time


@part
def pixels_with_sums(filters, rows, pixels):
    """As `convolution.pixels_with_sums`: all pixels of whole tiles."""
    height = pixels_of_tile(pixels)
    return rows * -(-pixels // height) * height


@part
def workspace(planes, filters, rows, pixels):
    """Codes of as many rows as windows reach over; where they begin; which rows are ready; weights; tiles.

    The rows take turns: row y of the planes is in place ``y % (rows of codes)``.
    """
    rows_of_codes = (rows - 1) * filters.stride + filters.kernel
    # Tiles reach over the end of a row; what is written and read at once, over that of a pixel.
    row_size = (columns(planes) + amx.ROWS * filters.stride) * filters.depth + amx.ROW_BYTES
    row_size = -(-row_size // amx.ROW_BYTES) * amx.ROW_BYTES
    codes = empty_aligned(rows_of_codes * row_size, np.uint8).reshape(rows_of_codes, row_size)
    starts = np.empty((rows, filters.kernel), np.intp)
    ready = np.zeros(2, np.intp)
    panel = empty_aligned(PANEL * 2 * amx.TILE_BYTES, np.uint8)
    height = pixels_of_tile(pixels)
    return codes, starts, ready, panel, height, amx.configure(height)


@part
def finish(filters, space):
    """Leave the tiles as they were."""
    amx.restore(space[5])


@part
def begin_rows(planes, filters, space, y, rows):
    """Make the codes that rows of the output need and those before did not."""
    codes, starts, ready, _, _, _ = space
    places, row_size = codes.shape
    border = margin(planes) - filters.padding
    first = y * filters.stride + border
    last = first + (rows - 1) * filters.stride + filters.kernel
    for row in range(first_missing(ready, first, last), last):
        for column in range(columns(planes)):
            write_codes(planes, row, column, codes, row % places * row_size + column * filters.depth)
    for row in range(rows):
        for tap in range(filters.kernel):
            starts[row, tap] = (first + row * filters.stride + tap) % places * row_size + border * filters.depth


@part
def convolve_pixels(planes, filters, space, y, rows, x0, x1, channel, sums):
    """Sums of some channels of output pixels x0 to x1, as `convolution.convolve_pixels`."""
    codes, starts, _, panel, height, _ = space
    tiles = -(-(x1 - x0) // height)
    multiply(filters, codes, starts[:rows], x0, tiles, height, channel, panel, sums)
    return tiles * height


@routine
def multiply(filters, codes, starts, x0, tiles, height, channel, panel, sums):
    """Sums of products of weights and windows, of some rows of pixels.

    codes : array of uint8
    starts : intp, shape (rows, kernel)
        Where each row of the window of each row's pixel 0 begins in `codes`.
    x0, tiles, height : int
        The first pixel; how many tiles are made of each row, and how many pixels are in each, as configured.
    channel : int
        The first of as many channels, a multiple of 32, as `sums` has.
    panel : array of uint8
        Scratch memory for ``2 * PANEL`` tiles.
    sums : int32, shape (rows * tiles * height or more, channels)
    """
    rows = len(starts)
    steps, first_pair = filters.weights.shape[1], channel // PAIR
    packed = filters.weights.reshape(-1)
    channels = sums.shape[1]
    step, steps_of_row = filters.stride * filters.depth, steps // filters.kernel
    parts = -(-steps // PANEL)
    part_size = -(-steps // parts)
    count, first = rows * tiles, x0 * step
    for pair in range(channels // PAIR):
        for done in range(0, steps, part_size):
            until = min(done + part_size, steps)
            tile_number = 2 * ((first_pair + pair) * steps + done)
            if filters.bits == 8:
                weights, first_weight = packed, tile_number * amx.TILE_BYTES
            else:
                weights, first_weight = panel, 0
                _unpack(packed, filters.bits, tile_number, 2 * (until - done), panel)
            for tile in range(0, count, 2):
                # Two tiles with the same weights; of an odd number the last one twice.
                other = min(tile + 1, count - 1)
                row0, row1 = tile // tiles, other // tiles
                place0 = first + (tile - row0 * tiles) * height * step
                place1 = first + (other - row1 * tiles) * height * step
                sum0, sum1 = tile * height * channels + pair * PAIR, other * height * channels + pair * PAIR
                if done == 0:
                    amx.zero(SUMS00)
                    amx.zero(SUMS01)
                    amx.zero(SUMS10)
                    amx.zero(SUMS11)
                else:
                    amx.load(SUMS00, sums, sum0, channels * 4)
                    amx.load(SUMS01, sums, sum0 + 16, channels * 4)
                    amx.load(SUMS10, sums, sum1, channels * 4)
                    amx.load(SUMS11, sums, sum1 + 16, channels * 4)
                weight, now = first_weight, done
                while now < until:
                    tap = now // steps_of_row
                    end, skipped = min((tap + 1) * steps_of_row, until), now - tap * steps_of_row
                    codes0 = starts[row0, tap] + place0 + skipped * amx.ROW_BYTES
                    codes1 = starts[row1, tap] + place1 + skipped * amx.ROW_BYTES
                    for offset in range(0, (end - now) * amx.ROW_BYTES, amx.ROW_BYTES):
                        amx.load(WEIGHTS0, weights, weight, amx.ROW_BYTES)
                        amx.load(CODES0, codes, codes0 + offset, step)
                        amx.add_products(SUMS00, CODES0, WEIGHTS0)
                        amx.load(WEIGHTS1, weights, weight + amx.TILE_BYTES, amx.ROW_BYTES)
                        amx.add_products(SUMS01, CODES0, WEIGHTS1)
                        amx.load(CODES1, codes, codes1 + offset, step)
                        amx.add_products(SUMS10, CODES1, WEIGHTS0)
                        amx.add_products(SUMS11, CODES1, WEIGHTS1)
                        weight += 2 * amx.TILE_BYTES
                    now = end
                amx.store(SUMS00, sums, sum0, channels * 4)
                amx.store(SUMS01, sums, sum0 + 16, channels * 4)
                amx.store(SUMS10, sums, sum1, channels * 4)
                amx.store(SUMS11, sums, sum1 + 16, channels * 4)


@part
def _unpack(packed, bits, first, count, panel):
    """So many tiles of weights as bytes, from number `first` of all on; `bits` are below 8."""
    size = bits * amx.TILE_BYTES // 8
    for number in range(count):
        place, position = number * amx.TILE_BYTES, (first + number) * size
        if bits == 1:
            amx.unpack(panel, place, packed, position, 1)
        elif bits == 2:
            amx.unpack(panel, place, packed, position, 2)
        else:
            amx.unpack(panel, place, packed, position, 4)
