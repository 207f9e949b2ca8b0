"""Sums of a convolution to real values, and these to codes."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import build
from .cpu import has, works_by_halves
from .vectors import INT32, f32x8, f32x32, i32x8, i32x16, i32x32, s16x16, s16x32, u8x32, u16x16


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
    value = build.load(context, builder, signature.args[0], array, offset, loaded)
    if loaded != vector:
        value = _narrow_512(builder, value)
    if signature.args[3] == types.none:
        return value
    if vector is s16x32:
        center = builder.trunc(center, vector.element)
    return builder.sub(builder.add(value, value), build.splat(builder, center, vector))


def _narrow_512(builder, value):
    """i32x32 as s16x32, where all fit, with AVX-512."""
    # It narrows within each 128 bits: four of the first 16 numbers, four of the others.
    halves = (build.take_lanes(builder, value, half) for half in (range(16), range(16, 32)))
    value = build.x86(builder, "avx512.packssdw.512", s16x32.llvm, *halves)
    return build.take_lanes(
        builder, value, [8 * part + 4 * half + n for half in (0, 1) for part in range(4) for n in range(4)]
    )


def lane_channels(bits):
    """Which of 32 channels each of 32 lanes holds, where lanes are numbers of 8, 16 or 32 bits: a list.

    AVX2 widens and narrows numbers within each 128-bit half of a vector. Channels in the order that this gives to 16
    and 32 bits are in their natural order at 8, and no lane has to change halves, which takes longer than all else.
    """
    if not works_by_halves():
        return list(range(32))
    first = {8: [0], 16: [0, 8], 32: [0, 4, 8, 12]}[bits]
    size = 16 // len(first)
    return [half + start + lane for start in first for half in (0, 16) for lane in range(size)]


@intrinsic
def signed_sums_to_f32x32(typing_context, array, offset, center, levels):
    """float32 of `load_signed_sums`, in the order of `lane_channels`."""

    def code(context, builder, signature, values):
        array_type, _, _, levels = signature.args
        if levels != types.none and array_type.dtype.bitwidth == 16 and works_by_halves():
            numbers = _signed_pairs(context, builder, array_type, *values[:3])
        else:
            numbers = _signed_sums(context, builder, signature, values[:3])
            if numbers.type != i32x32.llvm:
                numbers = builder.sext(numbers, i32x32.llvm)
        return builder.sitofp(numbers, f32x32.llvm)

    return f32x32(array, types.intp, types.int32, levels), code


def _signed_pairs(context, builder, array_type, array, offset, center):
    """``2 * s - center`` of 32 sums of int16, as i32x32 with AVX2: products of pairs (s, 1) and (2, -center)."""
    sums = build.load(context, builder, array_type, array, offset, s16x32)
    ones = ir.Constant(s16x16.llvm, [1] * 16)
    pair = builder.sub(INT32(2), builder.shl(center, INT32(16)))
    factors = builder.bitcast(build.splat(builder, pair, i32x8), s16x16.llvm)
    halves = (build.take_lanes(builder, sums, range(start, start + 16)) for start in (0, 16))
    pairs = [numbers for half in halves for numbers in build.interleave(builder, half, ones)]
    return build.concatenate(
        builder, [build.x86(builder, "avx2.pmadd.wd", i32x8.llvm, numbers, factors) for numbers in pairs]
    )


@intrinsic
def multiply_codes(typing_context, codes, factor):
    """``codes * factor``, each rounded to float32, of 32 codes (u8x32) in the order of `lane_channels`.

    ``2**23 * factor`` must be finite.
    """

    def code(context, builder, signature, values):
        codes, factor = values
        if not (works_by_halves() and has("fma")):
            return builder.fmul(_codes_to_float(builder, codes), build.splat(builder, factor, f32x32))
        # What is subtracted is a float32, so that all is rounded once, like the product.
        zero = builder.fmul(factor, ir.Constant(ir.FloatType(), -(2.0**23)))
        terms = (build.splat(builder, number, f32x32) for number in (factor, zero))
        return build.call(builder, "fma.v32f32", f32x32.llvm, _above_2_to_23(builder, codes), *terms)

    return f32x32(codes, types.float32), code


def _codes_to_float(builder, codes):
    if works_by_halves():
        return builder.fsub(_above_2_to_23(builder, codes), ir.Constant(f32x32.llvm, [2.0**23] * 32))
    return builder.sitofp(builder.zext(codes, i32x32.llvm), f32x32.llvm)


@intrinsic
def round_to_u8x32(typing_context, a, largest):
    """``rint(clip(a, 0, largest))``, ties to even, of float32 values that are no NaN.

    largest : float32 or None
        At most 255. None: 255, of values that are below 2**31, which takes less time.
    """

    def code(context, builder, signature, values):
        value, largest = values
        saturates = signature.args[1] == types.none
        if saturates and has("avx512bw"):
            return _round_and_saturate_512(builder, value)
        largest = ir.Constant(f32x32.llvm, [255.0] * 32) if saturates else build.splat(builder, largest, f32x32)
        if works_by_halves():
            return _round_and_saturate(builder, value if saturates else build.extreme(builder, "<", value, largest))
        value = build.extreme(builder, "<", value, largest)
        value = build.extreme(builder, ">", value, ir.Constant(f32x32.llvm, [0.0] * 32))
        # The last bit of 2**23 is worth 1: the addition rounds, and leaves the whole number in the lowest bits.
        shifted = builder.fadd(value, ir.Constant(f32x32.llvm, [float(2**23)] * 32))
        return builder.trunc(builder.bitcast(shifted, i32x32.llvm), u8x32.llvm)

    return u8x32(a, largest), code


def _round_and_saturate(builder, value):
    """The same with AVX2, whose narrowing of 32 to 16 to 8 bits holds values inside them: nothing else clips at 0."""
    whole = [
        build.x86(builder, "avx.cvt.ps2dq.256", i32x8.llvm, build.take_lanes(builder, value, range(start, start + 8)))
        for start in range(0, 32, 8)
    ]
    halves = [build.x86(builder, "avx2.packssdw", s16x16.llvm, *whole[start : start + 2]) for start in (0, 2)]
    return build.x86(builder, "avx2.packuswb", u8x32.llvm, *halves)


def _round_and_saturate_512(builder, value):
    """The same with AVX-512, which narrows within each 128 bits of a vector."""
    merged, all_lanes, usual_rounding = ir.Constant(i32x16.llvm, ir.Undefined), ir.IntType(16)(-1), INT32(4)
    whole = []
    for half in (range(16), range(16, 32)):
        floats = build.take_lanes(builder, value, half)
        convert = "avx512.mask.cvtps2dq.512"
        whole.append(build.x86(builder, convert, i32x16.llvm, floats, merged, all_lanes, usual_rounding))
    words = build.x86(builder, "avx512.packssdw.512", s16x32.llvm, *whole)
    codes = build.x86(builder, "avx512.packuswb.512", ir.VectorType(u8x32.element, 64), words, words)
    # Each 128 bits hold 4 of the first 16 codes, 4 of the others, and both again.
    lanes = [16 * part + 4 * half + lane for half in (0, 1) for part in range(4) for lane in range(4)]
    return build.take_lanes(builder, codes, lanes)


def _above_2_to_23(builder, codes):
    """``2**23`` plus codes (u8x32), as float32 with AVX2: they are its lowest bits."""
    words = build.interleave(builder, codes, ir.Constant(u8x32.llvm, [0] * 32))
    high_bits = ir.Constant(u16x16.llvm, [0x4B00] * 16)
    pairs = [
        pair for half in words for pair in build.interleave(builder, builder.bitcast(half, u16x16.llvm), high_bits)
    ]
    return build.concatenate(builder, [builder.bitcast(pair, f32x8.llvm) for pair in pairs])


@intrinsic
def to_channel_order(typing_context, a):
    """A vector of 32 numbers of 32 bits, from the order of `lane_channels` to that of the channels."""

    def code(context, builder, signature, values):
        channels = lane_channels(32)
        return build.take_lanes(builder, values[0], [channels.index(channel) for channel in range(32)])

    return a(a), code
