"""Install the engine, the command `bitseg` and the models. The training code under tools/ is not installed."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

setup(
    name="bitseg",
    version=re.search(r'__version__ = "(.+)"', (HERE / "bitseg" / "__init__.py").read_text())[1],
    description="Semantic segmentation on an ordinary CPU with 1 to 8 bit networks, from plain Python",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    packages=["bitseg", "bitseg.cli", "bitseg.kernels", "bitseg.kernels.simd", "bitseg.network", "bitseg.weights"],
    # The models lie at the top of the repository and are installed beside the code that reads them.
    package_dir={"bitseg.weights": "weights"},
    package_data={"bitseg": ["py.typed"], "bitseg.weights": ["*.h5", "README.md"]},
    install_requires=["click>=8.1", "h5py>=3.8", "numba>=0.60", "numpy>=1.26", "pillow>=10.1"],
    extras_require={"test": ["click>=8.2", "pytest>=7.4", "pytest-benchmark>=4"], "lint": ["mypy>=1.8", "ruff>=0.6"]},
    entry_points={"console_scripts": ["bitseg = bitseg.cli:main"]},
)
