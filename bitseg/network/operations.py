"""The operations of the network on Numba kernels: layouts, checks, and rows shared out among threads.

The maths of each operation is its namesake in `reference.py`.
"""

import os
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from ..kernels import bitplanes, decoder, popcount, stem
from .reference import interpolation

WORD = 64
"""Channels in a word of a bit-plane."""

Layer = namedtuple("Layer", "convolution filters")
Rounding = namedtuple("Rounding", "stream_bits activation_bits shortcut_multiplier kernel")


def bit_planes(height, width, channels, bits, margin=1):
    """Empty `kernels.bitplanes.Planes` for a feature map; the border stays zero.

    Parameters
    ----------
    height, width, channels : int
    bits : int
        1 to 8.
    margin : int
        Zero pixels around the map: the largest padding of the convolutions that read it.

    Returns
    -------
    Planes
    """
    rows, columns = height + 2 * margin, width + 2 * margin
    words = np.zeros((bits, rows, columns, -(-channels // WORD)), np.uint64)
    return bitplanes.Planes(tuple(words), np.zeros((rows, columns), np.int32), margin)


def pack_bit_planes(codes, bits, margin=1):
    """Split unsigned codes into bit-planes, 64 channels to a word.

    Parameters
    ----------
    codes : ndarray of uint8, shape (height, width, channels)
        Activation codes, each below ``2**bits``.
    bits : int
        Bits per code, 1 to 8.
    margin : int
        Zero pixels around the map.

    Returns
    -------
    Planes

    Raises
    ------
    ValueError
        A code needs more than `bits` bits, or the array has another type or shape.

    Source: Wen et al. 2016, section 3.
    """
    if codes.dtype != np.uint8 or codes.ndim != 3:
        raise ValueError(f"codes must be uint8 of 3 axes, not {codes.dtype} of {codes.ndim}: use .astype(np.uint8)")
    if codes.size and int(codes.max()) >= 2**bits:
        raise ValueError(f"code {codes.max()} needs more than {bits} bits")
    height, width, channels = codes.shape
    padded = np.zeros((height, width, -(-channels // WORD) * WORD), np.uint8)
    padded[:, :, :channels] = codes
    planes = bit_planes(height, width, channels, bits, margin)
    for y in range(height):
        bitplanes.pack_pixels(padded[y], planes, y, 0, width)
    return planes


def unpack_bit_planes(planes, channels):
    """Codes, uint8 of shape (height, width, channels), of `Planes`: the inverse of `pack_bit_planes`."""
    margin = planes.margin
    inside = np.s_[margin:-margin, margin:-margin] if margin else np.s_[:, :]
    codes = 0
    for bit, plane in enumerate(planes.words):
        ones = np.unpackbits(np.ascontiguousarray(plane[inside]).view(np.uint8), axis=-1, bitorder="little")
        codes = codes + (ones[..., :channels] << bit)
    return codes.astype(np.uint8)


def _padded_channels(values, multiple=WORD):
    padded = np.zeros(-(-len(values) // multiple) * multiple, np.float32)
    padded[: len(values)] = values
    return padded


class Operations:
    """The operations of `graph.Network` on Numba kernels.

    A feature map is a `Planes`; the residual stream is uint8 codes of shape (height, width, 64 * words).
    Calls from several threads at once are safe.

    Parameters
    ----------
    threads : int or None
        Threads that share the rows of each operation; None: one for each processor this process may use.
    """

    def __init__(self, threads=None):
        if threads is None:
            threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "bitseg") if threads > 1 else None

    def prepare(self, convolution, weights):
        """Lay out a convolution and its `model_file.LayerWeights` for the kernels.

        Returns
        -------
        Layer

        Raises
        ------
        ValueError
            The integer sums could exceed 31 bits.
        """
        convolution.check_sums()
        multiplier, offset = _padded_channels(weights.multiplier), _padded_channels(weights.offset)
        lanes = popcount.LANES
        blocks = -(-convolution.out_channels // lanes)
        kernel, words = convolution.kernel, -(-convolution.in_channels // WORD)
        codes = np.zeros((blocks * lanes, kernel, kernel, words * WORD), np.uint8)
        codes[: convolution.out_channels, :, :, : convolution.in_channels] = weights.codes
        filters = popcount.Filters(
            tuple(self._filter_words((codes >> bit) & 1, lanes) for bit in range(convolution.weight_bits)),
            multiplier,
            offset,
            kernel,
            2**convolution.weight_bits - 1,
            convolution.stride,
            convolution.padding,
        )
        return Layer(convolution, filters)

    @staticmethod
    def _filter_words(ones, lanes):
        """Words of one bit of (blocks * lanes, kernel, kernel, channels), as in `kernels.popcount.Filters`."""
        kernel, span = ones.shape[1], ones.shape[2] * ones.shape[3] // WORD
        words = np.packbits(ones, -1, "little").view(np.uint64).reshape(-1, lanes, kernel, span)
        return np.ascontiguousarray(words.transpose(0, 2, 3, 1))

    def prepare_stem(self, convolution, weights):
        """Lay out the first layer, which reads the 8-bit image; arguments and result as for `prepare`."""
        kernel, channels = convolution.kernel, convolution.out_channels
        multiplier, offset = _padded_channels(weights.multiplier), _padded_channels(weights.offset)
        if 3 * kernel**2 * 255 * (2**convolution.weight_bits - 1) >= 2**24:
            raise ValueError(f"sums of a {kernel}x{kernel} stem are not exact in float32: use a smaller kernel")
        taps = np.zeros((kernel, 3 * kernel, len(multiplier)), np.float32)
        signed = 2.0 * weights.codes - (2**convolution.weight_bits - 1)
        taps[:, :, :channels] = signed.reshape(channels, kernel, 3 * kernel).transpose(1, 2, 0)
        filters = stem.StemFilters(taps, multiplier, offset, kernel)
        return Layer(convolution, filters)

    def prepare_rounding(self, stream_bits, activation_bits, scales):
        """Lay out `model_file.StreamScales` for the kernels."""
        kernel = popcount.Rounding(
            np.float32(2**stream_bits - 1), scales.activation_multiplier, np.float32(2**activation_bits - 1)
        )
        return Rounding(stream_bits, activation_bits, scales.shortcut_multiplier, kernel)

    def stem(self, image, layer, mean, rounding):
        convolution = layer.convolution
        padding = convolution.padding
        height, width = image.shape[0] // 2, image.shape[1] // 2
        bordered = np.empty((image.shape[0] + 2 * padding, image.shape[1] + 2 * padding, 3), np.float32)
        for edge in (np.s_[:padding], np.s_[-padding:], np.s_[:, :padding], np.s_[:, -padding:]):
            bordered[edge] = mean
        bordered[padding:-padding, padding:-padding] = image
        bordered = bordered.reshape(len(bordered), -1)
        channels = len(layer.filters.multiplier)
        codes = np.empty((height, width, channels), np.uint8)
        self._rows(height, stem.stem_rows, (bordered, layer.filters, rounding.kernel.largest), (codes,))
        stream = np.empty((height // 2, width // 2, channels), np.uint8)
        planes = bit_planes(height // 2, width // 2, convolution.out_channels, rounding.activation_bits)
        self._rows(height // 2, stem.max_pool_rows, (codes, rounding.kernel), (stream, planes))
        return stream, planes

    def convolve(self, activation, layer):
        height, width = self._output_size(activation, layer)
        result = bit_planes(height, width, layer.convolution.out_channels, layer.convolution.output_bits)
        rounding = popcount.Rounding(np.float32(2**layer.convolution.output_bits - 1), np.float32(0), np.float32(0))
        self._rows(height, popcount.convolve_to_planes, (activation, layer.filters, rounding), (width, result))
        return result

    def convolve_to_stream(self, activation, layer, rounding):
        stream, planes = self._stream(activation, layer, rounding)
        self._rows(
            len(stream), popcount.convolve_to_stream, (activation, layer.filters, rounding.kernel), (stream, planes)
        )
        return stream, planes

    def convolve_and_add(self, activation, layer, shortcut, rounding):
        stream, planes = self._stream(activation, layer, rounding)
        if shortcut.shape != stream.shape:
            raise ValueError(f"the shortcut has shape {shortcut.shape}, the block's result {stream.shape}")
        arguments = (activation, layer.filters, shortcut, rounding.shortcut_multiplier, rounding.kernel)
        self._rows(len(stream), popcount.convolve_and_add, arguments, (stream, planes))
        return stream, planes

    def convolve_and_project(self, activation, layer, block_activation, projection, rounding):
        stream, planes = self._stream(activation, layer, rounding)
        projected = (*self._output_size(block_activation, projection), len(projection.filters.multiplier))
        if projected != stream.shape:
            raise ValueError(f"the projection has shape {projected}, the block's result {stream.shape}")
        arguments = (activation, layer.filters, block_activation, projection.filters, rounding.kernel)
        self._rows(len(stream), popcount.convolve_and_project, arguments, (stream, planes))
        return stream, planes

    def classify(self, activation, layer):
        height, width = self._output_size(activation, layer)
        scores = np.empty((layer.convolution.out_channels, height, width), np.float32)
        self._rows(height, popcount.convolve_to_scores, (activation, layer.filters), (scores,))
        return scores

    def upsample2x(self, scores):
        classes, height, width = scores.shape
        fine = np.empty((classes, 2 * height, 2 * width), np.float32)
        self._rows(2 * height, decoder.upsample2x_rows, (scores,), (fine,))
        return fine

    def refine(self, scores, branch, radius):
        if scores.shape != branch.shape:
            raise ValueError(f"scores of shape {scores.shape}, but a branch of shape {branch.shape}")
        probabilities = np.empty_like(scores)
        height = scores.shape[1]
        self._rows(height, decoder.softmax_rows, (scores,), (probabilities,))
        refined = np.empty_like(scores)
        self._rows(height, decoder.refine_rows, (scores, probabilities, branch, radius), (refined,))
        return refined

    def label_map(self, scores, shape, inside):
        labels = np.empty(shape, np.uint8)
        rows = interpolation(shape[0], inside[0] / 4, scores.shape[1])
        columns = interpolation(shape[1], inside[1] / 4, scores.shape[2])
        self._rows(shape[0], decoder.label_rows, (scores, rows, columns), (labels,))
        return labels

    def _stream(self, activation, layer, rounding):
        height, width = self._output_size(activation, layer)
        channels = layer.convolution.out_channels
        stream = np.empty((height, width, len(layer.filters.multiplier)), np.uint8)
        return stream, bit_planes(height, width, channels, rounding.activation_bits)

    def _output_size(self, activation, layer):
        """Height and width of a convolution's result; refuses planes that the kernel would misread."""
        convolution = layer.convolution
        bits, (rows, columns, words) = len(activation.words), activation.words[0].shape
        if (bits, words) != (convolution.input_bits, -(-convolution.in_channels // WORD)):
            raise ValueError(
                f"the convolution reads {convolution.input_bits} bits of {convolution.in_channels} channels, "
                f"but was given {bits} bits of {words} words: pack with bits={convolution.input_bits}"
            )
        if activation.margin < convolution.padding:
            raise ValueError(f"planes with margin {activation.margin}: pack with margin={convolution.padding}")
        border = 2 * (activation.margin - convolution.padding) + convolution.kernel
        return (rows - border) // convolution.stride + 1, (columns - border) // convolution.stride + 1

    def _rows(self, height, kernel, inputs, outputs):
        """Run a kernel on rows 0 to `height`, shared out among the threads."""
        shares = min(self.threads, height)
        if shares <= 1:
            kernel(*inputs, 0, height, *outputs)
            return
        bounds = [height * share // shares for share in range(shares + 1)]
        others = [self._pool.submit(kernel, *inputs, *rows, *outputs) for rows in pairwise(bounds[1:])]
        kernel(*inputs, 0, bounds[1], *outputs)
        for other in others:
            other.result()
