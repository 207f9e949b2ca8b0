"""What a network costs: multiply-accumulates, bit operations, storage, and the estimates of Wen et al. 2016."""

from dataclasses import dataclass

from .architecture import STRIDES, Convolution
from .network.graph import SIZE_MULTIPLE, STEM

FP32_BITS = 32

FP32_BIT_OPERATIONS = FP32_BITS**2
"""Bit operations that stand for one in fp32: a multiplier on an FPGA grows with the square of its bits (Wen et al.)."""

_RESULT_STRIDES = (
    {STEM: 2}
    | {f"encoder.stage{stage}": stride for stage, stride in enumerate(STRIDES, 1)}
    | {f"branch{stride}": stride for stride in STRIDES}
)
"""Beginning of a layer's name: pixels of the image, along an axis, for each pixel of its result."""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one convolution at one size of the image.

    Attributes
    ----------
    name : str
        Layer.
    convolution : Convolution
    height, width : int
        Pixels of its result (of the stem's: before max-pooling).
    """

    name: str
    convolution: Convolution
    height: int
    width: int

    @property
    def multiplications(self):
        """Multiply-accumulates (MACs); those with the zeros of the padding count too."""
        return self.height * self.width * self.convolution.weights

    @property
    def bit_operations(self):
        """Products of one bit with one bit: m n for each multiply-accumulate of m-bit weights and n-bit activations."""
        return self.multiplications * self.convolution.weight_bits * self.convolution.input_bits


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a network at one size of the image; only convolutions count.

    Attributes
    ----------
    layers : tuple of LayerCost
        In order of execution.
    """

    layers: tuple

    @property
    def multiplications(self):
        """Multiply-accumulates (MACs)."""
        return sum(layer.multiplications for layer in self.layers)

    @property
    def bit_operations(self):
        """Products of one bit with one bit, each layer with its own bits."""
        return sum(layer.bit_operations for layer in self.layers)

    @property
    def fpga_share(self):
        """FPGA resources as a share of those of the same network in fp32: bit operations over fp32's.

        Source: Wen et al. 2016, whose abstract states less than 1 % for 1-bit weights and 2-bit activations.
        """
        return self.bit_operations / (FP32_BIT_OPERATIONS * self.multiplications)


def network_cost(architecture, height, width):
    """Count what a network does for one image.

    Parameters
    ----------
    architecture : Architecture
    height, width : int
        Size of the image, multiples of 32.

    Returns
    -------
    NetworkCost

    Raises
    ------
    ValueError
        A side is no multiple of 32.
    """
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ValueError(f"an image of {width}x{height} pixels: give multiples of {SIZE_MULTIPLE}")
    layers = []
    for name, convolution in architecture.convolutions().items():
        stride = next(stride for part, stride in _RESULT_STRIDES.items() if name.startswith(part))
        layers.append(LayerCost(name, convolution, height // stride, width // stride))
    return NetworkCost(tuple(layers))


def predicted_speedup(weight_bits, activation_bits):
    """How many times faster than in fp32 a CPU computes a bit convolution, as predicted: ``18 / (m n)``.

    Source: Wen et al. 2016, who measured 7.8 for 1-2 bits (predicted: 9) and 4.1 for 2-2 (predicted: 4.5).
    """
    return 18 / (weight_bits * activation_bits)


def weight_count(architecture):
    """Parameters of all convolutions, without the scale and offset of each output channel."""
    return sum(convolution.weights for convolution in architecture.convolutions().values())


def packed_bytes(architecture):
    """Bytes of the weights at their own bits."""
    return -(-sum(c.weights * c.weight_bits for c in architecture.convolutions().values()) // 8)


def fp32_bytes(architecture):
    """Bytes of the weights in fp32."""
    return weight_count(architecture) * FP32_BITS // 8
