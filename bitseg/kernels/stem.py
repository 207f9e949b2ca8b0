"""The first layer: 8-bit weights on the 8-bit image, and max-pooling of its codes."""

from collections import namedtuple

import numpy as np

from . import amx, dot, simd, tile, winograd
from .bitplanes import clear_border
from .convolution import LANES, MOST_PIXELS, find_centers, pack_stream, portion_size, scale
from .jit import chosen_by_types, empty_aligned, part
from .program import kernel
from .sharing import first_missing, next_row, take_row

SPARE = 6 * max(MOST_PIXELS, amx.ROWS) + amx.ROW_BYTES
"""Values behind an image that are read, if only to be dropped."""

Image = namedtuple("Image", "values sums margin")
"""An image in a border of `margin` pixels.

values : array of uint8 or int16, shape (height, width * 3), border included, the last row followed by `SPARE` values
sums : int32, shape (height, width), or None
    Sum of the three values of a pixel, as of `bitplanes.Planes`, where filters need it.
"""


@kernel
def border_rows(color, border, image, share, bordered, sums):
    """An image, uint8 (height, width, 3), in a border of a colour, see `Image`: its values and sums."""
    height, width, _ = image.shape
    y = take_row(share)
    while y < share.height:
        row = bordered[y]
        if border <= y < border + height:
            _fill(row[: 3 * border], color)
            inside, values = row[3 * border :], image[y - border].reshape(-1)
            for place in range(3 * width):
                inside[place] = values[place]
            _fill(inside[3 * width :], color)
        else:
            _fill(row, color)
        if sums is not None:
            for x in range(width + 2 * border):
                sums[y, x] = np.int32(row[3 * x]) + np.int32(row[3 * x + 1]) + np.int32(row[3 * x + 2])
        y = next_row(share, y)


