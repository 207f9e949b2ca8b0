"""Numba kernels of the engine.

Each does arithmetic only: what it computes is stated in plain NumPy in `bitseg.network.reference`, shapes and ranges
are checked once by `bitseg.network.operations`, and tests demand equality of the two.
"""

from ..errors import BitsegError

try:
    import numba  # noqa: F401
except ValueError as error:
    # It looks at variables of the environment as it is imported.
    reason = str(error).rstrip(".")
    raise BitsegError(f"Numba cannot be used ({reason}): unset the variables whose names begin with NUMBA_") from None
