"""The bit fully convolutional network: ResNet encoder, Laplacian refinement decoder (PyTorch).

Shapes and names come from `bitseg.architecture`; a module is named as its layer in the converted model file.
`bitseg/network/reference.py` states what the same network computes once its quantisers and BatchNorm are folded into
integers.
"""

from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bitseg.architecture import STRIDES
from bitseg.network.graph import GATE_RADIUS

from .quantizers import FLOAT_BITS, QUANTIZERS, ActivationQuantizer, Quantizer, WeightQuantizer


class BitConv(nn.Module):
    """Convolution with quantised weights, followed by BatchNorm, or by a bias alone.

    Parameters
    ----------
    convolution : bitseg.architecture.Convolution
        Shape; the bits are set by `BitFCN.set_bits`.
    weight_quantizer : type
        Makes the quantiser of its weights.
    bias : bool
        A bias instead of BatchNorm.
    """

    def __init__(self, convolution, weight_quantizer=WeightQuantizer, bias=False):
        super().__init__()
        shape = convolution.in_channels, convolution.out_channels, convolution.kernel, convolution.stride
        self.conv = nn.Conv2d(*shape, convolution.padding, bias=bias)
        self.weight_quantizer = weight_quantizer(convolution.out_channels)
        self.norm = nn.Identity() if bias else nn.BatchNorm2d(convolution.out_channels)

    def forward(self, x):
        weight = self.weight_quantizer(self.conv.weight)
        return self.norm(F.conv2d(x, weight, self.conv.bias, self.conv.stride, self.conv.padding))

    @torch.no_grad()
    def freeze(self):
        """Round the weights for good, and let them and a bias do what BatchNorm does in evaluation mode."""
        weight, norm = self.weight_quantizer(self.conv.weight), self.norm
        if isinstance(norm, nn.BatchNorm2d):
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            weight, self.conv.bias = fuse_conv_bn_weights(weight, None, *statistics)
            self.norm = nn.Identity()
        self.conv.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_quantizer.bits = FLOAT_BITS


class Stream(nn.Module):
    """End of a residual block: ReLU, rounding to the stream's bits, and from there to the convolutions' bits.

    Returns both: the stream that the next block adds to, and the activation that its convolutions read.
    """

    def __init__(self, activation_quantizer):
        super().__init__()
        self.stream_quantizer = activation_quantizer()
        self.activation_quantizer = activation_quantizer()

    @property
    def rounds_once(self):
        """Whether the stream has the convolutions' bits and is read as it is."""
        return self.stream_quantizer.bits == self.activation_quantizer.bits

    def forward(self, x):
        stream = self.stream_quantizer(x)
        return stream, stream if self.rounds_once else self.activation_quantizer(stream)


class ResidualBlock(nn.Module):
    """Residual block of two 3x3 convolutions, or of 1x1, 3x3 and 1x1; stride 2 is on the first.

    Parameters
    ----------
    block : bitseg.architecture.Block
    architecture : bitseg.architecture.Architecture
    quantizers : (type, type)
        A value of `quantizers.QUANTIZERS`.
    """

    def __init__(self, block, architecture, quantizers):
        super().__init__()
        weights, activations = quantizers
        convolutions = architecture.convolutions()
        self.projects_stream = architecture.carries_stream
        self.inner = range(1, len(block.convolutions))
        for index in self.inner:
            self.add_module(f"conv{index}", BitConv(convolutions[block.convolutions[index - 1]], weights))
            self.add_module(f"activation{index}", activations())
        self.add_module(f"conv{len(block.convolutions)}", BitConv(convolutions[block.convolutions[-1]], weights))
        self.downsample = BitConv(convolutions[block.projection], weights) if block.projection else None
        self.output = Stream(activations)
        self.shortcut_multiplier = 1.0  # another where `folding.folded` counts in codes

    @property
    def convolutions(self):
        """The convolutions in order, without the projection."""
        return [getattr(self, f"conv{index}") for index in (*self.inner, len(self.inner) + 1)]

    def forward(self, stream, activation):
        *inner, last = self.convolutions
        y = activation
        for index, convolution in zip(self.inner, inner):
            y = getattr(self, f"activation{index}")(convolution(y))
        if self.downsample is None:
            shortcut = stream if self.shortcut_multiplier == 1 else stream * self.shortcut_multiplier
        else:
            shortcut = self.downsample(stream if self.projects_stream else activation)
        return self.output(last(y) + shortcut)


