"""The training code: quantisers, starting points, batches, configuration, the loop and its checkpoints."""

# ruff: noqa: E402 -- what needs PyTorch is imported once it is known to be there

import json
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_training
from click.testing import CliRunner
from PIL import Image

torch = pytest.importorskip("torch", reason="the training code needs PyTorch: see tools/requirements.txt")
if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="the training code reads TOML: see tools/requirements.txt")

from bitseg.architecture import Architecture, Preprocessing
from bitseg.datasets import IGNORE, open_dataset
from bitseg.errors import BitsegError, DatasetError
from tools.train import trainer as trainer_module
from tools.train.__main__ import main
from tools.train.checkpoint import load_network, read_checkpoint, save_checkpoint
from tools.train.config import config_from_dict, read_config
from tools.train.data import Augmentation, Batches, batch_stream, class_weights, normalise
from tools.train.errors import TrainingError
from tools.train.initialize import estimate_statistics, load_pretrained_encoder, load_start
from tools.train.network import BitFCN, boundary_gate
from tools.train.prediction import predict_label_map
from tools.train.quantizers import ActivationQuantizer, WeightQuantizer, best_activation_bound
from tools.train.trainer import Trainer

PRETRAINED = Path(__file__).parents[2] / "shared" / "pretrained" / "resnet50_thin_imagenet.npz"
VOC7_CONFIG = Path(__file__).parents[1] / "tools" / "train" / "configs" / "voc7-w2a2.toml"
MEAN = (123, 117, 104)


@pytest.fixture(scope="module", autouse=True)
def uncompiled_on_one_thread():
    """Compiling takes longer than all these tests; what is compiled is tested against this."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_training.write_data(tmp_path_factory.mktemp("data") / "voc7")


def tiny_architecture(encoder="resnet18", stream_bits=8, **changes):
    stages = (8, 8, 16, 16) if encoder == "resnet18" else (16, 16, 32, 32)
    architecture = Architecture(encoder, 8, stages, (8, 8, 8, 8), ("a", "b", "c"), 2, 2, stream_bits)
    return replace(architecture, **changes)


def random_network(architecture, seed=0):
    torch.manual_seed(seed)
    return BitFCN(architecture)


def random_input(seed=0, batch=2, side=64):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


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


class TestNetwork:
    def test_scores_have_the_size_of_their_scale(self):
        scores = random_network(tiny_architecture())(random_input(side=96))
        assert {stride: tuple(value.shape) for stride, value in scores.items()} == {
            stride: (2, 3, 96 // stride, 96 // stride) for stride in (32, 16, 8, 4)
        }

    def test_finer_branches_are_left_out_if_not_wanted(self):
        network = random_network(tiny_architecture())
        assert list(network(random_input(), scales=(32, 16))) == [32, 16]

    @pytest.mark.parametrize("stream_bits", [8, 0])
    def test_bits_of_every_layer(self, stream_bits):
        network = random_network(tiny_architecture(stream_bits=stream_bits))
        network.set_bits(1, 2)
        assert network.encoder.stem.weight_quantizer.bits == network.branch4.classifier.weight_quantizer.bits == 8
        assert network.encoder.stage1[0].conv1.weight_quantizer.bits == 1
        assert network.encoder.stage1[0].activation1.bits == 2
        stream = network.encoder.stage1[0].output
        assert (stream.stream_quantizer.bits, stream.activation_quantizer.bits) == (stream_bits or 2, 2)
        assert network.branch8.block.output.rounds_once
        network.set_bits(32, 32)
        bits = {module.bits for module in network.modules() if hasattr(module, "bits")}
        assert bits == {32}

    def test_equal_channels_still_project_where_the_stride_is_2(self):
        network = random_network(tiny_architecture("resnet50", stage_channels=(16, 16, 16, 16)))
        assert network(random_input())[4].shape == (2, 3, 16, 16)

    def test_calibration_keeps_batch_norm(self):
        network = random_network(tiny_architecture())
        before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
        network.set_bits(4, 4)
        network.calibrate(random_input())
        assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
        bounds = [stream.output.stream_quantizer.log_bound for stream in network.encoder.stage3]
        assert all(bound.item() != 0 for bound in bounds)

    def test_the_gate_opens_at_boundaries_only(self):
        scores = torch.zeros(1, 2, 24, 24)
        scores[:, 0, :, :12], scores[:, 1, :, 12:] = 20, 20
        gate = boundary_gate(scores)[0, 0]
        np.testing.assert_allclose(gate[:, 8:16], 1, atol=1e-6)
        np.testing.assert_allclose(gate[:, :8], 0, atol=1e-6)
        np.testing.assert_allclose(gate[:, 16:], 0, atol=1e-6)


def write_folded_resnet(path, network, seed=0):
    """A folded ResNet of the network's shape with random filters, some of them zero or nearly; its arrays."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, module in network.encoder.named_modules():
        if hasattr(module, "conv") and hasattr(module, "norm"):
            # encoder.stage2.0.conv1 is layer2.0.conv1 there.
            name = name.replace("stage", "layer").replace("stem", "conv1")
            shape = tuple(module.conv.weight.shape)
            weight = random.normal(0, math.sqrt(2 / np.prod(shape[1:])), shape) * random.uniform(0.3, 3)
            weight[0], weight[1] = 0, weight[1] * 1e-6
            arrays[f"{name}.weight"] = weight.astype(np.float32)
            arrays[f"{name}.bias"] = random.normal(0, 0.2, shape[0]).astype(np.float32)
    np.savez(path, **arrays)
    return arrays


