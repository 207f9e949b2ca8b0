"""Class colours, and how far apart they are for people with normal sight and for colour-blind people."""

import numpy as np
import pytest

from bitseg.datasets import CLASSES
from bitseg.errors import BitsegError
from bitseg.palette import PALETTES, palette_for, voc_palette

# Machado, Oliveira & Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency", table
# of severity 1.0, for linear sRGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ_OF_SRGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colors, sight):
    """CIELAB of sRGB colours, 0 to 255, as somebody of this sight sees them."""
    values = np.asarray(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(SIGHT[sight]), 0, 1)
    xyz = seen @ XYZ_OF_SRGB.T / XYZ_OF_SRGB.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def distances(first, second, sights=SIGHT):
    """CIELAB distance of each of the first to each of the second colours, the smallest of these sights."""
    return np.min([np.linalg.norm(lab(first, sight)[:, None] - lab(second, sight), axis=2) for sight in sights], axis=0)


def least_distance(colors, sight):
    between = distances(colors, colors, [sight])
    return between[np.triu_indices(len(colors), 1)].min()


def class_names(count):
    return ("background", *(f"class {number}" for number in range(1, count)))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("classes", [7, 12, 21, 25])
def test_safe_colors_differ_for_each_sight(sight, classes):
    # About 2 can just be told apart side by side; the seven colours of Okabe & Ito come as near as 16.
    assert least_distance(palette_for(class_names(classes)), sight) > 15.9


def test_colors_of_voc_do_not_differ_for_each_sight():
    assert min(least_distance(palette_for(class_names(21), "voc"), sight) for sight in SIGHT) < 3


def test_safe_colors_after_the_first_seven_are_the_farthest_from_those_before():
    palette = palette_for(class_names(25))
    channel = np.arange(0, 256, 17)
    candidates = np.stack(np.meshgrid(channel, channel, channel, indexing="ij"), axis=-1).reshape(-1, 3)
    to_palette = distances(candidates, palette)
    for count in range(8, 25):
        farthest = candidates[to_palette[:, :count].min(axis=1).argmax()]
        assert farthest.tolist() == palette[count].tolist()


def test_safe_colors_begin_with_those_of_okabe_and_ito():
    assert palette_for(class_names(8)).tolist() == [
        [0, 0, 0],
        [230, 159, 0],
        [86, 180, 233],
        [0, 158, 115],
        [240, 228, 66],
        [0, 114, 178],
        [213, 94, 0],
        [204, 121, 167],
    ]


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


def test_camvid_classes_get_the_colors_of_cityscapes():
    colors = dict(zip(CLASSES["camvid"], palette_for(CLASSES["camvid"], "cityscapes").tolist(), strict=True))
    assert colors == {
        "sky": [70, 130, 180],
        "building": [70, 70, 70],
        "pole": [153, 153, 153],
        "road": [128, 64, 128],
        "pavement": [244, 35, 232],
        "tree": [107, 142, 35],
        "sign": [220, 220, 0],
        "fence": [190, 153, 153],
        "car": [0, 0, 142],
        "pedestrian": [220, 20, 60],
        "bicyclist": [255, 0, 0],
    }


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize(
    "classes",
    [
        CLASSES["camvid"],
        class_names(255),
        ("road", "person", "pedestrian", "tree", "vegetation"),
        ("leaf", "background"),
    ],
    ids=["camvid", "255", "synonyms", "background last"],
)
def test_all_colors_differ_and_black_is_for_background_alone(palette, classes):
    colors = palette_for(classes, palette)
    assert colors.dtype == np.uint8 and len(np.unique(colors, axis=0)) == len(classes)
    assert [name for name, color in zip(classes, colors, strict=True) if not color.any()] == [
        name for name in classes if name == "background"
    ]


def test_mistyped_palette_gets_a_suggestion():
    with pytest.raises(BitsegError, match="'cityscape': did you mean 'cityscapes'"):
        palette_for(("cat",), "cityscape")