class Encoder(nn.Module):
    """ResNet: 8-bit stem, 3x3 max-pooling that pads right and below only, four stages at strides 4 to 32."""

    def __init__(self, architecture, quantizers):
        super().__init__()
        self.features_are_stream = architecture.carries_stream
        self.stem = BitConv(architecture.convolutions()["encoder.stem"])
        self.stem_output = Stream(quantizers[1])
        for number, blocks in enumerate(architecture.stages(), 1):
            stage = nn.ModuleList(ResidualBlock(block, architecture, quantizers) for block in blocks)
            self.add_module(f"stage{number}", stage)

    @property
    def stages(self):
        """The four stages, fine to coarse: lists of `ResidualBlock`."""
        return [self.stage1, self.stage2, self.stage3, self.stage4]

    def forward(self, image):
        # Windows ignore what is beyond the edge; with ReLU after them, as if it were the zeros of the engine.
        x = F.max_pool2d(self.stem(image), 3, 2, ceil_mode=True).relu()
        stream, activation = self.stem_output(x)
        features = []
        for stage in self.stages:
            for block in stage:
                stream, activation = block(stream, activation)
            features.append(stream if self.features_are_stream else activation)
        return features


class Branch(nn.Module):
    """Decoder branch of one scale: 1x1 reduction, the reconstruction's convolutions, 8-bit 1x1 classifier.

    The reconstruction is a residual block (Wen et al. 2016), or a single 3x3 convolution as in Ghiasi & Fowlkes 2016.
    """

    def __init__(self, architecture, stride, quantizers):
        super().__init__()
        weights, activations = quantizers
        convolutions = architecture.convolutions()
        self.reduce = BitConv(convolutions[f"branch{stride}.reduce"], weights)
        if architecture.reconstruction == "residual_block":
            self.reduce_output = Stream(activations)
            self.block = ResidualBlock(architecture.branch_block(stride), architecture, quantizers)
        else:
            self.reduce_activation = activations()
            self.conv = BitConv(convolutions[f"branch{stride}.conv"], weights)
            self.output = activations()
        self.classifier = BitConv(convolutions[f"branch{stride}.classifier"], bias=True)

    def forward(self, features):
        reduced = self.reduce(features)
        if hasattr(self, "block"):
            _, refined = self.block(*self.reduce_output(reduced))
        else:
            refined = self.output(self.conv(self.reduce_activation(reduced)))
        return self.classifier(refined)


def upsample2x(scores):
    """Bilinear upsampling by two, sample positions at pixel centres."""
    return F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)


def boundary_gate(scores):
    """Dilation minus erosion of the class probabilities in a 9x9 window: near 1 at class boundaries, 0 inside."""

    def dilation(planes):
        # Columns after rows: 18 comparisons instead of 81.
        window = 2 * GATE_RADIUS + 1
        rows = F.max_pool2d(planes, (window, 1), 1, (GATE_RADIUS, 0))
        return F.max_pool2d(rows, (1, window), 1, (0, GATE_RADIUS))

    probabilities = scores.softmax(1)
    return dilation(probabilities) + dilation(-probabilities)


