"""What the CPU has that Numba compiles for, in LLVM's words, and what follows for vectors."""

from functools import cache

from llvmlite import binding, ir
from numba.core.registry import cpu_target

ARM_FEATURES = {"neon", "dotprod"}
"""Those of 64-bit ARM that make a difference: its vectors, and dot products of bytes."""


def has(feature):
    """Whether the CPU that Numba compiles for has it; asking LLVM for another's instruction ends the process."""
    return feature in target_cpu()[1]


@cache
def target_cpu():
    """Name and features (a set) of the CPU that Numba compiles for."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name, cpu_features(triple, name, features)


def cpu_features(triple, name, listed):
    """Features of a CPU that LLVM knows by a triple and a name, and of which it lists some.

    Parameters
    ----------
    triple, name : str
    listed : str
        As "+one,-other". Of 64-bit ARM it may lack what the CPU has.

    Returns
    -------
    set of str
        `ARM_FEATURES` of 64-bit ARM, and of other CPUs what is listed and none of these.
    """
    features = listed.split(",")
    if not is_arm(triple):
        return {feature[1:] for feature in features if feature.startswith("+")} - ARM_FEATURES
    if "-neon" in features or "-fp-armv8" in features:
        return set()
    return {"neon", "dotprod"} if _uses_dot_product(triple, name, listed) else {"neon"}


def is_arm(triple):
    """Whether LLVM's name of a platform is one of 64-bit ARM."""
    return triple.startswith(("aarch64", "arm64"))


def _uses_dot_product(triple, name, listed):
    """Whether LLVM takes ARM's dot product for a sum of products of bytes."""
    module, bytes16 = ir.Module(), ir.VectorType(ir.IntType(8), 16)
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.IntType(32), [bytes16, bytes16]), "sum")
    builder, int32x16 = ir.IRBuilder(function.append_basic_block()), ir.VectorType(ir.IntType(32), 16)
    reduce = ir.Function(module, ir.FunctionType(ir.IntType(32), [int32x16]), "llvm.vector.reduce.add.v16i32")
    products = builder.mul(*(builder.zext(argument, int32x16) for argument in function.args))
    builder.ret(builder.call(reduce, [products]))
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=name, features=listed, opt=2)
    return "udot" in machine.emit_assembly(binding.parse_assembly(str(module)))


def works_by_halves():
    """Whether numbers are widened and narrowed within each 128-bit half of a vector, as with AVX2."""
    return has("avx2") and not has("avx512bw")


def narrows_sums():
    """Whether int32 sums are best compared as int16, where they fit: with registers of 512 bits for 32 of these."""
    return has("avx512bw")


def has_byte_shuffle():
    """Whether all bytes of a vector can be looked up in a table of 16 in one instruction, or two."""
    return has("avx2") or has("neon")


def has_vector_popcount():
    """Whether the bits of all lanes of a 512-bit vector are counted in one instruction."""
    return has("avx512vpopcntdq")


def has_byte_dot_product():
    """Whether dot products of bytes are one instruction: of unsigned ones with those of `multiplies_unsigned_bytes`."""
    return has("avx512vnni") or has("avxvnni") or multiplies_unsigned_bytes()


def multiplies_unsigned_bytes():
    """Whether both bytes of the dot products are unsigned, as of ARM's; elsewhere the second ones have a sign."""
    return has("dotprod")


def has_byte_pair_product():
    """Whether unsigned bytes are multiplied with signed ones and the products added by pairs, to 16 bits, in AVX2."""
    return has("avx2")
