"""Distillation: a low-bit network learns from the scores and feature maps of a trained one with the same encoder.

Hinton et al. 2015 for the scores (arXiv 1503.02531), Romero et al. 2015 for the feature maps (arXiv 1412.6550). The
student begins with the teacher's weights, so their residual streams have the same scale and meaning.
"""

import copy
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from .errors import TrainingError
from .fusion import fuse
from .network import BitConv


class Teacher:
    """A frozen network that a student imitates.

    Parameters
    ----------
    network : BitFCN
        Stays as it is; its copy here is in evaluation mode, with BatchNorm folded into its rounded weights.
    """

    def __init__(self, network):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        for module in self.network.modules():
            if isinstance(module, BitConv):
                module.freeze()

    def check(self, student):
        """Make sure that feature maps and classes can be compared.

        Raises
        ------
        TrainingError
            The encoders or the classes differ in more than bits.
        """
        mine, theirs = vars(self.network.architecture), vars(student.architecture)
        for entry in ("encoder", "stem_channels", "stage_channels", "classes"):
            if mine[entry] != theirs[entry]:
                raise TrainingError(f"the teacher's {entry} is {mine[entry]!r}, but the student's is {theirs[entry]!r}")

    @torch.no_grad()
    def __call__(self, images, scales):
        """Scores and streams of the teacher; see `recorded_streams`."""
        with recorded_streams(self.network) as streams:
            scores = self.network(images, scales)
        return scores, streams


@contextmanager
def recorded_streams(network):
    """Collect the residual streams at the ends of the encoder's blocks while the network runs.

    Yields
    ------
    list of tensor, shapes (batch, channels, height, width)
        From the image on; filled by each run.
    """
    streams = []
    hooks = [
        block.output.register_forward_hook(lambda module, inputs, outputs: streams.append(outputs[0]))
        for stage in network.encoder.stages
        for block in stage
    ]
    try:
        yield streams
    finally:
        for hook in hooks:
            hook.remove()


def distillation_loss(scores, streams, teacher_scores, teacher_streams):
    """How far a student is from its teacher.

    Parameters
    ----------
    scores, teacher_scores : dict of int to tensor, shape (batch, classes, height, width)
        By stride; compared by the Kullback-Leibler divergence of their softmax, mean over pixels, summed over scales.
    streams, teacher_streams : list of tensor
        See `recorded_streams`; compared by the squared error relative to the teacher's mean square, summed over blocks.

    Returns
    -------
    tensor, scalar
    """
    loss = sum(
        F.kl_div(
            scores[stride].log_softmax(1), teacher_scores[stride].log_softmax(1), log_target=True, reduction="none"
        )
        .sum(1)
        .mean()
        for stride in scores
    )
    for stream, target in zip(streams, teacher_streams, strict=True):
        loss = loss + _RelativeError.apply(stream, target)
    return loss


@fuse
def _squares(stream, target):
    stream, target = stream.float(), target.float()
    return (stream - target).square().sum(), target.square().sum()


@fuse
def _difference(stream, target, factor):
    return ((stream.float() - target.float()) * factor).to(stream.dtype)


class _RelativeError(torch.autograd.Function):
    """|x - t|^2 / |t|^2, with its gradient for x."""

    @staticmethod
    def forward(ctx, stream, target):
        error, size = _squares(stream, target)
        ctx.save_for_backward(stream, target, size)
        return error / size

    @staticmethod
    def backward(ctx, grad):
        stream, target, size = ctx.saved_tensors
        return _difference(stream, target, 2 * grad / size), None
