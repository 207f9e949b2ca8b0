"""SIMD vectors as Numba values, made of generic LLVM operations, but for the byte shuffle at the end.

A `Vector` is an ordinary value in a kernel: it lives in a register and every operation below is one LLVM instruction
or intrinsic. LLVM splits a vector where the CPU's registers are narrower, so a kernel written with them is correct on
any CPU, and the results do not depend on the width. Offsets count elements of the array.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.registry import cpu_target
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
u8x32 = Vector("u8", ir.IntType(8), 32)
u8x64 = Vector("u8", ir.IntType(8), 64)
u16x16 = Vector("u16", ir.IntType(16), 16)


def _pointer(context, builder, array_type, array, offset, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), vector.llvm.as_pointer())


def _splat(builder, value, vector):
    one = builder.insert_element(ir.Constant(vector.llvm, ir.Undefined), value, _INT32(0))
    zeros = ir.Constant(ir.VectorType(_INT32, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one, ir.Constant(vector.llvm, ir.Undefined), zeros)


def _load_unaligned(builder, pointer, vector):
    value = builder.load(builder.bitcast(pointer, vector.llvm.as_pointer()))
    value.align = 1
    return value


def _load(vector):
    @intrinsic
    def load(typing_context, array, offset):
        def code(context, builder, signature, values):
            pointer = _pointer(context, builder, signature.args[0], values[0], values[1], vector)
            return _load_unaligned(builder, pointer, vector)

        return vector(array, types.intp), code

    return load


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


broadcast_i32x16 = _broadcast(i32x16, types.int32)
broadcast_f32x16 = _broadcast(f32x16, types.float32)


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


rint = _call("rint")


def _convert(instruction, target):
    @intrinsic
    def conversion(typing_context, a):
        def code(context, builder, signature, values):
            return getattr(builder, instruction)(values[0], target.llvm)

        return target(a), code

    return conversion


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
def load_u64x8_each(typing_context, arrays, offset):
    """Load a vector from each of a tuple of arrays, at the same offset: a tuple of u64x8."""
    return _each_array(arrays, u64x8, lambda builder, pointer: _load_unaligned(builder, pointer, u64x8))


@intrinsic
def broadcast_u64x8_each(typing_context, arrays, offset):
    """Load one uint64 from each of a tuple of arrays, at the same offset, into all lanes: a tuple of u64x8."""
    return _each_array(arrays, u64x8, lambda builder, pointer: _splat(builder, builder.load(pointer), u64x8))


def _each_array(arrays, vector, read):
    def code(context, builder, signature, values):
        array_type = signature.args[0].dtype
        vectors = []
        for array in cgutils.unpack_tuple(builder, values[0]):
            data = context.make_array(array_type)(context, builder, array).data
            vectors.append(read(builder, builder.gep(data, [values[1]])))
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vector, len(arrays))(arrays, types.intp), code


@intrinsic
def zero_counts(typing_context, activations, weights):
    """A tuple of zero vectors, one for each place value i + j of the bit-planes of `activations` and `weights`."""
    places = len(activations) + len(weights) - 1

    def code(context, builder, signature, values):
        zero = ir.Constant(u64x8.llvm, [0] * u64x8.lanes)
        return context.make_tuple(builder, signature.return_type, [zero] * places)

    return types.UniTuple(u64x8, places)(activations, weights), code


@intrinsic
def count_matches(typing_context, counts, activations, weights):
    """``counts[i + j] + popcount(activations[j] & weights[i])`` for all i, j: the sum of a bit convolution.

    All three are tuples of u64x8 vectors; the loops over i and j are unrolled when the kernel is compiled.
    """

    def code(context, builder, signature, values):
        counts, activations, weights = (cgutils.unpack_tuple(builder, value) for value in values)
        popcount = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(u64x8.llvm, [u64x8.llvm]), "llvm.ctpop.v8i64"
        )
        for i, weight in enumerate(weights):
            for j, activation in enumerate(activations):
                matches = builder.call(popcount, [builder.and_(activation, weight)])
                counts[i + j] = builder.add(counts[i + j], matches)
        return context.make_tuple(builder, signature.return_type, counts)

    return counts(counts, activations, weights), code


@intrinsic
def weigh_counts(typing_context, counts):
    """``sum(2**place * counts[place])`` as an i32x8 vector."""

    def code(context, builder, signature, values):
        total = ir.Constant(u64x8.llvm, [0] * u64x8.lanes)
        for count in reversed(cgutils.unpack_tuple(builder, values[0])):
            total = builder.add(builder.add(total, total), count)
        return builder.trunc(total, i32x8.llvm)

    return i32x8(counts), code


@intrinsic
def store_bits(typing_context, arrays, offset, codes):
    """Write bit j of 64 codes (u8x64) as one word to array j of a tuple of uint64 arrays; the sum of the codes."""

    def code(context, builder, signature, values):
        array_type = signature.args[0].dtype
        zero = ir.Constant(u8x64.llvm, [0] * u8x64.lanes)
        total = ir.IntType(64)(0)
        for j, array in enumerate(cgutils.unpack_tuple(builder, values[0])):
            one_bit = builder.and_(values[2], ir.Constant(u8x64.llvm, [1 << j] * u8x64.lanes))
            word = builder.bitcast(builder.icmp_unsigned("!=", one_bit, zero), ir.IntType(64))
            data = context.make_array(array_type)(context, builder, array).data
            builder.store(word, builder.gep(data, [values[1]]))
            total = builder.add(total, builder.shl(builder.ctpop(word), ir.IntType(64)(j)))
        return total

    return types.int64(arrays, types.intp, codes), code


@intrinsic
def load_broadcast_f32x16(typing_context, array, offset):
    """One float32 of an array in all lanes."""

    def code(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return _splat(builder, builder.load(builder.gep(data, [values[1]])), f32x16)

    return f32x16(array, types.intp), code


@intrinsic
def maximum_u8(typing_context, a, b):
    """Lane by lane maximum of unsigned vectors."""

    def code(context, builder, signature, values):
        return builder.select(builder.icmp_unsigned(">", *values), *values)

    return a(a, b), code


# Look-up: byte shuffles of 32 lanes, for `lookup.py`. LLVM has no generic form of them, so AVX2 is required.


def target_cpu():
    """Name and features (a set), in LLVM's words, of the CPU that Numba compiles for."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name, {feature[1:] for feature in features.split(",") if feature.startswith("+")}


