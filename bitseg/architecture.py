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

RECONSTRUCTIONS = ("residual_block", "convolution", "double_convolution")
"""What a decoder branch has between its reduction and its classifier: Wen et al. 2016, table 2."""

FIXED_BITS = 8
"""Weight bits of the stem and the classifiers."""

BOTTLENECK = 4
"""A bottleneck block has a quarter of its stage's channels inside."""


@dataclass(frozen=True)
class Convolution:
    """Shape and bits of one convolution; zero padding of ``kernel // 2`` all around.

    Attributes
    ----------
    in_channels, out_channels, kernel, stride : int
    weight_bits : int
        Bits of a weight code.
    input_bits : int
        Bits of the activation codes it reads.
    output_bits : int
        Bits its result is rounded to; 0 where it stays a real number (projections, classifiers).
    reads_stream : bool
        Whether it reads the residual stream, as bytes, instead of bit-planes.
    """

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    weight_bits: int
    input_bits: int
    output_bits: int
    reads_stream: bool = False

    @property
    def padding(self):
        """Zero pixels around the input."""
        return self.kernel // 2

    @property
    def window(self):
        """Number of weights of one filter."""
        return self.in_channels * self.kernel**2

    @property
    def weights(self):
        """Number of weights."""
        return self.out_channels * self.window

    @property
    def largest_sum(self):
        """Largest absolute value of a sum ``t = 2 sum(a q) - levels * sum(a)``."""
        return (2**self.weight_bits - 1) * (2**self.input_bits - 1) * self.window

    def check_sums(self):
        """Make sure that the sums t and their two terms fit in 32-bit integers.

        Raises
        ------
        ValueError
            They could exceed 31 bits and a sign.
        """
        largest = 2 * self.largest_sum
        if largest >= 2**31:
            raise ValueError(
                f"sums up to {largest} do not fit in 31 bits: "
                f"use fewer bits or fewer than {self.window} weights a filter"
            )


