"""Where a network's weights come from at the start: a pretrained ResNet, a checkpoint, or a converted model file."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bitseg.model_file import read_model

from . import distributed
from .checkpoint import load_network
from .errors import TrainingError
from .folding import unfold_network
from .network import BitConv

_BITS_OF_STREAM = "stream_bits", "stream_weight_bits"

_MAY_DIFFER = {"classes", "reconstruction", "weight_bits", "activation_bits", *_BITS_OF_STREAM, "working_size"}
"""Entries of architecture and preprocessing in which a run may differ from what it starts from."""


@torch.no_grad()
def load_start(network, path, preprocessing, images):
    """Take all weights from a checkpoint or a converted model file.

    What `path` lacks keeps its random weights: the classifiers if the classes differ, the branches if the
    reconstruction does; a line on stderr says so. Bits and scales come along if all of it is there and the residual
    stream is to have the same bits: otherwise the network stays in floating point, for the first stage to calibrate.

    Parameters
    ----------
    network : BitFCN
        At 32 bits.
    path : path
        Checkpoint, or model file whose name ends in ``.h5``.
    preprocessing : Preprocessing
        Of the run; mean and scale must be those of `path`.
    images : float tensor, shape (batch, 3, height, width)
        Network input that gives BatchNorm its statistics back, which a model file lacks.

    Raises
    ------
    ModelFileError, TrainingError
        The file cannot be used, or its encoder or branches have other sizes.
    """
    start, start_preprocessing = load_trained(path)
    found = {**vars(start.architecture), **vars(start_preprocessing)}
    wanted = {**vars(network.architecture), **vars(preprocessing)}
    require_same(path, found, wanted, sorted(set(wanted) - _MAY_DIFFER))
    own, trained = network.state_dict(), start.state_dict()
    taken = {name: trained[name] for name in own if name in trained and trained[name].shape == own[name].shape}
    if found["classes"] != wanted["classes"]:
        taken = {name: value for name, value in taken.items() if ".classifier." not in name}
    network.load_state_dict(own | taken)
    untrained = sorted({name.rpartition(".conv.")[0] for name in set(own) - set(taken) if name.endswith("conv.weight")})
    if untrained:
        distributed.report(f"{path} does not hold these layers, which begin untrained: {', '.join(untrained)}")
    same_stream = all(found[entry] == wanted[entry] for entry in _BITS_OF_STREAM)
    if own.keys() == trained.keys() == taken.keys() and same_stream:
        network.set_bits(start.architecture.weight_bits, start.architecture.activation_bits)
    if is_model_file(path):
        estimate_statistics(network, images)


def require_same(path, found, wanted, entries):
    """Make sure that what a file holds is what the configuration asks for.

    Parameters
    ----------
    path : path
    found, wanted : dict
        Entries of the file's and of the run's architecture or preprocessing.
    entries : sequence of str
        What must agree.

    Raises
    ------
    TrainingError
        Something does not.
    """
    for entry in entries:
        if found[entry] != wanted[entry]:
            raise TrainingError(
                f"{path}: its {entry} is {found[entry]!r}, but the configuration's is {wanted[entry]!r}"
            )


def load_trained(path):
    """The network of a checkpoint or of a converted model file, in evaluation mode.

    Parameters
    ----------
    path : path
        Checkpoint, or model file whose name ends in ``.h5``.

    Returns
    -------
    network : BitFCN
        At its own bits.
    preprocessing : bitseg.architecture.Preprocessing

    Raises
    ------
    ModelFileError, TrainingError
        The file cannot be used.
    """
    if is_model_file(path):
        model = read_model(path)
        return unfold_network(model), model.preprocessing
    network, config, _ = load_network(path)
    return network, config.preprocessing


def is_model_file(path):
    """Whether a path is that of a converted model, not of a checkpoint."""
    return Path(path).suffix == ".h5"


@torch.no_grad()
def load_pretrained_encoder(network, path, images, input_scale):
    """Load a folded ResNet into the encoder without changing the function it computes.

    Every convolution is followed by a BatchNorm whose statistics come from one batch of images and whose affine part
    undoes them. Filters and feature maps are then brought to about unit scale, which BatchNorm and the linearity of
    the residual stream allow, so that one learning rate suits all layers.

    Parameters
    ----------
    network : BitFCN
        At 32 bits.
    path : path
        ``.npz`` with torchvision's names (``layer1.0.conv1.weight``, ``.bias``), BGR input in 0 to 255, the
        projections named ``downsample``.
    images : float tensor, shape (batch, 3, height, width)
        From `data.normalise`.
    input_scale : float
        What the input was divided by.

    Raises
    ------
    TrainingError
        The file is missing, or holds another network.
    """
    encoder = network.encoder
    layers = {"conv1": encoder.stem}
    for number, stage in enumerate(encoder.stages, 1):
        for index, block in enumerate(stage):
            layers |= {
                f"layer{number}.{index}.{name}": layer
                for name, layer in block.named_children()
                if isinstance(layer, BitConv)
            }
    weights = _read_folded_resnet(path, layers)
    # The file's input is BGR minus the mean; the network's is RGB minus the mean, divided by the scale.
    weights["conv1.weight"] = weights["conv1.weight"].flip(1) * input_scale
    for name, layer in layers.items():
        layer.conv.weight.copy_(weights[f"{name}.weight"])
        layer.norm.running_var.fill_(1 - layer.norm.eps)
        layer.norm.bias.copy_(weights[f"{name}.bias"])
    estimate_statistics(encoder, images)
    _equalise(encoder)


@torch.no_grad()
def estimate_statistics(module, images):
    """Set the statistics of every BatchNorm from one batch; the affine part changes so that the function does not.

    Parameters
    ----------
    module : BitFCN or Encoder
    images : float tensor, shape (batch, 3, height, width)
        Input of the module.
    """

    def put_statistics(norm, inputs):
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), unbiased=False)
        with _affine_compensates(norm):
            norm.running_var.copy_(variance)
        # gain * (x - old mean) + bias = gain * (x - mean) + gain * (mean - old mean) + bias
        gain = norm.weight / (variance + norm.eps).sqrt()
        norm.bias.add_(gain * (mean - norm.running_mean))
        norm.running_mean.copy_(mean)

    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(put_statistics) for norm in norms]
    was_training = module.training
    module.eval()
    module(images)
    module.train(was_training)
    for hook in hooks:
        hook.remove()


@contextmanager
def _affine_compensates(norm):
    """Keep the gain of a BatchNorm while its variance changes."""
    before = (norm.running_var + norm.eps).sqrt()
    yield
    norm.weight.mul_((norm.running_var + norm.eps).sqrt() / before)


def _read_folded_resnet(path, layers):
    """Weights and biases of the given layers: a dict of float32 tensors, names and shapes checked."""
    try:
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file of pretrained weights") from None
    except Exception as error:  # NumPy raises many types on damaged files
        raise TrainingError(f"{path}: not an .npz file of pretrained weights ({error})") from None
    for name, layer in layers.items():
        shapes = {f"{name}.weight": layer.conv.weight.shape, f"{name}.bias": layer.norm.bias.shape}
        for entry, shape in shapes.items():
            if entry not in arrays or arrays[entry].shape != shape:
                found = tuple(arrays[entry].shape) if entry in arrays else "missing"
                raise TrainingError(
                    f"{path}: {entry} is {found}, but the configured encoder needs {tuple(shape)}; "
                    "change encoder, stem_channels and stage_channels"
                )
    return arrays


def _equalise(encoder):
    """Bring filters and feature maps to about unit scale; the function stays the same."""

    def scale_output(norm, factor):
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)

    def scale_input(norm, factor):
        # What BatchNorm sees grows by the factor: its statistics follow, and the affine part makes up for epsilon.
        with _affine_compensates(norm):
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor**2)
        norm.weight.div_(factor)

    def scale_filters(layer):
        filters = layer.conv.weight.flatten(1)
        gain = (2.0 / filters[0].numel()) ** 0.5 / filters.std(1).clamp(min=1e-12)
        gain[filters.abs().amax(1) == 0] = 1
        layer.conv.weight.mul_(gain.view(-1, 1, 1, 1))
        scale_input(layer.norm, gain)

    def unit(norm):
        return float(1 / norm.weight.square().mean().sqrt())

    incoming = unit(encoder.stem.norm)
    scale_output(encoder.stem.norm, incoming)
    for stage in encoder.stages:
        projection = stage[0].downsample
        outgoing = incoming if projection is None else unit(projection.norm)
        for block in stage:
            *inner, last = block.convolutions
            factor = incoming
            for layer in inner:
                scale_input(layer.norm, factor)
                factor = unit(layer.norm)
                scale_output(layer.norm, factor)
            scale_input(last.norm, factor)
            scale_output(last.norm, outgoing)
            if block.downsample is not None:
                scale_input(block.downsample.norm, incoming)
                scale_output(block.downsample.norm, outgoing)
            incoming = outgoing
    for layer in encoder.modules():
        if isinstance(layer, BitConv):
            scale_filters(layer)
