"""How kernels are compiled: without the GIL, and kept on disk where there is a place for them."""

import numba
from numba.core.caching import FunctionCache


def kernel(function):
    """Compile a function with Numba when it is first called; threads may run it at the same time.

    Compiled code is kept in ``__pycache__`` or the user's cache folder. Where neither can be written (a container
    with a read-only file system) it is compiled in memory, anew in each process.
    """
    compiled = numba.njit(function, nogil=True)
    try:
        FunctionCache(function)
    except RuntimeError:  # Numba's word for "no place to keep it"
        return compiled
    compiled.enable_caching()
    return compiled
