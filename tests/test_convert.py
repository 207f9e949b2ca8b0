"""The converter: a trained network, folded into integers and scales, computes what it did before, and comes back."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_training
from click.testing import CliRunner
from PIL import Image
from tiny_training import torch

from bitseg.architecture import RECONSTRUCTIONS, Architecture, Preprocessing
from bitseg.model_file import Model, StreamScales, read_model, write_model
from bitseg.network.graph import Network
from bitseg.network.operations import Operations
from bitseg.network.reference import ReferenceOperations, label_map
from bitseg.palette import palette_for
from bitseg.presets import preset_model
from tools.convert import convert, main
from tools.train import folding
from tools.train.checkpoint import save_checkpoint
from tools.train.config import read_config
from tools.train.data import normalise
from tools.train.errors import TrainingError
from tools.train.folding import connections, fold_network, unfold_network
from tools.train.initialize import load_start
from tools.train.network import BitFCN
from tools.train.quantizers import FLOAT_BITS, ActivationQuantizer, DoReFaWeightQuantizer

CLASSES = ("background", "cat", "dog")
PREPROCESSING = Preprocessing((123, 117, 104), 58.0, 64)
BITS = [(1, 2), (2, 2), (4, 4), (8, 8)]
STREAM_BITS = [8, 0]
ENCODERS = {"resnet18": (8, 8, 12, 16), "resnet34": (8, 8, 12, 16), "resnet50": (16, 16, 24, 32)}
NETWORKS = {
    **{
        f"{encoder}, {bits[0]}-{bits[1]}, stream {stream_bits}": {
            "encoder": encoder,
            "bits": bits,
            "stream_bits": stream_bits,
        }
        for encoder in ("resnet18", "resnet50")
        for bits in BITS
        for stream_bits in STREAM_BITS
    },
    "resnet34": {"encoder": "resnet34"},
    **{
        f"{reconstruction}, stream {stream_bits}": {"reconstruction": reconstruction, "stream_bits": stream_bits}
        for reconstruction in RECONSTRUCTIONS[1:]
        for stream_bits in STREAM_BITS
    },
    "stream carried on": {"stream_weight_bits": 4},
    "resnet50, stream carried on": {"encoder": "resnet50", "bits": (1, 2), "stream_weight_bits": 2},
    "stream of 2 bits carried on": {"stream_bits": 0, "stream_weight_bits": 8},
    "convolution, stream carried on": {"reconstruction": "convolution", "stream_weight_bits": 4},
}
"""Arguments of `random_network`."""

DOREFA = {
    "1-2": {"bits": (1, 2)},
    "2-2, stream 0": {"stream_bits": 0},
    "3-5": {"bits": (3, 5)},
    "8-8": {"bits": (8, 8)},
    "resnet50": {"encoder": "resnet50"},
    "convolution": {"reconstruction": "convolution"},
}
"""The same for networks quantised as in DoReFa."""

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


def random_image(seed=0, height=64, width=64):
    """Blobs of colour: noise of coarse and fine grain."""
    random = np.random.default_rng(seed)
    coarse = np.kron(random.normal(0, 50, (height // 16, width // 16, 3)), np.ones((16, 16, 1)))
    return (
        (np.array(PREPROCESSING.mean) + coarse + random.normal(0, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)
    )


@functools.cache
def random_network(
    encoder="resnet18",
    bits=(2, 2),
    stream_bits=8,
    reconstruction="residual_block",
    quantizer="learned",
    stream_weight_bits=0,
):
    """A quantised network of random weights, with BatchNorm and steps that are no round numbers."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    architecture = Architecture(
        encoder, 8, ENCODERS[encoder], (8, 8, 8, 8), CLASSES, *bits, stream_bits, reconstruction, stream_weight_bits
    )
    network = BitFCN(architecture, quantizer)
    network.set_bits(*bits)
    images = normalise(torch.from_numpy(np.stack([random_image(seed) for seed in (7, 8)])), PREPROCESSING)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.weight[::5] *= -1
                module.bias.normal_(0.2, 0.3, generator=generator)
        network.calibrate(images)
        for module in network.modules():
            if isinstance(module, ActivationQuantizer) and quantizer == "learned":
                # Calibrated bounds of a stream and of its activation are in the ratio of small integers, which makes
                # exact ties frequent; learned ones are not.
                module.log_bound += torch.rand((), generator=generator) * 0.1
        network.train()(images)
    return network.eval()


