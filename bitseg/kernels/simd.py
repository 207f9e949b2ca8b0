"""SIMD vectors as Numba values, made of generic LLVM operations and, where the CPU has them, of some of x86 and ARM.

A `Vector` is an ordinary value in a kernel: it lives in a register and every operation below is one LLVM instruction
or intrinsic. LLVM splits a vector where the CPU's registers are narrower, so a kernel written with them is correct on
any CPU, and the results do not depend on the width. Offsets count elements of the array.
"""

from functools import cache

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
        # Numba takes types of one name for one type.
        super().__init__(name=f"{name}x{lanes} of {element}")

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
i32x8 = Vector("i32", ir.IntType(32), 8)
i32x16 = Vector("i32", ir.IntType(32), 16)
i32x32 = Vector("i32", ir.IntType(32), 32)
f32x8 = Vector("f32", ir.FloatType(), 8)
f32x16 = Vector("f32", ir.FloatType(), 16)
f32x32 = Vector("f32", ir.FloatType(), 32)
s8x32 = Vector("s8", ir.IntType(8), 32)
u8x16 = Vector("u8", ir.IntType(8), 16)
u8x32 = Vector("u8", ir.IntType(8), 32)
u16x16 = Vector("u16", ir.IntType(16), 16)
s16x16 = Vector("s16", ir.IntType(16), 16)
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


load_f32x8 = _load(f32x8)
load_f32x16 = _load(f32x16)
load_f32x32 = _load(f32x32)
load_u8x32 = _load(u8x32)
load_s16x16 = _load(s16x16)
load_i32x16 = _load(i32x16)


@intrinsic
def load_signed_sums(typing_context, array, offset, center, levels, like):
    """Load 32 sums s from an array of int16 or int32: ``2 * s - center``, a vector of the type of the array `like`.

    Where `levels` is None they have their sign and stay as they are. Of int16 only the lowest 16 bits count, on the
    way: it is enough that the result, and an int32 s, fit. From int32 to int16 it goes where `narrows_sums` says so.
    """
    vector = _sums_of(like)

    def code(context, builder, signature, values):
        return _signed_sums(context, builder, signature, values[:3], vector)

    return vector(array, types.intp, types.int32, levels, like), code


def _sums_of(array):
    return s16x32 if array.dtype.bitwidth == 16 else i32x32


def _signed_sums(context, builder, signature, values, vector=None):
    array, offset, center = values
    loaded = _sums_of(signature.args[0])
    vector = vector or loaded
    value = _load_unaligned(builder, _pointer(context, builder, signature.args[0], array, offset, loaded), loaded)
    if loaded != vector:
        value = _narrow_512(builder, value)
    if signature.args[3] == types.none:
        return value
    if vector is s16x32:
        center = builder.trunc(center, vector.element)
    return builder.sub(builder.add(value, value), _splat(builder, center, vector))


def _narrow_512(builder, value):
    """i32x32 as s16x32, where all fit, with AVX-512."""
    # It narrows within each 128 bits: four of the first 16 numbers, four of the others.
    halves = (_lanes(builder, value, half) for half in (range(16), range(16, 32)))
    value = x86(builder, "avx512.packssdw.512", s16x32.llvm, *halves)
    return _lanes(builder, value, [8 * part + 4 * half + n for half in (0, 1) for part in range(4) for n in range(4)])


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
        return builder.shl(values[0], _splat(builder, bits, vector))

    return numbers(numbers, types.intp), code


@intrinsic
def exact_quotient(typing_context, numbers, odd, bits):
    """``n / (odd * 2**bits)`` of multiples n of that, of which a lane of i32x16 needs to hold the lowest 32 bits only.

    The quotients must fit in 32 - bits. Modulo 2**32 an odd number has an inverse.
    """

    def code(context, builder, signature, values):
        numbers, odd, bits = values
        odd = builder.trunc(odd, _INT32)
        inverse = odd
        for _ in range(4):  # Newton: each step doubles the 3 bits that are right at first
            inverse = builder.mul(inverse, builder.sub(_INT32(2), builder.mul(odd, inverse)))
        quotients = builder.mul(numbers, _splat(builder, inverse, i32x16))
        return builder.ashr(quotients, _splat(builder, builder.trunc(bits, _INT32), i32x16))

    return i32x16(i32x16, types.intp, types.intp), code


