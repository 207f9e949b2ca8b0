"""Dot products, for `kernels.dot`. LLVM has them in generic form too, but does not find the instructions for it."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import build
from .cpu import has, has_byte_dot_product, multiplies_unsigned_bytes
from .vectors import INT32, Vector, i32x8, i32x16, s8x32, s16x16


def dot_lanes():
    """Output channels whose dot products are added up side by side.

    Two registers of them: a dot product takes some cycles, in which others are begun.
    """
    return 32 if has("avx512vnni") else 16


def _sums_vector():
    return Vector("i32", INT32, dot_lanes())


def _weights_vector(array):
    width = array.dtype.bitwidth
    return Vector(f"s{width}", ir.IntType(width), dot_lanes() * 32 // width)


@intrinsic
def load_weights(typing_context, array, position):
    """Load 32 bits for each lane of an array of int8, uint8 or int16."""
    vector = _weights_vector(array)

    def code(context, builder, signature, values):
        return build.load(context, builder, signature.args[0], *values, vector)

    return vector(array, types.intp), code


@intrinsic
def values_in_32_bits(typing_context, array):
    """How many values of an array share 32 bits: a constant for the compiler."""

    def code(context, builder, signature, values):
        return ir.IntType(64)(32 // signature.args[0].dtype.bitwidth)

    return types.intp(array), code


def multiplies_pairs(weight_bits):
    """Whether weights of a type of so many bits are multiplied by `add_pairs`."""
    return weight_bits == 8 and not has_byte_dot_product()


@intrinsic
def not_unrolled(typing_context, weights):
    """Keeps LLVM from unrolling the loop around it where weights have 16 bits: it would not have registers enough."""

    def code(context, builder, signature, values):
        if signature.args[0].dtype.bitwidth == 16:
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.asm(nothing, "", "", [], True).attributes.add("convergent")
        return context.get_dummy_value()

    return types.void(weights), code


DOT_PIXELS = 6
"""Pixels whose dot products are added up with what is loaded of the weights."""


def _zero_sums(vector_of, count):
    @intrinsic
    def zeros(typing_context):
        vector = vector_of()

        def code(context, builder, signature, values):
            zero = ir.Constant(vector.llvm, [0] * vector.lanes)
            return context.make_tuple(builder, signature.return_type, [zero] * count)

        return types.UniTuple(vector, count)(), code

    return zeros


# Zero sums of each of `DOT_PIXELS`: a channel in each lane.
zero_dots = _zero_sums(_sums_vector, DOT_PIXELS)


@intrinsic
def add_dot_products(typing_context, dots, codes, position, step, weights):
    """Add to each lane the dot product of 32 bits of codes, the same for all, with as many weights of its own.

    dots : see `zero_dots`
    position, step : int
        Where the codes of the first pixel are, and how much further those of each next.
    weights : see `load_weights`; bytes for codes of uint8, 16-bit numbers for codes of int16.
        Of bytes their sign counts, but where `multiplies_unsigned_bytes`.
    """

    def code(context, builder, signature, values):
        codes_type = signature.args[1]
        dots, codes, position, step, weights = values
        data = context.make_array(codes_type)(context, builder, codes).data
        totals = []
        for total in cgutils.unpack_tuple(builder, dots):
            totals.append(_add_dot_product(builder, total, _codes(builder, data, position, _sums_vector()), weights))
            position = builder.add(position, step)
        return context.make_tuple(builder, signature.return_type, totals)

    return dots(dots, codes, types.intp, types.intp, weights), code


def _codes(builder, data, position, vector):
    """32 bits of codes from a position on, in each lane of a vector."""
    return build.splat(builder, build.load_unaligned(builder, builder.gep(data, [position]), INT32), vector)


def _add_dot_product(builder, dots, codes, weights):
    """A vector of dot products, and of one pixel's codes with weights added to it."""
    if weights.type.element.width == 16:
        return builder.add(dots, _multiply_pairs(builder, builder.bitcast(codes, weights.type), weights))
    if multiplies_unsigned_bytes():
        codes = builder.bitcast(codes, weights.type)
        return build.in_parts(builder, build.neon, "udot.v4i32.v16i8", ir.VectorType(INT32, 4), dots, codes, weights)
    words = builder.bitcast(weights, codes.type)
    half = ir.VectorType(INT32, dot_lanes() // 2)
    return build.in_parts(builder, build.x86, f"avx512.vpdpbusd.{half.count * 32}", half, dots, codes, words)


PAIRS_VECTORS = 4
"""Vectors of 8 sums that are added up with each 32 bits of a pixel's codes, where bytes are multiplied by pairs.

So many that hardly any instruction but products and sums is left: those load their weights themselves.
"""

# Zero sums of a pixel's 32 channels.
zero_pairs = _zero_sums(lambda: i32x8, PAIRS_VECTORS)


@intrinsic
def load_pairs(typing_context, array, offset):
    """Sums of 32 channels that were stored in an array of int32, from `offset` on."""

    def code(context, builder, signature, values):
        array, offset = values
        sums = []
        for number in range(PAIRS_VECTORS):
            place = builder.add(offset, offset.type(8 * number))
            sums.append(build.load(context, builder, signature.args[0], array, place, i32x8))
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(i32x8, PAIRS_VECTORS)(array, types.intp), code


@intrinsic
def add_pairs(typing_context, sums, codes, position, weights, place, run):
    """Add to each lane, a channel, the products of a pixel's codes with weights of its own; needs AVX2.

    sums : see `zero_pairs`
    codes, position : array of uint8, and int
        From where on there are four codes for each element of `run`.
    weights, place : array of int8, and int
        From where on there are, for each four codes, four weights for each lane.
    run : tuple
        For as many groups of four codes as it is long 16 bits hold the sum of every first, or last, two products.
    """

    def code(context, builder, signature, values):
        _, codes_type, _, weights_type, _, run_type = signature.args
        sums, codes, position, weights, place, _ = values
        data = context.make_array(codes_type)(context, builder, codes).data
        products = [None] * PAIRS_VECTORS
        for _ in run_type:
            code = builder.bitcast(_codes(builder, data, position, i32x8), s8x32.llvm)
            for number, before in enumerate(products):
                weight = build.load(context, builder, weights_type, weights, place, s8x32)
                product = build.x86(builder, "avx2.pmadd.ub.sw", s16x16.llvm, code, weight)
                products[number] = product if before is None else builder.add(before, product)
                place = builder.add(place, place.type(s8x32.lanes))
            position = builder.add(position, position.type(4))
        ones = ir.Constant(s16x16.llvm, [1] * 16)
        products = (build.x86(builder, "avx2.pmadd.wd", i32x8.llvm, product, ones) for product in products)
        totals = [builder.add(*each) for each in zip(cgutils.unpack_tuple(builder, sums), products)]
        return context.make_tuple(builder, signature.return_type, totals)

    return sums(sums, codes, types.intp, weights, types.intp, run), code


def _multiply_pairs(builder, a, b):
    """i32x16: products of two s16x32 vectors, added by pairs."""
    if has("avx512bw"):
        return build.x86(builder, "avx512.pmaddw.d.512", i32x16.llvm, a, b)
    if has("avx2"):
        return build.in_parts(builder, build.x86, "avx2.pmadd.wd", i32x8.llvm, a, b)
    a, b = (builder.bitcast(vector, i32x16.llvm) for vector in (a, b))
    sixteen = ir.Constant(i32x16.llvm, [16] * 16)
    high = builder.mul(builder.ashr(a, sixteen), builder.ashr(b, sixteen))
    low = builder.mul(*(builder.ashr(builder.shl(vector, sixteen), sixteen) for vector in (a, b)))
    return builder.add(low, high)
