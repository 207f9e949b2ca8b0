"""Between the trained network and the model file: BatchNorm and steps folded into two numbers a channel, and back.

With weights ``w = s (2 q - N)`` and activations ``a = step * c`` a convolution is ``s * step * t`` for the integer
sum ``t = sum(c (2 q - N))``. BatchNorm is affine in it, and dividing by the output's step gives units of the next
codes: ``t * multiplier + offset`` for every output channel. Folding computes multiplier and offset in float64 and
rounds them once to float32. Unfolding goes back: steps and filters may have any scale as long as the products agree.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bitseg.architecture import STRIDES
from bitseg.model_file import LayerWeights, StreamScales

from .errors import TrainingError
from .network import BitFCN, ResidualBlock, Stream
from .quantizers import FLOAT_BITS, ActivationQuantizer

UNFOLDED_BOUND = 3.0
"""Clipping bound of feature maps where the file leaves the choice: that of maps of about unit variance."""

INSIDE = 1 - 2**-10
"""Unfolded weights are this much smaller than their levels: at the outermost level itself they had no gradient."""


def connections(architecture):
    """Which quantiser every convolution reads from and rounds to, and what every stream adds.

    Parameters
    ----------
    architecture : bitseg.architecture.Architecture

    Returns
    -------
    convolutions : dict of str to (str or None, str or None)
        Names of the `ActivationQuantizer` of its input and of its output; None for the image and the scores.
    shortcuts : dict of str to (str or None)
        For every `Stream`, in order of execution, the one that is added to it; None where nothing is.
    """
    stem = "encoder.stem_output"
    carried = "stream_quantizer" if architecture.carries_stream else "activation_quantizer"
    convolutions, shortcuts = {"encoder.stem": (None, f"{stem}.stream_quantizer")}, {stem: None}

    def add_block(block, incoming):
        output = f"{block.name}.output"
        source = f"{incoming}.activation_quantizer"
        for index, name in enumerate(block.convolutions[:-1], 1):
            target = f"{block.name}.activation{index}"
            convolutions[name] = source, target
            source = target
        convolutions[block.convolutions[-1]] = source, f"{output}.stream_quantizer"
        if block.projection is not None:
            convolutions[block.projection] = f"{incoming}.{carried}", f"{output}.stream_quantizer"
        shortcuts[output] = incoming if block.projection is None else None
        return output

    stream = stem
    for stride, stage in zip(STRIDES, architecture.stages()):
        for block in stage:
            stream = add_block(block, stream)
        branch = f"branch{stride}"
        features = f"{stream}.{carried}"
        if architecture.reconstruction == "residual_block":
            convolutions[f"{branch}.reduce"] = features, f"{branch}.reduce_output.stream_quantizer"
            shortcuts[f"{branch}.reduce_output"] = None
            refined = add_block(architecture.branch_block(stride), f"{branch}.reduce_output")
            convolutions[f"{branch}.classifier"] = f"{refined}.activation_quantizer", None
        else:
            convolutions[f"{branch}.reduce"] = features, f"{branch}.reduce_activation"
            convolutions[f"{branch}.conv"] = f"{branch}.reduce_activation", f"{branch}.output"
            convolutions[f"{branch}.classifier"] = f"{branch}.output", None
    return convolutions, shortcuts


@torch.no_grad()
def fold_network(network, preprocessing):
    """Fold all layers of a quantised network.

    Parameters
    ----------
    network : BitFCN
        With 1 to 8 bits for weights and for activations.
    preprocessing : bitseg.architecture.Preprocessing
        Folded into the first layer.

    Returns
    -------
    layers : dict of str to bitseg.model_file.LayerWeights
    streams : dict of str to bitseg.model_file.StreamScales

    Raises
    ------
    TrainingError
        Weights or feature maps are in floating point.
    """
    if FLOAT_BITS in (network.architecture.weight_bits, network.architecture.activation_bits):
        raise TrainingError("weights or feature maps are in floating point: take the checkpoint of a stage with bits")
    convolutions, shortcuts = connections(network.architecture)
    steps = {name: module.step() for name, module in network.named_modules() if isinstance(module, ActivationQuantizer)}
    for name, module in network.named_modules():
        if isinstance(module, Stream) and module.rounds_once:
            steps[f"{name}.activation_quantizer"] = steps[f"{name}.stream_quantizer"]

    layers, streams = {}, {}
    for name, (source, target) in convolutions.items():
        input_step = 1 / preprocessing.scale if source is None else steps[source]
        output_step = 1.0 if target is None else steps[target]
        mean = preprocessing.mean if source is None else (0,)
        layers[name] = fold_convolution(network.get_submodule(name), input_step, output_step, mean)
    for name, incoming in shortcuts.items():
        step = steps[f"{name}.stream_quantizer"]
        shortcut = 0.0 if incoming is None else steps[f"{incoming}.stream_quantizer"] / step
        streams[name] = StreamScales(np.float32(shortcut), np.float32(step / steps[f"{name}.activation_quantizer"]))
    return layers, streams


def fold_convolution(layer, input_step, output_step, mean=(0,)):
    """Fold one convolution with its BatchNorm or bias.

    Parameters
    ----------
    layer : BitConv
    input_step, output_step : float
        Real value of one code of the input and of the output.
    mean : sequence of int
        Input code that stands for zero, for every channel.

    Returns
    -------
    bitseg.model_file.LayerWeights
    """
    codes = layer.weight_quantizer.codes(layer.conv.weight).cpu().numpy()
    gain = layer.weight_quantizer.scale(layer.conv.weight).double().cpu().numpy() * input_step
    shift = -gain * _response(codes, layer.weight_quantizer.levels, mean)
    if layer.conv.bias is not None:
        shift += layer.conv.bias.double().cpu().numpy()
    else:
        norm = layer.norm
        gain_after, bias, average, variance = (
            tensor.double().cpu().numpy() for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        factor = gain_after / np.sqrt(variance + norm.eps)
        shift = (shift - average) * factor + bias
        gain = gain * factor
    return LayerWeights(
        np.ascontiguousarray(codes.transpose(0, 2, 3, 1).astype(np.uint8)),
        (gain / output_step).astype(np.float32),
        (shift / output_step).astype(np.float32),
    )


class FoldedConvolution(nn.Module):
    """A convolution as the model file has it: exact integer sums, and ``t * multiplier + offset`` in float32.

    Parameters
    ----------
    weights : bitseg.model_file.LayerWeights
    convolution : bitseg.architecture.Convolution
    preprocessing : bitseg.architecture.Preprocessing or None
        Of the first layer, whose input is the normalised image instead of codes.
    """

    def __init__(self, weights, convolution, preprocessing=None):
        super().__init__()
        levels = 2**convolution.weight_bits - 1
        codes = weights.codes.transpose(0, 3, 1, 2).astype(np.int64)
        # Integers are exact, in whatever order they are added, as long as the mantissa holds every sum.
        exact = torch.float32 if convolution.largest_sum < 2**24 else torch.float64
        self.register_buffer("weight", torch.from_numpy(2 * codes - levels).to(exact))
        self.register_buffer("multiplier", torch.from_numpy(weights.multiplier).view(-1, 1, 1))
        self.register_buffer("offset", torch.from_numpy(weights.offset).view(-1, 1, 1))
        self.stride, self.padding, self.input_scale = convolution.stride, convolution.padding, 1.0
        if preprocessing is not None:
            # The file's sums are those of the image itself, in a border of the mean colour.
            self.input_scale = preprocessing.scale
            response = torch.from_numpy(_response(codes, levels, preprocessing.mean))
            self.register_buffer("response", response.to(exact).view(-1, 1, 1))

    def forward(self, x):
        codes = (x * self.input_scale).round().to(self.weight.dtype)
        sums = F.conv2d(codes, self.weight, None, self.stride, self.padding)
        if hasattr(self, "response"):
            sums = sums + self.response
        return sums.float() * self.multiplier + self.offset


class FoldedRounding(nn.Module):
    """``rint(clip(x * multiplier, 0, levels))``: codes, as float32."""

    def __init__(self, bits, multiplier=1.0):
        super().__init__()
        self.bits, self.levels, self.multiplier = bits, 2**bits - 1, float(multiplier)

    def forward(self, x):
        return (x * self.multiplier).clamp(0, self.levels).round()


@torch.no_grad()
def folded(network, preprocessing):
    """A quantised network that computes in codes, with the integers and the float32 expressions of the engine.

    `BitFCN` itself computes with real values, whose floating-point sums differ in their last bits from one order of
    adding to another. A code beside a step then becomes another one, and low-bit networks can carry that on until much
    of a mask has changed. This one has the codes of the converted model.

    Parameters
    ----------
    network : BitFCN
        With 1 to 8 bits for weights and for activations; it stays as it is.
    preprocessing : bitseg.architecture.Preprocessing

    Returns
    -------
    BitFCN
        In evaluation mode; it cannot be trained.
    """
    return in_codes(network, *fold_network(network, preprocessing), preprocessing)


def in_codes(network, layers, streams, preprocessing):
    """The network of `folded`, with the folded `layers` and `streams` given; `network` says what it consists of."""
    device = next(network.parameters()).device
    result = copy.deepcopy(network).cpu().eval()
    for name, module in list(result.named_modules()):
        if isinstance(module, ActivationQuantizer):
            result.set_submodule(name, FoldedRounding(module.bits))
    sources, _ = connections(result.architecture)
    for name, convolution in result.architecture.convolutions().items():
        of_image = preprocessing if sources[name][0] is None else None
        result.set_submodule(name, FoldedConvolution(layers[name], convolution, of_image))
    for name, scales in streams.items():
        stream = result.get_submodule(name)
        stream.activation_quantizer = FoldedRounding(stream.activation_quantizer.bits, scales.activation_multiplier)
        block = result.get_submodule(name.rpartition(".")[0])
        if isinstance(block, ResidualBlock):
            block.shortcut_multiplier = float(scales.shortcut_multiplier)
    return result.to(device)


@torch.no_grad()
def unfold_network(model):
    """Rebuild a network that computes what a model file says, up to the rounding of floating-point sums.

    BatchNorm comes back with mean 0 and variance 1: in evaluation mode the function is the file's; before training
    goes on, `initialize.estimate_statistics` gives it statistics.

    Parameters
    ----------
    model : bitseg.model_file.Model

    Returns
    -------
    BitFCN
        In evaluation mode, at the bits of the file.

    Raises
    ------
    TrainingError
        The scales of its streams are not those of a `BitFCN`: the file comes from another converter.
    """
    network = BitFCN(model.architecture)
    network.set_bits(model.architecture.weight_bits, model.architecture.activation_bits)
    network.eval()
    convolutions, shortcuts = connections(model.architecture)
    # Only ratios of steps are in the file: a stream that adds nothing and an inner activation may have any step.
    steps = {}
    for name, incoming in shortcuts.items():
        scales, quantizer = model.streams[name], f"{name}.stream_quantizer"
        reads_stream = network.get_submodule(name).rounds_once
        if (
            scales.activation_multiplier <= 0
            or (reads_stream and scales.activation_multiplier != 1)
            or (incoming is not None and scales.shortcut_multiplier <= 0)
        ):
            raise TrainingError(f"model '{model.name}': the scales of {name} have no counterpart in the training code")
        if incoming is None:
            steps[quantizer] = UNFOLDED_BOUND / network.get_submodule(quantizer).levels
        else:
            steps[quantizer] = steps[f"{incoming}.stream_quantizer"] / float(scales.shortcut_multiplier)
        steps[f"{name}.activation_quantizer"] = steps[quantizer] / float(scales.activation_multiplier)
    for _, target in convolutions.values():
        if target is not None and target not in steps:
            steps[target] = UNFOLDED_BOUND / network.get_submodule(target).levels

    for name, step in steps.items():
        quantizer = network.get_submodule(name)
        quantizer.log_bound.fill_(math.log(step * quantizer.levels))
    for name, (source, target) in convolutions.items():
        input_step = 1 / model.preprocessing.scale if source is None else steps[source]
        output_step = 1.0 if target is None else steps[target]
        mean = model.preprocessing.mean if source is None else (0,)
        unfold_convolution(network.get_submodule(name), model.layers[name], input_step, output_step, mean)
    return network


def unfold_convolution(layer, weights, input_step, output_step, mean=(0,)):
    """Set one convolution with its BatchNorm or bias so that `fold_convolution` gives the weights back.

    Parameters
    ----------
    layer : BitConv
    weights : bitseg.model_file.LayerWeights
    input_step, output_step, mean :
        As for `fold_convolution`.
    """
    levels = layer.weight_quantizer.levels
    codes = weights.codes.transpose(0, 3, 1, 2).astype(np.int64)
    gain = weights.multiplier.astype(np.float64) * output_step
    shift = weights.offset.astype(np.float64) * output_step + gain * _response(codes, levels, mean)
    if layer.conv.bias is not None:
        # Nothing but the scale can carry the multiplier here, and it is positive: a negative one turns the codes round.
        codes = np.where(gain[:, None, None, None] < 0, levels - codes, codes)
        scale = np.maximum(np.abs(gain) / input_step, np.finfo(np.float32).tiny)
        layer.conv.bias.copy_(torch.from_numpy(shift))
    else:
        # Variance 2 / window, as He et al. 2015 initialise, suits the learning rates.
        scale = np.sqrt(2 / codes[0].size / np.square(2 * codes - levels).mean((1, 2, 3)))
        layer.norm.running_mean.zero_()
        layer.norm.running_var.fill_(1 - layer.norm.eps)
        layer.norm.weight.copy_(torch.from_numpy(gain / (scale * input_step)))
        layer.norm.bias.copy_(torch.from_numpy(shift))
    layer.conv.weight.copy_(torch.from_numpy((2 * codes - levels) * scale[:, None, None, None] * INSIDE))
    layer.weight_quantizer.log_scale.copy_(torch.from_numpy(np.log(scale)))


def _response(codes, levels, mean):
    """Integer sum of every filter over an input of constant colour, shape (out_channels,)."""
    return ((2 * codes - levels).sum((2, 3)) * np.asarray(mean)).sum(1)