def folded(network):
    layers, streams = fold_network(network, PREPROCESSING)
    palette = palette_for(network.architecture.classes)
    return Model("random", network.architecture, PREPROCESSING, palette, {}, layers, streams)


def pytorch_scores(network, image):
    with torch.no_grad():
        return network(normalise(torch.from_numpy(image)[None], PREPROCESSING))[4][0].numpy()


def reference_scores(model, image):
    return Network(model, ReferenceOperations()).scores(image)


def agreement(found, expected):
    """Correlation of two score volumes, and the share of cells with the same class."""
    return np.corrcoef(found.ravel(), expected.ravel())[0, 1], (found.argmax(0) == expected.argmax(0)).mean()


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_the_folded_network_computes_what_the_trained_one_does(options):
    assert_folding_keeps_the_function(random_network(**options))


@pytest.mark.parametrize("options", DOREFA.values(), ids=DOREFA)
def test_dorefa_folds_into_the_same_format(options):
    network = random_network(quantizer="dorefa", **options)
    assert isinstance(network.encoder.stage1[0].conv1.weight_quantizer, DoReFaWeightQuantizer)
    assert_folding_keeps_the_function(network)


def assert_folding_keeps_the_function(network):
    image = random_image(1)
    correlation, same = agreement(reference_scores(folded(network), image), pytorch_scores(network, image))
    # Not exactly: PyTorch's floating-point sums miss the integers by a few parts in 10**7, so a value beside the
    # middle between two codes may be rounded to the other one, and later layers carry that on.
    assert correlation > 0.99
    assert same > 0.97


@pytest.mark.parametrize(
    "options", [*NETWORKS.values(), *DOREFA.values()], ids=[*NETWORKS, *(f"DoReFa {n}" for n in DOREFA)]
)
def test_a_network_in_codes_gives_the_scores_of_the_converted_one(options):
    network = random_network(**options)
    found = pytorch_scores(folding.folded(network, PREPROCESSING), random_image(1))
    expected = reference_scores(folded(network), random_image(1))
    # All codes are equal; upsampling and softmax are PyTorch's own, so the scores differ in their last bits.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len(np.unique(expected)) > expected.size // 2


@pytest.mark.parametrize("reconstruction", RECONSTRUCTIONS)
@pytest.mark.parametrize("stream_bits, stream_weight_bits", [(8, 0), (0, 0), (8, 4)])
def test_a_converted_network_gives_the_same_scores_in_the_engine_and_in_numpy(
    reconstruction, stream_bits, stream_weight_bits, tmp_path
):
    options = {"stream_bits": stream_bits, "stream_weight_bits": stream_weight_bits}
    write_model(tmp_path / "model.h5", folded(random_network(reconstruction=reconstruction, **options)))
    model = read_model(tmp_path / "model.h5")
    assert model.architecture.reconstruction == reconstruction
    image = random_image(1)
    expected = reference_scores(model, image)
    assert len(np.unique(expected)) > expected.size // 2
    np.testing.assert_array_equal(Network(model, Operations(2)).scores(image), expected)


