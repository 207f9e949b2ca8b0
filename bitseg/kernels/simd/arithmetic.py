"""Vectors of numbers added, multiplied, compared."""

from numba.core import types
from numba.extending import intrinsic

from . import build
from .vectors import INT32, f32x8, f32x16, i32x16, u8x16


def _broadcast(vector, scalar):
    @intrinsic
    def broadcast(typing_context, value):
        def code(context, builder, signature, values):
            return build.splat(builder, values[0], vector)

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
        return builder.shl(values[0], build.splat(builder, bits, vector))

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
        quotients = builder.mul(numbers, build.splat(builder, inverse, i32x16))
        return builder.ashr(quotients, build.splat(builder, builder.trunc(bits, INT32), i32x16))

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
            return build.extreme(builder, sign, *values)

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
