"""The bit fully convolutional network: ResNet encoder, Laplacian refinement decoder (PyTorch).

Names of modules are the layer names of the converted model file. `bitseg/network/reference.py` states what the
same network computes once its quantisers and BatchNorm are folded into integers.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bitseg.architecture import ENCODERS, Architecture

from .quantizers import FLOAT_BITS, ActivationQuantizer, WeightQuantizer

FIXED_BITS = 8
"""Weights of the first layer and of the classifiers have 8 bits whenever the network is quantised."""

GATE_WINDOW = 9


class BitConv(nn.Module):
    """Convolution with quantised weights, followed by BatchNorm unless it carries a bias."""

    def __init__(self, in_channels, out_channels, kernel=1, stride=1, bias=False, fixed=False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=bias)
        self.weight_quantizer = WeightQuantizer(out_channels)
        self.norm = nn.Identity() if bias else nn.BatchNorm2d(out_channels)
        self.fixed = fixed

    def forward(self, x):
        weight = self.weight_quantizer(self.conv.weight)
        return self.norm(F.conv2d(x, weight, self.conv.bias, self.conv.stride, self.conv.padding))


class Stream(nn.Module):
    """End of a residual block: ReLU, rounding to the stream's bits, and from there to the convolutions' bits.

    Returns both: the stream that the next block adds to, and the activation that its convolutions read.
    """

    def __init__(self):
        super().__init__()
        self.stream_quantizer = ActivationQuantizer()
        self.activation_quantizer = ActivationQuantizer()

    def forward(self, x):
        stream = self.stream_quantizer(x)
        if self.stream_quantizer.bits == self.activation_quantizer.bits:
            return stream, stream
        return stream, self.activation_quantizer(stream)


class Bottleneck(nn.Module):
    """ResNet-50 block: 1x1, 3x3, 1x1 convolutions; stride 2 is on the first."""

    def __init__(self, in_channels, planes, out_channels, stride):
        super().__init__()
        self.conv1 = BitConv(in_channels, planes, 1, stride)
        self.activation1 = ActivationQuantizer()
        self.conv2 = BitConv(planes, planes, 3)
        self.activation2 = ActivationQuantizer()
        self.conv3 = BitConv(planes, out_channels, 1)
        self.downsample = BitConv(in_channels, out_channels, 1, stride) if in_channels != out_channels else None
        self.output = Stream()

    def forward(self, stream, activation):
        y = self.activation1(self.conv1(activation))
        y = self.activation2(self.conv2(y))
        y = self.conv3(y)
        return self.output(y + (stream if self.downsample is None else self.downsample(activation)))


class BasicBlock(nn.Module):
    """ResNet-18 and 34 block: two 3x3 convolutions; also the residual block of a decoder branch."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv1 = BitConv(in_channels, out_channels, 3, stride)
        self.activation1 = ActivationQuantizer()
        self.conv2 = BitConv(out_channels, out_channels, 3)
        needs_projection = stride != 1 or in_channels != out_channels
        self.downsample = BitConv(in_channels, out_channels, 1, stride) if needs_projection else None
        self.output = Stream()

    def forward(self, stream, activation):
        y = self.conv2(self.activation1(self.conv1(activation)))
        return self.output(y + (stream if self.downsample is None else self.downsample(activation)))


