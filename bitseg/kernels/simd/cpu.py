"""What the CPU has that Numba compiles for."""

from functools import cache

from numba.core.registry import cpu_target


def has(feature):
    """Whether the CPU that Numba compiles for has it; asking LLVM for another's instruction ends the process."""
    return feature in target_cpu()[1]


@cache
def target_cpu():
    """Name and features (a set), in LLVM's words, of the CPU that Numba compiles for."""
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name, cpu_features(triple, name, features)


def cpu_features(triple, name, listed):
    """Features (a set) of a CPU of which LLVM knows the triple and the name, and has listed some as "+one,-other".

    It lists none of 64-bit ARM that all have, nor any of Apple's.
    """
    features = [feature for feature in listed.split(",") if feature]
    implied = []
    if is_arm(triple):
        implied = ["neon", "dotprod"] if name.startswith("apple-m") else ["neon"]
    return {feature[1:] for feature in features if feature[0] == "+"} | {
        feature for feature in implied if f"-{feature}" not in features
    }


def is_arm(triple):
    """Whether LLVM's name of a platform is one of 64-bit ARM."""
    return triple.startswith(("aarch64", "arm64"))


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
    """Whether dot products of bytes are one instruction: of unsigned with signed ones, but see below."""
    return has("avx512vnni") or has("avxvnni") or multiplies_unsigned_bytes()


def multiplies_unsigned_bytes():
    """Whether both bytes of the dot products are unsigned, as ARM has them."""
    return has("dotprod")


def has_byte_pair_product():
    """Whether unsigned bytes are multiplied with signed ones and the products added by pairs, to 16 bits, in AVX2."""
    return has("avx2")
