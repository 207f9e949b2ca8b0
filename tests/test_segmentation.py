"""The result of segmenting one photo."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from bitseg.datasets import CLASSES
from bitseg.errors import BitsegError, ImageError
from bitseg.palette import palette_for
from bitseg.rle import encode_rle
from bitseg.segmentation import NOTHING, FoundClass, Segmentation


def photo_of(mask, class_names=CLASSES["voc7"], **fields):
    """A grey photo with this mask."""
    mask = np.array(mask, np.uint8)
    picture = Image.new("RGB", mask.shape[::-1], (100, 100, 100))
    return Segmentation(picture, mask, class_names, palette_for(class_names), 0.1, **fields)


def photo_with_a_cat(height, width, class_names=CLASSES["voc7"]):
    """A grey photo whose middle is of class 1 and whose lower right corner is of class 5."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = 1
    mask[height * 3 // 4 :, width * 3 // 4 :] = 5
    return photo_of(mask, class_names)


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
    assert (segmentation.image == 100).all()
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
    empty = photo_of(np.zeros((600, 800)))
    np.testing.assert_array_equal(np.asarray(empty.overlay()), empty.image)


def test_opacity_beyond_1_is_refused():
    with pytest.raises(BitsegError, match="from 0 to 1"):
        photo_with_a_cat(8, 8).overlay(opacity=50)


def test_legend_can_be_left_out():
    segmentation = photo_with_a_cat(600, 800)
    overlay = np.asarray(segmentation.overlay(opacity=0, legend=False))
    assert set(np.unique(overlay)) == {100, 255}


def test_share_is_that_of_the_picture_and_0_without_the_class():
    segmentation = photo_with_a_cat(40, 80)
    assert segmentation.share("cat") == 0.25 and segmentation.share("sheep") == 0


@pytest.mark.parametrize(
    "ask", [lambda s: s.share("preson"), lambda s: s.keep("preson"), lambda s: s.keep(["cat", "preson"])]
)
def test_mistyped_class_gets_a_suggestion(ask):
    with pytest.raises(
        BitsegError, match=r"unknown class 'preson': did you mean 'person'\? choose one of background, "
    ):
        ask(photo_with_a_cat(8, 8))


def test_kept_classes_stay_and_others_become_background():
    segmentation = photo_with_a_cat(40, 80)
    for names in ("person", ["person"], ("person", "background", "dog")):
        kept = segmentation.keep(names)
        assert kept.classes == [FoundClass(0, "background", 3000, 0.9375), FoundClass(5, "person", 200, 0.0625)]
    assert segmentation.keep(iter(["cat", "person"])).classes == segmentation.classes
    assert segmentation.share("cat") == 0.25


def test_without_background_other_pixels_are_of_no_class():
    kept = photo_with_a_cat(40, 80, CLASSES["camvid"]).keep("building")
    assert kept.classes == [FoundClass(1, "building", 800, 0.25)]
    assert kept.share("sky") == 0 and kept.boxes() == {"building": (20, 10, 60, 30)}
    assert [entry["name"] for entry in kept.summary()["classes"]] == ["building"]
    assert kept.mask[0, 0] == NOTHING
    corners = [picture.getpixel((0, 0)) for picture in (kept.overlay(legend=False), kept.cutout(), kept.color())]
    assert corners == [(100, 100, 100), (0, 0, 0, 0), (0, 0, 0)]
    assert kept.keep("building").mask.tolist() == kept.mask.tolist()


def test_pixels_of_no_class_survive_in_the_saved_mask(tmp_path):
    kept = photo_with_a_cat(40, 80, CLASSES["camvid"]).keep("building")
    kept.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), kept.mask)
        assert saved.convert("RGB").getpixel((0, 0)) == (0, 0, 0)


def test_boxes_enclose_each_class_but_background():
    segmentation = photo_of([[0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [1, 0, 0, 0]])
    assert segmentation.boxes() == {"person": (1, 1, 3, 3), "cat": (0, 3, 1, 4)}
    for name, box in segmentation.boxes().items():
        crop = np.asarray(Image.fromarray(segmentation.mask).crop(box))
        assert np.count_nonzero(crop == segmentation.class_names.index(name)) == segmentation.share(name) * 16
    assert photo_of([[0, 0]]).boxes() == {}


def test_colors_alone_are_those_of_the_palette():
    segmentation = photo_with_a_cat(33, 47)
    picture = segmentation.color()
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), segmentation.palette[segmentation.mask])


def test_cutout_has_a_soft_rim_one_pixel_wide():
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = 1
    cutout = photo_of(mask).cutout()
    assert cutout.mode == "RGBA"
    alpha = np.asarray(cutout)[:, :, 3]
    # Of the weights 1 2 1: at a side 12 of 16 are inside, at a corner 9.
    assert alpha[4].tolist() == [0, 0, 191, 255, 255, 255, 191, 0, 0]
    assert alpha[2, 2] == alpha[6, 6] == 143
    assert (alpha[3:6, 3:6] == 255).all() and (alpha[mask == 0] == 0).all()


def test_cutout_is_solid_where_the_picture_ends():
    segmentation = photo_of([[1, 1, 1, 0, 0]] * 3)
    assert np.asarray(segmentation.cutout())[:, :, 3].tolist() == [[255, 255, 191, 0, 0]] * 3


