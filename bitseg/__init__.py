"""Semantic segmentation with bit fully convolutional networks, on an ordinary CPU.

>>> import bitseg
>>> segmentation = bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg")
>>> segmentation.mask.shape
(300, 451)
>>> segmentation.save("mask.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import BitsegError, DatasetError, ImageError, ModelFileError

if TYPE_CHECKING:
    from .catalog import list_models
    from .segmentation import Segmentation
    from .segmenter import Segmenter, load

__version__ = "0.1.0"

__all__ = [
    "BitsegError",
    "DatasetError",
    "ImageError",
    "ModelFileError",
    "Segmentation",
    "Segmenter",
    "list_models",
    "load",
]

# Imported when first used: Numba alone takes 0.4 s, which `bitseg --help` need not wait for.
_MODULES = {
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "list_models": "catalog",
    "load": "segmenter",
}


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module 'bitseg' has no attribute '{name}'")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
