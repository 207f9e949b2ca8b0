"""Starting weights: a pretrained ResNet with BatchNorm folded away, put behind BatchNorm again."""

import numpy as np
import torch
from torch import nn


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
        ``.npz`` with torchvision's names (``layer1.0.conv1.weight``, ``.bias``), BGR input in 0 to 255.
    images : tensor (batch, 3, height, width)
        Normalised network input.
    input_scale : float
        What the input was divided by.
    """
    arrays = {name: torch.from_numpy(value.astype(np.float32)) for name, value in np.load(path).items()}
    # The file's input is BGR minus the mean; the network's is RGB minus the mean, divided by the scale.
    arrays["conv1.weight"] = arrays["conv1.weight"].flip(1)

    encoder = network.encoder
    layers = {"conv1": encoder.stem}
    for stage in range(1, 5):
        for index, block in enumerate(getattr(encoder, f"stage{stage}")):
            for name in ("conv1", "conv2", "conv3", "downsample"):
                if getattr(block, name) is not None:
                    layers[f"layer{stage}.{index}.{name}"] = getattr(block, name)

    def put_norm_back(norm, inputs):
        x = inputs[0]
        variance, mean = torch.var_mean(x, (0, 2, 3), unbiased=False)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(folded_bias[norm] + mean)

    folded_bias = {}
    hooks = []
    for name, layer in layers.items():
        layer.conv.weight.copy_(arrays[f"{name}.weight"])
        if name == "conv1":
            layer.conv.weight.mul_(input_scale)
        folded_bias[layer.norm] = arrays[f"{name}.bias"]
        hooks.append(layer.norm.register_forward_pre_hook(put_norm_back))
    training = network.training
    network.eval()
    encoder(images)
    network.train(training)
    for hook in hooks:
        hook.remove()
    _equalise(encoder)


@torch.no_grad()
def _equalise(encoder):
    """Bring filters and feature maps to about unit scale; the function stays the same."""

    def scale_output(norm, factor):
        norm.weight.mul_(factor)
        norm.bias.mul_(factor)

    def scale_filters(layer):
        filters = layer.conv.weight.flatten(1)
        gain = (2.0 / filters[0].numel()) ** 0.5 / filters.std(1).clamp(min=1e-12)
        gain[filters.abs().amax(1) == 0] = 1
        layer.conv.weight.mul_(gain.view(-1, 1, 1, 1))
        layer.norm.running_mean.mul_(gain)
        layer.norm.running_var.mul_(gain.square())

    def scale_input(layer, factor):
        # The input shrinks by the factor and BatchNorm sees it: its statistics follow.
        layer.norm.running_mean.mul_(factor)
        layer.norm.running_var.mul_(factor**2)

    def unit(norm):
        return float(1 / norm.weight.square().mean().sqrt())

    incoming = unit(encoder.stem.norm)
    scale_output(encoder.stem.norm, incoming)
    for stage in (encoder.stage1, encoder.stage2, encoder.stage3, encoder.stage4):
        outgoing = unit(stage[0].downsample.norm)
        for index, block in enumerate(stage):
            entering = incoming if index == 0 else outgoing
            inner = [unit(block.conv1.norm), unit(block.conv2.norm)]
            scale_input(block.conv1, entering)
            scale_output(block.conv1.norm, inner[0])
            scale_input(block.conv2, inner[0])
            scale_output(block.conv2.norm, inner[1])
            scale_input(block.conv3, inner[1])
            scale_output(block.conv3.norm, outgoing)
            if block.downsample is not None:
                scale_input(block.downsample, entering)
                scale_output(block.downsample.norm, outgoing)
        incoming = outgoing
    for module in encoder.modules():
        if hasattr(module, "weight_quantizer") and isinstance(module.norm, nn.BatchNorm2d):
            scale_filters(module)
