"""The quantisers of the training code: levels by hand, gradients by finite differences."""

import math
import shutil

import numpy as np
import pytest
from tiny_training import random_input, relative_error, torch

from tools.train import fusion
from tools.train.quantizers import (
    ActivationQuantizer,
    DoReFaActivationQuantizer,
    DoReFaWeightQuantizer,
    WeightQuantizer,
    best_activation_bound,
)

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


class TestActivationQuantizer:
    @pytest.mark.parametrize(
        ("bits", "x", "expected"),
        [
            # The bound is 1: codes are x * (2**bits - 1), ties go to the even one.
            (1, [-2, 0, 0.4, 0.5, 0.6, 1, 3], [0, 0, 0, 0, 1, 1, 1]),
            (2, [-2, 0.1, 0.2, 0.5, 0.8, 0.9, 3], [0, 0, 1 / 3, 2 / 3, 2 / 3, 1, 1]),
            (8, [-2, 0.5, 100.4 / 255, 100.6 / 255, 1, 3], [0, 128 / 255, 100 / 255, 101 / 255, 1, 1]),
        ],
    )
    def test_values(self, bits, x, expected):
        quantized = ActivationQuantizer(bits)(torch.tensor(x, dtype=torch.float32))
        np.testing.assert_allclose(quantized.detach(), expected, rtol=1e-6)

    def test_32_bits_are_a_relu(self):
        x = torch.tensor([-1.0, 0.3, 7.0])
        assert ActivationQuantizer(32)(x).tolist() == x.relu().tolist()

    def test_the_gradient_passes_inside_the_range_only(self):
        x = torch.tensor([-0.5, 0.3, 0.9, 1.5], requires_grad=True)
        ActivationQuantizer(2)(x).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert x.grad.tolist() == [0, 2, 3, 0]

    @pytest.mark.parametrize("bits", [1, 2, 8])
    def test_the_gradient_of_the_bound_treats_rounding_as_a_constant(self, bits):
        x = torch.linspace(-1, 4, 101)
        quantizer = ActivationQuantizer(bits)
        quantizer.log_bound.data.fill_(math.log(1.73))
        upstream = torch.sin(torch.arange(101.0))
        quantizer(x).backward(upstream)

        levels, values = 2**bits - 1, x.double().numpy()
        clipped = np.clip(values / 1.73 * levels, 0, levels)
        rounding = np.rint(clipped) - clipped

        def quantized(log_bound):
            bound = np.exp(log_bound)
            return bound / levels * (np.clip(values / bound * levels, 0, levels) + rounding)

        slope = (quantized(math.log(1.73) + 1e-6) - quantized(math.log(1.73) - 1e-6)) / 2e-6
        assert quantizer.log_bound.grad.item() == pytest.approx(slope @ upstream.double().numpy(), rel=1e-3)

    def test_calibration_finds_a_bound_with_little_error(self):
        x = torch.arange(4.0).repeat(100)
        # 0 to 3 are the levels of a bound of 3; at one bit they are not, and a smaller bound is better.
        assert best_activation_bound(x, 3) == pytest.approx(3)
        assert best_activation_bound(x, 1) < 3
        assert best_activation_bound(-x, 3) == 1