add = _binary("add")
subtract = _binary("sub")
add_float = _binary("fadd")
subtract_float = _binary("fsub")
multiply_float = _binary("fmul")


def lane_channels(bits):
    """Which of 32 channels each of 32 lanes holds, where lanes are numbers of 8, 16 or 32 bits: a list.

    AVX2 widens and narrows numbers within each 128-bit half of a vector. Channels in the order that this gives to 16
    and 32 bits are in their natural order at 8, and no lane has to change halves, which takes longer than all else.
    """
    first = {8: [0], 16: [0, 8], 32: [0, 4, 8, 12]}[bits] if _works_by_halves() else [0]
    size = 16 // len(first)
    if not _works_by_halves():
        return list(range(32))
    return [half + start + lane for start in first for half in (0, 16) for lane in range(size)]


def _works_by_halves():
    return _has("avx2") and not _has("avx512bw")


@intrinsic
def signed_sums_to_f32x32(typing_context, array, offset, center, levels):
    """float32 of `load_signed_sums`, in the order of `lane_channels`."""

    def code(context, builder, signature, values):
        array_type, _, _, levels = signature.args
        if levels != types.none and array_type.dtype.bitwidth == 16 and _works_by_halves():
            numbers = _signed_pairs(context, builder, array_type, *values[:3])
        else:
            numbers = _signed_sums(context, builder, signature, values[:3])
            if numbers.type != i32x32.llvm:
                numbers = builder.sext(numbers, i32x32.llvm)
        return builder.sitofp(numbers, f32x32.llvm)

    return f32x32(array, types.intp, types.int32, levels), code


def _signed_pairs(context, builder, array_type, array, offset, center):
    """``2 * s - center`` of 32 sums of int16, as i32x32 with AVX2: products of pairs (s, 1) and (2, -center)."""
    sums = _load_unaligned(builder, _pointer(context, builder, array_type, array, offset, s16x32), s16x32)
    ones, i32x8 = ir.Constant(s16x16.llvm, [1] * 16), Vector("i32", _INT32, 8)
    pair = builder.sub(_INT32(2), builder.shl(center, _INT32(16)))
    factors = builder.bitcast(_splat(builder, pair, i32x8), s16x16.llvm)
    halves = (_lanes(builder, sums, range(start, start + 16)) for start in (0, 16))
    pairs = [numbers for half in halves for numbers in _interleave(builder, half, ones)]
    return _concatenate(builder, [x86(builder, "avx2.pmadd.wd", i32x8.llvm, numbers, factors) for numbers in pairs])


