"""What kernels ask of the feature map that a convolution reads.

There are two kinds: bit-planes (`bitplanes.Planes`), and the residual stream, uint8 codes of shape (height, width,
32 n) without a border, which only 1x1 convolutions read. `stem.Image` answers as bit-planes do where it is asked.
"""

from numba.core import types

from . import simd
from .jit import chosen_by_types, part


def margin(feature_map):
    """Pixels of its border."""


def columns(feature_map):
    """Pixels of a row, border included."""


def add_sums(feature_map, row, totals):
    """Add the sum of each pixel's codes in a row, border included, to `totals`, int32 of shape (columns,)."""


def write_codes(feature_map, row, column, codes, position):
    """Write a pixel's codes to an array from `position` on, and up to 63 others behind them."""


def _is_stream(feature_map):
    return isinstance(feature_map, types.Array)


@chosen_by_types(margin)
def _margin(feature_map):
    return (lambda feature_map: 0) if _is_stream(feature_map) else (lambda feature_map: feature_map.margin)


@chosen_by_types(columns)
def _columns(feature_map):
    if _is_stream(feature_map):
        return lambda feature_map: feature_map.shape[1]
    return lambda feature_map: feature_map.sums.shape[1]


@chosen_by_types(add_sums)
def _add_sums(feature_map, row, totals):
    return _add_sums_of_stream if _is_stream(feature_map) else _add_sums_of_planes


@chosen_by_types(write_codes)
def _write_codes(feature_map, row, column, codes, position):
    return _copy_codes if _is_stream(feature_map) else _unpack_codes


@part
def _add_sums_of_planes(feature_map, row, totals):
    sums = feature_map.sums[row]
    for column in range(len(totals)):
        totals[column] += sums[column]


@part
def _add_sums_of_stream(feature_map, row, totals):
    _, width, channels = feature_map.shape
    for column in range(width):
        first = (row * width + column) * channels
        for c in range(0, channels, 32):
            totals[column] += simd.sum_u8x32(simd.load_u8x32(feature_map, first + c))


@part
def _copy_codes(feature_map, row, column, codes, position):
    _, width, channels = feature_map.shape
    first = (row * width + column) * channels
    for c in range(0, channels, 32):
        simd.store(codes, position + c, simd.to_elements_of(codes, simd.load_u8x32(feature_map, first + c)))


@part
def _unpack_codes(feature_map, row, column, codes, position):
    _, width, words = feature_map.words[0].shape
    for word in range(words):
        simd.store_codes(codes, position + word * 64, feature_map.words, (row * width + column) * words + word)