class Encoder(nn.Module):
    """ResNet: 8-bit stem, 3x3 max-pooling that pads right and below only, four stages at strides 4 to 32."""

    def __init__(self, architecture):
        super().__init__()
        kind, blocks = ENCODERS[architecture.encoder]
        self.stem = BitConv(3, architecture.stem_channels, 7, 2, fixed=True)
        self.stem_output = Stream()
        in_channels = architecture.stem_channels
        for stage, (count, channels) in enumerate(zip(blocks, architecture.stage_channels)):
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                if kind == "bottleneck":
                    layers.append(Bottleneck(in_channels, channels // 4, channels, stride))
                else:
                    layers.append(BasicBlock(in_channels, channels, stride))
                in_channels = channels
            setattr(self, f"stage{stage + 1}", nn.ModuleList(layers))

    def forward(self, image):
        x = F.max_pool2d(F.pad(self.stem(image).relu(), (0, 1, 0, 1)), 3, 2)
        stream, activation = self.stem_output(x)
        features = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            for block in stage:
                stream, activation = block(stream, activation)
            features.append(activation)
        return features


class Branch(nn.Module):
    """Decoder branch of one scale: 1x1 reduction, residual block, 8-bit 1x1 classifier."""

    def __init__(self, in_channels, channels, classes):
        super().__init__()
        self.reduce = BitConv(in_channels, channels)
        self.reduce_output = Stream()
        self.block = BasicBlock(channels, channels)
        self.classifier = BitConv(channels, classes, bias=True, fixed=True)

    def forward(self, activation):
        stream, activation = self.block(*self.reduce_output(self.reduce(activation)))
        return self.classifier(stream)


def upsample2x(scores):
    """Bilinear upsampling by two, sample positions at pixel centres."""
    return F.interpolate(scores, scale_factor=2, mode="bilinear", align_corners=False)


def boundary_gate(scores):
    """Dilation minus erosion of the class probabilities in a 9x9 window: near 1 at class boundaries, 0 inside."""
    probabilities = scores.softmax(1)
    padding = GATE_WINDOW // 2
    return F.max_pool2d(probabilities, GATE_WINDOW, 1, padding) + F.max_pool2d(-probabilities, GATE_WINDOW, 1, padding)


class BitFCN(nn.Module):
    """The whole network: image in, class scores at strides 32, 16, 8 and 4 out.

    Input: float tensor (batch, 3, height, width), RGB minus the mean colour, divided by the scale of
    `bitseg.architecture.Preprocessing`; height and width multiples of 32.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        classes = len(architecture.classes)
        for stride, in_channels, channels in zip(
            (4, 8, 16, 32), architecture.stage_channels, architecture.branch_channels
        ):
            setattr(self, f"branch{stride}", Branch(in_channels, channels, classes))
        self.set_bits(FLOAT_BITS, FLOAT_BITS)

    def forward(self, image, scales=(32, 16, 8, 4)):
        """Scores of the given scales: a dict of float32 tensors (batch, classes, height / scale, width / scale)."""
        features = dict(zip((4, 8, 16, 32), self.encoder(image)))
        results = {}
        scores = None
        for stride in (32, 16, 8, 4):
            if stride < min(scales):
                break
            branch = getattr(self, f"branch{stride}")(features[stride]).float()
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
        """Set the bit widths of all layers; the stem, classifiers and 8-bit streams keep 8 while quantised."""
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        quantised = activation_bits != FLOAT_BITS
        stream_bits = FLOAT_BITS
        if quantised:
            stream_bits = self.architecture.stream_bits or activation_bits
        for module in self.modules():
            if isinstance(module, BitConv):
                fixed = module.fixed and weight_bits != FLOAT_BITS
                module.weight_quantizer.bits = FIXED_BITS if fixed else weight_bits
            elif isinstance(module, Stream):
                module.stream_quantizer.bits = stream_bits
                module.activation_quantizer.bits = activation_bits
            elif isinstance(module, (Bottleneck, BasicBlock)):
                module.activation1.bits = activation_bits
                if isinstance(module, Bottleneck):
                    module.activation2.bits = activation_bits

    @torch.no_grad()
    def calibrate(self, images):
        """Set every quantiser's scale from the weights and one batch of images; BatchNorm keeps its statistics."""
        for module in self.modules():
            if isinstance(module, BitConv) and module.weight_quantizer.bits != FLOAT_BITS:
                module.weight_quantizer.calibrate(module.conv.weight)
        quantizers = [module for module in self.modules() if isinstance(module, ActivationQuantizer)]
        for quantizer in quantizers:
            quantizer.calibrating = True
        was_training = self.training
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        self.train()
        self(images)
        self.train(was_training)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for quantizer in quantizers:
            quantizer.calibrating = False
