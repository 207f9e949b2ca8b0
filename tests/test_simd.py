"""What the vectors are made of on CPUs that the tests do not run on."""

import numpy as np
import pytest
from llvmlite import binding, ir

from bitseg.architecture import Convolution
from bitseg.kernels import simd
from bitseg.kernels.simd import codes, cpu, products, tables
from bitseg.kernels.simd.vectors import u8x16, u8x32
from bitseg.model_file import LayerWeights
from bitseg.network import reference
from bitseg.network.layout import bit_filters

ARM = "aarch64-unknown-linux-gnu"


@pytest.mark.parametrize(
    "triple, name, listed, features",
    [
        ("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma,-avx512f", {"avx2", "fma"}),
        ("x86_64-pc-windows-msvc", "generic", "", set()),
        (ARM, "cortex-a72", "+neon,+crc", {"neon", "crc"}),
        (ARM, "neoverse-n1", "+neon,+dotprod,-sve", {"neon", "dotprod"}),
        # Nothing is listed: LLVM knows what all have, and what Apple's have, by name.
        (ARM, "generic", "", {"neon"}),
        ("arm64-apple-darwin24.0.0", "apple-m1", "", {"neon", "dotprod"}),
        ("arm64-apple-darwin24.0.0", "apple-m1", "-dotprod", {"neon"}),
        (ARM, "generic", "-neon", set()),
    ],
)
def test_a_cpu_has_what_is_listed_and_what_its_name_implies(triple, name, listed, features):
    assert simd.cpu_features(triple, name, listed) == features


def assembly_for_arm(operation, result, *arguments):
    """ARM's instructions for what `operation` builds of arguments of LLVM types."""
    module = ir.Module()
    module.triple = ARM
    function = ir.Function(module, ir.FunctionType(result, arguments), "function")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(operation(builder, *function.args))
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple(ARM)
    except RuntimeError:
        pytest.skip("this llvmlite makes no code for ARM")
    machine = target.create_target_machine(cpu="generic", features="+neon,+dotprod", opt=2)
    return machine.emit_assembly(binding.parse_assembly(str(module)))


@pytest.fixture
def arm(monkeypatch):
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


def test_arm_makes_lanes_of_bits_without_taking_each(arm):
    word, lanes = ir.IntType(64), ir.VectorType(ir.IntType(8), 64)
    assembly = assembly_for_arm(lambda builder, bits: builder.zext(codes._each_bit(builder, bits), lanes), lanes, word)
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
