"""SIMD vectors as Numba values: 64 bytes each, made of generic LLVM operations only.

A `Vector` is an ordinary value in a kernel: it lives in a register and every operation below is one LLVM instruction
or intrinsic. LLVM splits a vector where the CPU's registers are narrower, so a kernel written with them is correct on
any CPU, and the results do not depend on the width. Offsets count elements of the array.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

_INT32 = ir.IntType(32)


class Vector(types.Type):
    """Numba type of a SIMD vector of `lanes` numbers of one kind."""

    def __init__(self, name, element, lanes):
        self.element, self.lanes = element, lanes
        super().__init__(name=f"{name}x{lanes}")

    @property
    def llvm(self):
        """The LLVM vector type."""
        return ir.VectorType(self.element, self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


u64x8 = Vector("u64", ir.IntType(64), 8)
i32x8 = Vector("i32", ir.IntType(32), 8)
i32x16 = Vector("i32", ir.IntType(32), 16)
f32x16 = Vector("f32", ir.FloatType(), 16)
u8x16 = Vector("u8", ir.IntType(8), 16)
u8x64 = Vector("u8", ir.IntType(8), 64)


def _pointer(context, builder, array_type, array, offset, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), vector.llvm.as_pointer())


def _splat(builder, value, vector):
    one = builder.insert_element(ir.Constant(vector.llvm, ir.Undefined), value, _INT32(0))
    zeros = ir.Constant(ir.VectorType(_INT32, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one, ir.Constant(vector.llvm, ir.Undefined), zeros)


def _load(vector):
    @intrinsic
    def load(typing_context, array, offset):
        def code(context, builder, signature, values):
            pointer = _pointer(context, builder, signature.args[0], values[0], values[1], vector)
            value = builder.load(pointer)
            value.align = 1
            return value

        return vector(array, types.intp), code

    return load


load_u64x8 = _load(u64x8)
load_i32x16 = _load(i32x16)
load_f32x16 = _load(f32x16)
load_u8x16 = _load(u8x16)
load_u8x64 = _load(u8x64)


@intrinsic
def store(typing_context, array, offset, vector):
    """Write a vector to consecutive elements of an array from `offset` on."""

    def code(context, builder, signature, values):
        pointer = _pointer(context, builder, signature.args[0], values[0], values[1], signature.args[2])
        builder.store(values[2], pointer).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


def _broadcast(vector, scalar):
    @intrinsic
    def broadcast(typing_context, value):
        def code(context, builder, signature, values):
            return _splat(builder, values[0], vector)

        return vector(scalar), code

    return broadcast


broadcast_u64x8 = _broadcast(u64x8, types.uint64)
broadcast_i32x16 = _broadcast(i32x16, types.int32)
broadcast_f32x16 = _broadcast(f32x16, types.float32)
broadcast_u8x64 = _broadcast(u8x64, types.uint8)


def _binary(instruction):
    @intrinsic
    def operation(typing_context, a, b):
        def code(context, builder, signature, values):
            return getattr(builder, instruction)(*values)

        return a(a, b), code

    return operation


add = _binary("add")
subtract = _binary("sub")
multiply = _binary("mul")
bitwise_and = _binary("and_")
shift_left = _binary("shl")
add_float = _binary("fadd")
multiply_float = _binary("fmul")


def _call(llvm_name):
    @intrinsic
    def operation(typing_context, a):
        def code(context, builder, signature, values):
            vector = signature.args[0]
            kind = "f32" if isinstance(vector.element, ir.FloatType) else f"i{vector.element.width}"
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector.llvm, [vector.llvm]),
                f"llvm.{llvm_name}.v{vector.lanes}{kind}",
            )
            return builder.call(function, values)

        return a(a), code

    return operation


popcount = _call("ctpop")
rint = _call("rint")


def _convert(instruction, target):
    @intrinsic
    def conversion(typing_context, a):
        def code(context, builder, signature, values):
            return getattr(builder, instruction)(values[0], target.llvm)

        return target(a), code

    return conversion


u64x8_to_i32x8 = _convert("trunc", i32x8)
i32x16_to_f32x16 = _convert("sitofp", f32x16)
f32x16_to_i32x16 = _convert("fptosi", i32x16)
i32x16_to_u8x16 = _convert("trunc", u8x16)
u8x16_to_i32x16 = _convert("zext", i32x16)


@intrinsic
def clip(typing_context, a, low, high):
    """Lane by lane ``min(max(a, low), high)`` of float32 vectors without NaN."""

    def code(context, builder, signature, values):
        value, low, high = values
        value = builder.select(builder.fcmp_ordered(">", value, low), value, low)
        return builder.select(builder.fcmp_ordered("<", value, high), value, high)

    return a(a, low, high), code


@intrinsic
def multiply_add_exact(typing_context, a, b, c):
    """``a * b + c`` of float32 vectors, fused or not as the CPU likes: only where every product and sum is exact."""

    def code(context, builder, signature, values):
        kind = signature.args[0].llvm
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 3), f"llvm.fmuladd.v{signature.args[0].lanes}f32"
        )
        return builder.call(function, values)

    return a(a, b, c), code


@intrinsic
def nonzero_mask(typing_context, a):
    """64 bits, bit l set where lane l of a u8x64 vector is not 0."""

    def code(context, builder, signature, values):
        zero = ir.Constant(signature.args[0].llvm, [0] * 64)
        return builder.bitcast(builder.icmp_unsigned("!=", values[0], zero), ir.IntType(64))

    return types.uint64(a), code


@intrinsic
def maximum_u8(typing_context, a, b):
    """Lane by lane maximum of unsigned vectors."""

    def code(context, builder, signature, values):
        return builder.select(builder.icmp_unsigned(">", *values), *values)

    return a(a, b), code