def has_byte_shuffle():
    """Whether the CPU that Numba compiles for has AVX2; asking LLVM for its shuffle elsewhere ends the process."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return "+avx2" in features.split(",")


def has_vector_popcount():
    """Whether the CPU that Numba compiles for counts the bits of 64-bit lanes in one instruction."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return "+avx512vpopcntdq" in features.split(",")


@intrinsic
def store_tables(typing_context, tables, position, planes, word, shift, counts):
    """Make the two 16-byte tables of 8 channels: bits `shift` to `shift + 7` of word number `word` of each plane.

    counts : `lookup.TABLES`.
    """

    def code(context, builder, signature, values):
        tables_type, _, planes_type, _, _, counts_type = signature.args
        tables, position, planes, word, shift, counts = values
        counts = context.make_array(counts_type)(context, builder, counts).data
        int64 = ir.IntType(64)
        total = None
        for bit, plane in enumerate(cgutils.unpack_tuple(builder, planes)):
            data = context.make_array(planes_type.dtype)(context, builder, plane).data
            byte = builder.and_(builder.lshr(builder.load(builder.gep(data, [word])), shift), int64(255))
            row = builder.add(builder.shl(byte, int64(5)), int64(bit * 256 * 32))
            table = _load_unaligned(builder, builder.gep(counts, [row]), u8x32)
            total = table if total is None else builder.add(total, table)
        builder.store(total, _pointer(context, builder, tables_type, tables, position, u8x32)).align = 1
        return context.get_dummy_value()

    return types.void(tables, types.intp, planes, types.intp, types.intp, counts), code


@intrinsic
def zero_narrow(typing_context, weights):
    """A zero u8x32 vector for each plane of `weights`."""

    def code(context, builder, signature, values):
        zero = ir.Constant(u8x32.llvm, [0] * u8x32.lanes)
        return context.make_tuple(builder, signature.return_type, [zero] * len(signature.args[0]))

    return types.UniTuple(u8x32, len(weights))(weights), code