class TestWeightQuantizer:
    @pytest.mark.parametrize(
        ("bits", "weight", "expected"),
        [
            # The scale is 1: levels are the odd numbers from -(2**bits - 1), codes their ranks; ties to the even code.
            (1, [-3, -0.1, 0, 0.1, 3], [-1, -1, -1, 1, 1]),
            (2, [-9, -2, -1.9, 0, 2, 2.1, 9], [-3, -3, -1, 1, 1, 3, 3]),
            (8, [-300, -254, 0, 2, 2.1, 254, 300], [-255, -255, 1, 1, 3, 253, 255]),
        ],
    )
    def test_values(self, bits, weight, expected):
        quantizer = WeightQuantizer(1, bits)
        weight = torch.tensor([weight], dtype=torch.float32)
        assert quantizer(weight)[0].tolist() == expected
        assert (2 * quantizer.codes(weight) - quantizer.levels)[0].tolist() == expected

    def test_every_filter_has_its_scale(self):
        quantizer = WeightQuantizer(2, 1)
        quantizer.log_scale.data.copy_(torch.tensor([0.5, 2.0]).log())
        np.testing.assert_allclose(quantizer(torch.tensor([[0.1], [-0.1]])).detach(), [[0.5], [-2.0]], rtol=1e-6)

    @pytest.mark.parametrize("bits", [1, 2, 8])
    def test_gradients_treat_rounding_as_a_constant(self, bits):
        scale, levels = 0.3, 2**bits - 1
        weight = torch.linspace(-1.5, 1.4, 101)[None].mul(scale * levels).requires_grad_()
        quantizer = WeightQuantizer(1, bits)
        quantizer.log_scale.data.fill_(math.log(scale))
        upstream = torch.sin(torch.arange(101.0))[None]
        quantizer(weight).backward(upstream)

        values = weight.detach().double().numpy()[0]
        clipped = np.clip((values / scale + levels) / 2, 0, levels)
        rounding = np.rint(clipped) - clipped

        def quantized(weight, log_scale):
            s = np.exp(log_scale)
            return s * (2 * (np.clip((weight / s + levels) / 2, 0, levels) + rounding) - levels)

        step = 1e-6
        slope = (quantized(values, math.log(scale) + step) - quantized(values, math.log(scale) - step)) / (2 * step)
        upstream = upstream.double().numpy()[0]
        assert quantizer.log_scale.grad.item() == pytest.approx(slope @ upstream, rel=1e-3)
        slope = (quantized(values + step, math.log(scale)) - quantized(values - step, math.log(scale))) / (2 * step)
        np.testing.assert_allclose(weight.grad[0], slope * upstream, atol=1e-5)

    @pytest.mark.parametrize("bits", [1, 2, 8])
    def test_a_filter_of_zeros_stays_small_and_finite(self, bits):
        weight = torch.stack([torch.zeros(9), torch.linspace(-1, 1, 9)]).requires_grad_()
        quantizer = WeightQuantizer(2, bits)
        quantizer.calibrate(weight)
        quantized = quantizer(weight)
        quantized.sum().backward()
        assert quantized[0].abs().max() < 1e-6
        for tensor in (quantized, weight.grad, quantizer.log_scale.grad):
            assert torch.isfinite(tensor).all()

    def test_calibration_recovers_levels(self):
        weight = torch.tensor([[-3.0, -1, 1, 3, 3, 1], [-0.6, -0.2, 0.2, 0.6, 0.2, 0.2]])
        quantizer = WeightQuantizer(2, 2)
        quantizer.calibrate(weight)
        np.testing.assert_allclose(quantizer(weight).detach(), weight, rtol=1e-5)


class TestDoReFaActivations:
    @pytest.mark.parametrize(
        ("bits", "x", "expected"),
        [
            (1, [-2, 0.4, 0.5, 0.6, 3], [0, 0, 0, 1, 1]),
            (2, [-2, 0.1, 0.2, 0.5, 0.8, 0.9, 3], [0, 0, 1 / 3, 2 / 3, 2 / 3, 1, 1]),
            (4, [-2, 0.1, 0.9, 3], [0, 2 / 15, 14 / 15, 1]),
        ],
    )
    def test_values(self, bits, x, expected):
        quantized = DoReFaActivationQuantizer(bits)(torch.tensor(x, dtype=torch.float32))
        np.testing.assert_allclose(quantized, expected, rtol=1e-6)

    def test_the_gradient_passes_inside_the_range_only(self):
        x = torch.tensor([-0.5, 0.3, 0.9, 1.5], requires_grad=True)
        DoReFaActivationQuantizer(2)(x).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert x.grad.tolist() == [0, 2, 3, 0]

    def test_the_bound_stays_1_and_is_no_part_of_the_checkpoint(self):
        quantizer = DoReFaActivationQuantizer(2)
        quantizer.calibrate(torch.tensor([7.0]))
        assert quantizer.step() == pytest.approx(1 / 3)
        assert not list(quantizer.parameters()) and not quantizer.state_dict()

    def test_32_bits_are_a_relu(self):
        assert DoReFaActivationQuantizer(32)(torch.tensor([-1.0, 0.3, 7.0])).tolist() == pytest.approx([0, 0.3, 7])