@part
def _fill(values, color):
    """Fill an array of pixels, each three values, with a colour."""
    for x in range(len(values) // 3):
        for c in range(3):
            values[3 * x + c] = color[c]


@kernel
def stem_rows(filters, rounding, image, share, stream, result):
    """A stride-2 convolution of an `Image`, rounded to stream codes, and 3x3 max-pooling at stride 2.

    The window of the pooling reaches past the right and lower edge only.

    filters : dot.DotFilters, winograd.WinogradFilters or tile.TileFilters
    stream : uint8, shape (height', width', 32 n)
    """
    height, width, channels = stream.shape
    together, at_a_time = rows_together(filters), columns_at_a_time(filters, 2 * width)
    # Row y of the convolution is in place y % places until the pooling has passed it.
    places = together + 3
    codes = np.empty((places, 2 * width, channels), np.uint8)
    # Kernels compute some pixels together, at the end of a row more than there are.
    size = at_a_time + MOST_PIXELS - 1
    sums = empty_aligned(together * size * channels, np.int32).reshape(together, size, channels)
    totals = np.empty(image.values.shape[1] // 3, np.int32)
    centers = np.empty((together, 2 * width), np.int32)
    space = workspace(image, filters)
    ready = np.zeros(2, np.intp)
    y = take_row(share)
    while y < share.height:
        end = min(2 * y + 3, 2 * height)
        upcoming = first_missing(ready, 2 * y, end)
        while upcoming < end:
            begin_rows(image, filters, space, upcoming)
            # Those made together reach past the last row.
            for row in range(min(together, 2 * height - upcoming)):
                find_centers(image, filters, upcoming + row, totals, centers[row])
            for x0 in range(0, 2 * width, at_a_time):
                x1 = min(x0 + at_a_time, 2 * width)
                convolve_columns(image, filters, space, x0, x1, sums)
                for row in range(together):
                    place = (upcoming + row) % places * 2 * width
                    for x in range(x0, x1):
                        for c in range(0, channels, LANES):
                            position = (row * sums.shape[1] + x - x0) * channels + c
                            value = scale(sums, position, centers[row, x], filters, c)
                            position = (place + x) * channels + c
                            simd.store(codes, position, simd.round_to_u8x32(value, rounding.largest))
            upcoming += together
        ready[1] = upcoming
        rows = 2 * y % places, (2 * y + 1) % places, (end - 1) % places
        for c in range(0, channels, LANES):
            right = _largest_of_column(codes, rows, 0, c)
            for x in range(width):
                left, middle = right, _largest_of_column(codes, rows, 2 * x + 1, c)
                right = _largest_of_column(codes, rows, min(2 * x + 2, 2 * width - 1), c)
                largest = simd.maximum(simd.maximum(left, middle), right)
                simd.store(stream, (y * width + x) * channels + c, largest)
        clear_border(result, y, channels)
        pack_stream(stream, rounding, result, y, 0, width)
        y = next_row(share, y)
    finish(filters, space)


@part
def _largest_of_column(codes, rows, column, channel):
    """The largest codes of 32 channels in a column of three rows."""
    _, columns, channels = codes.shape
    place = column * channels + channel
    row = columns * channels
    largest = simd.load_u8x32(codes, rows[0] * row + place)
    largest = simd.maximum(largest, simd.load_u8x32(codes, rows[1] * row + place))
    return simd.maximum(largest, simd.load_u8x32(codes, rows[2] * row + place))


# The convolution is done row by row, in tiles where the CPU has them, or by `winograd` where it multiplies 16-bit
# numbers: filters say which.


def rows_together(filters):
    """Rows of the convolution that are made together."""


def columns_at_a_time(filters, width):
    """Columns of so many whose sums stay in the first-level cache."""


def workspace(image, filters):
    """Scratch memory of one call, and what state of the processor it needs; see `finish`."""


def begin_rows(image, filters, space, y):
    """Make ready for row `y` of the convolution, and those made together with it."""


def convolve_columns(image, filters, space, x0, x1, sums):
    """Integer sums of columns x0 to x1: int32, shape (rows together, x1 - x0 + MOST_PIXELS - 1 or more, out)."""


def finish(filters, space):
    """Leave the processor as it was before `workspace`."""


def _way(filters, direct, by_winograd, in_tiles):
    ways = {winograd.WinogradFilters: by_winograd, tile.TileFilters: in_tiles}
    return ways.get(filters.instance_class, direct)


@chosen_by_types(rows_together)
def _rows_together(filters):
    return _way(filters, lambda filters: 1, by_winograd=lambda filters: winograd.TOGETHER, in_tiles=lambda filters: 1)


@chosen_by_types(columns_at_a_time)
def _columns_at_a_time(filters, width):
    return _way(
        filters,
        lambda filters, width: portion_size(filters, width)[1],
        by_winograd=lambda filters, width: winograd.COLUMNS,
        in_tiles=lambda filters, width: 4 * amx.ROWS,
    )


@chosen_by_types(workspace)
def _workspace(image, filters):
    return _way(filters, _direct_workspace, winograd.workspace, _workspace_of_tiles)


@chosen_by_types(begin_rows)
def _begin_rows(image, filters, space, y):
    return _way(filters, _direct_begin_rows, winograd.begin_rows, _begin_rows_of_tiles)


@chosen_by_types(convolve_columns)
def _convolve_columns(image, filters, space, x0, x1, sums):
    return _way(filters, _direct_convolve_columns, winograd.convolve_columns, _convolve_columns_in_tiles)


@chosen_by_types(finish)
def _finish(filters, space):
    def nothing(filters, space):
        pass

    return _way(filters, nothing, nothing, lambda filters, space: amx.restore(space[2]))


@part
def _direct_workspace(image, filters):
    return np.empty(filters.kernel, np.intp)


@part
def _direct_begin_rows(image, filters, space, y):
    for row in range(filters.kernel):
        space[row] = (filters.stride * y + row) * image.values.shape[1]


@part
def _direct_convolve_columns(image, filters, space, x0, x1, sums):
    dot.multiply_rows(image.values, space, 3 * filters.stride, filters.weights, filters.run, x0, x1, sums[0])


@part
def _workspace_of_tiles(image, filters):
    panel = empty_aligned(2 * tile.PANEL * amx.TILE_BYTES, np.uint8)
    return np.empty((1, filters.kernel), np.intp), panel, amx.configure(amx.ROWS)


@part
def _begin_rows_of_tiles(image, filters, space, y):
    _direct_begin_rows(image, filters, space[0][0], y)


@part
def _convolve_columns_in_tiles(image, filters, space, x0, x1, sums):
    starts, panel, _ = space
    tiles = -(-(x1 - x0) // amx.ROWS)
    tile.multiply(filters, image.values, starts, x0, tiles, amx.ROWS, 0, panel, sums[0])
