"""Speed of layers and whole networks, guarded by pytest-benchmark.

Save a baseline, and compare with it later:

    pytest tests/benchmarks --benchmark-enable --benchmark-save=baseline
    pytest tests/benchmarks --benchmark-enable --benchmark-compare --benchmark-compare-fail=median:10%

Without ``--benchmark-enable`` each runs once, as a test that it runs at all.
"""

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from kernel_names import KERNELS

from bitseg.cost import network_cost
from bitseg.images import read_image, resize
from bitseg.model_file import find_model, read_model
from bitseg.network.graph import Network
from bitseg.network.layout import pack_bit_planes
from bitseg.network.operations import Operations
from bitseg.presets import PRESETS, preset_model

SIZE = 256, 160
LAYERS = [
    # One of each kind in the half-width network: bottleneck convolutions of every stage, and a branch.
    "encoder.stage1.1.conv1",
    "encoder.stage1.1.conv2",
    "encoder.stage2.1.conv1",
    "encoder.stage2.1.conv2",
    "encoder.stage3.1.conv1",
    "encoder.stage3.1.conv2",
    "encoder.stage4.1.conv2",
    "branch4.block.conv1",
]


@cache
def _network(preset, bits, kernel):
    return Network(preset_model(preset, bits), Operations(1, kernel))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", ["1-2", "2-2"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(benchmark, name, bits, kernel):
    network = _network("thin50", bits, kernel)
    (cost,) = (cost for cost in network_cost(network.architecture, SIZE[1], SIZE[0]).layers if cost.name == name)
    stride = network.layers[name].convolution.stride
    _time_layer(benchmark, network, name, cost.height * stride, cost.width * stride)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", ["1-2", "2-2"])
def test_3x3_of_256_channels_at_28x28(benchmark, bits, kernel):
    _time_layer(benchmark, _network("bfcn50", bits, kernel), "encoder.stage3.1.conv2", 28, 28)


def _time_layer(benchmark, network, name, height, width):
    """Time a layer of a network on random codes of a height and a width."""
    layer = network.layers[name]
    convolution = layer.convolution
    codes = np.random.default_rng(0).integers(
        0, 2**convolution.input_bits, (height, width, convolution.in_channels), dtype=np.uint8
    )
    benchmark(network.operations.convolve, pack_bit_planes(codes, convolution.input_bits), layer)
    pixels = (height // convolution.stride) * (width // convolution.stride)
    benchmark.extra_info["multiplications"] = multiplications = pixels * convolution.weights
    if benchmark.stats:
        benchmark.extra_info["gmac_per_second"] = round(multiplications / benchmark.stats.stats.median / 1e9, 1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bits", ["1-2", "2-2"])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_network(benchmark, monkeypatch, examples, preset, bits, threads):
    monkeypatch.undo()  # the threads' real rule, not that of the tests
    _time_network(benchmark, examples, preset_model(preset, bits), threads)


@pytest.mark.parametrize("name", ["camvid-w1a2", "voc7-w2a2", "voc7-w8a8"])
def test_installed_model(benchmark, monkeypatch, examples, name):
    monkeypatch.undo()
    _time_network(benchmark, examples, read_model(find_model(name)), 1)


def _time_network(benchmark, examples, model, threads):
    network = Network(model, Operations(threads))
    width, height = SIZE
    image = resize(read_image(examples / "astronaut.jpg"), (height, width))
    labels = benchmark(network.label_map, image, (height, width), (height, width))
    assert labels.shape == (height, width)
    if benchmark.stats:
        # The same machine's matrix product, so that the figure means something elsewhere.
        benchmark.extra_info["ratio_to_sgemm"] = round(benchmark.stats.stats.median / _sgemm_seconds(), 3)


def _sgemm_seconds():
    """Median time of a float32 matrix product of 1024x1024 in NumPy, on one thread however many there are."""
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    words = [sys.executable, "-c", _SGEMM]
    result = subprocess.run(words, env={**os.environ, **one_thread}, capture_output=True, text=True, check=True)
    return float(result.stdout)


_SGEMM = """
import time
import numpy as np
matrix, times = np.ones((1024, 1024), np.float32), []
for _ in range(7):
    began = time.perf_counter()
    matrix @ matrix
    times.append(time.perf_counter() - began)
print(sorted(times)[3])
"""
