"""Every kernel equals its NumPy twin bit for bit."""

import functools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from kernel_names import KERNELS, needs_tiles
from llvmlite import ir
from numba import njit

from bitseg.architecture import Convolution
from bitseg.kernels import amx, dot, simd, winograd
from bitseg.model_file import LayerWeights, StreamScales
from bitseg.network import reference
from bitseg.network.layout import pack_bit_planes, select_kernel, stem_filters, unpack_bit_planes
from bitseg.network.operations import Operations
from bitseg.network.reference import ReferenceOperations

SHAPES = [
    # height, width, in, out, kernel, stride
    (1, 1, 1, 1, 1, 1),
    (5, 7, 7, 5, 1, 1),
    (6, 9, 32, 48, 3, 1),
    (9, 6, 48, 32, 3, 2),
    (8, 8, 64, 64, 3, 1),
    (7, 11, 65, 129, 1, 2),
    (3, 3, 200, 7, 5, 1),
    (4, 13, 128, 96, 1, 1),
    (10, 5, 3, 70, 7, 2),
    # More pixels of a row, channels and values of a window than are treated at a time.
    (3, 150, 64, 40, 3, 1),
    (5, 12, 160, 260, 3, 1),
]
BITS = [(1, 1), (1, 2), (2, 2), (3, 3), (4, 1), (1, 4), (4, 4), (5, 7), (8, 8)]
THREADS = [1, 2, 3, 7]

needs_wide_products = pytest.mark.skipif(
    dot.types(8, 8)[0] == np.uint8, reason="this CPU multiplies bytes: Winograd's sums need 16 bits"
)


