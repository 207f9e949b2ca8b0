"""Convert a checkpoint of the training code to a bitseg model file: `python -m tools.convert CHECKPOINT MODEL.h5`.

BatchNorm, quantiser steps and the input's normalisation are folded into one multiplier and one offset per output
channel (float64, rounded once to float32); weights become bit-planes.
"""

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import torch

from bitseg.architecture import STRIDES
from bitseg.datasets import open_dataset
from bitseg.errors import BitsegError
from bitseg.evaluation import evaluate, scores
from bitseg.model_file import LayerWeights, Model, StreamScales, write_model
from bitseg.palette import palette_for
from bitseg.segmenter import Segmenter
from tools.train.checkpoint import load_network
from tools.train.quantizers import FLOAT_BITS


def fold_convolution(layer, input_step, output_step, mean=None):
    """Fold one `BitConv` into codes, multiplier and offset.

    With weights ``w = s (2 q - N)`` and activations ``a = input_step * c`` the convolution is
    ``s * input_step * t`` for the integer sum t; BatchNorm is affine in it; dividing by `output_step` gives units of
    the next codes.

    Parameters
    ----------
    layer : tools.train.network.BitConv
    input_step, output_step : float
        Real value of one code of the input and of the output.
    mean : tuple of 3 int or None
        Colour that is subtracted from the image, for the first layer.

    Returns
    -------
    bitseg.model_file.LayerWeights
    """
    codes = layer.weight_quantizer.codes(layer.conv.weight).numpy()
    gain = layer.weight_quantizer.scale().double().numpy() * input_step
    shift = np.zeros(len(gain))
    if mean is not None:
        signed = 2 * codes - layer.weight_quantizer.levels
        shift -= gain * (signed.sum((2, 3)) * np.array(mean)).sum(1)
    if layer.conv.bias is not None:
        shift += layer.conv.bias.double().numpy()
    else:
        norm = layer.norm
        factor = norm.weight.double().numpy() / np.sqrt(norm.running_var.double().numpy() + norm.eps)
        shift = (shift - norm.running_mean.double().numpy()) * factor + norm.bias.double().numpy()
        gain = gain * factor
    return LayerWeights(
        np.ascontiguousarray(codes.transpose(0, 2, 3, 1).astype(np.uint8)),
        (gain / output_step).astype(np.float32),
        (shift / output_step).astype(np.float32),
    )


@torch.no_grad()
def fold_network(network, preprocessing):
    """Fold all layers of a quantised `BitFCN`.

    Returns
    -------
    layers : dict of str to LayerWeights
    streams : dict of str to StreamScales
    """
    layers, streams = {}, {}

    def fold(name, input_step, output_step, mean=None):
        layers[name] = fold_convolution(network.get_submodule(name), input_step, output_step, mean)

    def fold_stream(name, incoming_step, read_as_stream=False):
        """Scales of a `Stream`; returns the steps of its stream and of its activation."""
        stream = network.get_submodule(name)
        step = stream.stream_quantizer.step()
        same = read_as_stream or stream.stream_quantizer.bits == stream.activation_quantizer.bits
        activation_step = step if same else stream.activation_quantizer.step()
        streams[name] = StreamScales(np.float32(incoming_step / step), np.float32(step / activation_step))
        return step, activation_step

    def fold_block(block, stream_step, activation_step, read_as_stream=False):
        """Fold a residual block; returns the steps of its stream and of its activation."""
        incoming = stream_step if block.projection is None else 0.0
        steps = fold_stream(f"{block.name}.output", incoming, read_as_stream)
        input_step = activation_step
        for index, name in enumerate(block.convolutions[:-1], 1):
            output_step = network.get_submodule(f"{block.name}.activation{index}").step()
            fold(name, input_step, output_step)
            input_step = output_step
        fold(block.convolutions[-1], input_step, steps[0])
        if block.projection is not None:
            fold(block.projection, activation_step, steps[0])
        return steps

    architecture = network.architecture
    steps = fold_stream("encoder.stem_output", 0.0)
    fold("encoder.stem", 1 / preprocessing.scale, steps[0], preprocessing.mean)
    for stride, stage in zip(STRIDES, architecture.stages(), strict=True):
        for block in stage:
            steps = fold_block(block, *steps)
        branch_steps = fold_stream(f"branch{stride}.reduce_output", 0.0)
        fold(f"branch{stride}.reduce", steps[1], branch_steps[0])
        class_steps = fold_block(architecture.branch_block(stride), *branch_steps, read_as_stream=True)
        fold(f"branch{stride}.classifier", class_steps[0], 1.0)
    return layers, streams


def convert(checkpoint, name=None, command=""):
    """Make a `Model` of a checkpoint file.

    Raises
    ------
    BitsegError
        The checkpoint is missing, or its network is not quantised.
    """
    network, config, saved = load_network(checkpoint)
    if FLOAT_BITS in (network.weight_bits, network.activation_bits):
        raise BitsegError(f"{checkpoint}: a floating-point network; convert a checkpoint of a quantised stage")
    layers, streams = fold_network(network, config.preprocessing)
    training = {
        "data": f"{config.dataset} train",
        "command": saved["command"],
        "conversion": command,
        "commit": _commit(),
        "config": config.as_dict(),
        "stages": saved["results"],
    }
    classes = network.architecture.classes
    return Model(
        name or config.name, network.architecture, config.preprocessing, palette_for(classes), training, layers, streams
    )


def _commit():
    """Commit of the checkout that this runs from, or 'unknown' outside one."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return result.stdout.strip() or "unknown"


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--data", type=click.Path(), help="Folder of the data set: measure the accuracy on its val split.")
@click.option("--name", help="Name of the model, if not the configuration's.")
def main(checkpoint, output, data, name):
    """Convert CHECKPOINT to the model file OUTPUT and, with --data, store the accuracy that the engine measures."""
    try:
        model = convert(checkpoint, name, f"python -m tools.convert {' '.join(sys.argv[1:])}")
        if data:
            dataset = open_dataset(model.training["config"]["dataset"], data, "val")
            confusion = evaluate(Segmenter(model).label_map, dataset)
            model.training["accuracy"] = scores(confusion, dataset)
            click.echo(f"mIoU {model.training['accuracy']['miou']:.4f} on {dataset.name}")
        write_model(output, model)
    except BitsegError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{output}: {Path(output).stat().st_size} bytes")


if __name__ == "__main__":
    main()
