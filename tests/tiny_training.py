"""A training run small enough for tests: coloured rectangles, a network of a few channels."""

import numpy as np
from PIL import Image

COLOURS = {0: (120, 120, 120), 8: (230, 60, 40), 12: (40, 90, 220)}
"""Colour of the rectangles by PASCAL VOC id: background, cat, dog."""

STAGE = """
[[stages]]
name = "{name}"
weight_bits = {bits[0]}
activation_bits = {bits[1]}
iterations = {iterations}
encoder_rate = {rate}
decoder_rate = {rate}
scales = {scales}
"""

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


def stage(name, bits=(32, 32), iterations=4, rate=2e-3, scales=(32, 16, 8, 4)):
    """One stage of a configuration, as TOML."""
    return STAGE.format(name=name, bits=bits, iterations=iterations, rate=rate, scales=list(scales))


def write_config(path, *stages):
    """Write a configuration file with the given stages."""
    path.write_text(CONFIG + "".join(stages))
    return path
