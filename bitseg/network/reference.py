"""The specification: every operation of the network in plain NumPy, exact integers and float32 step by step.

Feature maps are arrays of codes, uint8 of shape (height, width, channels). Nothing here is fast; everything here is
what the Numba kernels must equal, bit for bit.
"""

from dataclasses import dataclass

import numpy as np

from ..architecture import Convolution


@dataclass(frozen=True)
class Layer:
    """A convolution with its weights, as `model_file.LayerWeights` holds them."""

    convolution: Convolution
    codes: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class Rounding:
    """How the residual stream is rounded: see `model_file.StreamScales`. No activation is made of 0 bits."""

    stream_bits: int
    activation_bits: int
    shortcut_multiplier: np.float32
    activation_multiplier: np.float32


def convolution_sums(codes, weight_codes, weight_bits, stride, padding, padding_code=0):
    """Integer sums of a bit convolution: ``t = sum(a * (2 q - (2**bits - 1)))``.

    This equals ``2 * sum_ij 2**(i + j) popcount(A_j & W_i) - (2**bits - 1) * sum(a)`` over bit-planes A_j, W_i.

    Parameters
    ----------
    codes : ndarray of uint8, shape (height, width, channels)
        Activation codes a.
    weight_codes : ndarray of uint8, shape (filters, kernel, kernel, channels)
        Weight codes q.
    weight_bits, stride, padding : int
    padding_code : int or sequence of one a channel
        Code of the padding.

    Returns
    -------
    ndarray of int32, shape (height', width', filters)
        ``height' = (height + 2 padding - kernel) // stride + 1``, likewise the width.

    Source: Wen et al. 2016, equation 4.
    """
    filters, kernel = weight_codes.shape[:2]
    padded = np.empty(tuple(np.add(codes.shape, (2 * padding, 2 * padding, 0))), np.float64)
    padded[:] = padding_code
    padded[padding : padding + codes.shape[0], padding : padding + codes.shape[1]] = codes
    # float64 holds every sum exactly: they stay far below 2**53.
    signed = 2.0 * weight_codes - (2**weight_bits - 1)
    height = (padded.shape[0] - kernel) // stride + 1
    width = (padded.shape[1] - kernel) // stride + 1
    sums = np.zeros((height, width, filters))
    for ky in range(kernel):
        for kx in range(kernel):
            window = padded[ky : ky + stride * (height - 1) + 1 : stride, kx : kx + stride * (width - 1) + 1 : stride]
            sums += window @ signed[:, ky, kx].T
    return sums.astype(np.int32)


def scale(sums, multiplier, offset):
    """``t * multiplier + offset`` in float32, the product rounded before the sum: BatchNorm and scales, folded."""
    return sums.astype(np.float32) * multiplier + offset


def round_to_code(value, bits):
    """``rint(clip(value, 0, 2**bits - 1))`` as uint8, ties to even."""
    return np.rint(np.clip(value, np.float32(0), np.float32(2**bits - 1))).astype(np.uint8)


def max_pool(codes):
    """3x3 max-pooling at stride 2 that pads with 0 at the right and lower edge only, as Caffe's ResNet does."""
    height, width, channels = codes.shape
    padded = np.zeros((height + height % 2 + 1, width + width % 2 + 1, channels), np.uint8)
    padded[:height, :width] = codes
    rows = np.maximum(np.maximum(padded[:-2:2], padded[1:-1:2]), padded[2::2])
    return np.maximum(np.maximum(rows[:, :-2:2], rows[:, 1:-1:2]), rows[:, 2::2])


def upsample2x(scores):
    """Bilinear upsampling by two of (classes, height, width), sample positions at pixel centres, edges repeated.

    ``0.75 * nearer + 0.25 * farther`` in float32, rows first.
    """

    def along(axis, array):
        last = array.shape[axis] - 1
        index = np.arange(2 * (last + 1))
        near = index // 2
        far = np.clip(near + np.where(index % 2 == 1, 1, -1), 0, last)
        return np.float32(0.75) * array.take(near, axis) + np.float32(0.25) * array.take(far, axis)

    return along(2, along(1, scores))


