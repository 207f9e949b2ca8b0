"""Score a model on a labelled split, photo by photo at original size."""

import math

import numpy as np

from .metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy


def evaluate(label_map, dataset, progress=None):
    """Count pixels by true and predicted class over a data set.

    Parameters
    ----------
    label_map : callable
        From a uint8 RGB array (height, width, 3) to its class ids, uint8 (height, width).
    dataset : bitseg.datasets.Dataset
    progress : callable or None
        Called after every photo with the number done.

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
    confusion = np.zeros((classes, classes), np.int64)
    for index in range(len(dataset)):
        photo, truth = dataset.sample(index)
        confusion += confusion_matrix(truth, label_map(photo), classes)
        if progress is not None:
            progress(index + 1)
    return confusion


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