class TestDoReFaWeights:
    @pytest.mark.parametrize(
        ("bits", "weight", "expected"),
        [
            # Signs times the mean magnitude of the whole layer, 1; zero counts as positive.
            (1, [[0.5, -2.0], [0.0, 1.5]], [[1, -1], [1, 1]]),
            # tanh: 0.4621, 0.7616, -0.7616, 0.0997; over twice the largest, plus a half: 0.8034, 1, 0, 0.5654.
            (2, [[0.5, 1.0], [-1.0, 0.1]], [[1 / 3, 1], [-1, 1 / 3]]),
            (3, [[0.5, 1.0], [-1.0, 0.1]], [[5 / 7, 1], [-1, 1 / 7]]),
            (8, [[0.5, 1.0], [-1.0, 0.1]], [[155 / 255, 1], [-1, 33 / 255]]),
        ],
    )
    def test_values(self, bits, weight, expected):
        weight = torch.tensor(weight)
        quantizer = DoReFaWeightQuantizer(2, bits)
        np.testing.assert_allclose(quantizer(weight), expected, atol=1e-6)
        levels = 2 * quantizer.codes(weight) - quantizer.levels
        np.testing.assert_allclose(quantizer.scale(weight)[:, None] * levels, expected, atol=1e-6)

    def test_the_gradient_of_one_bit_is_that_of_the_identity(self):
        weight = torch.tensor([[0.5, -2.0], [0.0, 1.5]], requires_grad=True)
        upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        DoReFaWeightQuantizer(2, 1)(weight).backward(upstream)
        assert torch.equal(weight.grad, upstream)

    @pytest.mark.parametrize("bits", [2, 8])
    def test_the_gradient_of_more_bits_goes_through_tanh_and_maximum_past_the_rounding(self, bits):
        weight = torch.linspace(-1.3, 2.1, 24).view(4, 6).requires_grad_()
        upstream = torch.sin(torch.arange(24.0)).view(4, 6)
        DoReFaWeightQuantizer(4, bits)(weight).backward(upstream)

        def unrounded(values):
            return np.tanh(values) / np.tanh(np.abs(values)).max()

        values, expected = weight.detach().double().numpy().ravel(), np.empty(24)
        for index in range(24):
            step = np.zeros(24)
            step[index] = 1e-6
            slope = (unrounded(values + step) - unrounded(values - step)) / 2e-6
            expected[index] = slope @ upstream.double().numpy().ravel()
        np.testing.assert_allclose(weight.grad.ravel(), expected, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("bits", [1, 2, 8])
    def test_a_layer_of_zeros_stays_finite(self, bits):
        weight = torch.zeros(2, 3, requires_grad=True)
        quantized = DoReFaWeightQuantizer(2, bits)(weight)
        quantized.sum().backward()
        assert torch.isfinite(quantized).all() and torch.isfinite(weight.grad).all()

    def test_32_bits_leave_the_weights(self):
        weight = torch.tensor([[0.3, -7.0]])
        assert DoReFaWeightQuantizer(1)(weight) is weight


def _bent(weight, bits):
    """What DoReFa rounds."""
    return weight.clone() if bits == 1 else weight.tanh() / weight.tanh().abs().max()


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize(
    ("make", "unrounded"),
    [
        (ActivationQuantizer, lambda x, bits: x.relu()),
        (DoReFaActivationQuantizer, lambda x, bits: x.relu()),
        (lambda bits: WeightQuantizer(2, bits), lambda x, bits: x.clone()),
        (
            lambda bits: DoReFaWeightQuantizer(2, bits),
            _bent,
        ),
    ],
)
def test_a_share_of_rounding_mixes_both_values_and_their_gradients(make, unrounded, bits):
    def value_and_gradient(function):
        x = torch.tensor([[-1.5, -0.3, 0.1, 0.6], [0.4, 0.9, 1.2, 3.0]], requires_grad=True)
        y = function(x)
        y.sum().backward()
        return y.detach(), x.grad

    quantizer = make(bits)
    rounded, through_rounding = value_and_gradient(quantizer)
    plain, through_plain = value_and_gradient(lambda x: unrounded(x, bits))
    quantizer.rounded_share = 0.25
    mixed, gradient = value_and_gradient(quantizer)
    torch.testing.assert_close(mixed, 0.25 * rounded + 0.75 * plain)
    torch.testing.assert_close(gradient, 0.25 * through_rounding + 0.75 * through_plain)


@pytest.mark.skipif(not shutil.which("g++"), reason="without a C++ compiler nothing is compiled")
def test_compiled_quantizers_equal_uncompiled_ones_as_bits_change():
    x = random_input(1, 1, 32)
    weight = torch.randn(16, 27, generator=torch.Generator().manual_seed(2))

    def quantize(bits):
        activation, weights = ActivationQuantizer(bits), WeightQuantizer(16, bits)
        activation.log_bound.data.fill_(0.4)
        weights.calibrate(weight)
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        results = activation(leaves[0]), weights(leaves[1])
        sum(result.square().sum() for result in results).backward()
        return *results, *(leaf.grad for leaf in leaves), activation.log_bound.grad, weights.log_scale.grad

    for bits in (8, 2, 1, 4):
        with torch.compiler.set_stance("default"):
            compiled = quantize(bits)
        for found, expected in zip(compiled, quantize(bits), strict=True):
            # The last bit of the compiled exponential may differ, and with it the rounding of a value near a tie.
            assert relative_error(found.detach(), expected.detach()) < 1e-3
    if not fusion._compiles:
        pytest.skip("the C++ compiler lacks what PyTorch needs")


@pytest.mark.parametrize(
    "error", [RuntimeError(""), NotADirectoryError("no cache"), torch.OutOfMemoryError("no memory")]
)
def test_what_cannot_be_compiled_is_computed_as_it_is(monkeypatch, capsys, error):
    def compiled(*arguments):
        raise error

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compiled)
    monkeypatch.setattr(fusion, "_compiles", True)
    double = fusion.fuse(lambda x: 2 * x)
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            double(1)
        return
    assert [double(1), double(2)] == [2, 4]
    assert capsys.readouterr().err.count("PyTorch cannot compile here") == 1