def exp(x):
    """e**x for float32 x <= 0 by range reduction and a polynomial of degree 7, each step rounded to float32.

    ``x = k ln 2 + r``; ``e**r = 1 + r + r**2 P(r)`` (Cephes' expf). Below -87 the result is that of -87.
    """
    f = np.float32
    x = np.maximum(x, f(-87.0))
    octave = np.rint(x * f(1.4426950408889634))
    r = x - octave * f(0.693359375)
    r = r - octave * f(-2.12194440e-4)
    p = f(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + f(coefficient)
    p = p * (r * r)
    p = p + r
    p = p + f(1)
    return p * np.ldexp(f(1), octave.astype(np.int32))


def softmax(scores):
    """Softmax over the classes of (classes, height, width), float32; the sum runs in class order."""
    exponentials = exp(scores - scores.max(0))
    total = np.zeros_like(exponentials[0])
    for plane in exponentials:
        total = total + plane
    return exponentials / total


def boundary_gate(probabilities, radius):
    """Dilation minus erosion in a square window: near 1 at class boundaries, 0 inside; edges cut the window."""

    def extreme(array, fill, pick):
        height, width = array.shape[1:]
        padded = np.full((len(array), height + 2 * radius, width + 2 * radius), fill, np.float32)
        padded[:, radius : radius + height, radius : radius + width] = array
        rows = pick.reduce([padded[:, i : i + height] for i in range(2 * radius + 1)])
        return pick.reduce([rows[:, :, i : i + width] for i in range(2 * radius + 1)])

    return extreme(probabilities, -np.inf, np.maximum) - extreme(probabilities, np.inf, np.minimum)


def interpolation(size, score_size, cells):
    """Sample positions along one axis when `score_size` cells of scores are brought to `size` pixels.

    Pixel p of the result lies at ``(p + 0.5) * score_size / size - 0.5`` in the scores, held inside them.

    Parameters
    ----------
    size : int
        Pixels of the result.
    score_size : float
        Score cells that the result spans; a fraction where padding begins inside a cell.
    cells : int
        Score cells there are.

    Returns
    -------
    first, second : ndarray of int32, shape (size,)
        The two neighbours.
    weight : ndarray of float32, shape (size,)
        Weight of the second.
    """
    position = (np.arange(size) + 0.5) * (score_size / size) - 0.5
    position = np.maximum(position, 0)
    first = np.floor(position).astype(np.int32)
    weight = (position - first).astype(np.float32)
    return np.minimum(first, cells - 1), np.minimum(first + 1, cells - 1).astype(np.int32), weight


def label_map(scores, shape, inside):
    """Arg-max of the scores, bilinearly brought to `shape`, columns first; the first of equal scores wins.

    Parameters
    ----------
    scores : ndarray of float32, shape (classes, height, width)
        At a quarter of the network's input.
    shape : (int, int)
        Height and width of the result.
    inside : (int, int)
        Height and width of the part of the network's input that the result shows.

    Returns
    -------
    ndarray of uint8, shape `shape`
    """
    value = scores
    for axis in (1, 0):
        first, second, weight = interpolation(shape[axis], inside[axis] / 4, scores.shape[axis + 1])
        weight = weight.reshape((-1, 1) if axis == 0 else (1, -1))
        value = value.take(first, axis + 1) * (np.float32(1) - weight) + value.take(second, axis + 1) * weight
    return value.argmax(0).astype(np.uint8)


class ReferenceOperations:
    """The operations of `graph.Network` in plain NumPy; a feature map is its array of codes."""

    def run(self, function, image, *more):
        """``function(image, *more)``."""
        return function(image, *more)

    def prepare(self, convolution, weights):
        """A `Layer` of a convolution and its `model_file.LayerWeights`."""
        return Layer(convolution, weights.codes, weights.multiplier, weights.offset)

    def prepare_stem(self, convolution, weights):
        """The first layer; as `prepare`."""
        return self.prepare(convolution, weights)

    def gather(self, layers):
        """The layers of a network, a dict, as they are."""
        return layers

    def prepare_rounding(self, stream_bits, activation_bits, scales):
        """A `Rounding` of `model_file.StreamScales`."""
        return Rounding(stream_bits, activation_bits, scales.shortcut_multiplier, scales.activation_multiplier)

    def stem(self, image, layer, mean, rounding):
        """8-bit convolution of the image, whose border has the mean colour; max-pooling; rounding."""
        convolution = layer.convolution
        sums = convolution_sums(image, layer.codes, convolution.weight_bits, 2, convolution.padding, mean)
        stream = max_pool(round_to_code(scale(sums, layer.multiplier, layer.offset), rounding.stream_bits))
        return stream, self._activation(stream, rounding)

    def convolve(self, activation, layer):
        """Convolution rounded to activation codes."""
        return round_to_code(self._scaled(activation, layer), layer.convolution.output_bits)

    def convolve_to_stream(self, features, layer, rounding):
        """Convolution of activation or stream codes, rounded to stream codes, and the activation codes made of them."""
        return self._stream(self._scaled(features, layer), rounding)

    def convolve_and_add(self, activation, layer, shortcut, rounding):
        """End of a residual block: the stream is added before rounding."""
        identity = shortcut.astype(np.float32) * rounding.shortcut_multiplier
        return self._stream(self._scaled(activation, layer) + identity, rounding)

    def convolve_and_project(self, activation, layer, block_input, projection, rounding):
        """End of a residual block whose shortcut is a convolution of the block's input, activation or stream codes."""
        return self._stream(self._scaled(activation, layer) + self._scaled(block_input, projection), rounding)

    def classify(self, features, layer):
        """Real-valued scores, float32 (classes, height, width), of activation or stream codes."""
        return np.ascontiguousarray(self._scaled(features, layer).transpose(2, 0, 1))

    def upsample2x(self, scores):
        """See `upsample2x`."""
        return upsample2x(scores)

    def refine(self, scores, branch, radius):
        """``scores + gate * branch`` with the gate of the scores' softmax."""
        return scores + boundary_gate(softmax(scores), radius) * branch

    def label_map(self, scores, shape, inside):
        """See `label_map`."""
        return label_map(scores, shape, inside)

    def _scaled(self, activation, layer):
        convolution = layer.convolution
        sums = convolution_sums(
            activation, layer.codes, convolution.weight_bits, convolution.stride, convolution.padding
        )
        return scale(sums, layer.multiplier, layer.offset)

    def _stream(self, value, rounding):
        stream = round_to_code(value, rounding.stream_bits)
        return stream, self._activation(stream, rounding)

    def _activation(self, stream, rounding):
        if not rounding.activation_bits:
            return None
        value = stream.astype(np.float32) * rounding.activation_multiplier
        return round_to_code(value, rounding.activation_bits)
