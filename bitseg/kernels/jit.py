"""What kernels are made of: functions that Numba compiles into them, and the arrays they allocate."""

import numpy as np
from numba.core import cgutils, types
from numba.core.codegen import CPUCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import intrinsic, overload, register_jitable

CACHE_LINE = 64

# The wrapper for C would be a sixth of the time to compile.
OPTIONS = {"error_model": "numpy", "no_cfunc_wrapper": True}


class _PartLibrary(CPUCodeLibrary):
    """LLVM code of a part, for those that call it to take in and optimise.

    Numba would optimise it for itself as well and make machine code of it that nobody runs, which was a quarter of the
    time to compile all kernels.
    """

    def _optimize_final_module(self):
        """Its callers do."""

    def _finalize_final_module(self):
        self._finalized = True

    def get_pointer_to_function(self, name):
        """Nowhere, as for a function that is not there."""
        self._ensure_finalized()
        return 0

    @property
    def codegen(self):
        """Who is asked to `set_env`."""
        return self

    def set_env(self, env_name, env):
        """Nothing: machine code has an environment."""


class _PartCompiler(Compiler):
    def define_pipelines(self):
        state = self.state
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


_PART_OPTIONS = {**OPTIONS, "pipeline_class": _PartCompiler}


def routine(function):
    """A part that stays a function of its own in each kernel that calls it, so that its loops get all registers."""
    return register_jitable(**_PART_OPTIONS)(function)


def part(function):
    """Compile a function that kernels call, as part of each: without a way in from Python, which takes longer."""
    return register_jitable(**_PART_OPTIONS, forceinline=True)(function)


def chosen_by_types(function):
    """A part of which there are several: the decorated function returns the one for the types of its arguments.

    Arguments have the names that those of `function` have, which says what all of them do.
    """
    return overload(function, jit_options={**_PART_OPTIONS, "forceinline": True})


@part
def empty_aligned(size, dtype):
    """An array of one axis that begins where a cache line does, for kernels as from Python."""
    memory = np.empty(size + CACHE_LINE, dtype)
    first = -memory.ctypes.data % CACHE_LINE // memory.itemsize
    return memory[first : first + size]


@intrinsic
def borrowed(typing_context, value):
    """The same array, or tuple of anything, without its owner: Numba then counts no references to it.

    Counting is an atomic instruction for each array at each call of a part, and was a sixth of some kernels' time. A
    kernel's arguments are so; what it allocates itself it passes to `keep` at its end.
    """

    def code(context, builder, signature, values):
        def change(kind, value):
            return without_owner(context, builder, kind, value)._getvalue() if isinstance(kind, types.Array) else None

        return change_values(context, builder, signature.args[0], values[0], change)

    return value(value), code


def without_owner(context, builder, kind, value):
    """Numba's structure of an array, which nobody owns."""
    array = context.make_array(kind)(context, builder, value)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    return array


def change_values(context, builder, kind, value, change):
    """A value of a Numba type, and of it, if it is a tuple, each item, as ``change(type, value)`` makes it.

    Where that gives None, it stays as it is.
    """
    changed = change(kind, value)
    if changed is not None:
        return changed
    if isinstance(kind, types.BaseTuple):
        items = zip(kind, cgutils.unpack_tuple(builder, value))
        return context.make_tuple(builder, kind, [change_values(context, builder, *item, change) for item in items])
    return value


@intrinsic
def keep(typing_context, value):
    """A use of a value, before which Numba does not free it."""
    return types.void(value), lambda context, builder, signature, values: context.get_dummy_value()
