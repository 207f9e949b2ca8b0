"""What vectors are made of, and which kernels are chosen, on CPUs that the tests do not run on."""

import re

import numpy as np
import pytest
from llvmlite import binding, ir

from bitseg.architecture import Convolution
from bitseg.kernels import amx, simd
from bitseg.kernels.simd import bits, cpu, products, tables
from bitseg.kernels.simd.vectors import u8x16, u8x32
from bitseg.model_file import LayerWeights
from bitseg.network import reference
from bitseg.network.layout import bit_filters, select_kernel

LINUX, MAC = "aarch64-unknown-linux-gnu", "arm64-apple-darwin24.0.0"


@pytest.fixture(scope="module")
def arm_code():
    """LLVM makes code for ARM, too."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        binding.Target.from_triple(LINUX)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite makes no code for ARM: {error}")


@pytest.mark.parametrize(
    "triple, name, listed, features",
    [
        # What LLVM lists of these on Linux lacks the dot product.
        (LINUX, "neoverse-n1", "+aes,+crc,+fp-armv8,+lse,+neon,-rand,+sha2,-sve", {"neon", "dotprod"}),
        (LINUX, "cortex-a76", "+crc,+fp-armv8,+lse,+neon", {"neon", "dotprod"}),
        (LINUX, "cortex-a72", "+crc,+fp-armv8,+neon", {"neon"}),
        # Nothing is listed.
        (LINUX, "generic", "", {"neon"}),
        (MAC, "apple-m1", "", {"neon", "dotprod"}),
        # What somebody has told Numba.
        (MAC, "apple-m1", "-dotprod", {"neon"}),
        (LINUX, "generic", "+neon,+dotprod", {"neon", "dotprod"}),
        (LINUX, "generic", "-neon", set()),
        (LINUX, "generic", "+dotprod,-neon", set()),
        (LINUX, "generic", "+dotprod,-fp-armv8", set()),
    ],
)
def test_arm_has_vectors_and_where_llvm_uses_it_the_dot_product(arm_code, triple, name, listed, features):
    assert simd.cpu_features(triple, name, listed) == features


@pytest.mark.parametrize(
    "triple, listed, features",
    [
        ("x86_64-unknown-linux-gnu", "+avx2,+fma,-avx512f", {"avx2", "fma"}),
        ("x86_64-pc-windows-msvc", "", set()),
        # LLVM ends the process where it is asked for another architecture's instructions.
        ("x86_64-unknown-linux-gnu", "+avx2,+neon,+dotprod", {"avx2"}),
        ("armv7l-unknown-linux-gnueabihf", "+neon,+crc", {"crc"}),
    ],
)
def test_other_cpus_have_what_is_listed_and_nothing_of_arm(triple, listed, features):
    assert simd.cpu_features(triple, "generic", listed) == features


def test_arm_has_nothing_of_x86(arm_code):
    assert simd.cpu_features(LINUX, "generic", "+neon,+avx2") == {"neon"}


def assembly_for_arm(operation, result, *arguments):
    """ARM's instructions for what `operation` builds of arguments of LLVM types."""
    module = ir.Module()
    module.triple = LINUX
    function = ir.Function(module, ir.FunctionType(result, arguments), "function")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(operation(builder, *function.args))
    machine = binding.Target.from_triple(LINUX).create_target_machine(cpu="generic", features="+neon,+dotprod", opt=2)
    return machine.emit_assembly(binding.parse_assembly(str(module)))


@pytest.fixture
def arm(monkeypatch, arm_code):
    """Kernels are for ARM with the dot product."""
    monkeypatch.setattr(cpu, "target_cpu", lambda: ("generic", {"neon", "dotprod"}))


def test_arm_looks_up_16_bytes_in_an_instruction(arm):
    bytes32, table = u8x32.llvm, u8x16.llvm
    assembly = assembly_for_arm(tables._look_up, bytes32, table, bytes32)
    assert assembly.count("tbl\t") == 2


def test_arm_multiplies_and_adds_16_bytes_in_an_instruction(arm):
    lanes = simd.dot_lanes()
    sums, weights = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.IntType(8), 4 * lanes)
    assembly = assembly_for_arm(products._add_dot_product, sums, sums, sums, weights)
    assert assembly.count("udot\t") == lanes // 4


def test_arm_multiplies_16_bits_where_weights_have_them(arm):
    lanes = simd.dot_lanes()
    sums, weights = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.IntType(16), 2 * lanes)
    assembly = assembly_for_arm(products._add_dot_product, sums, sums, sums, weights)
    assert "udot" not in assembly and re.search(r"\t(mul|mla|smull2?|smlal2?)\t", assembly)


def test_arm_makes_lanes_of_bits_without_taking_each(arm):
    word, lanes = ir.IntType(64), ir.VectorType(ir.IntType(8), 64)
    assembly = assembly_for_arm(lambda builder, value: builder.zext(bits._each_bit(builder, value), lanes), lanes, word)
    instructions = [line for line in assembly.splitlines() if line.startswith("\t") and line[1] != "."]
    assert len(instructions) < 64


@pytest.mark.parametrize("weight_bits, input_bits", [(1, 1), (2, 8), (8, 8), (5, 3)])
def test_dot_products_of_unsigned_bytes_give_the_sums(arm, weight_bits, input_bits):
    generator = np.random.default_rng(0)
    convolution = Convolution(12, 5, 3, 1, weight_bits, input_bits, 0)
    q = generator.integers(0, 2**weight_bits, (5, 3, 3, 12), dtype=np.uint8)
    weights = LayerWeights(q, np.ones(5, np.float32), np.zeros(5, np.float32))
    filters = bit_filters(convolution, weights, "dot")
    assert filters.weights.dtype == np.uint8 and filters.zero.dtype == np.uint8
    window = generator.integers(0, 2**input_bits, (3, 3, 12), dtype=np.uint8)
    blocks, rows, groups, lanes, group = filters.weights.shape
    stored = filters.weights.transpose(0, 3, 1, 2, 4).reshape(blocks * lanes, rows, groups * group).astype(np.int64)
    total = 2 * (stored * window.reshape(3, -1)).sum((1, 2)) - int(filters.levels) * int(window.sum())
    expected = reference.convolution_sums(window, q, weight_bits, 1, 0).reshape(-1)
    lanes_of_channels = np.argsort(simd.lane_channels(32))[:5]
    assert np.array_equal(total[lanes_of_channels], expected)


@pytest.mark.parametrize(
    "features, kernels",
    [
        ({"neon", "dotprod"}, {(1, 2): "lookup", (2, 2): "lookup", (4, 4): "dot", (8, 8): "dot"}),
        ({"neon"}, {(1, 2): "lookup", (2, 2): "lookup", (4, 4): "lookup", (8, 8): "dot"}),
        # No byte is multiplied, and none looked up.
        (set(), {(1, 2): "popcount", (2, 2): "popcount", (4, 4): "dot", (8, 8): "dot"}),
        ({"avx2"}, {(1, 2): "lookup", (2, 2): "lookup", (4, 4): "dot", (8, 8): "dot"}),
    ],
)
def test_the_kernel_is_chosen_by_what_the_cpu_has(monkeypatch, features, kernels):
    monkeypatch.setattr(cpu, "target_cpu", lambda: ("generic", features))
    monkeypatch.setattr(amx, "has_tiles", lambda: False)
    for (weight_bits, input_bits), kernel in kernels.items():
        assert select_kernel(Convolution(64, 64, 3, 1, weight_bits, input_bits, 2)) == kernel
