"""Numba kernels of the engine.

Each does arithmetic only: what it computes is stated in plain NumPy in `bitseg.network.reference`, shapes and ranges
are checked once by `bitseg.network.operations`, and tests demand equality of the two.
"""