def random_layer(generator, shape, weight_bits, input_bits, output_bits):
    """A convolution with random weights whose results spread over the output's codes, and codes for it to read."""
    height, width, in_channels, out_channels, kernel, stride = shape
    convolution = Convolution(in_channels, out_channels, kernel, stride, weight_bits, input_bits, output_bits)
    codes = generator.integers(0, 2**input_bits, (height, width, in_channels), dtype=np.uint8)
    filters = generator.integers(0, 2**weight_bits, (out_channels, kernel, kernel, in_channels), dtype=np.uint8)
    sums = reference.convolution_sums(codes, filters, weight_bits, stride, kernel // 2)
    top = 2 ** (output_bits or 8) - 1
    multiplier = (top / (sums.std() + 1) * generator.uniform(-0.7, 0.7, out_channels)).astype(np.float32)
    offset = generator.uniform(0, top, out_channels).astype(np.float32)
    return convolution, LayerWeights(filters, multiplier, offset), codes


@pytest.fixture(params=range(2))
def generator(request):
    print(f"seed {request.param}")
    return np.random.default_rng(request.param)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("channels", [1, 7, 32, 48, 64, 65, 200])
def test_packing_and_unpacking_gives_the_codes_back(generator, bits, channels):
    codes = generator.integers(0, 2**bits, (5, 9, channels), dtype=np.uint8)
    planes = pack_bit_planes(codes, bits, margin=2)
    assert np.array_equal(unpack_bit_planes(planes, channels), codes)
    assert np.array_equal(planes.sums[2:-2, 2:-2], codes.sum(-1))


def test_word_w_of_plane_j_holds_bit_j_of_its_64_channels_lowest_first():
    codes = np.zeros((1, 1, 70), np.uint8)
    codes[0, 0, 0], codes[0, 0, 5], codes[0, 0, 66] = 1, 2, 3
    words = pack_bit_planes(codes, 2, margin=0).words
    assert [plane[0, 0].tolist() for plane in words] == [[1, 4], [1 << 5, 4]]


def test_the_margin_of_planes_is_zero(generator):
    codes = generator.integers(1, 4, (4, 5, 64), dtype=np.uint8)
    planes = pack_bit_planes(codes, 2, margin=3)
    for array in (*planes.words, planes.sums):
        array[3:-3, 3:-3] = 0
        assert not array.any()


def test_codes_that_need_more_bits_are_refused():
    with pytest.raises(ValueError, match="more than 2 bits"):
        pack_bit_planes(np.full((1, 1, 1), 4, np.uint8), 2)


def test_codes_of_another_type_are_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"\.astype\(np\.uint8\)"):
        pack_bit_planes(np.zeros((1, 1, 1), np.int64), 2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "weight_bits, input_bits", [(1, 1), (1, 2), (2, 2), (1, 4), (4, 4), (4, 6), (8, 4), (4, 8), (5, 8)]
)
@pytest.mark.parametrize("size, channels", [(1, 640), (3, 192)])
def test_sums_of_uneven_weights_do_not_overflow_a_lane(size, channels, weight_bits, input_bits, kernel):
    # Kernels add as many products as the weights allow: here some runs of channels allow far fewer than others, all
    # codes are the largest, and filters turn from all positive to all negative.
    generator = np.random.default_rng([size, weight_bits, input_bits])
    convolution, weights, codes = random_layer(generator, (3, 4, channels, 40, size, 1), weight_bits, input_bits, 8)
    largest = 2**weight_bits - 1
    for weight_codes in weights.codes:
        start, stop = np.sort(generator.integers(0, channels, 2))
        sign = generator.integers(2)
        weight_codes[..., start:stop] = largest * sign
        weight_codes[..., :start] >>= generator.integers(weight_bits, dtype=np.uint8)
        weight_codes[..., stop:] = largest * (1 - sign) if generator.integers(2) else 0
    codes[...] = 2**input_bits - 1
    spread = np.float32(200 / convolution.largest_sum)
    weights = replace(weights, multiplier=np.full(40, spread / 2), offset=np.full(40, 128, np.float32))
    operations, plain = Operations(1, kernel), ReferenceOperations()
    planes = pack_bit_planes(codes, input_bits, convolution.padding)
    result = operations.convolve(planes, operations.prepare(convolution, weights))
    expected = plain.convolve(codes, plain.prepare(convolution, weights))
    assert len(np.unique(expected)) > 10
    assert np.array_equal(unpack_bit_planes(result, 40), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("weight_bits, input_bits", BITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_equals_numpy(shape, weight_bits, input_bits, threads, kernel):
    generator = np.random.default_rng([weight_bits, input_bits, *shape])
    convolution, weights, codes = random_layer(generator, shape, weight_bits, input_bits, 4)
    operations, plain = Operations(threads, kernel), ReferenceOperations()
    planes = pack_bit_planes(codes, input_bits, convolution.padding)
    result = operations.convolve(planes, operations.prepare(convolution, weights))
    expected = plain.convolve(codes, plain.prepare(convolution, weights))
    assert np.array_equal(unpack_bit_planes(result, convolution.out_channels), expected)


@pytest.mark.parametrize("output_bits", range(1, 9))
def test_results_of_any_bits_equal_numpy_at_ties_and_extremes(generator, output_bits):
    # Products and offsets that lie half between two codes, rise or fall, never change, or pass all codes at once.
    convolution, weights, codes = random_layer(generator, (9, 9, 40, 200, 3, 1), 2, 2, output_bits)
    multiplier = generator.choice(np.array([0, 0.5, -0.5, 0.25, -1, 1e-9, 3e7, -3e7, 1e-3], np.float32), 200)
    offset = generator.choice(np.array([0, 0.5, 1.5, -0.5, 100, -1e9], np.float32), 200)
    weights = LayerWeights(weights.codes, multiplier, offset)
    operations, plain = Operations(2), ReferenceOperations()
    result = operations.convolve(pack_bit_planes(codes, 2), operations.prepare(convolution, weights))
    expected = plain.convolve(codes, plain.prepare(convolution, weights))
    assert np.array_equal(unpack_bit_planes(result, 200), expected)


def test_the_largest_sums_do_not_overflow():
    convolution = Convolution(512, 8, 3, 1, 8, 8, 8)
    weights = LayerWeights(
        np.full((8, 3, 3, 512), 255, np.uint8), np.full(8, 1e-6, np.float32), np.zeros(8, np.float32)
    )
    codes = np.full((3, 3, 512), 255, np.uint8)
    operations, plain = Operations(1), ReferenceOperations()
    result = operations.convolve(pack_bit_planes(codes, 8), operations.prepare(convolution, weights))
    expected = plain.convolve(codes, plain.prepare(convolution, weights))
    assert expected[1, 1, 0] == 255 and expected[0, 0, 0] == 133
    assert np.array_equal(unpack_bit_planes(result, 8), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits, channels", [(1, 2048), (2, 2048), (3, 1024), (4, 480), (4, 4096)])
def test_full_sums_do_not_overflow_a_lane(kernel, bits, channels):
    # All ones on all ones: the largest count of every table entry, of 8-bit lanes and of 16-bit sums.
    convolution = Convolution(channels, 40, 3, 1, 2, bits, 8)
    weights = LayerWeights(
        np.full((40, 3, 3, channels), 3, np.uint8), np.full(40, 1e-3, np.float32), np.zeros(40, np.float32)
    )
    codes = np.full((3, 5, channels), 2**bits - 1, np.uint8)
    operations, plain = Operations(1, kernel), ReferenceOperations()
    result = operations.convolve(pack_bit_planes(codes, bits), operations.prepare(convolution, weights))
    assert np.array_equal(unpack_bit_planes(result, 40), plain.convolve(codes, plain.prepare(convolution, weights)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("channels", [404, 405])
def test_sums_at_the_ends_of_16_bits_are_exact(kernel, code, channels):
    # Up to 404 channels all sums t fit in 16 bits, which the look-up kernel then uses; the largest and the smallest.
    convolution = Convolution(channels, 33, 3, 1, 2, 2, 8)
    assert (convolution.largest_sum <= np.iinfo(np.int16).max) == (channels == 404)
    generator = np.random.default_rng(channels)
    weights = LayerWeights(
        np.full((33, 3, 3, channels), code, np.uint8),
        generator.uniform(1e-3, 3e-3, 33).astype(np.float32),
        generator.uniform(0, 255, 33).astype(np.float32),
    )
    codes = np.full((4, 7, channels), 3, np.uint8)
    operations, plain = Operations(1, kernel), ReferenceOperations()
    result = operations.convolve(pack_bit_planes(codes, 2), operations.prepare(convolution, weights))
    assert np.array_equal(unpack_bit_planes(result, 33), plain.convolve(codes, plain.prepare(convolution, weights)))


def test_sums_that_could_overflow_are_refused():
    convolution = Convolution(4096, 1, 3, 1, 8, 8, 8)
    weights = LayerWeights(np.zeros((1, 3, 3, 4096), np.uint8), np.zeros(1, np.float32), np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="fewer bits"):
        Operations(1).prepare(convolution, weights)


def test_planes_of_other_bits_or_too_small_a_margin_are_refused(generator):
    convolution, weights, codes = random_layer(generator, (4, 4, 64, 64, 3, 1), 2, 2, 2)
    operations = Operations(1)
    layer = operations.prepare(convolution, weights)
    with pytest.raises(ValueError, match="bits=2"):
        operations.convolve(pack_bit_planes(codes, 3), layer)
    with pytest.raises(ValueError, match="margin=1"):
        operations.convolve(pack_bit_planes(codes, 2, margin=0), layer)


@pytest.mark.parametrize("stream_bits, activation_bits", [(8, 2), (8, 1), (2, 2), (4, 4), (8, 8)])
@pytest.mark.parametrize("threads", THREADS)
def test_the_end_of_a_block_equals_numpy(generator, stream_bits, activation_bits, threads):
    shape = (7, 10, 40, 72, 3, 1)
    convolution, weights, codes = random_layer(generator, shape, 2, activation_bits, stream_bits)
    block_shape = (14, 20, 70, 72, 1, 2)
    projection, projection_weights, block_codes = random_layer(generator, block_shape, 2, activation_bits, 0)
    shortcut = generator.integers(0, 2**stream_bits, (7, 10, 72), dtype=np.uint8)
    scales = StreamScales(np.float32(0.7), np.float32((2**activation_bits - 1) / (2**stream_bits - 1) * 1.3))
    kernels, plain = Operations(threads), ReferenceOperations()
    results = []
    for operations, pack, pad in ((kernels, pack_bit_planes, True), (plain, lambda codes, bits: codes, False)):
        layer = operations.prepare(convolution, weights)
        other = operations.prepare(projection, projection_weights)
        rounding = operations.prepare_rounding(stream_bits, activation_bits, scales)
        a, b = pack(codes, activation_bits), pack(block_codes, activation_bits)
        padded = np.pad(shortcut, ((0, 0), (0, 0), (0, 24))) if pad else shortcut
        results.append(
            [
                operations.convolve_to_stream(a, layer, rounding),
                operations.convolve_and_add(a, layer, padded, rounding),
                operations.convolve_and_project(a, layer, b, other, rounding),
            ]
        )
    for (stream, planes), (expected_stream, expected) in zip(*results, strict=True):
        assert np.array_equal(stream[:, :, :72], expected_stream)
        assert np.array_equal(unpack_bit_planes(planes, 72), expected)


@pytest.mark.parametrize("factor", [1e3, 1e5, 1e9, 1e25])
def test_results_far_beyond_the_largest_code_equal_numpy(generator, factor):
    convolution, weights, codes = random_layer(generator, (7, 10, 40, 72, 3, 1), 2, 2, 8)
    weights = LayerWeights(weights.codes, np.float32(factor) * weights.multiplier, np.float32(factor) * weights.offset)
    shortcut, scales = generator.integers(0, 256, (7, 10, 72), dtype=np.uint8), StreamScales(np.float32(factor), 0)
    results = []
    for operations, features, stream in (
        (Operations(1), pack_bit_planes(codes, 2), as_stream(shortcut)),
        (ReferenceOperations(), codes, shortcut),
    ):
        layer, rounding = operations.prepare(convolution, weights), operations.prepare_rounding(8, 0, scales)
        results.append(operations.convolve_and_add(features, layer, stream, rounding)[0][:, :, :72])
    assert set(np.unique(results[1])) >= {0, 255}
    assert np.array_equal(*results)


STEM_KERNELS = [pytest.param("winograd", marks=needs_wide_products), "dot", pytest.param("tile", marks=needs_tiles)]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (32, 160)])
@pytest.mark.parametrize("out_channels", [16, 64, 70])
@pytest.mark.parametrize("kernel", STEM_KERNELS)
def test_the_stem_equals_numpy(monkeypatch, generator, size, out_channels, threads, kernel):
    def with_spare(shape, dtype, spare):
        size = np.prod(shape)
        return np.full(size + spare, np.iinfo(dtype).max, dtype)[:size].reshape(shape)

    filters = functools.partial(stem_filters, kernel=kernel)
    monkeypatch.setattr("bitseg.network.operations.stem_filters", filters)
    monkeypatch.setattr("bitseg.network.operations._with_spare", with_spare)  # whatever is read there must not count
    image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    convolution, weights, _ = random_layer(generator, (*size, 3, out_channels, 7, 2), 8, 8, 8)
    scales = StreamScales(np.float32(0), np.float32(0.02))
    results = []
    for operations in (Operations(threads), ReferenceOperations()):
        rounding = operations.prepare_rounding(8, 2, scales)
        results.append(operations.stem(image, operations.prepare_stem(convolution, weights), (123, 117, 104), rounding))
    (stream, planes), (expected_stream, expected) = results
    assert np.array_equal(stream[:, :, :out_channels], expected_stream)
    assert np.array_equal(unpack_bit_planes(planes, out_channels), expected)


@pytest.mark.parametrize("kernel", STEM_KERNELS)
def test_the_stem_equals_numpy_where_values_and_weights_are_largest(monkeypatch, generator, kernel):
    monkeypatch.setattr("bitseg.network.operations.stem_filters", functools.partial(stem_filters, kernel=kernel))
    image = 255 * generator.integers(0, 2, (64, 64, 3), dtype=np.uint8)
    convolution, weights, _ = random_layer(generator, (64, 64, 3, 64, 7, 2), 8, 8, 8)
    # Of all signs that Winograd's sums give to taps and to values some filters and places have just these.
    signs = np.sign(winograd.FILTER_FACTORS.repeat(2, 1))[:, :7]
    codes = 255 * generator.integers(0, 2, weights.codes.shape, dtype=np.uint8)
    codes[:36] = 255 * (np.einsum("my,nx->mnyx", signs, signs).reshape(36, 7, 7, 1) > 0)
    weights = replace(weights, codes=codes)
    scales = StreamScales(np.float32(0), np.float32(0.02))
    streams = []
    for operations in (Operations(1), ReferenceOperations()):
        layer, rounding = operations.prepare_stem(convolution, weights), operations.prepare_rounding(8, 2, scales)
        streams.append(operations.stem(image, layer, (123, 117, 104), rounding)[0])
    assert np.array_equal(*streams)


@pytest.mark.skipif(not simd.has_byte_shuffle(), reason="needs a CPU with AVX2 or NEON")
@pytest.mark.skipif(
    not simd.has_byte_dot_product(), reason="multiplies no bytes: here all tests are of what AVX2, AVX-512 or NEON do"
)
def test_what_is_done_with_avx2_or_neon_alone_equals_numpy():
    older = ("generic", "+neon") if simd.multiplies_unsigned_bytes() else ("haswell", "+avx2,+fma")
    variables = {**os.environ, "NUMBA_CPU_NAME": older[0], "NUMBA_CPU_FEATURES": older[1]}
    by_winograd_and_look_up = "(values_and_weights and winograd) or (end_of_a_block and 1-8-2)"
    by_pairs = "(extreme_sums_of_the_stream and 4-1) or (uneven_weights and 192-4-4-dot)"
    chosen = f"{by_winograd_and_look_up} or {by_pairs}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", chosen, __file__]
    result = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert result.returncode == 0 and "6 passed" in result.stdout, result.stdout


def test_winograds_factors_of_8_bit_weights_fit_in_16_bits():
    most = np.abs(winograd.FILTER_FACTORS).sum(1).max() ** 2
    assert most * 2**7 <= np.iinfo(np.int16).max
    assert np.abs(winograd.spread(np.full((1, 7, 7, 3), -(2**7)))).max() <= most * 2**7


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("classes, height, width", [(7, 12, 20), (1, 1, 1), (11, 3, 40), (21, 30, 2)])
def test_the_decoder_equals_numpy(generator, classes, height, width, threads):
    coarse = generator.normal(0, 8, (classes, height, width)).astype(np.float32)
    branch = generator.normal(0, 8, (classes, 2 * height, 2 * width)).astype(np.float32)
    kernels, plain = Operations(threads), ReferenceOperations()
    fine = kernels.upsample2x(coarse)
    assert np.array_equal(fine, plain.upsample2x(coarse))
    refined = kernels.refine(fine, branch, 4)
    assert np.array_equal(refined, plain.refine(fine, branch, 4))
    for shape, inside in (((8 * height, 8 * width), (8 * height, 8 * width)), ((31, 57), (8 * height - 3, 8 * width))):
        labels = kernels.label_map(refined, shape, inside)
        assert np.array_equal(labels, plain.label_map(refined, shape, inside))


def test_equal_scores_give_the_first_class():
    scores = np.zeros((3, 2, 2), np.float32)
    for operations in (Operations(1), ReferenceOperations()):
        assert not operations.label_map(scores, (8, 8), (8, 8)).any()


@pytest.mark.parametrize("threads", THREADS)
def test_the_classifier_equals_numpy(generator, threads):
    convolution, weights, codes = random_layer(generator, (6, 9, 64, 7, 1, 1), 8, 8, 0)
    kernels, plain = Operations(threads), ReferenceOperations()
    expected = plain.classify(codes, plain.prepare(convolution, weights))
    scores = kernels.classify(pack_bit_planes(codes, 8), kernels.prepare(convolution, weights))
    assert np.array_equal(scores, expected)
    convolution = replace(convolution, reads_stream=True)
    assert np.array_equal(kernels.classify(codes, kernels.prepare(convolution, weights)), expected)


def as_stream(codes):
    """Codes as the engine keeps the residual stream: channels filled up with zeros to a multiple of 32."""
    return np.pad(codes, ((0, 0), (0, 0), (0, -codes.shape[2] % 32)))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("bits", [(1, 8), (2, 8), (4, 8), (6, 8), (7, 8), (8, 8), (2, 2), (8, 4)], ids=str)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[4] == 1], ids=str)
