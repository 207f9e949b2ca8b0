"""The result of segmenting one photo."""

import numpy as np
import pytest
from PIL import Image

from bitseg.datasets import CLASSES
from bitseg.errors import BitsegError, ImageError
from bitseg.palette import palette_for
from bitseg.segmentation import FoundClass, Segmentation


def photo_with_a_cat(height, width, class_names=CLASSES["voc7"]):
    """A grey photo whose middle is of class 1 and whose lower right corner is of class 5."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1
    mask[height * 3 // 4 :, width * 3 // 4 :] = 5
    image = np.full((height, width, 3), 100, np.uint8)
    return Segmentation(image, mask, class_names, palette_for(class_names), 0.1)


def test_found_classes_come_with_their_share_largest_first():
    assert photo_with_a_cat(40, 80).classes == [
        FoundClass(0, "background", 2200, 0.6875),
        FoundClass(1, "cat", 800, 0.25),
        FoundClass(5, "person", 200, 0.0625),
    ]


def test_saved_png_holds_class_ids_and_colors(tmp_path):
    segmentation = photo_with_a_cat(33, 47)
    segmentation.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        assert saved.mode == "P"
        np.testing.assert_array_equal(np.asarray(saved), segmentation.mask)
        np.testing.assert_array_equal(np.asarray(saved.convert("RGB")), segmentation.palette[segmentation.mask])


def test_mask_is_not_saved_as_jpeg(tmp_path):
    with pytest.raises(ImageError, match=r"mask\.jpg: mask files end in \.png"):
        photo_with_a_cat(8, 8).save(tmp_path / "mask.jpg")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("height, width", [(1, 1), (1, 400), (32, 32), (300, 451), (1500, 2000), (400, 60)])
def test_overlay_has_the_size_of_the_photo(height, width):
    overlay = photo_with_a_cat(height, width).overlay()
    assert overlay.mode == "RGB" and overlay.size == (width, height)


def test_overlay_tints_objects_and_leaves_background_alone():
    # Too small for a legend.
    segmentation = photo_with_a_cat(32, 32)
    overlay = np.asarray(segmentation.overlay(opacity=0.5))
    np.testing.assert_array_equal(overlay[segmentation.mask == 0], 100)
    assert overlay[16, 16].tolist() == [(100 + 230) // 2, (100 + 159) // 2, 50]


def test_overlay_outlines_objects():
    overlay = np.asarray(photo_with_a_cat(32, 32).overlay(opacity=0))
    assert (overlay[8, 8:24] == 255).all() and (overlay[9, 9:23] == 100).all()


def test_first_class_of_a_model_without_background_is_tinted():
    segmentation = photo_with_a_cat(32, 32, CLASSES["camvid"])
    overlay = np.asarray(segmentation.overlay(opacity=1))
    assert overlay[0, 0].tolist() == segmentation.palette[0].tolist()


def test_legend_shows_class_colors_where_it_hides_least():
    segmentation = photo_with_a_cat(600, 800)
    overlay = np.asarray(segmentation.overlay(opacity=0))
    for class_id in (1, 5):
        rows, columns = np.nonzero((overlay == segmentation.palette[class_id]).all(axis=2))
        assert len(rows) and segmentation.mask[rows, columns].max() == 0


def test_legend_is_left_out_where_nothing_was_found():
    image = np.full((600, 800, 3), 100, np.uint8)
    empty = Segmentation(image, np.zeros((600, 800), np.uint8), CLASSES["voc7"], palette_for(CLASSES["voc7"]), 0.1)
    np.testing.assert_array_equal(np.asarray(empty.overlay()), image)


def test_opacity_beyond_1_is_refused():
    with pytest.raises(BitsegError, match="from 0 to 1"):
        photo_with_a_cat(8, 8).overlay(opacity=50)
