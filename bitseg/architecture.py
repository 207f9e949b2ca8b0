"""What a network is made of, as plain data: shared by the engine, the training code and the model file."""

from dataclasses import dataclass

ENCODERS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
"""Encoder name: kind of block, and the number of blocks in the stages at strides 4, 8, 16 and 32."""

STRIDES = (4, 8, 16, 32)
"""Strides of the encoder's stages and of the decoder's branches, fine to coarse."""


@dataclass(frozen=True)
class Architecture:
    """Hyperparameters from which the whole network follows.

    Attributes
    ----------
    encoder : str
        A key of `ENCODERS`.
    stem_channels : int
        Output channels of the 7x7 stem.
    stage_channels : tuple of 4 int
        Output channels of the encoder's stages at strides 4, 8, 16, 32.
    branch_channels : tuple of 4 int
        Channels inside the decoder's branches at strides 4, 8, 16, 32.
    classes : tuple of str
        Class names; the position is the class id.
    weight_bits, activation_bits : int
        Bits of all convolutions but the stem and the classifiers, which have 8.
    stream_bits : int
        Bits of the residual stream; 0 stands for `activation_bits` (the paper's network).
    """

    encoder: str
    stem_channels: int
    stage_channels: tuple
    branch_channels: tuple
    classes: tuple
    weight_bits: int
    activation_bits: int
    stream_bits: int


@dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit RGB image becomes the network's input: ``(image - mean) / scale``, mean colour outside it.

    Attributes
    ----------
    mean : tuple of 3 int
        Mean red, green and blue, 0 to 255. Whole numbers, so that padding is an ordinary 8-bit colour.
    scale : float
        Divisor that brings the input to about unit variance.
    working_size : int
        Long side, in pixels, at which larger photos are segmented; a multiple of 32.
    """

    mean: tuple
    scale: float
    working_size: int