def test_convolutions_of_the_stream_equal_numpy(shape, bits, threads):
    generator = np.random.default_rng([*bits, *shape])
    convolution, weights, codes = random_layer(generator, shape, *bits, 0)
    convolution = replace(convolution, reads_stream=True)
    block_shape = (*(-(-size // shape[5]) for size in shape[:2]), 40, shape[3], 3, 1)
    last, last_weights, inner = random_layer(generator, block_shape, 2, 2, 8)
    scales = StreamScales(np.float32(0), np.float32(0.02))
    results = []
    for operations, pack, stream in (
        (Operations(threads), pack_bit_planes, as_stream(codes)),
        (ReferenceOperations(), lambda codes, bits: codes, codes),
    ):
        layer, other = operations.prepare(convolution, weights), operations.prepare(last, last_weights)
        rounding = operations.prepare_rounding(8, 2, scales)
        results.append(
            (
                operations.convolve(stream, operations.prepare(replace(convolution, output_bits=3), weights)),
                *operations.convolve_to_stream(stream, layer, rounding),
                *operations.convolve_and_project(pack(inner, 2), other, stream, layer, rounding),
            )
        )
    for found, expected in zip(*results, strict=True):
        if hasattr(found, "words"):
            found = unpack_bit_planes(found, shape[3])
        assert np.array_equal(found[:, :, : shape[3]], expected)


@pytest.mark.parametrize("name", KERNELS)
def test_a_forced_kernel_leaves_the_stream_to_those_that_read_bytes(name):
    convolution, bytes_kernel = Convolution(64, 64, 1, 1, 2, 2, 0), "tile" if amx.has_tiles() else "dot"
    assert select_kernel(convolution, name) == name
    assert select_kernel(replace(convolution, reads_stream=True), name) == (
        name if name in ("dot", "tile") else bytes_kernel
    )


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 7, 8])
def test_extreme_sums_of_the_stream_do_not_overflow_a_lane(bits, code):
    convolution = Convolution(2048, 40, 1, 1, bits, 8, 0, reads_stream=True)
    weights = LayerWeights(
        np.full((40, 1, 1, 2048), code * (2**bits - 1), np.uint8), np.ones(40, np.float32), np.zeros(40, np.float32)
    )
    codes = np.full((2, 7, 2048), 255, np.uint8)
    operations, plain = Operations(1), ReferenceOperations()
    scores = operations.classify(codes, operations.prepare(convolution, weights))
    assert np.array_equal(scores, plain.classify(codes, plain.prepare(convolution, weights)))


def test_no_activations_are_made_where_nothing_reads_them(generator):
    convolution, weights, codes = random_layer(generator, (5, 6, 40, 72, 3, 1), 2, 2, 8)
    shortcut, scales = generator.integers(0, 256, (5, 6, 72), dtype=np.uint8), StreamScales(np.float32(0.7), 0)
    results = []
    for operations, features, stream in (
        (Operations(2), pack_bit_planes(codes, 2), as_stream(shortcut)),
        (ReferenceOperations(), codes, shortcut),
    ):
        layer, rounding = operations.prepare(convolution, weights), operations.prepare_rounding(8, 0, scales)
        results.append(operations.convolve_and_add(features, layer, stream, rounding))
    (stream, planes), (expected, none) = results
    assert planes is None and none is None
    assert np.array_equal(stream[:, :, :72], expected)


def test_a_stream_that_a_kernel_would_misread_is_refused(generator):
    convolution, weights, codes = random_layer(generator, (4, 4, 40, 8, 1, 1), 2, 8, 0)
    operations = Operations(1)
    layer = operations.prepare(replace(convolution, reads_stream=True), weights)
    for stream in (codes, as_stream(codes).astype(np.int16), as_stream(codes)[::2], as_stream(codes)[0]):
        with pytest.raises(ValueError, match="multiple of 32"):
            operations.classify(stream, layer)
    larger, weights, codes = random_layer(generator, (4, 4, 32, 8, 3, 1), 2, 8, 0)
    with pytest.raises(ValueError, match="3x3 convolution of the stream"):
        operations.classify(codes, operations.prepare(replace(larger, reads_stream=True), weights))


def test_vectors_of_other_elements_are_other_types():
    # Numba would take them for one and compile the wrong instructions for one of two kernels in a process.
    assert simd.Vector("code", ir.IntType(8), 32) != simd.Vector("code", ir.IntType(16), 32)


def test_the_exponential_is_within_two_units_in_the_last_place():
    x = -np.geomspace(1e-6, 87, 10_000).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(reference.exp(x) - exact) / np.spacing(exact.astype(np.float32))) <= 2
    assert reference.exp(np.float32(0)) == 1
    lowest = reference.exp(np.float32(-87))
    assert reference.exp(np.array([-90, -np.inf], np.float32)).tolist() == [lowest, lowest]


