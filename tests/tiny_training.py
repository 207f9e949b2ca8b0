"""A training run small enough for tests: coloured rectangles, a network of a few channels.

Importing this skips a module of tests where the training code cannot run; so they have ``torch`` from here.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the training code needs PyTorch: see tools/requirements.txt")
pytest.importorskip("tomli_w", reason="the training code writes TOML: see tools/requirements.txt")
if sys.version_info < (3, 11):
    pytest.importorskip("tomli", reason="the training code reads TOML: see tools/requirements.txt")

from bitseg.architecture import Architecture  # noqa: E402 -- what needs PyTorch is imported once it is known to be there
from tools.train import trainer as trainer_module  # noqa: E402
from tools.train.network import BitFCN  # noqa: E402
from tools.train.trainer import Trainer  # noqa: E402

MEAN = (123, 117, 104)

COLOURS = {0: (120, 120, 120), 8: (230, 60, 40), 12: (40, 90, 220)}
"""Colour of the rectangles by PASCAL VOC id: background, cat, dog."""

CONFIG = """
name = "tiny"
dataset = "voc7"
seed = 3
batch_size = 4
class_weights = "log"
bfloat16 = false

[augmentation]
crop = 32
scale = [0.8, 1.25]
colour = 0.2

[architecture]
encoder = "resnet18"
stem_channels = 8
stage_channels = [8, 8, 16, 16]
branch_channels = [8, 8, 8, 8]
stream_bits = 8

[preprocessing]
mean = [123, 117, 104]
scale = 58.0
working_size = 64
"""


def write_data(folder, photos=8, seed=0):
    """Make a data set in the layout of ``voc7``: rectangles of three classes on 48x40 photos, void at one edge."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for index in range(photos):
        mask = np.zeros((40, 48), np.uint8)
        for voc_id in (8, 12):
            top, left = random.integers(0, 20), random.integers(0, 24)
            mask[top : top + 20, left : left + 24] = voc_id
        photo = np.zeros((*mask.shape, 3))
        for voc_id, colour in COLOURS.items():
            photo[mask == voc_id] = colour
        photo += random.normal(0, 8, photo.shape)
        mask[:, 0] = 255
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    (folder / "train.txt").write_text("\n".join(map(str, range(photos - 2))))
    (folder / "val.txt").write_text("\n".join(map(str, range(photos - 2, photos))))
    return folder


def stage(name, bits=(32, 32), iterations=4, rate=2e-3, scales=(32, 16, 8, 4), **entries):
    """One stage of a configuration, as TOML; further entries by name."""
    entries |= {"name": name, "weight_bits": bits[0], "activation_bits": bits[1], "iterations": iterations}
    entries = {"encoder_rate": rate, "decoder_rate": rate, "scales": list(scales)} | entries
    return "\n[[stages]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in entries.items())


def write_config(path, *stages):
    """Write a configuration file with the given stages."""
    path.write_text(CONFIG + "".join(stages))
    return path


def tiny_architecture(encoder="resnet18", stream_bits=8, **changes):
    """A network of three classes and a few channels at 2-2 bits."""
    stages = (8, 8, 16, 16) if encoder == "resnet18" else (16, 16, 32, 32)
    architecture = Architecture(encoder, 8, stages, (8, 8, 8, 8), ("a", "b", "c"), 2, 2, stream_bits)
    return replace(architecture, **changes)


def random_network(architecture, quantizer="learned", seed=0):
    """A `BitFCN` of random weights in floating point."""
    torch.manual_seed(seed)
    return BitFCN(architecture, quantizer)


def random_input(seed=0, batch=2, side=64):
    """Network input."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def relative_error(found, expected):
    """Distance between two tensors relative to the second."""
    return float((found - expected).norm() / expected.norm())


class Stopped(Exception):
    """Stands in for a crash."""


def stop_after(monkeypatch, iterations):
    """Let a run checkpoint after every iteration and crash in the one after the given number."""
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", -1)
    train_batch = Trainer._train_batch

    def crash(trainer, *arguments):
        if trainer.trained == iterations:
            raise Stopped
        return train_batch(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_train_batch", crash)
