"""The first layer: 8-bit weights on the 8-bit image, and max-pooling of its codes."""

import numpy as np

from . import dot, simd
from .bitplanes import clear_border
from .convolution import pack_stream, round_to_codes, scale, scratch_sums
from .jit import kernel, part
from .sharing import next_row, take_row


@kernel
def border_rows(image, border, color, share, bordered):
    """An image, uint8 (height, width, 3), in a border of a colour, as `stem_rows` reads it."""
    height, width, _ = image.shape
    y = take_row(share)
    while y < share.height:
        row = bordered[y]
        for x in range(width + 2 * border):
            for c in range(3):
                row[3 * x + c] = color[c]
        if border <= y < border + height:
            for x in range(width):
                for c in range(3):
                    row[3 * (x + border) + c] = image[y - border, x, c]
        y = next_row(share, y)


@kernel
def stem_rows(image, filters, rounding, share, stream, result):
    """A stride-2 convolution of an image, rounded to stream codes, and 3x3 max-pooling at stride 2.

    The window of the pooling reaches past the right and lower edge only.

    image : array of `dot.CODE`, shape (height, width * 3), border included, the last row followed by a spare group.
    filters : dot.DotFilters
    stream : uint8, shape (height', width', 64 n)
    """
    height, width, channels = stream.shape
    # Row y of the convolution is in place y % 3 until the pooling has passed it.
    codes = np.empty((3, 2 * width, channels), np.uint8)
    sums = scratch_sums(channels, 2 * width)
    windows = np.empty(2 * width, np.int32)
    upcoming = 0
    y = take_row(share)
    while y < share.height:
        end = min(2 * y + 3, 2 * height)
        for row in range(max(upcoming, 2 * y), end):
            _window_sums(image, filters.kernel, 2 * row, windows)
            _convolve_row(image, filters, rounding.largest, row, windows, sums, codes)
        upcoming = end
        for x in range(width):
            for c in range(0, channels, 64):
                largest = simd.load_u8x64(codes, (2 * y % 3 * 2 * width + 2 * x) * channels + c)
                for i in range(2 * y, end):
                    for j in range(2 * x, min(2 * x + 3, 2 * width)):
                        place = (i % 3 * 2 * width + j) * channels + c
                        largest = simd.maximum(largest, simd.load_u8x64(codes, place))
                simd.store(stream, (y * width + x) * channels + c, largest)
        clear_border(result, y)
        pack_stream(stream, rounding, rounding.steps, result, y, 0, width)
        y = next_row(share, y)


@part
def _window_sums(image, size, top, windows):
    """Sum of the image in each window of a row of the convolution, whose first row is row `top` of the image."""
    columns = np.zeros(image.shape[1], np.int32)
    for row in image[top : top + size]:
        for i in range(len(columns)):
            columns[i] += row[i]
    for x in range(len(windows)):
        total = np.int32(0)
        for i in range(6 * x, 6 * x + 3 * size):
            total += columns[i]
        windows[x] = total


@part
def _convolve_row(image, filters, largest, y, windows, sums, codes):
    """Codes of row `y` of the convolution."""
    _, width, channels = codes.shape
    starts = (2 * y + np.arange(filters.kernel)) * image.shape[1]
    for x0 in range(0, width, len(sums)):
        x1 = min(x0 + len(sums), width)
        dot.multiply_rows(image, starts, 6, filters.weights, x0, x1, sums)
        for x in range(x0, x1):
            center = np.int32(filters.levels * windows[x])
            for o in range(0, channels, 16):
                value = scale(sums, (x - x0) * channels + o, center, filters, o)
                simd.store(codes, (y % 3 * width + x) * channels + o, round_to_codes(value, largest))
