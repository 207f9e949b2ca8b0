"""Where a training run starts: pretrained encoders, checkpoints, model files."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_training
from tiny_training import MEAN, random_input, random_network, relative_error, tiny_architecture, torch

from bitseg.architecture import Preprocessing
from bitseg.datasets import CLASSES
from tools.train.checkpoint import save_checkpoint
from tools.train.config import read_config
from tools.train.errors import TrainingError
from tools.train.initialize import estimate_statistics, load_pretrained_encoder, load_start
from tools.train.network import BitFCN

PRETRAINED = Path(__file__).parents[2] / "shared" / "pretrained" / "resnet50_thin_imagenet.npz"
VOC7_CONFIG = Path(__file__).parents[1] / "tools" / "train" / "experiments" / "voc7" / "float.toml"

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A calibrated network at 2-2 bits and its checkpoint."""
    folder = tmp_path_factory.mktemp("start")
    stages = tiny_training.stage("w2a2", (2, 2))
    config = read_config(tiny_training.write_config(folder / "tiny.toml", stages))
    network = random_network(config.architecture, seed=1)
    network.set_bits(2, 2)
    network.calibrate(random_input())
    save_checkpoint(folder / "w2a2.pt", config, network)
    return network.eval(), folder / "w2a2.pt"


class TestStart:
    """Starts from a network at 2-2 bits."""

    PREPROCESSING = Preprocessing(MEAN, 58.0, 64)

    def start(self, trained, quantizer="learned", **changes):
        """A network with some changes in its architecture that starts from the trained one."""
        network = random_network(replace(trained[0].architecture, **changes), quantizer, seed=2)
        load_start(network, trained[1], self.PREPROCESSING, random_input())
        return network.eval()

    @staticmethod
    def bits(network):
        return network.architecture.weight_bits, network.architecture.activation_bits

    @staticmethod
    def taken(network, trained, name):
        """Whether a layer has the trained weights."""
        return torch.equal(network.get_submodule(name).conv.weight, trained[0].get_submodule(name).conv.weight)

    def test_the_same_network_is_taken_whole(self, trained, capsys):
        network = self.start(trained)
        assert self.bits(network) == (2, 2)
        assert torch.equal(network(random_input())[4], trained[0](random_input())[4])
        assert capsys.readouterr().err == ""

    def test_other_classes_get_classifiers_of_their_own(self, trained, capsys):
        # As many classes with other names: nothing but the names tells the classifiers apart.
        names = tuple(name.upper() for name in CLASSES["voc7"])
        network = self.start(trained, classes=names)
        assert network.architecture.classes == names
        assert self.taken(network, trained, "branch4.block.conv2")
        assert not self.taken(network, trained, "branch4.classifier")
        layers = "branch16.classifier, branch32.classifier, branch4.classifier, branch8.classifier"
        assert capsys.readouterr().err == (
            f"{trained[1]} does not hold these layers, which begin untrained: {layers}\n"
        )
        assert self.start(trained, classes=("a", "b"))(random_input())[4].shape == (2, 2, 16, 16)

    def test_another_reconstruction_keeps_encoder_and_reductions(self, trained, capsys):
        network = self.start(trained, reconstruction="convolution")
        assert self.taken(network, trained, "encoder.stage4.1.conv2")
        assert self.taken(network, trained, "branch8.reduce")
        assert capsys.readouterr().err.endswith(": branch16.conv, branch32.conv, branch4.conv, branch8.conv\n")
        assert network(random_input())[4].shape == (2, 7, 16, 16)

    @pytest.mark.parametrize(
        "changes",
        [
            {"classes": ("a", "b")},
            {"reconstruction": "convolution"},
            {"stream_bits": 0},
            {"stream_weight_bits": 4},
            {"quantizer": "dorefa"},
        ],
        ids=str,
    )
    def test_what_is_not_taken_whole_is_left_for_the_first_stage_to_calibrate(self, trained, changes):
        network = self.start(trained, **changes)
        assert self.bits(network) == (32, 32)
        network.set_bits(2, 2)
        network.calibrate(random_input())
        quantizer = network.branch4.classifier.weight_quantizer
        # 8 bits reach the largest weight in 255 half steps.
        reach = quantizer.scale(network.branch4.classifier.conv.weight) * quantizer.levels
        largest = network.branch4.classifier.conv.weight.flatten(1).abs().amax(1)
        np.testing.assert_allclose(reach.detach(), largest.detach(), rtol=0.1)

    def test_one_convolution_after_a_doubled_one_is_left_to_calibrate_too(self, trained, tmp_path):
        doubled = BitFCN(replace(trained[0].architecture, reconstruction="double_convolution"))
        doubled.set_bits(2, 2)
        config = read_config(trained[1].with_name("tiny.toml"))
        save_checkpoint(tmp_path / "w2a2.pt", replace(config, architecture=doubled.architecture), doubled)
        network = self.start((doubled, tmp_path / "w2a2.pt"), reconstruction="convolution")
        assert self.bits(network) == (32, 32), "names of parameters agree, shapes do not"
