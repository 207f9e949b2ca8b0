"""Counts of operations and bytes, and the estimates made of them."""

from dataclasses import replace

import numpy as np
import pytest
from models import random_model

from bitseg.architecture import Convolution
from bitseg.cost import (
    LayerCost,
    NetworkCost,
    fp32_bytes,
    network_cost,
    packed_bytes,
    predicted_speedup,
    weight_count,
)
from bitseg.network import reference
from bitseg.network.graph import Network
from bitseg.presets import preset_model


@pytest.fixture(scope="module")
def full_network():
    """The paper's network, of 1-bit weights and 2-bit activations."""
    return preset_model("bfcn50", "1-2").architecture


@pytest.mark.parametrize("encoder, stages", [("resnet18", (7, 9, 16, 11)), ("resnet50", (8, 12, 16, 20))])
def test_multiplications_are_those_that_the_network_makes(monkeypatch, encoder, stages):
    made = []
    sums_of = reference.convolution_sums

    def counting(codes, weight_codes, *arguments):
        sums = sums_of(codes, weight_codes, *arguments)
        made.append(sums.size * weight_codes[0].size)
        return sums

    monkeypatch.setattr(reference, "convolution_sums", counting)
    model = random_model(encoder, stage_channels=stages)
    Network(model, reference.ReferenceOperations()).scores(np.zeros((96, 160, 3), np.uint8))
    cost = network_cost(model.architecture, 96, 160)
    assert sorted(layer.multiplications for layer in cost.layers) == sorted(made)
    assert cost.multiplications == sum(made)


def test_layers_are_in_order_of_execution_with_the_size_of_their_results(full_network):
    layers = {layer.name: layer for layer in network_cost(full_network, 320, 512).layers}
    assert list(layers) == list(full_network.convolutions())
    sizes = {
        "encoder.stem": (160, 256),
        "encoder.stage1.0.conv1": (80, 128),
        "encoder.stage2.0.conv1": (40, 64),
        "encoder.stage2.0.downsample": (40, 64),
        "encoder.stage4.2.conv3": (10, 16),
        "branch32.reduce": (10, 16),
        "branch8.classifier": (40, 64),
        "branch4.block.conv2": (80, 128),
    }
    assert {name: (layers[name].height, layers[name].width) for name in sizes} == sizes


def test_every_product_of_bits_is_counted():
    layer = LayerCost("layer", Convolution(5, 7, 3, 1, weight_bits=3, input_bits=2, output_bits=2), 4, 6)
    assert layer.multiplications == 4 * 6 * 7 * 5 * 9
    assert layer.bit_operations == 6 * layer.multiplications


def test_operations_grow_with_the_area(full_network):
    small, large = network_cost(full_network, 64, 96), network_cost(full_network, 128, 192)
    assert large.multiplications == 4 * small.multiplications and large.bit_operations == 4 * small.bit_operations


@pytest.mark.parametrize("size", [(100, 96), (96, 100)])
def test_a_size_that_the_network_does_not_take_is_refused(full_network, size):
    with pytest.raises(ValueError, match="multiples of 32"):
        network_cost(full_network, *size)


@pytest.mark.parametrize("bits, speedup", [((1, 2), 9), ((2, 2), 4.5), ((1, 1), 18), ((8, 8), 0.28125)])
def test_predicted_speedup_is_that_of_the_paper(bits, speedup):
    assert predicted_speedup(*bits) == speedup


def test_fpga_share_of_fp32_is_one_and_that_of_the_papers_network_less_than_a_hundredth(full_network):
    fp32 = Convolution(64, 64, 3, 1, weight_bits=32, input_bits=32, output_bits=0)
    assert NetworkCost((LayerCost("fp32", fp32, 8, 8),)).fpga_share == 1
    assert 2 / 1024 < network_cost(full_network, 512, 512).fpga_share < 0.01


def test_parameters_of_the_full_network_are_those_of_the_paper(full_network):
    assert fp32_bytes(full_network) == pytest.approx(137.7e6, rel=0.02)
    assert weight_count(full_network) * 4 == fp32_bytes(full_network)


def test_packed_bytes_follow_the_bits_of_each_layer(full_network):
    eight_bits = replace(full_network, weight_bits=8)
    assert packed_bytes(eight_bits) == weight_count(full_network)
    weights_of_8_bits = sum(
        convolution.weights
        for name, convolution in full_network.convolutions().items()
        if name == "encoder.stem" or name.endswith("classifier")
    )
    expected = weights_of_8_bits + (weight_count(full_network) - weights_of_8_bits) / 8
    assert packed_bytes(full_network) == pytest.approx(expected, abs=1)
