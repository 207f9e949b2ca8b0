"""SIMD vectors as Numba values, made of generic LLVM operations, but for byte shuffle and dot products at the end.

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
u32x16 = Vector("u32", ir.IntType(32), 16)
i32x16 = Vector("i32", ir.IntType(32), 16)
i32x64 = Vector("i32", ir.IntType(32), 64)
f32x16 = Vector("f32", ir.FloatType(), 16)
u8x16 = Vector("u8", ir.IntType(8), 16)
u8x32 = Vector("u8", ir.IntType(8), 32)
u8x64 = Vector("u8", ir.IntType(8), 64)
u16x16 = Vector("u16", ir.IntType(16), 16)
s8x64 = Vector("s8", ir.IntType(8), 64)
s16x32 = Vector("s16", ir.IntType(16), 32)


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
load_i32x64 = _load(i32x64)
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
broadcast_i32x64 = _broadcast(i32x64, types.int32)
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
add_float = _binary("fadd")
subtract_float = _binary("fsub")
multiply_float = _binary("fmul")


def _convert(instruction, target):
    @intrinsic
    def conversion(typing_context, a):
        def code(context, builder, signature, values):
            return getattr(builder, instruction)(values[0], target.llvm)

        return target(a), code

    return conversion


i32x16_to_f32x16 = _convert("sitofp", f32x16)
u8x16_to_i32x16 = _convert("zext", i32x16)
i32x16_to_u8x16 = _convert("trunc", u8x16)


@intrinsic
def round_to_u8x16(typing_context, a):
    """Nearest whole numbers, ties to even, of float32 values between 0 and 255."""

    def code(context, builder, signature, values):
        # The last bit of 2**23 is worth 1: the addition rounds, and leaves the whole number in the lowest bits.
        shifted = builder.fadd(values[0], ir.Constant(f32x16.llvm, [float(2**23)] * f32x16.lanes))
        return builder.trunc(builder.bitcast(shifted, i32x16.llvm), u8x16.llvm)

    return u8x16(a), code


def _words(arrays):
    """The vector whose lanes are words of a tuple of arrays, of 32 or 64 bits."""
    return u32x16 if arrays.dtype.dtype.bitwidth == 32 else u64x8


@intrinsic
def load_words(typing_context, arrays, offset):
    """Load a vector of words from each of a tuple of arrays, at the same offset: a tuple of vectors."""
    vector = _words(arrays)

    def code(context, builder, signature, values):
        pointers = _each_pointer(context, builder, signature.args[0], values[0], values[1], vector.element)
        vectors = [_load_unaligned(builder, pointer, vector) for pointer in pointers]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vector, len(arrays))(arrays, types.intp), code


@intrinsic
def broadcast_words(typing_context, arrays, offset, like):
    """Load one word from each of a tuple of arrays into all lanes; `offset` counts words as wide as those of `like`."""
    vector = _words(like)

    def code(context, builder, signature, values):
        pointers = _each_pointer(context, builder, signature.args[0], values[0], values[1], vector.element)
        vectors = [_splat(builder, builder.load(pointer), vector) for pointer in pointers]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vector, len(arrays))(arrays, types.intp, like), code


def _each_pointer(context, builder, arrays_type, arrays, offset, element):
    """Pointers to number `offset` of each of a tuple of arrays, counted in elements of that kind."""
    data = (
        context.make_array(arrays_type.dtype)(context, builder, a).data for a in cgutils.unpack_tuple(builder, arrays)
    )
    return [builder.gep(builder.bitcast(pointer, element.as_pointer()), [offset]) for pointer in data]


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
        popcount = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector.llvm, [vector.llvm]),
            f"llvm.ctpop.v{vector.lanes}i{vector.element.width}",
        )
        for i, weight in enumerate(weights):
            for j, activation in enumerate(activations):
                matches = builder.call(popcount, [builder.and_(activation, weight)])
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
        narrow = Vector("i32", _INT32, vector.lanes)
        if vector.element.width > 32:
            total = builder.trunc(total, narrow.llvm)
        builder.store(total, _pointer(context, builder, signature.args[0], sums, position, narrow)).align = 1
        return context.get_dummy_value()

    return types.void(sums, types.intp, counts), code


@intrinsic
def store_steps(typing_context, arrays, offset, values, steps, channel):
    """Write codes found by comparison: bit j of 64 codes as one word to array j of a tuple of uint64 arrays.

    A code is the number of steps that its value exceeds. `values` is a vector of 64 lanes, `steps` an array of shape
    (2**bits - 1, channels), ascending, compared from column `channel` on. Returns the sum of the codes.
    """

    def code(context, builder, signature, args):
        arrays_type, _, vector, steps_type, _ = signature.args
        arrays, offset, values, steps, channel = args
        exceeds = builder.icmp_signed if vector == i32x64 else builder.icmp_unsigned
        columns = cgutils.unpack_tuple(builder, context.make_array(steps_type)(context, builder, steps).shape)[1]
        words, total = [None] * len(arrays_type), ir.IntType(64)(0)
        for code in range(1, 2 ** len(words)):
            place = builder.add(builder.mul(columns, columns.type(code - 1)), channel)
            step = _load_unaligned(builder, _pointer(context, builder, steps_type, steps, place, vector), vector)
            exceeded = builder.bitcast(exceeds(">", values, step), ir.IntType(64))
            total = builder.add(total, builder.ctpop(exceeded))
            # Counting up, bit j changes wherever 2**j divides the code.
            for j in range(len(words)):
                if code % 2**j == 0:
                    words[j] = exceeded if words[j] is None else builder.xor(words[j], exceeded)
        for word, pointer in zip(words, _each_pointer(context, builder, arrays_type, arrays, offset, ir.IntType(64))):
            builder.store(word, pointer)
        return total

    return types.int64(arrays, types.intp, values, steps, types.intp), code


@intrinsic
def store_bits(typing_context, arrays, offset, codes):
    """Write bit j of 64 codes (u8x64) as one word to array j of a tuple of uint64 arrays; the sum of the codes."""

    def code(context, builder, signature, values):
        zero = ir.Constant(u8x64.llvm, [0] * u8x64.lanes)
        total = ir.IntType(64)(0)
        pointers = _each_pointer(context, builder, signature.args[0], values[0], values[1], ir.IntType(64))
        for j, pointer in enumerate(pointers):
            one_bit = builder.and_(values[2], ir.Constant(u8x64.llvm, [1 << j] * u8x64.lanes))
            word = builder.bitcast(builder.icmp_unsigned("!=", one_bit, zero), ir.IntType(64))
            builder.store(word, pointer)
            total = builder.add(total, builder.shl(builder.ctpop(word), ir.IntType(64)(j)))
        return total

    return types.int64(arrays, types.intp, codes), code


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


def _has(feature):
    """Whether the CPU that Numba compiles for has it; asking LLVM for another's instruction ends the process."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return f"+{feature}" in features.split(",")


