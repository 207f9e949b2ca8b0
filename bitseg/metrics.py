"""Scores of a segmentation: confusion matrix, intersection over union, pixel accuracy."""

import numpy as np

from .datasets import IGNORE


def confusion_matrix(truth, prediction, classes):
    """Count pixels by true and predicted class.

    Parameters
    ----------
    truth : ndarray of uint8, any shape
        True class ids; ``IGNORE`` (255) pixels are left out.
    prediction : ndarray of uint8, same shape
        Predicted class ids, each below `classes`.
    classes : int
        Number of classes.

    Returns
    -------
    ndarray of int64, shape (classes, classes)
        Row: true class; column: predicted class; unit: pixels.

    Raises
    ------
    ValueError
        Shapes differ, or a class id is out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}")
    counted = truth != IGNORE
    truth, prediction = truth[counted].astype(np.int64), prediction[counted]
    for name, ids in (("truth", truth), ("prediction", prediction)):
        if ids.size and ids.max() >= classes:
            raise ValueError(f"{name} holds class id {ids.max()}, but there are {classes} classes")
    return np.bincount(truth * classes + prediction, minlength=classes * classes).reshape(classes, classes)


def class_iou(confusion):
    """Intersection over union of every class.

    Parameters
    ----------
    confusion : ndarray of int, shape (classes, classes)
        See `confusion_matrix`.

    Returns
    -------
    ndarray of float64, shape (classes,)
        From 0 to 1; NaN for a class that is neither there nor predicted.
    """
    hits = np.diag(confusion)
    return _shares(hits, confusion.sum(0) + confusion.sum(1) - hits)


def class_precision(confusion):
    """Share of the pixels predicted as a class that are of it; otherwise as `class_iou`."""
    return _shares(np.diag(confusion), confusion.sum(0))


def class_recall(confusion):
    """Share of the pixels of a class that are predicted as it; otherwise as `class_iou`."""
    return _shares(np.diag(confusion), confusion.sum(1))


def mean_iou(confusion):
    """Mean of `class_iou` over the classes that occur or are predicted; NaN if no pixel was counted."""
    iou = class_iou(confusion)
    return float(np.nanmean(iou)) if confusion.any() else float("nan")


def pixel_accuracy(confusion):
    """Share of counted pixels whose class is right; NaN if no pixel was counted."""
    return float(np.diag(confusion).sum() / confusion.sum()) if confusion.any() else float("nan")


def _shares(parts, wholes):
    return np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)
