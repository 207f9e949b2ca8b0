"""Look-up: byte shuffles of 32 lanes, for `kernels.lookup`. LLVM has no generic form of them."""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import build
from .cpu import has, works_by_halves
from .vectors import INT32, Vector, i32x16, u8x16, u8x32, u16x16


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
        for bit, pointer in enumerate(build.pointers_to(context, builder, planes_type, planes, byte, ir.IntType(8))):
            ones = builder.zext(builder.load(pointer), int64)
            row = builder.add(builder.shl(ones, int64(5)), int64(bit * 256 * 32))
            table = build.load_unaligned(builder, builder.gep(counts, [row]), u8x32.llvm)
            total = table if total is None else builder.add(total, table)
        build.store(context, builder, tables_type, tables, position, total)
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
        vector = Vector("u32", INT32, 8)
        shifts, low_bits = (
            ir.Constant(vector.llvm, numbers) for numbers in (list(range(0, 32, 4)), [15] * vector.lanes)
        )
        total = None
        for bit, pointer in enumerate(build.pointers_to(context, builder, planes_type, planes, half, INT32)):
            nibbles = builder.and_(builder.lshr(build.splat(builder, builder.load(pointer), vector), shifts), low_bits)
            nibbles = builder.shl(nibbles, ir.Constant(vector.llvm, [4 + 4 * bit] * vector.lanes))
            total = nibbles if total is None else builder.or_(total, nibbles)
        build.store(context, builder, offsets_type, offsets, position, total)
        return context.get_dummy_value()

    return types.void(offsets, types.intp, planes, types.intp), code


@intrinsic
def load_bytes_each(typing_context, arrays, offset):
    """Load 32 bytes from each of a tuple of arrays: a tuple of vectors."""

    def code(context, builder, signature, values):
        pointers = build.pointers_to(context, builder, signature.args[0], *values, u8x32.element)
        found = [build.load_unaligned(builder, pointer, u8x32.llvm) for pointer in pointers]
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
            table = build.load(context, builder, tables_type, tables, offset, u8x16)
            for nibble in nibbles:
                # Added at once: for all entries together ARM has no registers, whatever LLVM makes of it.
                totals.append(builder.add(counts[len(totals)], _look_up(builder, table, nibble)))
        return context.make_tuple(builder, signature.return_type, totals)

    return counts(counts, tables, offsets, places, types.intp, nibbles), code


def _look_up(builder, table, nibbles):
    """Elements of a table (u8x16) for 32 nibbles (u8x32)."""
    table = build.take_lanes(builder, table, [*range(16), *range(16)])
    if has("avx2"):
        return build.x86(builder, "avx2.pshuf.b", u8x32.llvm, table, nibbles)
    return build.in_parts(builder, build.neon, "tbl1.v16i8", u8x16.llvm, table, nibbles)


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
                    if vector is i32x16 and works_by_halves():
                        halves = build.interleave(builder, total, ir.Constant(total.type, [0] * 16))
                        total = builder.bitcast(build.concatenate(builder, halves), vector.llvm)
                    elif vector is i32x16:
                        total = builder.zext(total, vector.llvm)
                    place = builder.add(position, ir.IntType(64)(16 * number))
                    if adds:
                        total = builder.add(total, build.load(context, builder, sums_type, sums, place, vector))
                    build.store(context, builder, sums_type, sums, place, total)
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
