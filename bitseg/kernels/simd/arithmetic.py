"""Vectors of numbers: loaded and stored, added, multiplied, compared."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import llvm
from .cpu import has
from .vectors import INT32, Vector, f32x8, f32x16, f32x32, i32x16, s16x16, u8x16, u8x32


def _load(vector):
    @intrinsic
    def load(typing_context, array, offset):
        def code(context, builder, signature, values):
            pointer = llvm.pointer_to(context, builder, signature.args[0], values[0], values[1], vector)
            return llvm.load_unaligned(builder, pointer, vector)

        return vector(array, types.intp), code

    return load


load_f32x8 = _load(f32x8)
load_f32x16 = _load(f32x16)
load_f32x32 = _load(f32x32)
load_u8x32 = _load(u8x32)
load_s16x16 = _load(s16x16)
load_i32x16 = _load(i32x16)


@intrinsic
def store(typing_context, array, offset, vector):
    """Write a vector to consecutive elements of an array from `offset` on."""

    def code(context, builder, signature, values):
        pointer = llvm.pointer_to(context, builder, signature.args[0], values[0], values[1], signature.args[2])
        builder.store(values[2], pointer).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


def _broadcast(vector, scalar):
    @intrinsic
    def broadcast(typing_context, value):
        def code(context, builder, signature, values):
            return llvm.splat(builder, values[0], vector)

        return vector(scalar), code

    return broadcast


broadcast_i32x16 = _broadcast(i32x16, types.int32)
broadcast_f32x8 = _broadcast(f32x8, types.float32)
broadcast_f32x16 = _broadcast(f32x16, types.float32)


def _binary(instruction):
    @intrinsic
    def operation(typing_context, a, b):
        def code(context, builder, signature, values):
            return getattr(builder, instruction)(*values)

        return a(a, b), code

    return operation


@intrinsic
def shift_left(typing_context, numbers, bits):
    """``2**bits`` times each number; of a product too large for a lane its lowest bits."""

    def code(context, builder, signature, values):
        vector, bits = signature.args[0], builder.trunc(values[1], signature.args[0].element)
        return builder.shl(values[0], llvm.splat(builder, bits, vector))

    return numbers(numbers, types.intp), code


@intrinsic
def exact_quotient(typing_context, numbers, odd, bits):
    """``n / (odd * 2**bits)`` of multiples n of that, of which a lane of i32x16 needs to hold the lowest 32 bits only.

    The quotients must fit in 32 - bits. Modulo 2**32 an odd number has an inverse.
    """

    def code(context, builder, signature, values):
        numbers, odd, bits = values
        odd = builder.trunc(odd, INT32)
        inverse = odd
        for _ in range(4):  # Newton: each step doubles the 3 bits that are right at first
            inverse = builder.mul(inverse, builder.sub(INT32(2), builder.mul(odd, inverse)))
        quotients = builder.mul(numbers, llvm.splat(builder, inverse, i32x16))
        return builder.ashr(quotients, llvm.splat(builder, builder.trunc(bits, INT32), i32x16))

    return i32x16(i32x16, types.intp, types.intp), code


add = _binary("add")
subtract = _binary("sub")
add_float = _binary("fadd")
subtract_float = _binary("fsub")
multiply_float = _binary("fmul")


@intrinsic
def i32x16_to_u8x16(typing_context, a):
    """The lowest 8 bits of each lane."""

    def code(context, builder, signature, values):
        return builder.trunc(values[0], u8x16.llvm)

    return u8x16(a), code


def _extreme(sign):
    @intrinsic
    def extreme(typing_context, a, b):
        def code(context, builder, signature, values):
            is_float = isinstance(signature.args[0].element, ir.FloatType)
            compare = builder.fcmp_ordered if is_float else builder.icmp_unsigned
            return builder.select(compare(sign, *values), *values)

        return a(a, b), code

    return extreme


# Lane by lane, of unsigned vectors or of float32 vectors without NaN.
maximum = _extreme(">")
minimum = _extreme("<")


@intrinsic
def select_greater(typing_context, a, b, where, elsewhere):
    """Lane by lane `where` if ``a > b``, of float32 vectors, and `elsewhere` if not."""

    def code(context, builder, signature, values):
        a, b, where, elsewhere = values
        return builder.select(builder.fcmp_ordered(">", a, b), where, elsewhere)

    return where(a, b, where, elsewhere), code


@intrinsic
def pick_f32x8(typing_context, array, position, indices, offset):
    """Elements ``position + i`` of an array for 8 of an array of int32 numbers i below 8."""

    def code(context, builder, signature, values):
        array_type, _, indices_type, _ = signature.args
        array, position, indices, offset = values
        numbers = Vector("i32", INT32, 8)
        lanes = llvm.load_unaligned(
            builder, llvm.pointer_to(context, builder, indices_type, indices, offset, numbers), numbers
        )
        pointer = llvm.pointer_to(context, builder, array_type, array, position, f32x8)
        if has("avx2"):
            return llvm.x86(builder, "avx2.permps", f32x8.llvm, llvm.load_unaligned(builder, pointer, f32x8), lanes)
        first, picked = builder.bitcast(pointer, ir.FloatType().as_pointer()), ir.Constant(f32x8.llvm, ir.Undefined)
        for lane in range(8):
            element = builder.load(builder.gep(first, [builder.extract_element(lanes, INT32(lane))]))
            picked = builder.insert_element(picked, element, INT32(lane))
        return picked

    return f32x8(array, types.intp, indices, types.intp), code


@intrinsic
def store_each(typing_context, array, offset, step, vectors):
    """Write each vector of a tuple to consecutive elements of an array: the first from `offset` on, and so on."""

    def code(context, builder, signature, values):
        array, offset, step, vectors = values
        for vector in cgutils.unpack_tuple(builder, vectors):
            pointer = llvm.pointer_to(context, builder, signature.args[0], array, offset, signature.args[3].dtype)
            builder.store(vector, pointer).align = 1
            offset = builder.add(offset, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), code
