"""Networks of the paper with random weights: for measuring speed, and for tests, where no trained model is needed."""

import re

import numpy as np

from .architecture import Architecture, Preprocessing
from .errors import BitsegError, unknown
from .model_file import LayerWeights, Model, StreamScales
from .palette import palette_for

_VOC_SIZED = tuple(f"class {number}" for number in range(21))

PRESETS = {
    # 135.7 MB of weights in fp32, as about the paper's network: 137.7 MB.
    "bfcn50": ("resnet50", 64, (256, 512, 1024, 2048), (128, 256, 384, 512)),
    # The half-width network of the shipped models.
    "thin50": ("resnet50", 64, (128, 256, 512, 1024), (64, 64, 64, 64)),
}
"""Encoder, stem channels, stage channels and branch channels, fine to coarse."""


def preset_model(name, bits, stream_bits=8, stream_weight_bits=0, seed=0):
    """Make a model of a preset with random weights.

    Parameters
    ----------
    name : str
        A key of `PRESETS`.
    bits : str
        Bits of weights and of activations, for example ``1-2``.
    stream_bits, stream_weight_bits : int
        As for `Architecture`.
    seed : int

    Returns
    -------
    Model

    Raises
    ------
    BitsegError
        There is no such preset, or the bits are not W-A with 1 to 8 each.
    """
    if name not in PRESETS:
        raise BitsegError(unknown("preset", name, sorted(PRESETS)))
    match = re.fullmatch("([1-8])-([1-8])", bits)
    if not match:
        raise BitsegError(f"bits '{bits}': give those of weights and activations, 1 to 8 each, for example 1-2")
    bits_of_stream = {"stream_bits": stream_bits, "stream_weight_bits": stream_weight_bits}
    architecture = Architecture(*PRESETS[name], _VOC_SIZED, int(match[1]), int(match[2]), **bits_of_stream)
    return random_model(architecture, name, seed)


def random_model(architecture, name="random", seed=0):
    """Make a model of random weights whose feature maps use all of their codes, so that a wrong bit shows.

    Parameters
    ----------
    architecture : Architecture
    name : str
    seed : int

    Returns
    -------
    Model
    """
    random = np.random.default_rng(seed)
    bits = architecture.residual_bits
    layers = {
        layer: _random_weights(
            convolution, 10 if "classifier" in layer else 2 ** (convolution.output_bits or bits) - 1, random
        )
        for layer, convolution in architecture.convolutions().items()
    }
    streams = {
        stream: StreamScales(
            np.float32(random.uniform(0.4, 0.8)),
            np.float32(random.uniform(0.8, 1.2) * (2**read_bits - 1) / (2**bits - 1)) if read_bits else np.float32(1),
        )
        for stream, read_bits in architecture.stream_outputs().items()
    }
    preprocessing = Preprocessing((123, 117, 104), 58.0, 512)
    return Model(name, architecture, preprocessing, palette_for(architecture.classes), {}, layers, streams)


def _random_weights(convolution, largest, random):
    """Random codes, with multipliers and offsets that spread the results about 0 to `largest`."""
    out, kernel, bits = convolution.out_channels, convolution.kernel, convolution.weight_bits
    codes = random.integers(0, 2**bits, (out, kernel, kernel, convolution.in_channels), dtype=np.uint8)
    signed = 2.0 * codes.reshape(out, -1) - (2**bits - 1)
    # Of sums over independent input codes; small codes are more frequent than large ones.
    largest_input = 2**convolution.input_bits - 1
    mean = 0.35 * largest_input * signed.sum(1)
    deviation = 0.3 * largest_input * np.sqrt((signed**2).sum(1))
    multiplier = largest * random.uniform(0.2, 0.5, out) / deviation * random.choice([-1, 1], out)
    offset = largest * random.uniform(0, 0.4, out) - multiplier * mean
    return LayerWeights(codes, multiplier.astype(np.float32), offset.astype(np.float32))
