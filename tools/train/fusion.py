"""Elementwise functions compiled into one pass over memory."""

import shutil

import torch


def fuse(function):
    """Compile an elementwise function into one pass over memory, where a C++ compiler is at hand.

    Numbers that change between calls must be tensors: PyTorch 2.13 compiles wrong code for clamp with a changing float.
    The environment variable TORCH_COMPILE_DISABLE=1 leaves everything uncompiled.
    """
    return torch.compile(function, dynamic=True) if shutil.which("g++") else function
