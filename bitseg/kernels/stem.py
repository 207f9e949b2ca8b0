"""The first layer: 8-bit weights on the 8-bit image, and max-pooling of its codes."""

from collections import namedtuple

import numpy as np

from . import dot, simd
from .bitplanes import clear_border
from .convolution import LANES, MOST_PIXELS, find_centers, pack_stream, pixels_at_a_time, scale
from .jit import borrowed, kernel, part
from .sharing import next_row, take_row

SPARE = 6 * MOST_PIXELS
"""Values behind an image that are read, if only to be dropped."""

Image = namedtuple("Image", "values sums margin")
"""An image in a border of `margin` pixels.

values : array of uint8 or int16, shape (height, width * 3), border included, the last row followed by `SPARE` values
sums : int32, shape (height, width)
    Sum of the three values of a pixel, as of `bitplanes.Planes`.
"""


@kernel
def border_rows(color, image, share, bordered):
    """An image, uint8 (height, width, 3), in a border of a colour: `bordered` is an `Image`."""
    height, width, _ = image.shape
    border = bordered.margin
    y = take_row(share)
    while y < share.height:
        row = bordered.values[y]
        if border <= y < border + height:
            _fill(row[: 3 * border], color)
            inside, values = row[3 * border :], image[y - border].reshape(-1)
            for place in range(3 * width):
                inside[place] = values[place]
            _fill(inside[3 * width :], color)
        else:
            _fill(row, color)
        sums = bordered.sums[y]
        for x in range(width + 2 * border):
            sums[x] = np.int32(row[3 * x]) + np.int32(row[3 * x + 1]) + np.int32(row[3 * x + 2])
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

    filters : dot.DotFilters
    stream : uint8, shape (height', width', 32 n)
    """
    image, filters, share, stream, result = borrowed((image, filters, share, stream, result))
    height, width, channels = stream.shape
    # Row y of the convolution is in place y % 3 until the pooling has passed it.
    codes = np.empty((3, 2 * width, channels), np.uint8)
    pixels = min(2 * width, pixels_at_a_time(filters))
    sums = np.empty((pixels + MOST_PIXELS - 1, channels), np.int32)
    totals = np.empty(image.sums.shape[1], np.int32)
    centers = np.empty(2 * width, np.int32)
    upcoming = 0
    y = take_row(share)
    while y < share.height:
        end = min(2 * y + 3, 2 * height)
        for row in range(max(upcoming, 2 * y), end):
            find_centers(image, filters, row, totals, centers)
            _convolve_row(image.values, filters, rounding.largest, row, pixels, centers, sums, codes)
        upcoming = end
        rows = 2 * y % 3, (2 * y + 1) % 3, (end - 1) % 3
        for c in range(0, channels, LANES):
            right = _largest_of_column(codes, rows, 0, c)
            for x in range(width):
                left, middle = right, _largest_of_column(codes, rows, 2 * x + 1, c)
                right = _largest_of_column(codes, rows, min(2 * x + 2, 2 * width - 1), c)
                largest = simd.maximum(simd.maximum(left, middle), right)
                simd.store(stream, (y * width + x) * channels + c, largest)
        clear_border(result, y)
        pack_stream(stream, rounding, rounding.steps, result, y, 0, width)
        y = next_row(share, y)


@part
def _largest_of_column(codes, rows, column, channel):
    """The largest codes of 32 channels in a column of three rows."""
    _, columns, channels = codes.shape
    place = column * channels + channel
    row = columns * channels
    largest = simd.load_u8x32(codes, rows[0] * row + place)
    largest = simd.maximum(largest, simd.load_u8x32(codes, rows[1] * row + place))
    return simd.maximum(largest, simd.load_u8x32(codes, rows[2] * row + place))


@part
def _convolve_row(image, filters, largest, y, pixels, centers, sums, codes):
    """Codes of row `y` of the convolution."""
    _, width, channels = codes.shape
    starts = np.empty(filters.kernel, np.intp)
    for row in range(filters.kernel):
        starts[row] = (2 * y + row) * image.shape[1]
    for x0 in range(0, width, pixels):
        x1 = min(x0 + pixels, width)
        dot.multiply_rows(image, starts, 6, filters, x0, x1, sums)
        for x in range(x0, x1):
            for c in range(0, channels, LANES):
                value = scale(sums, (x - x0) * channels + c, centers[x], filters, c)
                simd.store(codes, (y % 3 * width + x) * channels + c, simd.round_to_u8x32(value, largest))