def test_upsampling_repeats_edges_and_weighs_the_nearer_pixel_three_to_one():
    fine = reference.upsample2x(np.array([[[0, 4]]], np.float32))
    assert fine.tolist() == [[[0, 1, 3, 4], [0, 1, 3, 4]]]


def test_the_gate_is_one_at_a_sure_boundary_and_zero_inside():
    probabilities = np.zeros((2, 20, 20), np.float32)
    probabilities[0, :, :10], probabilities[1, :, 10:] = 1, 1
    gate = reference.boundary_gate(probabilities, 4)
    assert gate[:, :, 6:14].min() == 1 and gate[:, :, :6].max() == 0 and gate[:, :, 14:].max() == 0


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="choose one of"):
        Operations(1, "magic")


def test_without_tiles_they_are_refused_and_not_chosen(monkeypatch):
    monkeypatch.setattr(amx, "has_tiles", lambda: False)
    with pytest.raises(ValueError, match="needs a CPU with AMX"):
        Operations(1, "tile")
    assert select_kernel(Convolution(64, 64, 1, 1, 8, 8, 0)) == "dot"


@njit
def configure_tiles(rows):
    amx.configure(rows)


@njit
def configured_rows():
    configuration = amx.configure(16)
    amx.restore(configuration)
    return configuration[48]


@needs_tiles
def test_kernels_leave_the_configuration_of_tiles_as_it_was(generator):
    convolution, weights, codes = random_layer(generator, (5, 9, 64, 64, 3, 1), 2, 2, 2)
    operations = Operations(1, "tile")
    configure_tiles(5)
    operations.convolve(pack_bit_planes(codes, 2), operations.prepare(convolution, weights))
    assert configured_rows() == 5


@pytest.mark.parametrize("threads", [0, -1])
def test_a_thread_count_below_one_is_refused(threads):
    with pytest.raises(ValueError, match="at least 1"):
        Operations(threads)