class BitFCN(nn.Module):
    """The whole network: image in, class scores at strides 32, 16, 8 and 4 out.

    It begins in floating point; its `architecture` always names the bits it computes with.

    Parameters
    ----------
    architecture : bitseg.architecture.Architecture
        Its weight and activation bits do not matter.
    quantizer : str
        A key of `quantizers.QUANTIZERS`.

    Attributes
    ----------
    norms_frozen : bool
        Whether BatchNorm keeps its statistics, and normalises by them, in training too.
    """

    def __init__(self, architecture, quantizer="learned"):
        super().__init__()
        self.architecture = architecture
        self.norms_frozen = False
        self.encoder = Encoder(architecture, QUANTIZERS[quantizer])
        for stride in STRIDES:
            self.add_module(f"branch{stride}", Branch(architecture, stride, QUANTIZERS[quantizer]))
        self.set_bits(FLOAT_BITS, FLOAT_BITS)

    def forward(self, image, scales=(32, 16, 8, 4)):
        """Scores of the given scales.

        Parameters
        ----------
        image : float tensor, shape (batch, 3, height, width)
            From `data.normalise`; height and width are multiples of 32.
        scales : sequence of int
            Strides whose scores are wanted; finer branches are not computed.

        Returns
        -------
        dict of int to tensor of float32, shape (batch, classes, height / stride, width / stride)
        """
        features = dict(zip(STRIDES, self.encoder(image)))
        results = {}
        scores = None
        for stride in reversed(STRIDES):
            if stride < min(scales):
                break
            branch = self.get_submodule(f"branch{stride}")(features[stride]).float()
            if scores is None:
                scores = branch
            else:
                coarse = upsample2x(scores)
                with torch.no_grad():
                    gate = boundary_gate(coarse)
                scores = coarse + gate * branch
            if stride in scales:
                results[stride] = scores
        return results

    def set_bits(self, weight_bits, activation_bits):
        """Set the bit widths of all layers; the stem, classifiers and 8-bit streams keep 8 while quantised.

        Parameters
        ----------
        weight_bits, activation_bits : int
            1 to 8, or 32 for floating point.
        """
        self.architecture = replace(self.architecture, weight_bits=weight_bits, activation_bits=activation_bits)
        quantised_feature_maps = activation_bits != FLOAT_BITS
        for module in self.modules():
            if isinstance(module, ActivationQuantizer):
                module.bits = activation_bits
        residual_bits = self.architecture.residual_bits if quantised_feature_maps else FLOAT_BITS
        for name, bits in self.architecture.stream_outputs().items():
            stream = self.get_submodule(name)
            stream.stream_quantizer.bits = residual_bits
            stream.activation_quantizer.bits = (bits or residual_bits) if quantised_feature_maps else FLOAT_BITS
        if self.architecture.reconstruction != "residual_block":
            for stride in STRIDES:
                self.get_submodule(f"branch{stride}.output").bits = residual_bits
        for name, convolution in self.architecture.convolutions().items():
            bits = convolution.weight_bits if weight_bits != FLOAT_BITS else FLOAT_BITS
            self.get_submodule(name).weight_quantizer.bits = bits

    def train(self, mode=True):
        """Switch between training and evaluation, as for every `torch.nn.Module`; frozen BatchNorm stays as it is."""
        super().train(mode)
        if self.norms_frozen:
            for norm in self._norms():
                norm.eval()
        return self

    def round_partly(self, share):
        """Set the `rounded_share` of all quantisers of fewer than 8 bits.

        Parameters
        ----------
        share : float
            0 to 1.
        """
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.rounded_share = share if module.bits < 8 else 1.0

    @torch.no_grad()
    def estimate_norms(self, batches):
        """Set BatchNorm's statistics to their means over some batches; weights and scales do not change.

        Running averages come from augmented photos, and from weights that were still changing. A low-bit network
        suffers from the difference.

        Parameters
        ----------
        batches : iterable of float tensor, shape (batch, 3, height, width)
            From `data.normalise`.

        Source: Nagel et al. 2022, "Overcoming oscillations in quantization-aware training", arXiv 2203.11086.
        """
        with self._normalised_by_batch(momentum=None) as norms:  # None: the mean of all batches
            for norm in norms:
                norm.reset_running_stats()
            for images in batches:
                self(images)

    @torch.no_grad()
    def calibrate(self, images):
        """Set every quantiser's scale from the weights and one batch of images; BatchNorm keeps its statistics.

        Parameters
        ----------
        images : float tensor, shape (batch, 3, height, width)
            From `data.normalise`.
        """
        for module in self.modules():
            if isinstance(module, BitConv) and module.weight_quantizer.bits != FLOAT_BITS:
                module.weight_quantizer.calibrate(module.conv.weight)
        quantizers = [module for module in self.modules() if isinstance(module, ActivationQuantizer)]
        for quantizer in quantizers:
            quantizer.calibrating = True
        with self._normalised_by_batch(momentum=0.0):
            self(images)
        for quantizer in quantizers:
            quantizer.calibrating = False

    def _norms(self):
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    @contextmanager
    def _normalised_by_batch(self, momentum):
        """While it lasts BatchNorm normalises by each batch's statistics, and averages them with this momentum."""
        norms, was_training, was_frozen = self._norms(), self.training, self.norms_frozen
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = momentum
        self.norms_frozen = False
        self.train()
        try:
            yield norms
        finally:
            self.norms_frozen = was_frozen
            self.train(was_training)
            for norm, before in zip(norms, momenta):
                norm.momentum = before
