"""Quantisers with learned steps for weights and feature maps of 1 to 8 bits.

Learned step size quantisation (Esser et al. 2020, arXiv 1902.08153), with the levels of the paper's
DoReFa quantiser (Wen et al. 2016): 2**m weight levels that lie symmetrically around zero, and 2**k
activation levels from 0 to the clipping bound. Scales are learned as logarithms, so they never cross zero.
"""

import math
import shutil

import torch
from torch import nn

FLOAT_BITS = 32
"""Bit width that stands for 'not quantised'."""

_SMALLEST_SCALE = 1e-8
"""Stands in for the largest weight of a filter that is all zero."""


def _fuse(function):
    """Compile an elementwise function into one pass over memory, where a C++ compiler is at hand.

    Numbers that change between calls must be tensors: PyTorch 2.13 compiles wrong code for clamp with a changing float.
    The environment variable TORCH_COMPILE_DISABLE=1 leaves everything uncompiled.
    """
    return torch.compile(function, dynamic=True) if shutil.which("g++") else function


@_fuse
def _quantize_activation(x, log_bound, levels):
    bound = log_bound.exp()
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    code = torch.minimum((wide * (levels / bound)).clamp(min=0), levels).round()
    return (code * (bound / levels)).to(x.dtype)


@_fuse
def _quantize_activation_gradient(grad, x, y, log_bound):
    x_float, grad_float = x.float(), grad.float()
    inside = (x_float > 0) & (x_float < log_bound.exp())
    grad_x = torch.where(inside, grad_float, 0.0)
    return grad_x.to(grad.dtype), (grad_float * y.float() - grad_x * x_float).sum()


class _QuantizeActivation(torch.autograd.Function):
    """y = s / N * rint(clip(x / s, 0, 1) * N); the straight-through gradient for x, the LSQ gradient for log s."""

    @staticmethod
    def forward(ctx, x, log_bound, levels):
        y = _quantize_activation(x, log_bound, levels)
        ctx.save_for_backward(x, y, log_bound)
        return y

    @staticmethod
    def backward(ctx, grad):
        return *_quantize_activation_gradient(grad, *ctx.saved_tensors), None


@_fuse
def _quantize_weight(weight, scale, levels):
    code = torch.minimum(((weight / scale + levels) / 2).clamp(min=0), levels).round()
    return (2 * code - levels) * scale


@_fuse
def _quantize_weight_gradient(grad, weight, quantized, scale, levels):
    inside = weight.abs() < scale * levels
    grad_weight = torch.where(inside, grad, 0.0)
    return grad_weight, (grad * quantized - grad_weight * weight).sum(1)


class _QuantizeWeight(torch.autograd.Function):
    """w = s * (2 q - N), q = rint(clip((w / s + N) / 2, 0, N)), with gradients as above; weights (filters, rest)."""

    @staticmethod
    def forward(ctx, weight, log_scale, levels):
        scale = log_scale.exp()[:, None]
        quantized = _quantize_weight(weight, scale, levels)
        ctx.save_for_backward(weight, quantized, scale, levels)
        return quantized

    @staticmethod
    def backward(ctx, grad):
        return *_quantize_weight_gradient(grad, *ctx.saved_tensors), None


class ActivationQuantizer(nn.Module):
    """Clip a feature map to [0, s] and round it to 2**bits levels; ReLU while `bits` is 32.

    The clipping bound s is one number for the whole map, set by `calibrate` and learned from there.
    """

    def __init__(self, bits=FLOAT_BITS):
        super().__init__()
        self.bits = bits
        self.log_bound = nn.Parameter(torch.zeros(()))
        self.calibrating = False

    @property
    def levels(self):
        """Largest code: 2**bits - 1."""
        return 2**self.bits - 1

    def step(self):
        """Real value of one code."""
        return math.exp(self.log_bound.item()) / self.levels

    def forward(self, x):
        if self.bits == FLOAT_BITS:
            return torch.relu(x)
        if self.calibrating:
            self.log_bound.data.fill_(math.log(best_activation_bound(x.detach().float(), self.levels)))
        return _QuantizeActivation.apply(x, self.log_bound, torch.tensor(float(self.levels)))


def best_activation_bound(x, levels):
    """Clipping bound with the least mean squared error over 40 candidates up to the largest value.

    Parameters
    ----------
    x : tensor of float32, any shape
        A feature map; about 50,000 of its values are looked at.
    levels : int
        Largest code.

    Returns
    -------
    float
        1 where no value is positive.
    """
    sample = x.flatten()[:: max(1, x.numel() // 50_000)].clamp(min=0)
    largest = sample.max().item()
    if largest <= 0:
        return 1.0

    def error(bound):
        return ((sample / bound).clamp(max=1).mul(levels).round().mul(bound / levels) - sample).square().mean().item()

    return min((largest * step / 40 for step in range(1, 41)), key=error)


class WeightQuantizer(nn.Module):
    """Round weights to 2**bits levels s * (2 q - (2**bits - 1)), q = 0 ... 2**bits - 1, s learned per filter.

    The levels are odd multiples of s: +-s at one bit, +-s and +-3 s at two, so the sign survives at any width.
    """

    def __init__(self, out_channels, bits=FLOAT_BITS):
        super().__init__()
        self.bits = bits
        self.log_scale = nn.Parameter(torch.zeros(out_channels))

    @property
    def levels(self):
        """Largest code: 2**bits - 1."""
        return 2**self.bits - 1

    def scale(self):
        """Half a step of every filter, shape (out_channels,)."""
        return self.log_scale.exp()

    def codes(self, weight):
        """Unsigned codes q of a weight tensor.

        Parameters
        ----------
        weight : tensor of float32, shape (out_channels, ...)

        Returns
        -------
        tensor of int64, same shape
        """
        scale = self.scale().view(-1, *[1] * (weight.dim() - 1))
        return ((weight / scale + self.levels) / 2).round().clamp(0, self.levels).to(torch.int64)

    def forward(self, weight):
        if self.bits == FLOAT_BITS:
            return weight
        return _QuantizeWeight.apply(weight.flatten(1), self.log_scale, torch.tensor(float(self.levels))).view_as(
            weight
        )

    @torch.no_grad()
    def calibrate(self, weight):
        """Set the scales to those with the least squared error, filter by filter, over 60 candidates.

        Parameters
        ----------
        weight : tensor of float32, shape (out_channels, ...)
        """
        flat = weight.detach().flatten(1)
        largest = flat.abs().amax(1).clamp(min=_SMALLEST_SCALE)
        best_error = torch.full_like(largest, math.inf)
        best_scale = largest.clone()
        for step in range(1, 61):
            scale = largest * step / 60 / max(1, self.levels)
            error = (_quantize_weight(flat, scale[:, None], torch.tensor(float(self.levels))) - flat).square().sum(1)
            better = error < best_error
            best_error[better] = error[better]
            best_scale[better] = scale[better]
        self.log_scale.copy_(best_scale.log())
