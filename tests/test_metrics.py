"""Scores against values computed by hand."""

import math

import numpy as np
import pytest

from bitseg.datasets import IGNORE
from bitseg.metrics import class_iou, class_precision, class_recall, confusion_matrix, mean_iou, pixel_accuracy

TRUTH = np.array([[0, 0, 1], [1, IGNORE, 2]], np.uint8)
PREDICTION = np.array([[0, 1, 1], [1, 2, 0]], np.uint8)
CONFUSION = np.array([[1, 1, 0], [0, 2, 0], [1, 0, 0]])


def test_confusion_matrix_counts_true_by_predicted_class_and_leaves_out_ignored_pixels():
    confusion = confusion_matrix(TRUTH, PREDICTION, 3)
    np.testing.assert_array_equal(confusion, CONFUSION)
    assert confusion.dtype == np.int64


def test_intersection_over_union():
    # Class 0: 1 hit, 2 true, 2 predicted; class 1: 2 hits, 2 true, 3 predicted; class 2: 1 true, none predicted.
    np.testing.assert_allclose(class_iou(CONFUSION), [1 / 3, 2 / 3, 0])
    assert mean_iou(CONFUSION) == pytest.approx(1 / 3)
    assert pixel_accuracy(CONFUSION) == pytest.approx(3 / 5)


def test_precision_and_recall():
    np.testing.assert_allclose(class_precision(CONFUSION), [1 / 2, 2 / 3, np.nan])
    np.testing.assert_allclose(class_recall(CONFUSION), [1 / 2, 1, 0])


def test_a_class_that_never_occurs_does_not_count():
    confusion = np.array([[3, 0, 1], [0, 0, 0], [0, 0, 4]])
    np.testing.assert_allclose(class_iou(confusion), [3 / 4, np.nan, 4 / 5])
    assert mean_iou(confusion) == pytest.approx((3 / 4 + 4 / 5) / 2)


@pytest.mark.filterwarnings("error")
def test_without_counted_pixels_there_is_no_score():
    truth = np.full((2, 2), IGNORE, np.uint8)
    confusion = confusion_matrix(truth, np.zeros((2, 2), np.uint8), 3)
    assert not confusion.any()
    assert math.isnan(mean_iou(confusion)) and math.isnan(pixel_accuracy(confusion))


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (TRUTH, PREDICTION[:1], r"shape \(2, 3\), prediction \(1, 3\)"),
        (TRUTH + (TRUTH == 2), PREDICTION, "truth holds class id 3, but there are 3 classes"),
        (TRUTH, PREDICTION + np.uint8(2), "prediction holds class id 3, but there are 3 classes"),
    ],
)
def test_what_cannot_be_counted_is_refused(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(truth, prediction, 3)
