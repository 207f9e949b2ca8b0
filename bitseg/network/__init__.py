"""The network: one graph (`graph.py`), run on Numba kernels (`operations.py`) or on plain NumPy (`reference.py`)."""
