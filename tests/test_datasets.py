"""Readers of labelled data on tiny folders of the official layout, and what they say about broken ones."""

import json

import numpy as np
import pytest
from PIL import Image

from bitseg.datasets import CLASSES, IGNORE, open_dataset
from bitseg.errors import DatasetError, ImageError
from bitseg.evaluation import evaluate, scores

PHOTO = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array, np.uint8))
    (picture.convert(mode) if mode else picture).save(path, quality=95)
    return path


@pytest.fixture
def voc_folder(tmp_path):
    """Two photos listed in val.txt, one that is not."""
    for name in ("2007_000001", "2007_000002", "2007_000003"):
        save(tmp_path / "images" / f"{name}.jpg", PHOTO)
        save(tmp_path / "masks" / f"{name}.png", [[0, 8, 10, 12, 13, 15], [17, 1, 20, 255, 0, 0], *[[0] * 6] * 2])
    (tmp_path / "val.txt").write_text("2007_000003\n2007_000001\n")
    return tmp_path


@pytest.fixture
def camvid_folder(tmp_path):
    save(tmp_path / "val" / "images" / "0001TP_2.jpg", PHOTO)
    save(tmp_path / "val" / "images" / "0001TP_1.jpg", PHOTO)
    (tmp_path / "val" / "images" / "Thumbs.db").write_text("not a photo")
    for name in ("0001TP_1", "0001TP_2"):
        save(tmp_path / "val" / "masks" / f"{name}.png", [range(6), range(6, 12), *[[11] * 6] * 2])
    return tmp_path


def test_voc7_maps_voc_ids_to_seven_classes(voc_folder):
    dataset = open_dataset("voc7", voc_folder, "val")
    assert dataset.name == "voc7 val" and dataset.classes == CLASSES["voc7"]
    assert [path.stem for path, _ in dataset.samples] == ["2007_000003", "2007_000001"]
    photo, labels = dataset.sample(0)
    assert photo.shape == (4, 6, 3) and photo.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[:2], [[0, 1, 2, 3, 4, 5], [6, 0, 0, IGNORE, 0, 0]])


def test_camvid_keeps_its_ids_and_ignores_unlabelled_pixels(camvid_folder):
    dataset = open_dataset("camvid", camvid_folder, "val")
    assert [path.name for path, _ in dataset.samples] == ["0001TP_1.jpg", "0001TP_2.jpg"]
    np.testing.assert_array_equal(dataset.labels(1)[:2], [range(6), [6, 7, 8, 9, 10, IGNORE]])


def test_a_palette_mask_is_read_as_its_indices(voc_folder):
    path = voc_folder / "masks" / "2007_000003.png"
    mask = Image.open(path).convert("P")
    mask.putpalette(np.arange(768) % 256)
    indices = np.asarray(mask)
    mask.save(path)
    dataset = open_dataset("voc7", voc_folder, "val")
    np.testing.assert_array_equal(dataset.labels(0), dataset.label_map[indices])


@pytest.mark.parametrize(
    ("kind", "split", "message"),
    [
        ("voc", "val", "unknown data set 'voc': choose one of camvid, voc7"),
        ("voc7", "test", r"test\.txt: not found; give the folder that holds images/, masks/ and test\.txt"),
        ("camvid", "val", r"images: not found; give the folder that holds train/ and val/"),
    ],
)
def test_what_is_no_data_set_is_refused(voc_folder, kind, split, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(kind, voc_folder, split)


def test_an_empty_split_is_refused(voc_folder):
    (voc_folder / "val.txt").write_text("\n")
    with pytest.raises(DatasetError, match="the val split is empty"):
        open_dataset("voc7", voc_folder, "val")


def test_a_missing_file_is_named(voc_folder):
    (voc_folder / "masks" / "2007_000001.png").unlink()
    with pytest.raises(DatasetError, match=r"2007_000001\.png: listed in the val split but not there"):
        open_dataset("voc7", voc_folder, "val")


def test_a_mask_of_another_size_is_named(voc_folder):
    save(voc_folder / "masks" / "2007_000003.png", np.zeros((6, 4)))
    with pytest.raises(DatasetError, match=r"2007_000003\.png: 4x6 pixels, but .*2007_000003\.jpg has 6x4"):
        open_dataset("voc7", voc_folder, "val").sample(0)


def test_a_value_that_is_no_class_is_named(voc_folder):
    save(voc_folder / "masks" / "2007_000003.png", np.full((4, 6), 21))
    with pytest.raises(DatasetError, match=r"2007_000003\.png: holds 21, which is no class id of voc7 val"):
        open_dataset("voc7", voc_folder, "val").labels(0)


def test_a_coloured_mask_is_named(voc_folder):
    save(voc_folder / "masks" / "2007_000003.png", np.zeros((4, 6)), "RGB")
    with pytest.raises(DatasetError, match=r"2007_000003\.png: a picture of mode RGB; a mask has one 8-bit class id"):
        open_dataset("voc7", voc_folder, "val").labels(0)


def test_damaged_files_are_named(voc_folder):
    dataset = open_dataset("voc7", voc_folder, "val")
    dataset.samples[0][1].write_bytes(b"no PNG")
    with pytest.raises(DatasetError, match=r"2007_000003\.png: cannot be read"):
        dataset.sample(0)
    dataset.samples[1][0].write_bytes(b"no JPEG")
    with pytest.raises(ImageError, match=r"2007_000001\.jpg"):
        dataset.sample(1)


def test_evaluation_adds_up_all_photos(voc_folder):
    dataset = open_dataset("voc7", voc_folder, "val")
    done = []
    confusion = evaluate(lambda photo: np.zeros(photo.shape[:2], np.uint8), dataset, done.append)
    # Each of the two masks: 17 pixels of background, one of each other class, one that is ignored.
    np.testing.assert_array_equal(confusion[:, 0], [34, 2, 2, 2, 2, 2, 2])
    assert not confusion[:, 1:].any()
    assert done == [1, 2]


def test_scores_are_plain_data(voc_folder):
    dataset = open_dataset("voc7", voc_folder, "val")
    confusion = np.zeros((7, 7), np.int64)
    confusion[0, 0], confusion[1, 0] = 3, 1
    figures = scores(confusion, dataset)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["dataset"] == "voc7 val" and figures["photos"] == 2
    assert figures["miou"] == 0.375 and figures["pixel_accuracy"] == 0.75
    assert figures["iou"]["background"] == 0.75 and figures["iou"]["cat"] == 0 and figures["iou"]["sheep"] is None


def test_the_real_data_set_is_read_whole(voc7):
    train, val = (open_dataset("voc7", voc7, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (3131, 240)
    photo, labels = val.sample(0)
    assert photo.shape[:2] == labels.shape
    assert set(np.unique(labels)) <= {*range(7), IGNORE}
