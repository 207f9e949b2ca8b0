"""Small random models: valid in every respect, trained on nothing."""

from dataclasses import replace

from bitseg.architecture import Architecture
from bitseg.presets import random_model as model_of


def random_model(
    encoder="resnet18",
    stem_channels=5,
    stage_channels=(7, 9, 16, 11),
    branch_channels=(3, 5, 8, 6),
    classes=("background", "cat", "dog"),
    weight_bits=2,
    activation_bits=2,
    stream_bits=8,
    reconstruction="residual_block",
    stream_weight_bits=0,
    seed=0,
):
    """A `bitseg.presets.random_model` with few and odd channels, a small working size, and an accuracy on record.

    Parameters
    ----------
    encoder, stem_channels, stage_channels, branch_channels, classes, weight_bits, activation_bits, stream_bits, \
    reconstruction, stream_weight_bits
        As for `bitseg.architecture.Architecture`. Stages of resnet50 need channels divisible by 4.
    seed : int

    Returns
    -------
    bitseg.model_file.Model
    """
    architecture = Architecture(
        encoder,
        stem_channels,
        tuple(stage_channels),
        tuple(branch_channels),
        tuple(classes),
        weight_bits,
        activation_bits,
        stream_bits,
        reconstruction,
        stream_weight_bits,
    )
    model = model_of(architecture, seed=seed)
    training = {"data": "none", "accuracy": {"dataset": "noise", "miou": 0.5}}
    return replace(model, preprocessing=replace(model.preprocessing, working_size=64), training=training)
