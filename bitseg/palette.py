"""Class colours: a palette for colour-blind people too, and those of PASCAL VOC and Cityscapes."""

from itertools import chain

import numpy as np

from .datasets import CLASSES
from .errors import BitsegError, unknown

_BLACK = (0, 0, 0)

_OKABE_ITO = [tuple(bytes.fromhex(color)) for color in "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7".split()]
"""Okabe & Ito 2008, "Color Universal Design", without its black: seven colours."""

_FARTHEST = [
    tuple(17 * int(digit, 16) for digit in color)
    for color in "80f 631 cfc 128 545 9b6 b5f 0ff 304 d04 daa 81c efa 7e6 a08 032 940".split()
]
"""Each is, of all 4096 colours of one hexadecimal digit a channel, the farthest from black and from those before it.

The distance is that in CIELAB, the smallest of normal sight and simulated protanopia, deuteranopia and tritanopia
(Machado, Oliveira & Fernandes 2009). They lie as far apart as the colours of Okabe & Ito do; `tests/test_palette.py`
measures it and finds these colours again.
"""

_CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}

_CAMVID_NAMES = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign": "traffic sign",
    "pedestrian": "person",
    "bicyclist": "rider",
}
"""What Cityscapes calls classes of CamVid."""


def voc_palette(ids):
    """Colours that PASCAL VOC gives to class ids; 0 is black.

    Parameters
    ----------
    ids : sequence of int
        Class ids, 0 to 255.

    Returns
    -------
    ndarray of uint8, shape (len(ids), 3)
        Red, green, blue. Each triple of an id's bits, lowest first, sets one bit of red, green and blue, highest first.

    Examples
    --------
    >>> voc_palette([0, 15]).tolist()
    [[0, 0, 0], [192, 128, 128]]
    """
    bits = (np.asarray(ids, np.uint8)[:, None] >> np.arange(8)) & 1
    palette = np.zeros((len(bits), 3), np.uint8)
    for position in range(8):
        palette[:, position % 3] |= (bits[:, position] << (7 - position // 3)).astype(np.uint8)
    return palette


_VOC_COLORS = [tuple(color) for color in voc_palette(range(256)).tolist()]

PALETTES = {
    "safe": ({"background": _BLACK}, [*_OKABE_ITO, *_FARTHEST]),
    "voc": (dict(zip(CLASSES["voc"], _VOC_COLORS, strict=False)), []),
    "cityscapes": (
        {
            "background": _BLACK,
            **_CITYSCAPES,
            **{name: _CITYSCAPES[usual_name] for name, usual_name in _CAMVID_NAMES.items()},
        },
        [*_OKABE_ITO, *_FARTHEST],
    ),
}
"""For every palette the colours that belong to names, and those that other classes get in turn.

When these run out, the colours of PASCAL VOC follow, by id.
"""


def palette_for(classes, palette="safe"):
    """Colours for a model's classes.

    Parameters
    ----------
    classes : sequence of str
        Class names, up to 255; the position is the class id.
    palette : str
        A key of `PALETTES`. ``safe`` can be told apart by colour-blind people, up to 24 colours; ``voc`` and
        ``cityscapes`` are those data sets' own, also by CamVid's names for the classes of Cityscapes.

    Returns
    -------
    ndarray of uint8, shape (len(classes), 3)
        Red, green, blue; all differ, and black is for background alone.

    Raises
    ------
    BitsegError
        There is no such palette.

    Examples
    --------
    >>> palette_for(("background", "cat"), "voc").tolist()
    [[0, 0, 0], [64, 0, 0]]
    """
    if palette not in PALETTES:
        raise BitsegError(unknown("palette", palette, PALETTES))
    named, others = PALETTES[palette]
    chosen = {}
    for name in classes:
        # Two names for one thing, such as person and pedestrian, would otherwise look the same.
        if name in named and named[name] not in chosen.values():
            chosen[name] = named[name]
    taken = {_BLACK, *chosen.values()}
    spare = (color for color in dict.fromkeys(chain(others, _VOC_COLORS)) if color not in taken)
    return np.array([chosen.get(name) or next(spare) for name in classes], np.uint8)
