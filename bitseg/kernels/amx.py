"""Tile registers of Intel's AMX as operations in kernels: products of small matrices of bytes, added up in 32 bits.

A CPU with AMX has eight tiles of up to 16 rows of 64 bytes. One instruction multiplies a tile of 16 rows of 64 codes
with one of 64 rows of 16 weights: 16,384 products, some ten times as many as a vector makes in that time. How many
rows each tile has is the configuration of a thread; functions that are called may change it and all tiles.

Numbers of tiles are written into instructions: they must be constants.
"""

import ctypes
import sys
from functools import cache

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import simd
from .jit import part

ROWS = 16
"""Most rows of a tile."""

ROW_BYTES = 64

TILE_BYTES = ROWS * ROW_BYTES

SUMS = 0, 1, 2, 3
"""Tiles of 32-bit sums: of the codes of two tiles, each with the weights of two."""

CODES, WEIGHTS = (4, 5), (6, 7)

_BYTE, _INT64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18


@cache
def has_tiles():
    """Whether the CPU that Numba compiles for has tiles for bytes, and this process may use them."""
    features = simd.target_cpu()[1]
    return "amx-tile" in features and "amx-int8" in features and _is_permitted()


def _is_permitted():
    """Ask Linux for the memory that it keeps a thread's tiles in when another one runs; unasked there is none.

    The answer holds for all threads and for forked processes. No other system is known to give it.
    """
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def _pointer(context, builder, array_type, array, offset):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _BYTE.as_pointer())


def _with_configuration(name):
    @intrinsic
    def operation(typing_context, configuration):
        def code(context, builder, signature, values):
            simd.x86(builder, name, _VOID, _pointer(context, builder, signature.args[0], values[0], _INT64(0)))
            return context.get_dummy_value()

        return types.void(configuration), code

    return operation


_read_configuration = _with_configuration("sttilecfg")
_write_configuration = _with_configuration("ldtilecfg")


@part
def configure(rows):
    """Give the tiles of codes, and of their sums, so many rows; the configuration before, for `restore`."""
    before, wanted = np.empty(64, np.uint8), np.zeros(64, np.uint8)
    wanted[0] = 1
    for tile in range(8):
        wanted[16 + 2 * tile] = ROW_BYTES
        wanted[48 + tile] = rows if tile < WEIGHTS[0] else ROWS
    _read_configuration(before)
    _write_configuration(wanted)
    return before


@part
def restore(before):
    """Configure the tiles as they were: another library may rely on it."""
    _write_configuration(before)


@intrinsic(prefer_literal=True)
def zero(typing_context, tile):
    """Set a tile to zero."""

    def code(context, builder, signature, values):
        simd.x86(builder, "tilezero", _VOID, _BYTE(tile.literal_value))
        return context.get_dummy_value()

    return types.void(tile), code


def _with_memory(name):
    @intrinsic(prefer_literal=True)
    def operation(typing_context, tile, array, position, step):
        def code(context, builder, signature, values):
            pointer = _pointer(context, builder, signature.args[1], *values[1:3])
            simd.x86(builder, name, _VOID, _BYTE(tile.literal_value), pointer, values[3])
            return context.get_dummy_value()

        return types.void(tile, types.unliteral(array), types.intp, types.intp), code

    return operation


# Rows of a tile from, or to, an array: the first from element `position` on, each next one `step` bytes further.
load = _with_memory("tileloadd64")
store = _with_memory("tilestored64")


@intrinsic(prefer_literal=True)
def add_products(typing_context, sums, codes, weights):
    """``sums[i, j] += sum(codes[i, 4 k + l] * weights[k, 4 j + l])`` of unsigned bytes in tiles, over all k and l."""

    def code(context, builder, signature, values):
        simd.x86(builder, "tdpbuud", _VOID, *(_BYTE(tile.literal_value) for tile in signature.args))
        return context.get_dummy_value()

    return types.void(sums, codes, weights), code


@intrinsic(prefer_literal=True)
def unpack(typing_context, tiles, place, packed, position, bits):
    """Write a tile of codes, one to a byte, of which ``8 / bits`` lie in each byte: rows, lowest bits first.

    bits : int
        1, 2 or 4, a constant.
    """

    def code(context, builder, signature, values):
        tiles_type, _, packed_type, *_ = signature.args
        tiles, place, packed, position, _ = values
        width = bits.literal_value
        count = 8 // width
        vector = ir.VectorType(_BYTE, ROW_BYTES)
        source = _pointer(context, builder, packed_type, packed, position)
        target = _pointer(context, builder, tiles_type, tiles, place)
        for row in range(ROWS):
            if row % count == 0:
                place_of_vector = builder.gep(source, [_INT64(row // count * ROW_BYTES)])
                value = builder.load(builder.bitcast(place_of_vector, vector.as_pointer()))
                value.align = 1
            ones = builder.lshr(value, ir.Constant(vector, [row % count * width] * ROW_BYTES))
            ones = builder.and_(ones, ir.Constant(vector, [2**width - 1] * ROW_BYTES))
            place_of_row = builder.gep(target, [_INT64(row * ROW_BYTES)])
            builder.store(ones, builder.bitcast(place_of_row, vector.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(types.unliteral(tiles), types.intp, types.unliteral(packed), types.intp, bits), code
