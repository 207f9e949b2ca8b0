"""A `Vector` of numbers as a type of Numba's, and those that there are."""

from llvmlite import ir
from numba.core import types
from numba.core.datamodel import models
from numba.extending import register_model

INT32 = ir.IntType(32)


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