@intrinsic
def zero_wide(typing_context, weights):
    """Two zero u16x16 vectors, of even and of odd lanes, for each plane of `weights`."""

    def code(context, builder, signature, values):
        zero = ir.Constant(u16x16.llvm, [0] * u16x16.lanes)
        return context.make_tuple(builder, signature.return_type, [zero] * (2 * len(signature.args[0])))

    return types.UniTuple(u16x16, 2 * len(weights))(weights), code


@intrinsic
def load_nibbles_each(typing_context, arrays, offset):
    """Load 32 bytes from each of a tuple of arrays, as two vectors: their low and their high nibbles."""

    def code(context, builder, signature, values):
        low_bits = ir.Constant(u8x32.llvm, [15] * u8x32.lanes)
        found = []
        for array in cgutils.unpack_tuple(builder, values[0]):
            data = context.make_array(signature.args[0].dtype)(context, builder, array).data
            value = _load_unaligned(builder, builder.gep(data, [values[1]]), u8x32)
            found.append(builder.and_(value, low_bits))
            # Bytes cannot be shifted on x86; of shifted pairs the low nibbles are the same.
            pairs = builder.lshr(builder.bitcast(value, u16x16.llvm), ir.Constant(u16x16.llvm, [4] * u16x16.lanes))
            found.append(builder.and_(builder.bitcast(pairs, u8x32.llvm), low_bits))
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(u8x32, 2 * len(arrays))(arrays, types.intp), code


@intrinsic
def look_up(typing_context, counts, tables, offset, nibbles):
    """Add what two neighbouring 16-byte tables hold at the low and high nibbles of each weight plane."""

    def code(context, builder, signature, values):
        counts, tables, offset, nibbles = values
        counts, nibbles = cgutils.unpack_tuple(builder, counts), cgutils.unpack_tuple(builder, nibbles)
        shuffle = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(u8x32.llvm, [u8x32.llvm] * 2), "llvm.x86.avx2.pshuf.b"
        )
        twice = ir.Constant(ir.VectorType(_INT32, 32), [*range(16), *range(16)])
        for half in range(2):
            place = builder.add(offset, ir.IntType(64)(16 * half))
            pointer = _pointer(context, builder, signature.args[1], tables, place, u8x16)
            table = _load_unaligned(builder, pointer, u8x16)
            table = builder.shuffle_vector(table, ir.Constant(u8x16.llvm, ir.Undefined), twice)
            for plane in range(len(counts)):
                found = builder.call(shuffle, [table, nibbles[2 * plane + half]])
                counts[plane] = builder.add(counts[plane], found)
        return context.make_tuple(builder, signature.return_type, counts)

    return counts(counts, tables, types.intp, nibbles), code


@intrinsic
def widen(typing_context, wide, narrow):
    """Add 8-bit counts to 16-bit ones, even and odd lanes apart."""

    def code(context, builder, signature, values):
        wide, narrow = (cgutils.unpack_tuple(builder, value) for value in values)
        low_byte = ir.Constant(u16x16.llvm, [255] * u16x16.lanes)
        eight = ir.Constant(u16x16.llvm, [8] * u16x16.lanes)
        for plane, count in enumerate(narrow):
            pairs = builder.bitcast(count, u16x16.llvm)
            wide[2 * plane] = builder.add(wide[2 * plane], builder.and_(pairs, low_byte))
            wide[2 * plane + 1] = builder.add(wide[2 * plane + 1], builder.lshr(pairs, eight))
        return context.make_tuple(builder, signature.return_type, wide)

    return wide(wide, narrow), code


@intrinsic
def store_wide(typing_context, sums, position, wide):
    """Write ``sum(2**plane * count)`` of 32 channels: the even lanes first, then the odd ones."""

    def code(context, builder, signature, values):
        sums, position, wide = values
        counts = [builder.zext(value, i32x16.llvm) for value in cgutils.unpack_tuple(builder, wide)]
        for half in range(2):
            total = counts[half]
            for plane in range(1, len(counts) // 2):
                shift = ir.Constant(i32x16.llvm, [plane] * i32x16.lanes)
                total = builder.add(total, builder.shl(counts[2 * plane + half], shift))
            place = builder.add(position, ir.IntType(64)(16 * half))
            builder.store(total, _pointer(context, builder, signature.args[0], sums, place, i32x16)).align = 1
        return context.get_dummy_value()

    return types.void(sums, types.intp, wide), code