@dataclass(frozen=True)
class Block:
    """One residual block: its name, the names of its convolutions in order, and of its projection or None."""

    name: str
    convolutions: tuple
    projection: str | None


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
    reconstruction : str
        One of `RECONSTRUCTIONS`: a residual block of two 3x3 convolutions, or a single one, with the branch's channels
        or with twice as many.
    stream_weight_bits : int
        Weight bits of the convolutions that carry the residual stream on, from stage to stage (projections) and into
        the decoder (reductions): they read the stream itself, with its bits. 0: they have `weight_bits` and read
        the activations, as all others (the paper's network).
    """

    encoder: str
    stem_channels: int
    stage_channels: tuple
    branch_channels: tuple
    classes: tuple
    weight_bits: int
    activation_bits: int
    stream_bits: int
    reconstruction: str = "residual_block"
    stream_weight_bits: int = 0

    @property
    def residual_bits(self):
        """Bits of the residual stream."""
        return self.stream_bits or self.activation_bits

    @property
    def carries_stream(self):
        """Whether projections and reductions read the stream instead of the activations."""
        return self.stream_weight_bits > 0

    def stages(self):
        """Blocks of the encoder, a tuple for each stage."""
        kind, counts = ENCODERS[self.encoder]
        convolutions = 3 if kind == "bottleneck" else 2
        in_channels = self.stem_channels
        stages = []
        for stage, (count, channels) in enumerate(zip(counts, self.stage_channels, strict=True), 1):
            blocks = []
            for index in range(count):
                name = f"encoder.stage{stage}.{index}"
                projects = in_channels != channels or (index == 0 and stage > 1)
                blocks.append(_block(name, convolutions, projects))
                in_channels = channels
            stages.append(tuple(blocks))
        return tuple(stages)

    def branch_block(self, stride):
        """The residual block of a decoder branch whose reconstruction is one."""
        return _block(f"branch{stride}.block", 2, False)

    def convolutions(self):
        """All convolutions of the network: a dict from name to `Convolution`, in order of execution.

        Raises
        ------
        ValueError
            The channels of a stage of bottleneck blocks are not divisible by 4.
        """
        return {"encoder.stem": self._stem(), **self._encoder_convolutions(), **self._decoder_convolutions()}

    def stream_outputs(self):
        """Names of the places where the residual stream is rounded, in order of execution: a dict to activation bits.

        The activation bits are those of the codes that the following convolutions read; 0 where they read the stream.
        """
        outputs = {"encoder.stem_output": self.activation_bits}
        for stage in self.stages():
            for block in stage:
                outputs[f"{block.name}.output"] = self.activation_bits
        for stride in reversed(STRIDES):
            if self.reconstruction == "residual_block":
                outputs[f"branch{stride}.reduce_output"] = self.activation_bits
                outputs[f"branch{stride}.block.output"] = 0
        return outputs

    def _stem(self):
        return Convolution(3, self.stem_channels, 7, 2, FIXED_BITS, 8, self.residual_bits)

    def _encoder_convolutions(self):
        kind, _ = ENCODERS[self.encoder]
        found = {}
        in_channels = self.stem_channels
        for stage, (blocks, channels) in enumerate(zip(self.stages(), self.stage_channels, strict=True)):
            for index, block in enumerate(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                if kind == "bottleneck":
                    inside, rest = divmod(channels, BOTTLENECK)
                    if rest:
                        raise ValueError(f"stages of {self.encoder} need channels divisible by {BOTTLENECK}")
                    shapes = [(in_channels, inside, 1), (inside, inside, 3), (inside, channels, 1)]
                else:
                    shapes = [(in_channels, channels, 3), (channels, channels, 3)]
                found |= self._block_convolutions(block, shapes, stride)
                in_channels = channels
        return found

    def _decoder_convolutions(self):
        found = {}
        for stride, in_channels, channels in reversed(
            list(zip(STRIDES, self.stage_channels, self.branch_channels, strict=True))
        ):
            name, bits = f"branch{stride}", (self.weight_bits, self.activation_bits)
            if self.reconstruction == "residual_block":
                found[f"{name}.reduce"] = self._carrying(in_channels, channels, 1, self.residual_bits)
                found |= self._block_convolutions(self.branch_block(stride), [(channels, channels, 3)] * 2, 1)
                refined = channels
            else:
                refined = 2 * channels if self.reconstruction == "double_convolution" else channels
                found[f"{name}.reduce"] = self._carrying(in_channels, channels, 1, self.activation_bits)
                found[f"{name}.conv"] = Convolution(channels, refined, 3, 1, *bits, self.residual_bits)
            reads_stream = self.reconstruction == "residual_block"
            found[f"{name}.classifier"] = Convolution(
                refined, len(self.classes), 1, 1, FIXED_BITS, self.residual_bits, 0, reads_stream
            )
        return found

    def _block_convolutions(self, block, shapes, stride):
        bits = self.weight_bits, self.activation_bits
        found = {}
        for index, (name, shape) in enumerate(zip(block.convolutions, shapes, strict=True)):
            output_bits = self.residual_bits if index == len(shapes) - 1 else self.activation_bits
            found[name] = Convolution(*shape, stride if index == 0 else 1, *bits, output_bits)
        if block.projection:
            found[block.projection] = self._carrying(shapes[0][0], shapes[-1][1], stride, 0)
        return found

    def _carrying(self, in_channels, out_channels, stride, output_bits):
        """A projection or a reduction."""
        bits = self.weight_bits, self.activation_bits
        if self.carries_stream:
            bits = self.stream_weight_bits, self.residual_bits
        return Convolution(in_channels, out_channels, 1, stride, *bits, output_bits, self.carries_stream)


def _block(name, convolutions, projects):
    names = tuple(f"{name}.conv{index}" for index in range(1, convolutions + 1))
    return Block(name, names, f"{name}.downsample" if projects else None)


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
