"""Small random models: valid in every respect, trained on nothing."""

import numpy as np

from bitseg.architecture import Architecture, Preprocessing
from bitseg.model_file import LayerWeights, Model, StreamScales
from bitseg.palette import palette_for

IMAGE_MEAN = (123, 117, 104)


def random_model(
    encoder="resnet18",
    stem_channels=5,
    stage_channels=(7, 9, 16, 11),
    branch_channels=(3, 5, 8, 6),
    classes=("background", "cat", "dog"),
    weight_bits=2,
    activation_bits=2,
    stream_bits=8,
    seed=0,
):
    """Make a model of random weights whose feature maps use all of their codes, so that a wrong bit shows.

    Parameters
    ----------
    encoder, stem_channels, stage_channels, branch_channels, classes, weight_bits, activation_bits, stream_bits
        As for `bitseg.architecture.Architecture`. Stages of resnet50 need channels divisible by 4.
    seed : int

    Returns
    -------
    bitseg.model_file.Model
    """
    random = np.random.default_rng(seed)
    architecture = Architecture(
        encoder,
        stem_channels,
        tuple(stage_channels),
        tuple(branch_channels),
        tuple(classes),
        weight_bits,
        activation_bits,
        stream_bits,
    )
    bits = architecture.residual_bits
    layers = {
        name: _random_layer(
            convolution, 10 if "classifier" in name else 2 ** (convolution.output_bits or bits) - 1, random
        )
        for name, convolution in architecture.convolutions().items()
    }
    streams = {
        name: StreamScales(
            np.float32(random.uniform(0.4, 0.8)),
            np.float32(random.uniform(0.8, 1.2) * (2**read_bits - 1) / (2**bits - 1)),
        )
        for name, read_bits in architecture.stream_outputs().items()
    }
    preprocessing = Preprocessing(IMAGE_MEAN, 58.0, 64)
    training = {"data": "none", "accuracy": {"dataset": "noise", "miou": 0.5}}
    return Model("random", architecture, preprocessing, palette_for(classes), training, layers, streams)


def _random_layer(convolution, largest, random):
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