def target_cpu():
    """Name and features (a set), in LLVM's words, of the CPU that Numba compiles for."""
    _, name, features = cpu_target.target_context.codegen().magic_tuple()
    return name, {feature[1:] for feature in features.split(",") if feature.startswith("+")}


def has_byte_shuffle():
    """Whether bytes of a 256-bit vector can be shuffled in one instruction."""
    return _has("avx2")


def has_vector_popcount():
    """Whether the bits of all lanes of a 512-bit vector are counted in one instruction."""
    return _has("avx512vpopcntdq")


def has_byte_dot_product():
    """Whether a dot product of unsigned with signed bytes is one instruction on a 512-bit vector."""
    return _has("avx512vnni")


# Dot products, for `dot.py`. LLVM has them in generic form too, but does not find the instructions for it.


@intrinsic
def store_codes(typing_context, codes, position, planes, word):
    """Write the 64 codes of word number `word` of each of a tuple of bit-planes to consecutive elements."""

    def code(context, builder, signature, values):
        codes_type, _, planes_type, _ = signature.args
        codes, position, planes, word = values
        vector = Vector("code", ir.IntType(codes_type.dtype.bitwidth), 64).llvm
        zero, total = ir.Constant(vector, [0] * 64), None
        for bit, pointer in enumerate(_each_pointer(context, builder, planes_type, planes, word, ir.IntType(64))):
            ones = builder.bitcast(builder.load(pointer), ir.VectorType(ir.IntType(1), 64))
            value = builder.select(ones, ir.Constant(vector, [1 << bit] * 64), zero)
            total = value if total is None else builder.or_(total, value)
        data = context.make_array(codes_type)(context, builder, codes).data
        builder.store(total, builder.bitcast(builder.gep(data, [position]), vector.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(codes, types.intp, planes, types.intp), code


@intrinsic
def load_weights(typing_context, array, position):
    """Load 512 bits of an array of int8 or int16."""
    vector = s8x64 if array.dtype.bitwidth == 8 else s16x32

    def code(context, builder, signature, values):
        return _load_unaligned(builder, _pointer(context, builder, signature.args[0], *values, vector), vector)

    return vector(array, types.intp), code


@intrinsic
def add_dot_products(typing_context, sums, codes, position, weights):
    """Add to each lane the dot product of 32 bits of codes, the same for all, with as many weights of its own.

    weights : s8x64 for codes of uint8, or s16x32 for codes of int16.
    """

    def code(context, builder, signature, values):
        sums_type, codes_type, _, weights_type = signature.args
        sums, codes, position, weights = values
        data = context.make_array(codes_type)(context, builder, codes).data
        word = builder.load(builder.bitcast(builder.gep(data, [position]), _INT32.as_pointer()))
        word.align = 1
        codes, words = _splat(builder, word, sums_type), builder.bitcast(weights, sums_type.llvm)
        if weights_type == s8x64:
            return _x86(builder, "avx512.vpdpbusd.512", i32x16.llvm, sums, codes, words)
        if _has("avx512bw"):
            codes = builder.bitcast(codes, weights_type.llvm)
            products = _x86(builder, "avx512.pmaddw.d.512", i32x16.llvm, codes, weights)
        elif _has("avx2"):
            codes = builder.bitcast(codes, weights_type.llvm)
            halves = [ir.Constant(ir.VectorType(_INT32, 16), list(range(half, half + 16))) for half in (0, 16)]
            products = [
                _x86(
                    builder,
                    "avx2.pmadd.wd",
                    ir.VectorType(_INT32, 8),
                    *(builder.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), half) for v in (codes, weights)),
                )
                for half in halves
            ]
            products = builder.shuffle_vector(*products, ir.Constant(ir.VectorType(_INT32, 16), list(range(16))))
        else:
            sixteen = ir.Constant(i32x16.llvm, [16] * 16)
            high = builder.mul(builder.ashr(codes, sixteen), builder.ashr(words, sixteen))
            codes, words = (builder.ashr(builder.shl(v, sixteen), sixteen) for v in (codes, words))
            products = builder.add(builder.mul(codes, words), high)
        return builder.add(sums, products)

    return sums(sums, codes, types.intp, weights), code


def _x86(builder, name, result, *arguments):
    """Call one of LLVM's intrinsics of x86."""
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.x86.{name}"), arguments)


# Look-up: byte shuffles of 32 lanes, for `lookup.py`. LLVM has no generic form of them.


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
        twice = ir.Constant(ir.VectorType(_INT32, 32), [*range(16), *range(16)])
        for half in range(2):
            place = builder.add(offset, ir.IntType(64)(16 * half))
            pointer = _pointer(context, builder, signature.args[1], tables, place, u8x16)
            table = _load_unaligned(builder, pointer, u8x16)
            table = builder.shuffle_vector(table, ir.Constant(u8x16.llvm, ir.Undefined), twice)
            for plane in range(len(counts)):
                found = _x86(builder, "avx2.pshuf.b", u8x32.llvm, table, nibbles[2 * plane + half])
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
