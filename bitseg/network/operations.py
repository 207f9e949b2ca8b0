"""The operations of the network on Numba kernels: checks, results, and rows shared out among threads.

The maths of each operation is its namesake in `reference.py`.
"""

import os
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from ..kernels import convolution as bits
from ..kernels import decoder, stem
from .layout import WORD, bit_planes, check_kernel, lookup_filters, popcount_filters, select_kernel, stem_filters
from .reference import interpolation

NANOSECONDS_WORTH_A_THREAD = 130_000
"""Waking a thread and waiting for it took about 0.13 ms on two cores: less work than that is not shared."""

Layer = namedtuple("Layer", "convolution filters")
Rounding = namedtuple("Rounding", "stream_bits activation_bits shortcut_multiplier kernel")


def available_threads():
    """How many threads run at the same time: one for each processor this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Operations:
    """The operations of `graph.Network` on Numba kernels.

    A feature map is a `Planes`; the residual stream is uint8 codes of shape (height, width, 64 * words).
    Calls from several threads at once are safe.

    Parameters
    ----------
    threads : int or None
        Threads that share the rows of each operation; None: one for each processor this process may use.
    kernel : {"auto", "popcount", "lookup"}
        Kernel of the bit convolutions, see `layout.select_kernel`; the results are the same.

    Raises
    ------
    ValueError
        Fewer than one thread, an unknown kernel, or one that this CPU cannot run.
    """

    def __init__(self, threads=None, kernel="auto"):
        if threads is None:
            threads = available_threads()
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        check_kernel(kernel)
        self.threads, self.kernel = threads, kernel
        self._pool, self._process = None, None

    def prepare(self, convolution, weights):
        """Lay out a convolution and its `model_file.LayerWeights` for the kernel that suits it.

        Returns
        -------
        Layer

        Raises
        ------
        ValueError
            The integer sums could exceed 31 bits.
        """
        convolution.check_sums()
        lay_out = lookup_filters if select_kernel(convolution, self.kernel) == "lookup" else popcount_filters
        return Layer(convolution, lay_out(convolution, weights))

    def prepare_stem(self, convolution, weights):
        """Lay out the first layer, which reads the 8-bit image; arguments and result as for `prepare`."""
        return Layer(convolution, stem_filters(convolution, weights))

    def prepare_rounding(self, stream_bits, activation_bits, scales):
        """Lay out `model_file.StreamScales` for the kernels."""
        kernel = bits.Rounding(
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
        self._rows(
            _nanoseconds(height * width, layer),
            height,
            stem.stem_rows,
            (bordered, layer.filters, rounding.kernel.largest),
            (codes,),
        )
        stream = np.empty((height // 2, width // 2, channels), np.uint8)
        planes = bit_planes(height // 2, width // 2, convolution.out_channels, rounding.activation_bits)
        self._rows(codes.size, height // 2, stem.max_pool_rows, (codes, rounding.kernel), (stream, planes))
        return stream, planes

    def convolve(self, activation, layer):
        height, width = self._output_size(activation, layer)
        result = bit_planes(height, width, layer.convolution.out_channels, layer.convolution.output_bits)
        rounding = bits.Rounding(np.float32(2**layer.convolution.output_bits - 1), np.float32(0), np.float32(0))
        work = _nanoseconds(height * width, layer)
        self._rows(work, height, bits.convolve_to_planes, (activation, layer.filters, rounding), (width, result))
        return result

    def convolve_to_stream(self, activation, layer, rounding):
        stream, planes = self._stream(activation, layer, rounding)
        arguments = (activation, layer.filters, rounding.kernel)
        self._rows(
            _nanoseconds(_pixels(stream), layer), len(stream), bits.convolve_to_stream, arguments, (stream, planes)
        )
        return stream, planes

    def convolve_and_add(self, activation, layer, shortcut, rounding):
        stream, planes = self._stream(activation, layer, rounding)
        if shortcut.shape != stream.shape:
            raise ValueError(f"the shortcut has shape {shortcut.shape}, the block's result {stream.shape}")
        arguments = (activation, layer.filters, shortcut, rounding.shortcut_multiplier, rounding.kernel)
        work = _nanoseconds(_pixels(stream), layer)
        self._rows(work, len(stream), bits.convolve_and_add, arguments, (stream, planes))
        return stream, planes

    def convolve_and_project(self, activation, layer, block_activation, projection, rounding):
        stream, planes = self._stream(activation, layer, rounding)
        projected = (*self._output_size(block_activation, projection), len(projection.filters.multiplier))
        if projected != stream.shape:
            raise ValueError(f"the projection has shape {projected}, the block's result {stream.shape}")
        arguments = (activation, layer.filters, block_activation, projection.filters, rounding.kernel)
        work = _nanoseconds(_pixels(stream), layer) + _nanoseconds(_pixels(stream), projection)
        self._rows(work, len(stream), bits.convolve_and_project, arguments, (stream, planes))
        return stream, planes

    def classify(self, activation, layer):
        height, width = self._output_size(activation, layer)
        scores = np.empty((layer.convolution.out_channels, height, width), np.float32)
        work = _nanoseconds(height * width, layer)
        self._rows(work, height, bits.convolve_to_scores, (activation, layer.filters), (scores,))
        return scores

    def upsample2x(self, scores):
        classes, height, width = scores.shape
        fine = np.empty((classes, 2 * height, 2 * width), np.float32)
        self._rows(fine.size, 2 * height, decoder.upsample2x_rows, (scores,), (fine,))
        return fine

    def refine(self, scores, branch, radius):
        if scores.shape != branch.shape:
            raise ValueError(f"scores of shape {scores.shape}, but a branch of shape {branch.shape}")
        probabilities = np.empty_like(scores)
        height = scores.shape[1]
        self._rows(2 * scores.size, height, decoder.softmax_rows, (scores,), (probabilities,))
        refined = np.empty_like(scores)
        self._rows(5 * scores.size, height, decoder.refine_rows, (scores, probabilities, branch, radius), (refined,))
        return refined

    def label_map(self, scores, shape, inside):
        labels = np.empty(shape, np.uint8)
        rows = interpolation(shape[0], inside[0] / 4, scores.shape[1])
        columns = interpolation(shape[1], inside[1] / 4, scores.shape[2])
        self._rows(labels.size * len(scores), shape[0], decoder.label_rows, (scores, rows, columns), (labels,))
        return labels

    def _stream(self, activation, layer, rounding):
        height, width = self._output_size(activation, layer)
        channels = layer.convolution.out_channels
        stream = np.empty((height, width, len(layer.filters.multiplier)), np.uint8)
        return stream, bit_planes(height, width, channels, rounding.activation_bits)

    def _output_size(self, activation, layer):
        """Height and width of a convolution's result; refuses planes that the kernel would misread."""
        convolution = layer.convolution
        given_bits, (rows, columns, words) = len(activation.words), activation.words[0].shape
        if (given_bits, words) != (convolution.input_bits, -(-convolution.in_channels // WORD)):
            raise ValueError(
                f"the convolution reads {convolution.input_bits} bits of {convolution.in_channels} channels, "
                f"but was given {given_bits} bits of {words} words: pack with bits={convolution.input_bits}"
            )
        if activation.margin < convolution.padding:
            raise ValueError(f"planes with margin {activation.margin}: pack with margin={convolution.padding}")
        border = 2 * (activation.margin - convolution.padding) + convolution.kernel
        return (rows - border) // convolution.stride + 1, (columns - border) // convolution.stride + 1

    def _rows(self, nanoseconds, height, kernel, inputs, outputs):
        """Run a kernel on rows 0 to `height`, shared out among as many threads as the work is worth."""
        shares = min(self.threads, height, int(nanoseconds) // NANOSECONDS_WORTH_A_THREAD)
        if shares <= 1:
            kernel(*inputs, 0, height, *outputs)
            return
        bounds = [height * share // shares for share in range(shares + 1)]
        pool = self._other_threads()
        others = [pool.submit(kernel, *inputs, *rows, *outputs) for rows in pairwise(bounds[1:])]
        kernel(*inputs, 0, bounds[1], *outputs)
        for other in others:
            other.result()

    def _other_threads(self):
        """The pool, started anew in a forked child, which has none of its parent's threads."""
        if self._process != os.getpid():
            # In this order: a thread that sees the process sees its pool.
            self._pool = ThreadPoolExecutor(self.threads - 1, "bitseg")
            self._process = os.getpid()
        return self._pool


def _pixels(stream):
    return stream.shape[0] * stream.shape[1]


def _nanoseconds(pixels, layer):
    """About how long a convolution takes: a thousand one-bit products a nanosecond, and three results."""
    convolution = layer.convolution
    products = convolution.weights * convolution.weight_bits * convolution.input_bits
    return pixels * (products / 1000 + convolution.out_channels / 3)
