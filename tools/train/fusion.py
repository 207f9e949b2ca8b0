"""Elementwise functions compiled into one pass over memory."""

import functools
import shutil

import torch

from . import distributed

_compiles = shutil.which("g++") is not None


def fuse(function):
    """Compile an elementwise function into one pass over memory, where a C++ compiler is at hand.

    Numbers that change between calls must be tensors: PyTorch 2.13 compiles wrong code for clamp with a changing float.
    The environment variable TORCH_COMPILE_DISABLE=1 leaves everything uncompiled.
    """
    if not _compiles:
        return function
    compiled = torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def fused(*arguments):
        global _compiles
        if not _compiles:
            return function(*arguments)
        try:
            return compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError) as error:
            # If it fails as it is, too, it is not the compiler's fault.
            result = function(*arguments)
            _compiles = False
            lines = str(error).splitlines() or [type(error).__name__]
            reason = next((line for line in lines if "error:" in line), lines[0])
            distributed.report(f"PyTorch cannot compile here, training takes longer (is python3-dev there? {reason})")
            return result

    return fused