@intrinsic
def multiply_codes(typing_context, codes, factor):
    """``codes * factor``, each rounded to float32, of 32 codes (u8x32) in the order of `lane_channels`.

    ``2**23 * factor`` must be finite.
    """

    def code(context, builder, signature, values):
        codes, factor = values
        if not (_works_by_halves() and _has("fma")):
            return builder.fmul(_codes_to_float(builder, codes), _splat(builder, factor, f32x32))
        # What is subtracted is a float32, so that all is rounded once, like the product.
        zero = builder.fmul(factor, ir.Constant(ir.FloatType(), -(2.0**23)))
        kind = ir.FunctionType(f32x32.llvm, [f32x32.llvm] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v32f32")
        numbers = _above_2_to_23(builder, codes)
        return builder.call(fma, [numbers, *(_splat(builder, number, f32x32) for number in (factor, zero))])

    return f32x32(codes, types.float32), code


def _codes_to_float(builder, codes):
    if _works_by_halves():
        return builder.fsub(_above_2_to_23(builder, codes), ir.Constant(f32x32.llvm, [2.0**23] * 32))
    return builder.sitofp(builder.zext(codes, i32x32.llvm), f32x32.llvm)


@intrinsic
def i32x16_to_u8x16(typing_context, a):
    """The lowest 8 bits of each lane."""

    def code(context, builder, signature, values):
        return builder.trunc(values[0], u8x16.llvm)

    return u8x16(a), code


@intrinsic
def round_to_u8x32(typing_context, a, largest):
    """``rint(clip(a, 0, largest))``, ties to even, of float32 values that are no NaN.

    largest : float32 or None
        At most 255. None: 255, of values that are below 2**31, which takes less time.
    """

    def code(context, builder, signature, values):
        value, largest = values
        saturates = signature.args[1] == types.none
        if saturates and _has("avx512bw"):
            return _round_and_saturate_512(builder, value)
        largest = ir.Constant(f32x32.llvm, [255.0] * 32) if saturates else _splat(builder, largest, f32x32)
        if _works_by_halves():
            return _round_and_saturate(builder, value if saturates else _minimum(builder, value, largest))
        value = _minimum(builder, value, largest)
        zero = ir.Constant(f32x32.llvm, [0.0] * 32)
        value = builder.select(builder.fcmp_ordered(">", value, zero), value, zero)
        # The last bit of 2**23 is worth 1: the addition rounds, and leaves the whole number in the lowest bits.
        shifted = builder.fadd(value, ir.Constant(f32x32.llvm, [float(2**23)] * 32))
        return builder.trunc(builder.bitcast(shifted, i32x32.llvm), u8x32.llvm)

    return u8x32(a, largest), code


def _round_and_saturate(builder, value):
    """The same with AVX2, whose narrowing of 32 to 16 to 8 bits holds values inside them: nothing else clips at 0."""
    i32x8, i16x16 = ir.VectorType(_INT32, 8), u16x16.llvm
    whole = [
        x86(builder, "avx.cvt.ps2dq.256", i32x8, _lanes(builder, value, range(start, start + 8)))
        for start in range(0, 32, 8)
    ]
    halves = [x86(builder, "avx2.packssdw", i16x16, *whole[start : start + 2]) for start in (0, 2)]
    return x86(builder, "avx2.packuswb", u8x32.llvm, *halves)


def _round_and_saturate_512(builder, value):
    """The same with AVX-512, which narrows within each 128 bits of a vector."""
    merged, all_lanes, usual_rounding = ir.Constant(i32x16.llvm, ir.Undefined), ir.IntType(16)(-1), _INT32(4)
    whole = []
    for half in (range(16), range(16, 32)):
        floats = _lanes(builder, value, half)
        convert = "avx512.mask.cvtps2dq.512"
        whole.append(x86(builder, convert, i32x16.llvm, floats, merged, all_lanes, usual_rounding))
    words = x86(builder, "avx512.packssdw.512", s16x32.llvm, *whole)
    codes = x86(builder, "avx512.packuswb.512", ir.VectorType(u8x32.element, 64), words, words)
    # Each 128 bits hold 4 of the first 16 codes, 4 of the others, and both again.
    lanes = [16 * part + 4 * half + lane for half in (0, 1) for part in range(4) for lane in range(4)]
    return _lanes(builder, codes, lanes)


def _above_2_to_23(builder, codes):
    """``2**23`` plus codes (u8x32), as float32 with AVX2: they are its lowest bits."""
    words = _interleave(builder, codes, ir.Constant(u8x32.llvm, [0] * 32))
    high_bits = ir.Constant(u16x16.llvm, [0x4B00] * 16)
    pairs = [pair for half in words for pair in _interleave(builder, builder.bitcast(half, u16x16.llvm), high_bits)]
    return _concatenate(builder, [builder.bitcast(pair, f32x8.llvm) for pair in pairs])


def _interleave(builder, a, b):
    """Lanes of two vectors of 256 bits in turn: of the lower and of the upper part of each half."""
    count = a.type.count
    halves = []
    for first in (0, count // 4):
        places = [half + first + lane for half in (0, count // 2) for lane in range(count // 4)]
        numbers = [place + vector for place in places for vector in (0, count)]
        halves.append(builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, count), numbers)))
    return halves


def _concatenate(builder, vectors):
    """The lanes of vectors, whose number is a power of two, in one."""
    while len(vectors) > 1:
        numbers = ir.Constant(ir.VectorType(_INT32, 2 * vectors[0].type.count), list(range(2 * vectors[0].type.count)))
        vectors = [builder.shuffle_vector(a, b, numbers) for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]


@intrinsic
def to_channel_order(typing_context, a):
    """A vector of 32 numbers of 32 bits, from the order of `lane_channels` to that of the channels."""

    def code(context, builder, signature, values):
        channels = lane_channels(32)
        return _lanes(builder, values[0], [channels.index(channel) for channel in range(32)])

    return a(a), code


def _lanes(builder, vector, lanes):
    """A vector of some lanes of another."""
    numbers = ir.Constant(ir.VectorType(_INT32, len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), numbers)


def _minimum(builder, a, b):
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


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
            step = _load_unaligned(builder, _pointer(context, builder, steps_type, steps, place, vector), vector)
            exceeded = builder.icmp_signed(">", values, step)
            # Counting up, bit j changes wherever 2**j divides the code.
            for j in range(len(words)):
                if code % 2**j == 0:
                    words[j] = exceeded if words[j] is None else builder.xor(words[j], exceeded)
        order = lane_channels(vector.element.width)
        words = [_lanes(builder, word, [order.index(channel) for channel in range(32)]) for word in words]
        words = [builder.bitcast(word, _INT32) for word in words]
        return _store_halves(context, builder, arrays_type, arrays, half, words)

    return types.int64(arrays, types.intp, values, steps, types.intp), code


@intrinsic
def store_bits(typing_context, arrays, half, codes):
    """Write bit j of 32 codes (u8x32) as half a word to array j of a tuple of uint64 arrays; the sum of the codes."""

    def code(context, builder, signature, values):
        zero, words = ir.Constant(u8x32.llvm, [0] * 32), []
        for j in range(len(signature.args[0])):
            one_bit = builder.and_(values[2], ir.Constant(u8x32.llvm, [1 << j] * 32))
            words.append(builder.bitcast(builder.icmp_unsigned("!=", one_bit, zero), _INT32))
        return _store_halves(context, builder, signature.args[0], values[0], values[1], words)

    return types.int64(arrays, types.intp, codes), code


@intrinsic
def clear_half(typing_context, arrays, half):
    """Write 0 to half a word of each of a tuple of uint64 arrays."""

    def code(context, builder, signature, values):
        words = [_INT32(0)] * len(signature.args[0])
        _store_halves(context, builder, signature.args[0], *values, words)
        return context.get_dummy_value()

    return types.void(arrays, types.intp), code


def _store_halves(context, builder, arrays_type, arrays, half, words):
    """Store an i32 to each array, at number `half` counted in halves of words, the lower first; ``sum(2**j ones)``."""
    total = ir.IntType(64)(0)
    for j, (word, pointer) in enumerate(zip(words, _each_pointer(context, builder, arrays_type, arrays, half, _INT32))):
        builder.store(word, pointer)
        ones = builder.zext(builder.ctpop(word), ir.IntType(64))
        total = builder.add(total, builder.shl(ones, ir.IntType(64)(j)))
    return total


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
        numbers = Vector("i32", _INT32, 8)
        lanes = _load_unaligned(builder, _pointer(context, builder, indices_type, indices, offset, numbers), numbers)
        pointer = _pointer(context, builder, array_type, array, position, f32x8)
        if _has("avx2"):
            return x86(builder, "avx2.permps", f32x8.llvm, _load_unaligned(builder, pointer, f32x8), lanes)
        first, picked = builder.bitcast(pointer, ir.FloatType().as_pointer()), ir.Constant(f32x8.llvm, ir.Undefined)
        for lane in range(8):
            element = builder.load(builder.gep(first, [builder.extract_element(lanes, _INT32(lane))]))
            picked = builder.insert_element(picked, element, _INT32(lane))
        return picked

    return f32x8(array, types.intp, indices, types.intp), code


def _has(feature):
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


def narrows_sums():
    """Whether int32 sums are best compared as int16, where they fit: with registers of 512 bits for 32 of these."""
    return _has("avx512bw")


def has_byte_shuffle():
    """Whether all bytes of a vector can be looked up in a table of 16 in one instruction, or two."""
    return _has("avx2") or _has("neon")


def has_vector_popcount():
    """Whether the bits of all lanes of a 512-bit vector are counted in one instruction."""
    return _has("avx512vpopcntdq")


def has_byte_dot_product():
    """Whether dot products of bytes are one instruction: of unsigned with signed ones, but see below."""
    return _has("avx512vnni") or _has("avxvnni") or multiplies_unsigned_bytes()


def multiplies_unsigned_bytes():
    """Whether both bytes of the dot products are unsigned, as ARM has them."""
    return _has("dotprod")


def has_byte_pair_product():
    """Whether unsigned bytes are multiplied with signed ones and the products added by pairs, to 16 bits, in AVX2."""
    return _has("avx2")


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
            ones = _each_bit(builder, builder.load(pointer))
            value = builder.select(ones, ir.Constant(vector, [1 << bit] * 64), zero)
            total = value if total is None else builder.or_(total, value)
        data = context.make_array(codes_type)(context, builder, codes).data
        builder.store(total, builder.bitcast(builder.gep(data, [position]), vector.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(codes, types.intp, planes, types.intp), code


def _each_bit(builder, word):
    """Whether each bit of an i64 is set, in as many lanes."""
    if _has("avx512bw"):
        return builder.bitcast(word, ir.VectorType(ir.IntType(1), 64))
    # Of that, LLVM would take one bit after the other for ARM.
    eight_times = _lanes(builder, builder.bitcast(word, ir.VectorType(u8x32.element, 8)), [n // 8 for n in range(64)])
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
        kind = ir.FunctionType(_INT32, [i32x32.llvm])
        add = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.add.v32i32")
        return builder.zext(builder.call(add, [wide]), ir.IntType(64))

    return types.int64(codes), code


def dot_lanes():
    """Output channels whose dot products are added up side by side.

    Two registers of them: a dot product takes some cycles, in which others are begun.
    """
    return 32 if _has("avx512vnni") else 16


def _sums_vector():
    return Vector("i32", _INT32, dot_lanes())


def _weights_vector(array):
    width = array.dtype.bitwidth
    return Vector(f"s{width}", ir.IntType(width), dot_lanes() * 32 // width)


@intrinsic
def load_weights(typing_context, array, position):
    """Load 32 bits for each lane of an array of int8, uint8 or int16."""
    vector = _weights_vector(array)

    def code(context, builder, signature, values):
        return _load_unaligned(builder, _pointer(context, builder, signature.args[0], *values, vector), vector)

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
    word = builder.load(builder.bitcast(builder.gep(data, [position]), _INT32.as_pointer()))
    word.align = 1
    return _splat(builder, word, vector)


def _add_dot_product(builder, dots, codes, weights):
    """A vector of dot products, and of one pixel's codes with weights added to it."""
    if weights.type.element.width == 8 and multiplies_unsigned_bytes():
        codes = builder.bitcast(codes, weights.type)
        return _in_parts(builder, neon, "udot.v4i32.v16i8", ir.VectorType(_INT32, 4), dots, codes, weights)
    if has_byte_dot_product():
        words = builder.bitcast(weights, codes.type)
        half = ir.VectorType(_INT32, dot_lanes() // 2)
        return _in_parts(builder, x86, f"avx512.vpdpbusd.{half.count * 32}", half, dots, codes, words)
    return builder.add(dots, _multiply_pairs(builder, builder.bitcast(codes, weights.type), weights))


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
            pointer = _pointer(context, builder, signature.args[0], array, place, i32x8)
            sums.append(_load_unaligned(builder, pointer, i32x8))
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
                pointer = _pointer(context, builder, weights_type, weights, place, s8x32)
                weight = _load_unaligned(builder, pointer, s8x32)
                product = x86(builder, "avx2.pmadd.ub.sw", s16x16.llvm, code, weight)
                products[number] = product if before is None else builder.add(before, product)
                place = builder.add(place, place.type(s8x32.lanes))
            position = builder.add(position, position.type(4))
        ones = ir.Constant(s16x16.llvm, [1] * 16)
        products = (x86(builder, "avx2.pmadd.wd", i32x8.llvm, product, ones) for product in products)
        totals = [builder.add(*each) for each in zip(cgutils.unpack_tuple(builder, sums), products)]
        return context.make_tuple(builder, signature.return_type, totals)

    return sums(sums, codes, types.intp, weights, types.intp, run), code


@intrinsic
def store_each(typing_context, array, offset, step, vectors):
    """Write each vector of a tuple to consecutive elements of an array: the first from `offset` on, and so on."""

    def code(context, builder, signature, values):
        array, offset, step, vectors = values
        for vector in cgutils.unpack_tuple(builder, vectors):
            pointer = _pointer(context, builder, signature.args[0], array, offset, signature.args[3].dtype)
            builder.store(vector, pointer).align = 1
            offset = builder.add(offset, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), code


def _multiply_pairs(builder, a, b):
    """i32x16: products of two s16x32 vectors, added by pairs."""
    if _has("avx512bw"):
        return x86(builder, "avx512.pmaddw.d.512", i32x16.llvm, a, b)
    if _has("avx2"):
        return _in_parts(builder, x86, "avx2.pmadd.wd", i32x8.llvm, a, b)
    a, b = (builder.bitcast(vector, i32x16.llvm) for vector in (a, b))
    sixteen = ir.Constant(i32x16.llvm, [16] * 16)
    high = builder.mul(builder.ashr(a, sixteen), builder.ashr(b, sixteen))
    low = builder.mul(*(builder.ashr(builder.shl(vector, sixteen), sixteen) for vector in (a, b)))
    return builder.add(low, high)


def _in_parts(builder, call, name, result, *arguments):
    """Call an intrinsic on each part of vectors that are wider than it takes: a vector of all its results.

    call : `x86` or `neon`
    result : the LLVM type of a part's result, as wide as a part of the first argument
    """
    count = _width(arguments[0].type) // _width(result)
    parts = []
    for number in range(count):
        lanes = [vector.type.count // count for vector in arguments]
        pieces = (_lanes(builder, v, range(number * n, (number + 1) * n)) for v, n in zip(arguments, lanes))
        parts.append(call(builder, name, result, *pieces))
    return _concatenate(builder, parts)


def _width(vector):
    """Bits of an LLVM type of vectors."""
    return vector.count * vector.element.width


def x86(builder, name, result, *arguments):
    """Call one of LLVM's intrinsics of x86."""
    return _call(builder, f"llvm.x86.{name}", result, *arguments)


def neon(builder, name, result, *arguments):
    """Call one of LLVM's intrinsics of ARM's vectors, which have 128 bits."""
    return _call(builder, f"llvm.aarch64.neon.{name}", result, *arguments)


def _call(builder, name, result, *arguments):
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


# Look-up: byte shuffles of 32 lanes, for `lookup.py`. LLVM has no generic form of them.


@intrinsic
def store_tables(typing_context, tables, position, planes, byte, counts):
    """Make the two 16-byte tables of 8 channels: byte number `byte` of each plane.

    counts : `lookup.PLANE_TABLES`.
    """

    def code(context, builder, signature, values):
        tables_type, _, planes_type, _, counts_type = signature.args
        tables, position, planes, byte, counts = values
        counts = context.make_array(counts_type)(context, builder, counts).data
        int64 = ir.IntType(64)
        total = None
        for bit, pointer in enumerate(_each_pointer(context, builder, planes_type, planes, byte, ir.IntType(8))):
            ones = builder.zext(builder.load(pointer), int64)
            row = builder.add(builder.shl(ones, int64(5)), int64(bit * 256 * 32))
            table = _load_unaligned(builder, builder.gep(counts, [row]), u8x32)
            total = table if total is None else builder.add(total, table)
        builder.store(total, _pointer(context, builder, tables_type, tables, position, u8x32)).align = 1
        return context.get_dummy_value()

    return types.void(tables, types.intp, planes, types.intp, counts), code


LOOKUP_COUNTS = 8
"""Counts that are kept in registers: those of several pixels, each with every array of weights."""


def lookup_pixels(arrays):
    """Pixels whose tables are read with what is loaded of so many arrays of weights."""
    return max(1, LOOKUP_COUNTS // arrays)


@intrinsic
def window_places(typing_context, weights, first, last, step):
    """A tuple of `lookup_pixels` numbers ``first, first + step, ...``, none of which exceeds `last`."""
    pixels = lookup_pixels(len(weights))

    def code(context, builder, signature, values):
        _, place, last, step = values
        places = [place]
        for _ in range(1, pixels):
            place = builder.add(place, step)
            places.append(builder.select(builder.icmp_signed("<", place, last), place, last))
        return context.make_tuple(builder, signature.return_type, places)

    return types.UniTuple(types.intp, pixels)(weights, types.intp, types.intp, types.intp), code


@intrinsic
def zero_bytes(typing_context, weights):
    """A zero u8x32 vector for each array of a tuple, and that for each of `lookup_pixels`."""
    count = len(weights) * lookup_pixels(len(weights))

    def code(context, builder, signature, values):
        zero = ir.Constant(u8x32.llvm, [0] * u8x32.lanes)
        return context.make_tuple(builder, signature.return_type, [zero] * count)

    return types.UniTuple(u8x32, count)(weights), code


@intrinsic
def store_offsets(typing_context, offsets, position, planes, half):
    """Where the tables of 32 channels begin in `lookup.TABLES`: those of half word number `half` of one or two planes.

    Writes 8 numbers, ``16 * a + 256 * b`` for the nibbles a and b of 4 channels.
    """

    def code(context, builder, signature, values):
        offsets_type, _, planes_type, _ = signature.args
        offsets, position, planes, half = values
        vector = Vector("u32", _INT32, 8)
        shifts, low_bits = (
            ir.Constant(vector.llvm, numbers) for numbers in (list(range(0, 32, 4)), [15] * vector.lanes)
        )
        total = None
        for bit, pointer in enumerate(_each_pointer(context, builder, planes_type, planes, half, _INT32)):
            nibbles = builder.and_(builder.lshr(_splat(builder, builder.load(pointer), vector), shifts), low_bits)
            nibbles = builder.shl(nibbles, ir.Constant(vector.llvm, [4 + 4 * bit] * vector.lanes))
            total = nibbles if total is None else builder.or_(total, nibbles)
        builder.store(total, _pointer(context, builder, offsets_type, offsets, position, vector)).align = 1
        return context.get_dummy_value()

    return types.void(offsets, types.intp, planes, types.intp), code


@intrinsic
def load_bytes_each(typing_context, arrays, offset):
    """Load 32 bytes from each of a tuple of arrays: a tuple of vectors."""

    def code(context, builder, signature, values):
        pointers = _each_pointer(context, builder, signature.args[0], *values, u8x32.element)
        found = [_load_unaligned(builder, pointer, u8x32) for pointer in pointers]
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(u8x32, len(arrays))(arrays, types.intp), code


@intrinsic
def look_up(typing_context, counts, tables, offsets, places, k, nibbles):
    """Add to the counts of each pixel what its 16-byte table holds at nibbles of their own.

    The table of a pixel, for its number of the tuple `places`, begins at ``offsets[place + k]``, or, where these are
    None, is number ``place + k``.
    """

    def code(context, builder, signature, values):
        _, tables_type, offsets_type, *_ = signature.args
        counts, tables, offsets, places, k, nibbles = values
        counts, nibbles = cgutils.unpack_tuple(builder, counts), cgutils.unpack_tuple(builder, nibbles)
        totals = []
        for place in cgutils.unpack_tuple(builder, places):
            offset = builder.shl(builder.add(place, k), ir.IntType(64)(4))
            if offsets_type != types.none:
                data = context.make_array(offsets_type)(context, builder, offsets).data
                offset = builder.zext(builder.load(builder.gep(data, [builder.add(place, k)])), ir.IntType(64))
            table = _load_unaligned(builder, _pointer(context, builder, tables_type, tables, offset, u8x16), u8x16)
            for nibble in nibbles:
                # Added at once: for all entries together ARM has no registers, whatever LLVM makes of it.
                totals.append(builder.add(counts[len(totals)], _look_up(builder, table, nibble)))
        return context.make_tuple(builder, signature.return_type, totals)

    return counts(counts, tables, offsets, places, types.intp, nibbles), code


def _look_up(builder, table, nibbles):
    """Elements of a table (u8x16) for 32 nibbles (u8x32)."""
    table = _lanes(builder, table, [*range(16), *range(16)])
    if _has("avx2"):
        return x86(builder, "avx2.pshuf.b", u8x32.llvm, table, nibbles)
    return _in_parts(builder, neon, "tbl1.v16i8", u8x16.llvm, table, nibbles)


def _byte_counts(adds):
    @intrinsic
    def write(typing_context, sums, position, channels, counts, weights, planes):
        def code(context, builder, signature, values):
            sums_type, *_, weights, planes = signature.args
            sums, position, channels, counts, *_ = values
            vector = u16x16 if sums_type.dtype.bitwidth == 16 else i32x16
            counts = cgutils.unpack_tuple(builder, counts)
            for first in range(0, len(counts), len(weights)):
                for number, total in enumerate(_of_planes(builder, counts[first : first + len(weights)], len(planes))):
                    if vector is i32x16 and _works_by_halves():
                        halves = _interleave(builder, total, ir.Constant(total.type, [0] * 16))
                        total = builder.bitcast(_concatenate(builder, halves), vector.llvm)
                    elif vector is i32x16:
                        total = builder.zext(total, vector.llvm)
                    place = builder.add(position, ir.IntType(64)(16 * number))
                    pointer = _pointer(context, builder, sums_type, sums, place, vector)
                    if adds:
                        total = builder.add(total, _load_unaligned(builder, pointer, vector))
                    builder.store(total, pointer).align = 1
                position = builder.add(position, channels)
            return context.get_dummy_value()

        return types.void(sums, types.intp, types.intp, counts, weights, planes), code

    return write


def _of_planes(builder, counts, planes):
    """``sum(2**plane * count)`` in 16 bits for each `planes` counts, first those of the even lanes, then of the odd."""
    eight, low_byte = (ir.Constant(u16x16.llvm, [number] * 16) for number in (8, 255))
    for first in range(0, len(counts), planes):
        pairs = [builder.bitcast(count, u16x16.llvm) for count in counts[first : first + planes]]
        for halves in ([builder.and_(p, low_byte) for p in pairs], [builder.lshr(p, eight) for p in pairs]):
            total = halves[-1]
            for half in reversed(halves[:-1]):
                total = builder.add(builder.add(total, total), half)
            yield total


# Write, or add, counts of table entries, as `look_up` gives them: for pixels that lie `channels` apart the sums, int16
# or int32, of blocks of 32 channels, first those of the even lanes, then of the odd. `weights` and `planes` are the
# fields of `lookup.LookupFilters`.
set_byte_counts = _byte_counts(adds=False)
add_byte_counts = _byte_counts(adds=True)
