"""Quantisers for weights and feature maps of 1 to 8 bits: learned steps, and DoReFa as the paper uses it.

Learned step size quantisation (LSQ; Esser et al. 2020, arXiv 1902.08153) and DoReFa (Zhou et al. 2016, arXiv
1606.06160; Wen et al. 2016) share their levels: 2**m weight levels that lie symmetrically around zero, and 2**k
activation levels from 0 to a clipping bound. DoReFa fixes the scales; LSQ learns one for every filter and feature
map, as a logarithm, so that it never crosses zero. The stem and the classifiers, which DoReFa leaves in floating point,
keep learned 8-bit steps under both.
"""

import math

import torch
from torch import nn

from .fusion import fuse

FLOAT_BITS = 32
"""Bit width that stands for 'not quantised'."""

_SMALLEST_SCALE = 1e-8
"""Stands in for the largest weight of a filter that is all zero."""


@fuse
def _quantize_activation(x, log_bound, levels):
    bound = log_bound.exp()
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    code = torch.minimum((wide * (levels / bound)).clamp(min=0), levels).round()
    return (code * (bound / levels)).to(x.dtype)


@fuse
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


@fuse
def _quantize_weight(weight, scale, levels):
    code = torch.minimum(((weight / scale + levels) / 2).clamp(min=0), levels).round()
    return (2 * code - levels) * scale


@fuse
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


class Quantizer(nn.Module):
    """What quantisers share: their bits, and how much of a value is rounded.

    Attributes
    ----------
    bits : int
        1 to 8, or 32 for floating point.
    rounded_share : float
        Below 1 the output is so much of the rounded value and the rest of the value as it is: rounding that comes in
        little by little, as in Liu & Mattina 2019 (alpha-blending, arXiv 1903.01061).
    """

    def __init__(self, bits=FLOAT_BITS):
        super().__init__()
        self.bits, self.rounded_share = bits, 1.0

    @property
    def levels(self):
        """Largest code: 2**bits - 1."""
        return 2**self.bits - 1

    def unrounded(self, x):
        """The value itself."""
        return x

    def forward(self, x):
        if self.bits == FLOAT_BITS:
            return self.unrounded(x)
        rounded = self.rounded(x)
        return rounded if self.rounded_share == 1 else torch.lerp(self.unrounded(x), rounded, self.rounded_share)


class ActivationQuantizer(Quantizer):
    """Clip a feature map to [0, s] and round it to 2**bits levels; ReLU while `bits` is 32.

    The clipping bound s is one number for the whole map, set by `calibrate` and learned from there.
    """

    def __init__(self, bits=FLOAT_BITS):
        super().__init__(bits)
        self.log_bound = nn.Parameter(torch.zeros(()))
        self.calibrating = False

    def step(self):
        """Real value of one code."""
        return math.exp(self.log_bound.item()) / self.levels

    def unrounded(self, x):
        """ReLU."""
        return torch.relu(x)

    def rounded(self, x):
        """The nearest level of every value."""
        if self.calibrating:
            self.calibrate(x)
        return _QuantizeActivation.apply(x, self.log_bound, torch.tensor(float(self.levels)))

    @torch.no_grad()
    def calibrate(self, x):
        """Set the clipping bound to that of the least squared error on a feature map, see `best_activation_bound`."""
        self.log_bound.fill_(math.log(best_activation_bound(x.float(), self.levels)))


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


class WeightQuantizer(Quantizer):
    """Round weights to 2**bits levels s * (2 q - (2**bits - 1)), q = 0 ... 2**bits - 1, s learned per filter.

    The levels are odd multiples of s: +-s at one bit, +-s and +-3 s at two, so the sign survives at any width.
    """

    def __init__(self, out_channels, bits=FLOAT_BITS):
        super().__init__(bits)
        self.log_scale = nn.Parameter(torch.zeros(out_channels))

    def scale(self, weight):
        """Half a step of every filter of a weight tensor, shape (out_channels,)."""
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
        scale = self.scale(weight).view(-1, *[1] * (weight.dim() - 1))
        return ((weight / scale + self.levels) / 2).round().clamp(0, self.levels).to(torch.int64)

    def rounded(self, weight):
        """The nearest level of every weight."""
        levels = torch.tensor(float(self.levels))
        return _QuantizeWeight.apply(weight.flatten(1), self.log_scale, levels).view_as(weight)

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


class DoReFaActivationQuantizer(ActivationQuantizer):
    """Clip a feature map to [0, 1] and round it to 2**bits levels; ReLU while `bits` is 32."""

    def __init__(self, bits=FLOAT_BITS):
        super().__init__(bits)
        del self.log_bound
        self.register_buffer("log_bound", torch.zeros(()), persistent=False)

    def calibrate(self, x):
        """Nothing to set: the bound is 1."""


class DoReFaWeightQuantizer(Quantizer):
    """Weights as DoReFa rounds them, with straight-through gradients.

    More than one bit: ``2 / N * rint(N * (tanh(w) / (2 max |tanh(w)|) + 1 / 2)) - 1`` for ``N = 2**bits - 1``.
    One bit: ``sign(w) * mean |w|``, the mean a constant. Both are taken over the whole layer.

    Parameters and methods are those of `WeightQuantizer`.
    """

    def __init__(self, out_channels, bits=FLOAT_BITS):
        super().__init__(bits)
        self.out_channels = out_channels

    def scale(self, weight):
        """Half a step, the same for every filter, shape (out_channels,)."""
        half_step = weight.detach().abs().mean() if self.bits == 1 else torch.tensor(1 / self.levels)
        return half_step.expand(self.out_channels)

    def codes(self, weight):
        """Unsigned codes of a weight tensor: int64, same shape."""
        return self._unrounded_codes(weight).round().to(torch.int64)

    def unrounded(self, weight):
        """What is rounded; with 2 to 8 bits ``tanh(w) / max |tanh(w)|``, which is as large as its levels."""
        if self.bits in (1, FLOAT_BITS):
            return weight
        return 2 / self.levels * self._unrounded_codes(weight) - 1

    def rounded(self, weight):
        """The level of every weight."""
        if self.bits == 1:
            rounded = weight.sign().where(weight != 0, torch.ones(())) * self.scale(weight)[0]
            return weight + (rounded - weight).detach()
        codes = self._unrounded_codes(weight)
        return 2 / self.levels * (codes + (codes.round() - codes).detach()) - 1

    def calibrate(self, weight):
        """Nothing to set: the scales follow from the weights."""

    def _unrounded_codes(self, weight):
        if self.bits == 1:
            return (weight >= 0).to(weight.dtype)
        bent = weight.tanh()
        largest = bent.abs().max().clamp(min=_SMALLEST_SCALE)
        return self.levels * (bent / (2 * largest) + 0.5)


QUANTIZERS = {
    "learned": (WeightQuantizer, ActivationQuantizer),
    "dorefa": (DoReFaWeightQuantizer, DoReFaActivationQuantizer),
}
"""Name of a kind of quantiser: those of the weights and of the feature maps."""
