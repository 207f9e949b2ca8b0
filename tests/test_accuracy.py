"""What the shipped model achieves, measured again on photos it was not trained on."""

import numpy as np
import pytest

import bitseg
from bitseg.cost import packed_bytes
from bitseg.datasets import open_dataset
from bitseg.evaluation import evaluate, scores
from bitseg.images import read_image
from bitseg.network.graph import Network
from bitseg.network.operations import Operations
from bitseg.network.reference import ReferenceOperations
from bitseg.segmenter import DEFAULT_MODEL

LEAST_MIOU = 0.68


@pytest.fixture(scope="module")
def segmenter():
    return bitseg.load(DEFAULT_MODEL)


def test_the_default_model_has_the_accuracy_that_its_file_states(segmenter, voc7):
    dataset = open_dataset("voc7", voc7, "val")
    measured = scores(evaluate(segmenter.label_map, dataset), dataset)
    # The masks are the same on every CPU; JPEG decoders may differ in a last bit.
    assert measured["miou"] == pytest.approx(segmenter.model.training["accuracy"]["miou"], abs=1e-3)
    assert measured["miou"] >= LEAST_MIOU
    assert measured["photos"] == 240


@pytest.mark.parametrize("photo, name, least", [("chelsea.jpg", "cat", 0.5), ("astronaut.jpg", "person", 0.1)])
def test_the_example_photos_are_recognised(segmenter, examples, photo, name, least):
    found = {found.name: found.share for found in segmenter.predict(examples / photo).classes}
    assert found[name] > least
    assert found[name] + found["background"] > 0.9


@pytest.mark.parametrize("photo", ["chelsea.jpg", "astronaut.jpg"])
def test_the_masks_of_photos_equal_those_of_plain_numpy(segmenter, examples, photo):
    image = read_image(examples / photo)
    shape = tuple(side // 32 * 32 for side in image.shape[:2])
    image = np.ascontiguousarray(image[: shape[0], : shape[1]])
    expected = Network(segmenter.model, ReferenceOperations()).label_map(image, shape, shape)
    for threads in (1, 2, 5):
        assert np.array_equal(Network(segmenter.model, Operations(threads)).label_map(image, shape, shape), expected)


def test_the_file_is_hardly_larger_than_its_weights(segmenter):
    assert segmenter.model.file_size < 1.15 * packed_bytes(segmenter.model.architecture)
