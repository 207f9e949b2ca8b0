"""Words of bit-planes, AND and popcount, for `kernels.popcount`."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import build
from .vectors import INT32, u32x16, u64x8


def _words(arrays):
    """The vector whose lanes are words of a tuple of arrays, of 32 or 64 bits."""
    return u32x16 if arrays.dtype.dtype.bitwidth == 32 else u64x8


@intrinsic
def load_words(typing_context, arrays, offset):
    """Load a vector of words from each of a tuple of arrays, at the same offset: a tuple of vectors."""
    vector = _words(arrays)

    def code(context, builder, signature, values):
        pointers = build.pointers_to(context, builder, signature.args[0], values[0], values[1], vector.element)
        vectors = [build.load_unaligned(builder, pointer, vector.llvm) for pointer in pointers]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vector, len(arrays))(arrays, types.intp), code


@intrinsic
def broadcast_words(typing_context, arrays, offset, like):
    """Load one word from each of a tuple of arrays into all lanes; `offset` counts words as wide as those of `like`."""
    vector = _words(like)

    def code(context, builder, signature, values):
        pointers = build.pointers_to(context, builder, signature.args[0], values[0], values[1], vector.element)
        vectors = [build.splat(builder, builder.load(pointer), vector) for pointer in pointers]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vector, len(arrays))(arrays, types.intp, like), code


@intrinsic
def zero_counts(typing_context, activations, weights):
    """A tuple of zero vectors, one for each place value i + j of the bit-planes of `activations` and `weights`."""
    places, vector = len(activations) + len(weights) - 1, _words(weights)

    def code(context, builder, signature, values):
        zero = ir.Constant(vector.llvm, [0] * vector.lanes)
        return context.make_tuple(builder, signature.return_type, [zero] * places)

    return types.UniTuple(vector, places)(activations, weights), code


@intrinsic
def count_matches(typing_context, counts, activations, weights):
    """``counts[i + j] + popcount(activations[j] & weights[i])`` for all i, j: the sum of a bit convolution.

    All three are tuples of vectors of words; the loops over i and j are unrolled when the kernel is compiled.
    """
    vector = counts.dtype

    def code(context, builder, signature, values):
        counts, activations, weights = (cgutils.unpack_tuple(builder, value) for value in values)
        popcount = f"ctpop.v{vector.lanes}i{vector.element.width}"
        for i, weight in enumerate(weights):
            for j, activation in enumerate(activations):
                matches = build.call(builder, popcount, vector.llvm, builder.and_(activation, weight))
                counts[i + j] = builder.add(counts[i + j], matches)
        return context.make_tuple(builder, signature.return_type, counts)

    return counts(counts, activations, weights), code


@intrinsic
def store_counts(typing_context, sums, position, counts):
    """Write ``sum(2**place * counts[place])``, an int32 for each lane."""
    vector = counts.dtype

    def code(context, builder, signature, values):
        sums, position, counts = values
        total = ir.Constant(vector.llvm, [0] * vector.lanes)
        for count in reversed(cgutils.unpack_tuple(builder, counts)):
            total = builder.add(builder.add(total, total), count)
        if vector.element.width > 32:
            total = builder.trunc(total, ir.VectorType(INT32, vector.lanes))
        build.store(context, builder, signature.args[0], sums, position, total)
        return context.get_dummy_value()

    return types.void(sums, types.intp, counts), code
