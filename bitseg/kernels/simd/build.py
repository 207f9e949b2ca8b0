"""Pieces of LLVM code that operations are built of, from LLVM values."""

from llvmlite import ir
from numba.core import cgutils

from .vectors import INT32


def pointer_to(context, builder, array_type, array, offset, kind):
    """Pointer to a value of an LLVM type that begins at number `offset` of an array."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


def load(context, builder, array_type, array, offset, vector):
    """Load a `Vector` that begins at number `offset` of an array."""
    pointer = pointer_to(context, builder, array_type, array, offset, vector.llvm)
    return load_unaligned(builder, pointer, vector.llvm)


def store(context, builder, array_type, array, offset, value):
    """Write an LLVM vector to an array from number `offset` on."""
    builder.store(value, pointer_to(context, builder, array_type, array, offset, value.type)).align = 1


def splat(builder, value, vector):
    """A `Vector` with a value in all lanes."""
    one = builder.insert_element(ir.Constant(vector.llvm, ir.Undefined), value, INT32(0))
    zeros = ir.Constant(ir.VectorType(INT32, vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one, ir.Constant(vector.llvm, ir.Undefined), zeros)


def load_unaligned(builder, pointer, kind):
    """Load a value of an LLVM type, wherever it begins."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def interleave(builder, a, b):
    """Lanes of two vectors of 256 bits in turn: of the lower and of the upper part of each half."""
    count = a.type.count
    halves = []
    for first in (0, count // 4):
        places = [half + first + lane for half in (0, count // 2) for lane in range(count // 4)]
        numbers = [place + vector for place in places for vector in (0, count)]
        halves.append(builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, count), numbers)))
    return halves


def concatenate(builder, vectors):
    """The lanes of vectors, whose number is a power of two, in one."""
    while len(vectors) > 1:
        numbers = ir.Constant(ir.VectorType(INT32, 2 * vectors[0].type.count), list(range(2 * vectors[0].type.count)))
        vectors = [builder.shuffle_vector(a, b, numbers) for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]


def take_lanes(builder, vector, lanes):
    """A vector of some lanes of another."""
    numbers = ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), numbers)


def pointers_to(context, builder, arrays_type, arrays, offset, element):
    """Pointers to number `offset` of each of a tuple of arrays, counted in elements of that kind."""
    data = (
        context.make_array(arrays_type.dtype)(context, builder, a).data for a in cgutils.unpack_tuple(builder, arrays)
    )
    return [builder.gep(builder.bitcast(pointer, element.as_pointer()), [offset]) for pointer in data]


def in_parts(builder, call_part, name, result, *arguments):
    """Call an intrinsic on each part of vectors of integers that are wider than it takes: a vector of all its results.

    call_part : `x86` or `neon`
    result : the LLVM type of a part's result, as wide as a part of the first argument
    """
    count = _width(arguments[0].type) // _width(result)
    sizes = [vector.type.count // count for vector in arguments]
    parts = []
    for number in range(count):
        pieces = (
            take_lanes(builder, vector, range(number * size, (number + 1) * size))
            for vector, size in zip(arguments, sizes)
        )
        parts.append(call_part(builder, name, result, *pieces))
    return concatenate(builder, parts)


def _width(vector):
    """Bits of an LLVM type of vectors of integers."""
    return vector.count * vector.element.width


def x86(builder, name, result, *arguments):
    """Call one of LLVM's intrinsics of x86."""
    return call(builder, f"x86.{name}", result, *arguments)


def neon(builder, name, result, *arguments):
    """Call one of LLVM's intrinsics of ARM's vectors, which have 128 bits."""
    return call(builder, f"aarch64.neon.{name}", result, *arguments)


def call(builder, name, result, *arguments):
    """Call one of LLVM's intrinsics, which gives a value of an LLVM type."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), arguments)


def extreme(builder, sign, a, b):
    """Lane by lane the number of two that is to the left of a sign: of floats without NaN, or of unsigned integers."""
    compare = builder.fcmp_ordered if isinstance(a.type.element, ir.FloatType) else builder.icmp_unsigned
    return builder.select(compare(sign, a, b), a, b)