def folded_features(network, arrays, image):
    """Features that a folded ResNet computes of BGR minus the mean; the network lends its wiring."""
    for name, module in network.encoder.named_modules():
        if hasattr(module, "conv") and hasattr(module, "norm"):
            name = name.replace("stage", "layer").replace("stem", "conv1")
            module.conv.weight.data.copy_(torch.from_numpy(arrays[f"{name}.weight"]))
            module.norm = torch.nn.Identity()
            module.conv.bias = torch.nn.Parameter(torch.from_numpy(arrays[f"{name}.bias"]))
    with torch.no_grad():
        return network.encoder(image)


class TestPretrainedEncoder:
    @pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
    def test_the_function_stays_as_it_was(self, encoder, tmp_path):
        network = random_network(tiny_architecture(encoder)).eval()
        arrays = write_folded_resnet(tmp_path / "folded.npz", network)
        images = random_input()
        load_pretrained_encoder(network, tmp_path / "folded.npz", images, input_scale=58.0)
        other = random_input(5)
        with torch.no_grad():
            found = network.encoder(other)
        expected = folded_features(random_network(tiny_architecture(encoder)), arrays, other.flip(1) * 58.0)
        for one, two in zip(found, expected, strict=True):
            # Each stage is brought to another unit: one positive factor for the whole of it.
            assert relative_error(one / one.norm(), two / two.norm()) < 1e-4

    def test_all_scales_are_near_one_and_finite_when_quantised(self, tmp_path):
        network = random_network(tiny_architecture())
        write_folded_resnet(tmp_path / "folded.npz", network)
        load_pretrained_encoder(network, tmp_path / "folded.npz", random_input(), input_scale=58.0)
        for block in network.encoder.stage2:
            assert 0.1 < block.conv2.norm.weight.square().mean() < 10
        network.set_bits(2, 2)
        network.calibrate(random_input())
        loss = network(random_input())[4].square().sum()
        loss.backward()
        assert torch.isfinite(loss)
        assert all(
            torch.isfinite(parameter.grad).all() for parameter in network.parameters() if parameter.grad is not None
        )

    def test_files_that_do_not_fit_are_refused(self, tmp_path):
        network = random_network(tiny_architecture())
        write_folded_resnet(tmp_path / "wide.npz", random_network(tiny_architecture(stem_channels=16)))
        (tmp_path / "text.npz").write_text("not weights")
        np.savez(tmp_path / "foreign.npz", other=np.zeros(3))
        for name, message in {
            "missing.npz": "missing.npz: no such file of pretrained weights",
            "text.npz": "text.npz: not an .npz file",
            "foreign.npz": "conv1.weight is missing, but the configured encoder needs",
            "wide.npz": r"conv1.weight is \(16, 3, 7, 7\), but the configured encoder needs \(8, 3, 7, 7\)",
        }.items():
            with pytest.raises(TrainingError, match=message):
                load_pretrained_encoder(network, tmp_path / name, random_input(), 58.0)

    @pytest.mark.skipif(not PRETRAINED.is_file(), reason=f"needs {PRETRAINED}, which is not part of the repository")
    def test_the_real_encoder_loads(self):
        architecture = replace(read_config(VOC7_CONFIG).architecture, branch_channels=(8, 8, 8, 8))
        network = random_network(architecture).eval()
        load_pretrained_encoder(network, PRETRAINED, random_input(), 58.0)
        with torch.no_grad():
            assert all(torch.isfinite(feature).all() for feature in network.encoder(random_input()))


