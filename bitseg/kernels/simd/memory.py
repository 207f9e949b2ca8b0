"""Vectors of numbers loaded and stored."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import build
from .cpu import has
from .vectors import INT32, f32x8, f32x16, f32x32, i32x8, i32x16, s16x16, u8x32


def _load(vector):
    @intrinsic
    def load(typing_context, array, offset):
        def code(context, builder, signature, values):
            return build.load(context, builder, signature.args[0], values[0], values[1], vector)

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
        build.store(context, builder, signature.args[0], values[0], values[1], values[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def pick_f32x8(typing_context, array, position, indices, offset):
    """Elements ``position + i`` of an array for 8 of an array of int32 numbers i below 8."""

    def code(context, builder, signature, values):
        array_type, _, indices_type, _ = signature.args
        array, position, indices, offset = values
        lanes = build.load(context, builder, indices_type, indices, offset, i32x8)
        if has("avx2"):
            elements = build.load(context, builder, array_type, array, position, f32x8)
            return build.x86(builder, "avx2.permps", f32x8.llvm, elements, lanes)
        first = build.pointer_to(context, builder, array_type, array, position, ir.FloatType())
        picked = ir.Constant(f32x8.llvm, ir.Undefined)
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
            build.store(context, builder, signature.args[0], array, offset, vector)
            offset = builder.add(offset, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), code
