"""The kernels of bit convolutions as parameters of tests, and what a CPU needs for them."""

import pytest

from bitseg.kernels import amx, simd

needs_byte_shuffle = pytest.mark.skipif(not simd.has_byte_shuffle(), reason="the look-up kernel needs AVX2 or NEON")
needs_tiles = pytest.mark.skipif(not amx.has_tiles(), reason="the tile kernel needs AMX, and Linux")

KERNELS = [
    "popcount",
    "dot",
    pytest.param("lookup", marks=needs_byte_shuffle),
    pytest.param("tile", marks=needs_tiles),
]