def test_estimated_statistics_leave_the_function_as_it_was():
    network = random_network(tiny_architecture()).eval()
    images, other = random_input(), random_input(5)
    with torch.no_grad():
        expected = network(other)[4]
        estimate_statistics(network, images)
        assert relative_error(network(other)[4], expected) < 1e-4
        # Now the batch has the statistics that BatchNorm expects, so training mode computes nearly the same.
        expected = network(images)[4]
        assert relative_error(network.train()(images)[4], expected) < 1e-3


class TestAugmentation:
    LABELS = np.repeat(np.arange(8, dtype=np.uint8), 12)[None].repeat(80, 0)
    PHOTO = np.stack([LABELS * 30, 200 + np.arange(80, dtype=np.uint8)[:, None].repeat(96, 1) // 2, LABELS * 0], -1)

    def augmented(self, augmentation, seed):
        photo, labels = Image.fromarray(self.PHOTO), Image.fromarray(self.LABELS)
        return augmentation(photo, labels, MEAN, np.random.default_rng(seed))

    @pytest.mark.parametrize("seed", range(8))
    def test_photo_and_mask_stay_together(self, seed):
        window, labels = self.augmented(Augmentation(64, (1.0, 1.0), 0.0), seed)
        assert window.shape == (64, 64, 3) and labels.shape == (64, 64)
        assert (labels != IGNORE).all(), "a crop that fits lies inside the photo"
        np.testing.assert_array_equal(window[..., 0], labels * 30)

    def test_some_crops_are_flipped(self):
        rising = [
            bool((np.diff(self.augmented(Augmentation(64, (1.0, 1.0), 0.0), seed)[1][0].astype(int)) >= 0).all())
            for seed in range(16)
        ]
        assert 3 < sum(rising) < 13

    @pytest.mark.parametrize("seed", range(8))
    def test_outside_the_photo_is_mean_colour_that_does_not_count(self, seed):
        window, labels = self.augmented(Augmentation(128, (1.0, 1.0), 0.3), seed)
        assert (labels != IGNORE).sum() == self.LABELS.size
        assert (window[labels == IGNORE] == MEAN).all()

    @pytest.mark.parametrize("seed", range(8))
    def test_photo_and_mask_are_zoomed_alike(self, seed):
        window, labels = self.augmented(Augmentation(64, (0.6, 1.7), 0.0), seed)
        inside = labels != IGNORE
        # Away from the borders of the stripes, where the photo is blended.
        agree = np.abs(window[inside][:, 0].astype(int) - labels[inside] * 30) < 3
        assert agree.mean() > 0.75
        assert (np.abs(window[inside][:, 0].astype(int) - labels[inside] * 30) <= 30).all()


class TestBatches:
    def batches(self, data, seed=1):
        return Batches(open_dataset("voc7", data, "train"), Augmentation(32, (0.7, 1.4), 0.3), MEAN, 4, seed)

    def test_a_number_always_gives_the_same_batch(self, data):
        images, labels = self.batches(data)[7]
        assert images.shape == (4, 32, 32, 3) and images.dtype == torch.uint8
        assert labels.shape == (4, 32, 32) and labels.dtype == torch.int64
        again = self.batches(data)[7]
        assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
        assert not torch.equal(images, self.batches(data)[8][0])
        assert not torch.equal(images, self.batches(data, seed=2)[7][0])

    def test_workers_deliver_the_same_batches_in_order(self, data):
        batches = self.batches(data)
        for number, (images, labels) in zip((3, 4, 5), batch_stream(batches, range(3, 6), workers=1), strict=True):
            assert torch.equal(images, batches[number][0]) and torch.equal(labels, batches[number][1])

    def test_an_epoch_has_every_sample_once(self, data):
        dataset = open_dataset("voc7", data, "train")
        photos = [dataset.sample(index)[0].tobytes() for index in range(len(dataset))]
        seen = []

        def record(image, mask, mean, generator):
            seen.append(photos.index(np.asarray(image).tobytes()))
            return np.asarray(image), np.asarray(mask)

        batches = Batches(dataset, record, MEAN, 2, seed=1)
        for number in range(6):
            batches[number]
        assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
        assert seen[:6] != seen[6:]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_bad_mask_is_one_clear_line(self, data, tmp_path, workers):
        folder = shutil.copytree(data, tmp_path / "copy")
        for path in (folder / "masks").iterdir():
            Image.new("L", (5, 5)).save(path)
        with pytest.raises(DatasetError, match=r"^\S+\.png: 5x5 pixels, but \S+\.jpg has 48x40; they must agree$"):
            next(iter(batch_stream(self.batches(folder), [0], workers)))

    def test_rare_classes_weigh_more(self, data):
        dataset = open_dataset("voc7", data, "train")
        weights = class_weights(dataset)
        labels = np.stack([dataset.labels(index) for index in range(len(dataset))])
        share = (labels == 0).sum() / (labels != IGNORE).sum()
        assert weights[0].item() == pytest.approx(1 / math.log(1.4 + share))
        assert weights[2].item() == pytest.approx(1 / math.log(1.4))
        assert len(weights) == 7


class TestConfig:
    @pytest.fixture
    def values(self, tmp_path):
        path = tiny_training.write_config(tmp_path / "tiny.toml", tiny_training.stage("float"))
        return read_config(path).as_dict()

    def test_the_shipped_configuration_is_valid(self):
        config = read_config(VOC7_CONFIG)
        assert (config.architecture.weight_bits, config.architecture.activation_bits) == (2, 2)
        assert config.architecture.classes[1] == "cat"

    def test_plain_data_gives_the_configuration_back(self, values):
        assert config_from_dict(values).as_dict() == values
        assert config_from_dict(json.loads(json.dumps(values))).as_dict() == values

    @pytest.mark.parametrize(
        ("table", "entry", "value", "message"),
        [
            (
                None,
                "dataset",
                "imagenet",
                "dataset must be one of camvid, cityscapes, folder, voc, voc7, not 'imagenet'",
            ),
            (None, "class_weights", "sqrt", "class_weights must be 'none' or 'log'"),
            (None, "batch_size", 0, "batch_size must be at least 1"),
            (None, "batch_size", "8", "the configuration: 'batch_size' must be of type int, not '8'"),
            (None, "bfloat16", 1, "'bfloat16' must be of type bool, not 1"),
            (None, "stages", [], r"at least one \[\[stages\]\] table"),
            (None, "momentum", 0.9, "the configuration: unknown entry 'momentum'"),
            (None, "preprocessing", None, r"the table \[preprocessing\] is missing"),
            ("augmentation", "crop", 250, "augmentation: crop must be a multiple of 32"),
            ("augmentation", "scale", (1.5, 0.5), "augmentation: scale must be the smallest and the largest zoom"),
            ("augmentation", "color", 0.3, "augmentation: unknown entry 'color'; known are crop, scale, colour"),
            ("architecture", "encoder", "vgg16", "architecture: encoder must be one of resnet18, resnet34, resnet50"),
            ("architecture", "stage_channels", (8, 8, 16), "architecture: there must be 4 stage_channels"),
            ("architecture", "stream_bits", 9, "architecture: stream_bits must be 1 to 8"),
            ("preprocessing", "mean", (0, 0, 300), "preprocessing: mean must be three whole numbers from 0 to 255"),
            ("preprocessing", "working_size", 500, "preprocessing: working_size must be a multiple of 32"),
            ("stage", "weight_bits", 16, "stage 'float': weight_bits and activation_bits must be 1 to 8, or 32"),
            ("stage", "scales", (32, 64), "stage 'float': scales must be some of 4, 8, 16, 32"),
            ("stage", "scales", (), "stage 'float': scales must be some of 4, 8, 16, 32"),
            ("stage", "iterations", 0, "stage 'float': iterations must be at least 1"),
            ("stage", "encoder_rate", -1.0, "stage 'float': learning rates must be positive"),
            ("stage", "name", "checkpoint", "stage 'checkpoint': the name must suit a file and not be 'checkpoint'"),
            ("stage", "name", "../w2a2", "stage '../w2a2': the name must suit a file"),
        ],
    )
    def test_impossible_entries_are_refused(self, values, table, entry, value, message):
        target = values if table is None else values["stages"][0] if table == "stage" else values[table]
        target[entry] = value
        with pytest.raises(TrainingError, match=message):
            config_from_dict(values)

    def test_a_missing_entry_is_named(self, values):
        del values["augmentation"]["crop"]
        with pytest.raises(TrainingError, match="augmentation: the entry 'crop' is missing"):
            config_from_dict(values)

    def test_bottlenecks_need_channels_divisible_by_4(self, values):
        values["architecture"] |= {"encoder": "resnet50", "stage_channels": (8, 8, 16, 18)}
        with pytest.raises(TrainingError, match="architecture: stages of resnet50 need channels divisible by 4"):
            config_from_dict(values)

    def test_two_stages_cannot_share_a_checkpoint(self, values):
        values["stages"] *= 2
        with pytest.raises(TrainingError, match="stages: two have the same name"):
            config_from_dict(values)

    def test_a_folder_names_the_classes_and_a_checkpoint_keeps_them(self, tmp_path):
        path = tiny_training.write_config(tmp_path / "own.toml", tiny_training.stage("float"))
        path.write_text(path.read_text().replace('"voc7"', '"folder"'))
        with pytest.raises(DatasetError, match=r"classes\.txt: not found"):
            read_config(path, tmp_path)
        (tmp_path / "classes.txt").write_text("background\nhand\n")
        config = read_config(path, tmp_path)
        assert config.architecture.classes == ("background", "hand")
        assert config_from_dict(json.loads(json.dumps(config.as_dict()))) == config

    def test_files_that_are_no_configuration_are_named(self, tmp_path):
        (tmp_path / "text.toml").write_text("not [ toml")
        for name, message in {"missing.toml": "missing.toml: cannot be read", "text.toml": "not valid TOML"}.items():
            with pytest.raises(TrainingError, match=message):
                read_config(tmp_path / name)


class Stopped(Exception):
    """Stands in for a crash."""


def stop_after(monkeypatch, iterations):
    """Let a run checkpoint after every iteration and crash in the one after the given number."""
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", -1)
    train_batch = Trainer._train_batch

    def crash(trainer, *arguments):
        if trainer.trained == iterations:
            raise Stopped
        return train_batch(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_train_batch", crash)


SCHEDULE = tiny_training.stage("float"), tiny_training.stage("w2a2", (2, 2))


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    return tiny_training.write_config(tmp_path_factory.mktemp("config") / "tiny.toml", *SCHEDULE)


@pytest.fixture(scope="module")
def finished(data, config_path, tmp_path_factory):
    """Folder of a whole run."""
    output = tmp_path_factory.mktemp("run") / "tiny"
    arguments = [str(config_path), "--data", str(data), "--output", str(output), "--workers", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return output


class TestRun:
    def trainer(self, config, data, output, **arguments):
        config = config if not isinstance(config, Path) else read_config(config)
        return Trainer(config, data, output, "command", workers=0, **arguments)

    def test_a_run_leaves_its_configuration_and_a_checkpoint_of_every_stage(self, finished, config_path):
        assert sorted(path.name for path in finished.iterdir()) == [
            "checkpoint.pt",
            "config.toml",
            "float.pt",
            "w2a2.pt",
        ]
        assert (finished / "config.toml").read_text() == config_path.read_text()
        saved = read_checkpoint(finished / "w2a2.pt")
        assert config_from_dict(saved["config"]) == read_config(config_path)
        assert saved["command"].startswith("python -m tools.train ")
        assert list(saved["results"]) == ["float", "w2a2"]
        assert saved["results"]["w2a2"]["dataset"] == "voc7 val"

    @pytest.mark.parametrize("iterations", [2, 4, 7])
    def test_a_stopped_run_ends_like_one_that_was_not(
        self, data, config_path, finished, tmp_path, monkeypatch, iterations
    ):
        with monkeypatch.context() as context:
            stop_after(context, iterations)
            with pytest.raises(Stopped):
                self.trainer(config_path, data, tmp_path).run()
        self.trainer(config_path, data, tmp_path).run()
        one, other = (read_checkpoint(folder / "checkpoint.pt") for folder in (finished, tmp_path))
        assert one["results"] == other["results"] and one["trained"] == other["trained"] == 8
        assert set(one["network"]) == set(other["network"])
        assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])

    def test_a_finished_run_can_be_extended(self, data, config_path, finished, tmp_path):
        shutil.copytree(finished, tmp_path / "run")
        longer = tiny_training.write_config(tmp_path / "c.toml", *SCHEDULE, tiny_training.stage("w1a2", (1, 2), 2))
        self.trainer(longer, data, tmp_path / "run").run()
        saved = read_checkpoint(tmp_path / "run" / "w1a2.pt")
        assert (saved["weight_bits"], saved["activation_bits"], saved["trained"]) == (1, 2, 10)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 4}, "seed is 4, but the run began with 3; restore it, or begin a new run"),
            ({"batch_size": 2}, "batch_size is 2, but the run began with 4"),
            ({"dataset": "camvid"}, "dataset is 'camvid', but the run began with 'voc7'"),
            (
                {"augmentation": Augmentation(64, (0.8, 1.25), 0.2)},
                r"augmentation.crop is 64, but the run began with 32",
            ),
            ({"architecture": {"stream_bits": 0}}, "architecture.stream_bits is 0, but the run began with 8"),
            ({"stages": slice(0, 1)}, "stage 'w2a2' has begun and can no longer change"),
        ],
    )
    def test_a_run_does_not_go_on_with_another_configuration(
        self, data, config_path, finished, monkeypatch, change, message
    ):
        config = read_config(config_path)
        if "stages" in change:
            change = {"stages": config.stages[change["stages"]]}
        if "architecture" in change:
            change = {"architecture": replace(config.architecture, **change["architecture"])}
        if "dataset" in change:
            monkeypatch.setattr(trainer_module, "open_dataset", lambda kind, *rest: open_dataset("voc7", *rest))
        with pytest.raises(TrainingError, match=f"checkpoint.pt: {message}"):
            self.trainer(replace(config, **change), data, finished)

    def test_name_and_working_size_may_change(self, data, config_path, finished):
        config = read_config(config_path)
        preprocessing = replace(config.preprocessing, working_size=96)
        self.trainer(replace(config, name="other", preprocessing=preprocessing), data, finished).run()

    @pytest.mark.parametrize(
        ("bits", "scales"),
        [
            ((32, 32), (32,)),
            ((32, 32), (32, 16, 8, 4)),
            ((8, 8), (32, 16, 8, 4)),
            ((2, 2), (4,)),
            ((1, 2), (32, 16, 8, 4)),
        ],
    )
    def test_a_stage_of_any_bits_and_scales_learns(self, data, tmp_path, monkeypatch, bits, scales):
        # The same four crops again and again: what is learned by heart shows within few iterations.
        sample = Batches._sample
        monkeypatch.setattr(Batches, "_sample", lambda batches, position: sample(batches, position % 4))
        monkeypatch.setattr(trainer_module, "WARM_UP_ITERATIONS", 1)
        losses = []
        train_batch = Trainer._train_batch
        monkeypatch.setattr(Trainer, "_train_batch", lambda *batch: losses.append(train_batch(*batch)) or losses[-1])
        stage = tiny_training.stage("only", bits, 30, 5e-3, scales)
        self.trainer(tiny_training.write_config(tmp_path / "tiny.toml", stage), data, tmp_path / "run").run()
        assert np.mean(losses[-5:]) < 0.85 * losses[0]

    def test_crops_without_a_counted_pixel_do_no_harm(self, data, config_path, tmp_path):
        trainer = self.trainer(config_path, data, tmp_path)
        loss = trainer._loss(torch.ones(1, 7, 2, 2, requires_grad=True), torch.full((1, 32, 32), IGNORE), 16)
        loss.backward()
        assert loss.item() == 0

    def test_a_diverged_run_says_so(self, data, config_path, tmp_path):
        trainer = self.trainer(config_path, data, tmp_path)
        trainer.network.branch32.classifier.conv.bias.data.fill_(math.nan)
        with pytest.raises(TrainingError, match="the loss is nan at iteration 0 of stage 'float'"):
            trainer.run()

    def test_the_report_shows_loss_rate_and_time_left_of_the_whole_run(self, data, config_path, tmp_path, capsys):
        trainer = self.trainer(config_path, data, tmp_path)
        # 4 + 4 iterations, one of them done, at one in 10 minutes.
        trainer._note_loss(1.5)
        trainer._report(trainer.config.stages[0], 1 / 600)
        assert capsys.readouterr().err == "float 1/4  loss 1.500  0.0 images/s  1 h 10 min left\n"

    def test_prediction_has_the_size_of_the_photo(self, finished):
        network, config, _ = load_network(finished / "w2a2.pt")
        mask = predict_label_map(network, np.full((41, 50, 3), 90, np.uint8), config.preprocessing)
        assert mask.shape == (41, 50) and mask.dtype == np.uint8 and mask.max() < 7

    def test_a_start_from_a_checkpoint_computes_the_same(self, data, config_path, finished, tmp_path):
        trainer = self.trainer(config_path, data, tmp_path / "run", start=finished / "w2a2.pt")
        network, _, _ = load_network(finished / "w2a2.pt")
        assert trainer.network.architecture == network.architecture
        assert torch.equal(trainer.network.eval()(random_input())[4], network(random_input())[4])

    def test_a_start_with_another_stream_is_calibrated_anew(self, finished):
        network = random_network(replace(load_network(finished / "w2a2.pt")[0].architecture, stream_bits=0))
        network.set_bits(32, 32)
        load_start(network, finished / "w2a2.pt", Preprocessing(MEAN, 58.0, 64), random_input())
        assert network.architecture.weight_bits == network.architecture.activation_bits == 32

    def test_starts_that_do_not_fit_are_refused(self, data, config_path, finished, tmp_path):
        config = read_config(config_path)
        (tmp_path / "text.pt").write_text("not a checkpoint")
        (tmp_path / "text.h5").write_text("not a model")
        torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
        narrow = replace(config, architecture=replace(config.architecture, branch_channels=(4, 4, 4, 4)))
        grey = replace(config, preprocessing=Preprocessing((128, 128, 128), 58.0, 64))
        for start, configuration, message in [
            (tmp_path / "missing.pt", config, "missing.pt: no such checkpoint"),
            (tmp_path / "text.pt", config, "text.pt: not a checkpoint of this training code"),
            (tmp_path / "foreign.pt", config, "foreign.pt: not a checkpoint of this training code"),
            (tmp_path / "text.h5", config, "text.h5: not a bitseg model"),
            (finished / "float.pt", narrow, r"its branch_channels is \(8, 8, 8, 8\), but the configuration's"),
            (finished / "float.pt", grey, r"its mean is \(123, 117, 104\), but the configuration's"),
        ]:
            with pytest.raises(BitsegError, match=message):
                self.trainer(configuration, data, tmp_path / "run", start=start)
        with pytest.raises(TrainingError, match="not from both"):
            self.trainer(config, data, tmp_path / "run", start=finished / "float.pt", pretrained="resnet.npz")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["missing.toml", "--data", "d"], "Error: missing.toml: cannot be read"),
            (["{config}", "--data", "missing"], "Error: missing/train.txt: not found; give the folder"),
            (["{config}", "--data", "{data}", "--pretrained", "no.npz"], "Error: no.npz: no such file of pretrained"),
            (["{config}", "--data", "{data}", "--start", "no.pt"], "Error: no.pt: no such checkpoint"),
        ],
    )
    def test_the_command_line_says_in_one_line_what_is_wrong(self, data, config_path, tmp_path, arguments, message):
        arguments = [argument.format(config=config_path, data=data) for argument in arguments]
        result = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "run")])
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in result.output

    def test_an_output_that_is_a_file_is_refused(self, data, config_path, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(TrainingError, match="file: cannot be made a folder"):
            self.trainer(config_path, data, tmp_path / "file")


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", tiny_training.stage("float")))
    path = tmp_path / "checkpoint.pt"
    network = random_network(config.architecture)
    save_checkpoint(path, config, network, iteration=1)

    def fill_disk(state, file):
        file.write(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(torch, "save", fill_disk)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: cannot be written \(No space left on device\)"):
        save_checkpoint(path, config, network, iteration=2)
    assert read_checkpoint(path)["iteration"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint.pt", "tiny.toml"]


def test_normalised_input_is_zero_at_the_mean():
    images = torch.tensor([[[[123, 117, 104], [181, 117, 46]]]], dtype=torch.uint8)
    x = normalise(images, Preprocessing(MEAN, 58.0, 512))
    assert x.shape == (1, 3, 1, 2)
    np.testing.assert_allclose(x[0, :, 0], [[0, 1], [0, 0], [0, -1]])