def test_the_full_network_has_the_size_of_the_papers_and_converts(tmp_path):
    network = BitFCN(preset_model("bfcn50", "1-2").architecture)
    # 137.7 MB in floating point; the paper does not say whether that is weights alone.
    weights = [module.weight.numel() for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert abs(sum(weights) / 34.4e6 - 1) < 0.02
    assert abs(sum(parameter.numel() for parameter in network.parameters()) / 34.4e6 - 1) < 0.02
    network.set_bits(1, 2)
    write_model(tmp_path / "bfcn50.h5", folded(network.eval()))
    assert (tmp_path / "bfcn50.h5").stat().st_size == pytest.approx(sum(weights) / 8, rel=0.15)


@pytest.mark.parametrize("width", [8, 16])
def test_the_width_of_the_encoder_is_free(width):
    """Every convolution of the PyTorch network has the shape that the architecture gives it."""
    stages = tuple(width * factor for factor in (1, 2, 4, 8))
    architecture = Architecture("resnet34", width, stages, (8, 8, 8, 8), CLASSES, 2, 2, 8)
    network = BitFCN(architecture)
    for name, convolution in architecture.convolutions().items():
        weight = network.get_submodule(name).conv.weight
        assert weight.shape == (convolution.out_channels, convolution.in_channels, *[convolution.kernel] * 2)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_the_fp32_twin_of_other_engines_is_the_network_that_rounds_nothing(options):
    """So that `compare_engines` compares the same network, not one that has less to do."""
    pytest.importorskip("onnx", reason="the fp32 twin is an ONNX graph: pip install onnx")
    from onnx.reference import ReferenceEvaluator

    from tools.onnx_network import build_onnx

    model = folded(random_network(**options))
    network = unfold_network(model)
    network.set_bits(network.architecture.weight_bits, FLOAT_BITS)
    image = random_image(3)
    twin = build_onnx(model, *image.shape[:2])
    before_resizing = twin.graph.node[-2].input[0]
    labels, scores = ReferenceEvaluator(twin).run(["labels", before_resizing], {"image": image[None]})
    expected = pytorch_scores(network, image)
    assert np.ptp(expected, axis=(1, 2)).min() > 0
    np.testing.assert_allclose(scores[0], expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(labels[0], label_map(scores[0], image.shape[:2], image.shape[:2]))


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_unfolding_is_the_inverse_of_folding(options):
    model = folded(random_network(**options))
    layers, streams = fold_network(unfold_network(model), PREPROCESSING)
    assert list(layers) == list(model.layers) and list(streams) == list(model.streams)
    for name, layer in layers.items():
        np.testing.assert_array_equal(layer.codes, model.layers[name].codes)
        np.testing.assert_allclose(layer.multiplier, model.layers[name].multiplier, rtol=1e-5)
        # The colour that is subtracted in the first layer cancels out of larger numbers.
        largest = np.abs(model.layers[name].offset).max()
        np.testing.assert_allclose(layer.offset, model.layers[name].offset, rtol=1e-5, atol=1e-5 * largest)
    for name, scales in streams.items():
        np.testing.assert_allclose(
            (scales.shortcut_multiplier, scales.activation_multiplier),
            (model.streams[name].shortcut_multiplier, model.streams[name].activation_multiplier),
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    "options",
    [*({"bits": bits} for bits in BITS), {"reconstruction": "double_convolution"}, {"stream_weight_bits": 4}],
    ids=str,
)
def test_a_start_from_a_model_file_computes_what_the_file_says_and_learns_on(options, tmp_path):
    model = folded(random_network(**options))
    write_model(tmp_path / "model.h5", model)
    network = BitFCN(model.architecture)
    images = normalise(torch.from_numpy(np.stack([random_image(seed) for seed in (2, 3)])), PREPROCESSING)
    load_start(network, tmp_path / "model.h5", PREPROCESSING, images)
    assert network.architecture == model.architecture
    image = random_image(1)
    found, expected = pytorch_scores(network.eval(), image), reference_scores(model, image)
    correlation, same = agreement(found, expected)
    assert correlation > 0.99 and same > 0.97
    # A code that is rounded the other way (see above) reaches some scores; the others are equal as float32 goes.
    assert np.isclose(found, expected, atol=1e-5 * np.abs(expected).max()).mean() > 0.5

    # BatchNorm has the statistics of the images, so training mode sees the same network, and weights on the outermost
    # levels, which are all there are at one bit, have a gradient.
    evaluated, trained = network.eval()(images)[4], network.train()(images)[4]
    assert np.corrcoef(trained.detach().ravel(), evaluated.detach().ravel())[0, 1] > 0.99
    trained.square().sum().backward()
    layer = network.encoder.stage1[0].conv2
    codes, gradient = layer.weight_quantizer.codes(layer.conv.weight), layer.conv.weight.grad
    outermost = (codes == 0) | (codes == layer.weight_quantizer.levels)
    assert torch.isfinite(gradient).all() and (gradient[outermost] != 0).float().mean() > 0.5


def test_a_file_of_a_classifier_with_negative_multipliers_can_be_unfolded():
    model = folded(random_network())
    name = "branch4.classifier"
    layer = model.layers[name]
    turned = replace(layer, codes=255 - layer.codes, multiplier=-layer.multiplier)
    network = unfold_network(replace(model, layers={**model.layers, name: turned}))
    np.testing.assert_array_equal(
        network.get_submodule(name).weight_quantizer.codes(network.get_submodule(name).conv.weight),
        layer.codes.transpose(0, 3, 1, 2),
    )


def test_stream_scales_without_counterpart_are_refused():
    model = folded(random_network())
    for name, scales in {
        "encoder.stem_output": StreamScales(np.float32(0), np.float32(-1)),
        "branch4.block.output": StreamScales(np.float32(1), np.float32(0.5)),
        "encoder.stage1.0.output": StreamScales(np.float32(0), np.float32(1)),
    }.items():
        with pytest.raises(TrainingError, match=f"the scales of {name} have no counterpart"):
            unfold_network(replace(model, streams={**model.streams, name: scales}))


@pytest.mark.parametrize("reconstruction", RECONSTRUCTIONS)
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_connections_name_every_layer_and_stream_in_the_architecture(encoder, reconstruction):
    architecture = Architecture(encoder, 8, ENCODERS[encoder], (8, 8, 8, 8), CLASSES, 2, 2, 8, reconstruction)
    convolutions, shortcuts = connections(architecture)
    assert set(convolutions) == set(architecture.convolutions())
    assert set(shortcuts) == set(architecture.stream_outputs())
    assert shortcuts["encoder.stage2.0.output"] is None, "its shortcut is a projection"


def test_connections_of_a_branch():
    architecture = random_network().architecture
    convolutions, shortcuts = connections(architecture)
    last = architecture.stages()[1][-1].name
    assert convolutions["branch8.reduce"] == (
        f"{last}.output.activation_quantizer",
        "branch8.reduce_output.stream_quantizer",
    )
    assert shortcuts["branch8.block.output"] == "branch8.reduce_output"
    convolutions, _ = connections(replace(architecture, reconstruction="convolution"))
    assert convolutions["branch8.conv"] == ("branch8.reduce_activation", "branch8.output")
    assert convolutions["branch8.classifier"] == ("branch8.output", None)


class TestCommand:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        """Checkpoint of an untrained network at 2 bits."""
        stages = tiny_training.stage("float"), tiny_training.stage("w2a2", (2, 2))
        config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", *stages))
        torch.manual_seed(0)
        network = BitFCN(config.architecture)
        network.set_bits(2, 2)
        network.calibrate(torch.randn(2, 3, 64, 64))
        path = tmp_path / "w2a2.pt"
        save_checkpoint(
            path, config, network, command="python -m tools.train tiny.toml", results={"w2a2": {"miou": 0.1}}
        )
        network.set_bits(32, 32)
        save_checkpoint(tmp_path / "float.pt", config, network, command="", results={})
        network.set_bits(2, 32)
        save_checkpoint(tmp_path / "w2a32.pt", config, network, command="", results={})
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 20] = bytes(255 - value for value in content[middle : middle + 20])
        (tmp_path / "damaged.pt").write_bytes(content)
        other = replace(config, architecture=replace(config.architecture, stage_channels=(16, 16, 32, 32)))
        save_checkpoint(tmp_path / "other.pt", other, network, command="", results={})
        return path

    def test_a_model_does_not_replace_its_checkpoint(self, checkpoint):
        content = checkpoint.read_bytes()
        result = CliRunner().invoke(main, [str(checkpoint), str(checkpoint)])
        assert result.exit_code == 1 and "is the checkpoint itself; choose another name" in result.stderr
        assert checkpoint.read_bytes() == content

    def test_a_checkpoint_becomes_a_model_file_with_its_history_and_accuracy(self, checkpoint, tmp_path):
        data = tiny_training.write_data(tmp_path / "voc7")
        output = tmp_path / "tiny.h5"
        result = CliRunner().invoke(main, [str(checkpoint), str(output), "--data", str(data), "--name", "mine"])
        assert result.exit_code == 0, result.output
        assert f"{output}: {output.stat().st_size} bytes" in result.stdout
        assert "on voc7 val" in result.stdout
        model = read_model(output)
        assert model.name == "mine"
        assert (model.architecture.weight_bits, model.architecture.activation_bits) == (2, 2)
        assert model.preprocessing.working_size == 64
        assert model.training["command"] == "python -m tools.train tiny.toml"
        assert model.training["conversion"].startswith("python -m tools.convert ")
        assert model.training["stages"] == {"w2a2": {"miou": 0.1}}
        assert model.training["config"]["seed"] == 3
        assert model.training["accuracy"]["dataset"] == "voc7 val"
        assert model.training["accuracy"]["photos"] == 2
        assert model.training["commit"]

    def test_weights_that_carry_the_stream_on_are_not_rounded_to_fewer_bits_than_8_without_training(self, tmp_path):
        config = read_config(tiny_training.write_config(tmp_path / "c.toml", tiny_training.stage("float")))
        config = replace(config, architecture=replace(config.architecture, stream_weight_bits=4))
        save_checkpoint(tmp_path / "float.pt", config, BitFCN(config.architecture), command="", results={})
        model = convert(tmp_path / "float.pt", data=tiny_training.write_data(tmp_path / "voc7"))
        assert {convolution.weight_bits for convolution in model.architecture.convolutions().values()} == {8}

    def test_photos_without_any_class_measure_nothing(self, checkpoint, tmp_path):
        data = tiny_training.write_data(tmp_path / "voc7")
        for mask in (data / "masks").iterdir():
            Image.new("L", (48, 40), 255).save(mask)
        result = CliRunner().invoke(main, [str(checkpoint), str(tmp_path / "m.h5"), "--data", str(data)])
        assert result.exit_code == 1 and "no pixel of val has a class to be measured by" in result.stderr
        assert not (tmp_path / "m.h5").exists()

    def test_without_data_nothing_is_measured_and_the_configuration_names_the_model(self, checkpoint):
        model = convert(checkpoint)
        assert model.name == "tiny" and "accuracy" not in model.training
        json.dumps(model.training, allow_nan=False)

    @pytest.mark.parametrize(
        ("checkpoint_name", "output", "options", "message"),
        [
            ("float.pt", "m.h5", [], "float.pt: a floating-point network; give --data to quantise it to 8 bits"),
            ("w2a32.pt", "m.h5", [], "weights or feature maps are in floating point: take the checkpoint of a stage"),
            ("missing.pt", "m.h5", [], "missing.pt: no such checkpoint"),
            ("damaged.pt", "m.h5", [], "damaged.pt: damaged ("),
            ("other.pt", "m.h5", [], "other.pt: does not fit this version of the training code ("),
            ("tiny.toml", "m.h5", [], "tiny.toml: not a checkpoint of this training code"),
            ("w2a2.pt", "nowhere/m.h5", [], "the folder {folder}/nowhere does not exist; create it first"),
            ("w2a2.pt", "m.h5", ["--data", "nothing"], "nothing: there is no such folder"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, checkpoint, tmp_path, checkpoint_name, output, options, message):
        result = CliRunner().invoke(main, [str(tmp_path / checkpoint_name), str(tmp_path / output), *options])
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
        assert message.format(folder=tmp_path) in result.stderr
        assert not (tmp_path / output).exists()
