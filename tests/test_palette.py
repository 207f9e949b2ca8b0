"""Class colours."""

import numpy as np

from bitseg.datasets import CLASSES
from bitseg.palette import palette_for, voc_palette


def test_voc_palette_is_the_official_one():
    assert voc_palette([0, 1, 8, 15, 20, 255]).tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [64, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_voc_classes_get_their_usual_colors():
    np.testing.assert_array_equal(palette_for(CLASSES["voc7"], "voc"), voc_palette([0, 8, 10, 12, 13, 15, 17]))


def test_other_classes_get_distinct_colors_and_black_only_for_background():
    camvid = palette_for(CLASSES["camvid"])
    assert len(np.unique(camvid, axis=0)) == len(CLASSES["camvid"]) and camvid.any(axis=1).all()
    assert not palette_for(("background", "leaf"))[0].any()
