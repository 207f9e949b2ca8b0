"""Score a model on a labelled split, photo by photo at original size."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .metrics import class_iou, class_precision, class_recall, confusion_matrix, mean_iou, pixel_accuracy


@dataclass(frozen=True, eq=False)
class EvaluatedPhoto:
    """A photo, what it shows and what was found in it.

    Attributes
    ----------
    path : Path
        File of the photo.
    photo : ndarray of uint8, shape (height, width, 3)
        Red, green, blue.
    truth, prediction : ndarray of uint8, shape (height, width)
        Class ids; pixels that are ``IGNORE`` in `truth` do not count.
    confusion : ndarray of int64, shape (classes, classes)
        See `bitseg.metrics.confusion_matrix`.
    """

    path: Path
    photo: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    confusion: np.ndarray


def evaluate(label_map, dataset, on_photo=None):
    """Count pixels by true and predicted class over a data set.

    Parameters
    ----------
    label_map : callable
        From a uint8 RGB array (height, width, 3) to its class ids, uint8 (height, width).
    dataset : bitseg.datasets.Dataset
    on_photo : callable or None
        Called with the `EvaluatedPhoto` of every photo.

    Returns
    -------
    ndarray of int64, shape (classes, classes)
        Row: true class; column: predicted class; unit: pixels.

    Raises
    ------
    ImageError, DatasetError
        A photo or mask cannot be used; see `bitseg.datasets.Dataset.sample`.
    """
    classes = len(dataset.classes)
    total = np.zeros((classes, classes), np.int64)
    for index, (path, _) in enumerate(dataset.samples):
        photo, truth = dataset.sample(index)
        prediction = label_map(photo)
        confusion = confusion_matrix(truth, prediction, classes)
        total += confusion
        if on_photo is not None:
            on_photo(EvaluatedPhoto(path, photo, truth, prediction, confusion))
    return total


class ClassScores(NamedTuple):
    """What a confusion matrix says of one class; shares from 0 to 1, NaN where no pixel decides.

    Attributes
    ----------
    name : str
    iou, precision, recall : float
        See `bitseg.metrics`.
    share : float
        Part of all counted pixels that is of the class.
    """

    name: str
    iou: float
    precision: float
    recall: float
    share: float


def class_scores(confusion, classes):
    """Accuracy figures of every class.

    Parameters
    ----------
    confusion : ndarray of int64, shape (classes, classes)
        Result of `evaluate`.
    classes : sequence of str
        Class names.

    Returns
    -------
    list of ClassScores
    """
    pixels = confusion.sum(1)
    columns = class_iou(confusion), class_precision(confusion), class_recall(confusion), pixels / max(1, pixels.sum())
    return [ClassScores(*row) for row in zip(classes, *(column.tolist() for column in columns), strict=True)]


def scores(confusion, dataset):
    """Accuracy figures of a confusion matrix, as plain data for JSON, to four decimals.

    Parameters
    ----------
    confusion : ndarray of int64, shape (classes, classes)
        Result of `evaluate`.
    dataset : bitseg.datasets.Dataset
        What it was counted on.

    Returns
    -------
    dict
        ``dataset``, ``photos``, ``miou``, ``pixel_accuracy``, and ``iou`` of every class by name; None stands for a
        figure that no pixel decides.
    """
    return {
        "dataset": dataset.name,
        "photos": len(dataset),
        "miou": _figure(mean_iou(confusion)),
        "pixel_accuracy": _figure(pixel_accuracy(confusion)),
        "iou": dict(zip(dataset.classes, map(_figure, class_iou(confusion)))),
    }


def _figure(value):
    # JSON knows no NaN.
    return None if math.isnan(value) else round(float(value), 4)
