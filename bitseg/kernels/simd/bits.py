"""Codes to bit-planes and back."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import build
from .cpu import has
from .sums import lane_channels
from .vectors import INT32, Vector, i32x32, s16x32, u8x32


@intrinsic
def store_steps(typing_context, arrays, half, values, steps, channel):
    """Write codes found by comparison: bit j of 32 codes as half a word to array j of a tuple of uint64 arrays.

    A code is the number of steps that its value exceeds. `values` is a vector of 32 lanes, `steps` an array of shape
    (2**bits - 1, channels), ascending, compared from column `channel` on: of the same type, or, for u8x32, int8 with
    128 subtracted, because x86 compares bytes with a sign. Returns the sum of the codes.
    """

    def code(context, builder, signature, args):
        arrays_type, _, vector, steps_type, _ = signature.args
        arrays, half, values, steps, channel = args
        if vector == u8x32:
            values = builder.xor(values, ir.Constant(u8x32.llvm, [128] * 32))
        columns = cgutils.unpack_tuple(builder, context.make_array(steps_type)(context, builder, steps).shape)[1]
        words = [None] * len(arrays_type)
        for code in range(1, 2 ** len(words)):
            place = builder.add(builder.mul(columns, columns.type(code - 1)), channel)
            step = build.load(context, builder, steps_type, steps, place, vector)
            exceeded = builder.icmp_signed(">", values, step)
            # Counting up, bit j changes wherever 2**j divides the code.
            for j in range(len(words)):
                if code % 2**j == 0:
                    words[j] = exceeded if words[j] is None else builder.xor(words[j], exceeded)
        order = lane_channels(vector.element.width)
        words = [build.take_lanes(builder, word, [order.index(channel) for channel in range(32)]) for word in words]
        words = [builder.bitcast(word, INT32) for word in words]
        return _store_halves(context, builder, arrays_type, arrays, half, words)

    return types.int64(arrays, types.intp, values, steps, types.intp), code


@intrinsic
def store_bits(typing_context, arrays, half, codes):
    """Write bit j of 32 codes (u8x32) as half a word to array j of a tuple of uint64 arrays; the sum of the codes."""

    def code(context, builder, signature, values):
        zero, words = ir.Constant(u8x32.llvm, [0] * 32), []
        for j in range(len(signature.args[0])):
            one_bit = builder.and_(values[2], ir.Constant(u8x32.llvm, [1 << j] * 32))
            words.append(builder.bitcast(builder.icmp_unsigned("!=", one_bit, zero), INT32))
        return _store_halves(context, builder, signature.args[0], values[0], values[1], words)

    return types.int64(arrays, types.intp, codes), code


@intrinsic
def clear_half(typing_context, arrays, half):
    """Write 0 to half a word of each of a tuple of uint64 arrays."""

    def code(context, builder, signature, values):
        words = [INT32(0)] * len(signature.args[0])
        _store_halves(context, builder, signature.args[0], *values, words)
        return context.get_dummy_value()

    return types.void(arrays, types.intp), code


def _store_halves(context, builder, arrays_type, arrays, half, words):
    """Store an i32 to each array, at number `half` counted in halves of words, the lower first; ``sum(2**j ones)``."""
    total = ir.IntType(64)(0)
    for j, (word, pointer) in enumerate(
        zip(words, build.pointers_to(context, builder, arrays_type, arrays, half, INT32))
    ):
        builder.store(word, pointer)
        ones = builder.zext(builder.ctpop(word), ir.IntType(64))
        total = builder.add(total, builder.shl(ones, ir.IntType(64)(j)))
    return total


@intrinsic
def store_codes(typing_context, codes, position, planes, word):
    """Write the 64 codes of word number `word` of each of a tuple of bit-planes to consecutive elements."""

    def code(context, builder, signature, values):
        codes_type, _, planes_type, _ = signature.args
        codes, position, planes, word = values
        vector = Vector("code", ir.IntType(codes_type.dtype.bitwidth), 64).llvm
        zero, total = ir.Constant(vector, [0] * 64), None
        for bit, pointer in enumerate(build.pointers_to(context, builder, planes_type, planes, word, ir.IntType(64))):
            ones = _each_bit(builder, builder.load(pointer))
            value = builder.select(ones, ir.Constant(vector, [1 << bit] * 64), zero)
            total = value if total is None else builder.or_(total, value)
        build.store(context, builder, codes_type, codes, position, total)
        return context.get_dummy_value()

    return types.void(codes, types.intp, planes, types.intp), code


def _each_bit(builder, word):
    """Whether each bit of an i64 is set, in as many lanes."""
    if has("avx512bw"):
        return builder.bitcast(word, ir.VectorType(ir.IntType(1), 64))
    # Of a vector of single bits LLVM takes one after the other for ARM.
    eight_times = build.take_lanes(
        builder, builder.bitcast(word, ir.VectorType(u8x32.element, 8)), [n // 8 for n in range(64)]
    )
    bits = builder.and_(eight_times, ir.Constant(eight_times.type, [1 << n % 8 for n in range(64)]))
    return builder.icmp_unsigned("!=", bits, ir.Constant(eight_times.type, [0] * 64))


@intrinsic
def to_elements_of(typing_context, array, codes):
    """32 codes (u8x32) as a vector of the elements of an array of uint8 or int16."""
    vector = u8x32 if array.dtype.bitwidth == 8 else s16x32

    def code(context, builder, signature, values):
        return values[1] if vector is u8x32 else builder.zext(values[1], vector.llvm)

    return vector(array, codes), code


@intrinsic
def sum_u8x32(typing_context, codes):
    """Sum of 32 codes (u8x32)."""

    def code(context, builder, signature, values):
        wide = builder.zext(values[0], i32x32.llvm)
        return builder.zext(build.call(builder, "vector.reduce.add.v32i32", INT32, wide), ir.IntType(64))

    return types.int64(codes), code
