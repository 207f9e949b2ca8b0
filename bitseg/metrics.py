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
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted]
    if counted.any() and (truth[counted].max() >= classes or prediction[counted].max() >= classes):
        raise ValueError(f"a class id is not below {classes}")
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(confusion):
    """Intersection over union of every class, shape (classes,); NaN for a class that never occurs."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def mean_iou(confusion):
    """Mean of `class_iou` over the classes that occur."""
    return float(np.nanmean(class_iou(confusion)))


def pixel_accuracy(confusion):
    """Share of counted pixels whose class is right."""
    return float(np.diag(confusion).sum() / confusion.sum())
