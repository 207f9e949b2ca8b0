"""Scores over a whole data set, against values computed by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from bitseg.datasets import IGNORE, open_dataset
from bitseg.errors import ImageError
from bitseg.evaluation import class_scores, evaluate, scores

CONFUSION = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])


@pytest.fixture
def dataset(tmp_path):
    """Two photos of three classes; the masks hold each class twice, the first also void."""
    (tmp_path / "classes.txt").write_text("background\ncat\ndog")
    masks = {"a": [[0, 0, 1, IGNORE], [1, 2, 2, IGNORE]], "b": [[0, 0, 1], [1, 2, 2]]}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, mask in masks.items():
        Image.fromarray(np.array(mask, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
        Image.new("RGB", (len(mask[0]), 2), "red").save(tmp_path / "images" / f"{name}.png")
    return open_dataset("folder", tmp_path, "all")


def all_cats(photo):
    return np.full(photo.shape[:2], 1, np.uint8)


def test_the_pixels_of_all_photos_are_added_up(dataset):
    np.testing.assert_array_equal(evaluate(all_cats, dataset), [[0, 4, 0], [0, 4, 0], [0, 4, 0]])


def test_every_photo_is_shown_with_its_own_count(dataset):
    seen = []
    total = evaluate(all_cats, dataset, seen.append)
    assert [evaluated.path.name for evaluated in seen] == ["a.png", "b.png"]
    np.testing.assert_array_equal(sum(evaluated.confusion for evaluated in seen), total)
    np.testing.assert_array_equal(seen[1].truth, [[0, 0, 1], [1, 2, 2]])
    np.testing.assert_array_equal(seen[0].prediction, np.ones((2, 4)))
    assert seen[0].photo.shape == (2, 4, 3) and (seen[0].photo[:, :, 0] == 255).all()


def test_a_photo_that_cannot_be_used_is_named(dataset):
    dataset.samples[1][0].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"b\.png: not a picture"):
        evaluate(all_cats, dataset)


def test_scores_are_plain_data(dataset):
    figures = scores(CONFUSION, dataset)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["dataset"] == "folder all" and figures["photos"] == 2
    assert figures["miou"] == 0.775 and figures["pixel_accuracy"] == 0.875
    assert figures["iou"] == {"background": 0.75, "cat": 0.8, "dog": None}


def test_every_class_has_its_row():
    background, cat, dog = class_scores(CONFUSION, ("background", "cat", "dog"))
    assert background == ("background", 0.75, 1.0, 0.75, 0.5)
    assert cat == ("cat", 0.8, 0.8, 1.0, 0.5)
    assert dog.share == 0 and np.isnan(dog[1:4]).all()
