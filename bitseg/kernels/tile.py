"""Convolution by products of matrices in AMX's tiles: codes as bytes times weight codes as bytes.

Its time hardly grows with the bits. Weights are kept at their bits and become bytes 32 channels at a time, which many
pixels then share: those of as many rows as a thread has to do, `SHARING` in all.
"""

from collections import namedtuple

import numpy as np

from . import amx
from .feature_maps import columns, margin, write_codes
from .jit import aligned, part, routine

PIXELS = amx.ROWS
"""Pixels of a tile."""

SUMS_IN_CACHE = 16384
"""Sums of so many channels and pixels are kept at a time: 128 KB of a second-level cache of 2 MB."""

SHARING = 256
"""About how many pixels share weights that have become bytes."""

PANEL = 9
"""Steps, of 64 codes of a window each, whose weights become bytes at a time: 32 KB."""

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
def pixels_at_a_time(filters):
    """How many pixels share weights that have become bytes, at most: the more, the longer their sums are worked on."""
    pixels = max(SUMS_IN_CACHE // filters.multiplier.size, 64, 8 * filters.weights.shape[1])
    return max(min(pixels, SHARING) // amx.ROWS, 1) * amx.ROWS


@part
def pixels_of_tile(pixels):
    """How many pixels a tile has, so that tiles of so many pixels in a row are equally full."""
    tiles = -(-pixels // amx.ROWS)
    return -(-pixels // tiles)


@part
def rows_at_a_time(filters, width, pixels):
    """How many rows of the output are convolved at a time; one where not even a whole row is."""
    return max(1, pixels_at_a_time(filters) // width) if pixels == width else 1


@part
def pixels_with_sums(filters, width, pixels):
    """As `convolution.pixels_with_sums`: all pixels of whole tiles."""
    height = pixels_of_tile(pixels)
    return rows_at_a_time(filters, width, pixels) * -(-pixels // height) * height


@part
def workspace(planes, filters, width, pixels):
    """Codes of as many rows as the windows reach over; where they begin; what is done; weights; tiles' configuration.

    The rows take turns: row y of the planes is in place ``y % rows``.
    """
    together = rows_at_a_time(filters, width, pixels)
    rows = (together - 1) * filters.stride + filters.kernel
    # Tiles reach over the end of a row; what is written and read at once, over that of a pixel.
    row_size = (columns(planes) + amx.ROWS * filters.stride) * filters.depth + amx.ROW_BYTES
    row_size = -(-row_size // amx.ROW_BYTES) * amx.ROW_BYTES
    codes = aligned(np.empty(rows * row_size + amx.ROW_BYTES, np.uint8)).reshape(rows, row_size)
    starts = np.empty((together, filters.kernel), np.intp)
    # The next row of codes to be made; the first row whose sums are made, and the first after it whose are not.
    progress = np.zeros(3, np.intp)
    panel = aligned(np.empty(PANEL * 2 * amx.TILE_BYTES + amx.ROW_BYTES, np.uint8))
    height = pixels_of_tile(pixels)
    return codes, starts, progress, panel, height, amx.configure(height)


@part
def finish(space):
    """Leave the tiles as they were."""
    amx.restore(space[5])


@part
def begin_row(planes, filters, space, y, end):
    """Make the codes that the next rows of the output need and earlier ones did not."""
    codes, starts, progress, _, _, _ = space
    if y < progress[2]:
        return
    rows, row_size = codes.shape
    border = margin(planes) - filters.padding
    progress[1], progress[2] = y, min(y + len(starts), end)
    first, last = y * filters.stride + border, (progress[2] - 1) * filters.stride + border + filters.kernel
    for row in range(max(first, progress[0]), last):
        for column in range(columns(planes)):
            write_codes(planes, row, column, codes, row % rows * row_size + column * filters.depth)
    progress[0] = last
    for row in range(progress[2] - y):
        for tap in range(filters.kernel):
            place = (first + row * filters.stride + tap) % rows
            starts[row, tap] = place * row_size + border * filters.depth


@part
def convolve_pixels(planes, filters, space, y, x0, x1, sums):
    """Sums of output pixels x0 to x1 of row `y`, as `convolution.convolve_pixels`; where they begin in `sums`.

    With the first of the rows for which `begin_row` made codes those of all of them are made.
    """
    codes, starts, progress, panel, height, _ = space
    tiles = -(-(x1 - x0) // height)
    if y == progress[1]:
        multiply(filters, codes, starts[: progress[2] - y], x0, tiles, height, panel, sums)
    return (y - progress[1]) * tiles * height


@routine
def multiply(filters, codes, starts, x0, tiles, height, panel, sums):
    """Sums of products of weights and windows, of some rows of pixels.

    codes : array of uint8
    starts : intp, shape (rows, kernel)
        Where each row of the window of each row's pixel 0 begins in `codes`.
    x0, tiles, height : int
        The first pixel; how many tiles are made of each row, and how many pixels are in each, as configured.
    panel : array of uint8
        Scratch memory for ``2 * PANEL`` tiles.
    sums : int32, shape (rows * tiles * height or more, out)
    """
    rows = len(starts)
    pairs, steps = filters.weights.shape[:2]
    packed = filters.weights.reshape(-1)
    channels = sums.shape[1]
    step, steps_of_row = filters.stride * filters.depth, steps // filters.kernel
    parts = -(-steps // PANEL)
    part_size = -(-steps // parts)
    count, first = rows * tiles, x0 * step
    for pair in range(pairs):
        for done in range(0, steps, part_size):
            until = min(done + part_size, steps)
            tile_number = 2 * (pair * steps + done)
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
                sum0, sum1 = tile * height * channels + pair * 32, other * height * channels + pair * 32
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