def test_cutout_holds_nothing_of_the_background():
    segmentation = photo_with_a_cat(40, 80)
    pixels = np.asarray(segmentation.cutout())
    assert not pixels[segmentation.mask == 0].any()
    assert (pixels[segmentation.mask > 0][:, :3] == 100).all()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_every_view_of_the_smallest_pictures_can_be_made(height, width):
    for class_id in (0, 1):
        segmentation = photo_of(np.full((height, width), class_id))
        for picture in (segmentation.color(), segmentation.overlay(), segmentation.cutout()):
            assert picture.size == (width, height)
        assert len(segmentation.to_coco()) == class_id
        assert segmentation.summary()["classes"][0]["bbox"] == [0, 0, width, height]


def test_coco_annotations_describe_each_class_but_background():
    segmentation = photo_with_a_cat(40, 80)
    cat, person = segmentation.to_coco(image_id=7)
    assert cat == {
        "image_id": 7,
        "category_id": 1,
        "category_name": "cat",
        "bbox": [20, 10, 40, 20],
        "area": 800,
        "iscrowd": 1,
        "segmentation": encode_rle(segmentation.mask == 1),
    }
    assert person["category_id"] == 5 and person["bbox"] == [60, 30, 20, 10]
    json.dumps([cat, person])


def test_coco_categories_can_be_those_of_a_data_set():
    segmentation = photo_with_a_cat(40, 80)
    assert [entry["category_id"] for entry in segmentation.to_coco(0, {"person": 1, "cat": 17})] == [17, 1]
    with pytest.raises(BitsegError, match="no category id for 'person': add it"):
        segmentation.to_coco(0, {"cat": 17})
    assert len(segmentation.keep("cat").to_coco(0, {"cat": 17})) == 1


def test_summary_describes_each_class():
    segmentation = photo_with_a_cat(40, 80)
    summary = segmentation.summary()
    assert summary["width"] == 80 and summary["height"] == 40
    assert [entry["name"] for entry in summary["classes"]] == ["background", "cat", "person"]
    assert summary["classes"][1] == {
        "id": 1,
        "name": "cat",
        "pixels": 800,
        "share": 0.25,
        "bbox": [20, 10, 40, 20],
        "rle": encode_rle(segmentation.mask == 1),
    }
    assert json.loads(json.dumps(summary)) == summary


PICTURES = ("color", "overlay", "cutout")


@pytest.mark.parametrize("kind", PICTURES)
def test_saved_picture_is_the_view_of_this_name(tmp_path, kind):
    segmentation = photo_with_a_cat(40, 80)
    segmentation.save(tmp_path / "view.png", kind)
    with Image.open(tmp_path / "view.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(getattr(segmentation, kind)()))


@pytest.mark.parametrize(
    "kind, ending, format",
    [("color", "jpg", "JPEG"), ("overlay", "JPEG", "JPEG"), ("overlay", "webp", "WEBP"), ("cutout", "webp", "WEBP")],
)
def test_ending_decides_the_format(tmp_path, kind, ending, format):
    photo_with_a_cat(40, 80).save(tmp_path / f"view.{ending}", kind)
    with Image.open(tmp_path / f"view.{ending}") as saved:
        assert saved.format == format and saved.size == (80, 40)
        assert saved.mode == ("RGBA" if kind == "cutout" else "RGB")


@pytest.mark.parametrize("kind", ["mask", *PICTURES])
def test_file_object_gets_png(kind):
    content = io.BytesIO()
    photo_with_a_cat(40, 80).save(content, kind)
    assert Image.open(content).format == "PNG"


def test_options_reach_the_view(tmp_path):
    segmentation = photo_with_a_cat(40, 80)
    segmentation.save(tmp_path / "view.png", "overlay", opacity=1, legend=False)
    with Image.open(tmp_path / "view.png") as saved:
        assert saved.getpixel((40, 20)) == tuple(segmentation.palette[1].tolist())


def test_saved_json_is_the_summary(tmp_path):
    segmentation = photo_with_a_cat(40, 80)
    segmentation.save(tmp_path / "found.json", "json")
    assert json.loads((tmp_path / "found.json").read_text()) == segmentation.summary()


def test_saved_scores_come_with_the_class_names(tmp_path):
    scores = np.random.default_rng(0).random((7, 10, 20), np.float32)
    photo_of(np.zeros((40, 80)), scores=scores).save(tmp_path / "scores.npz", "scores")
    with np.load(tmp_path / "scores.npz") as saved:
        np.testing.assert_array_equal(saved["scores"], scores)
        assert tuple(saved["class_names"]) == CLASSES["voc7"]


@pytest.mark.parametrize("kind", ["mask", "color", "scores"])
def test_an_option_that_a_kind_does_not_have_is_refused(tmp_path, kind):
    with pytest.raises(BitsegError, match=f"kind '{kind}' has no option 'opacity'; an overlay has"):
        photo_with_a_cat(40, 80).save(tmp_path / f"result.{'npz' if kind == 'scores' else 'png'}", kind, opacity=0.5)
    assert not list(tmp_path.iterdir())


def test_scores_that_were_not_asked_for_are_not_saved(tmp_path):
    with pytest.raises(BitsegError, match=r"predict\(\.\.\., scores=True\)"):
        photo_with_a_cat(8, 8).save(tmp_path / "scores.npz", "scores")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("target", [io.BytesIO(), "mask.png"])
def test_mistyped_kind_gets_a_suggestion(target):
    with pytest.raises(ImageError, match="unknown kind of result 'Overlays': did you mean 'overlay'"):
        photo_with_a_cat(8, 8).save(target, "Overlays")
