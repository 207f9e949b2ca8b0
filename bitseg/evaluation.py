"""Score a model on a labelled split, photo by photo at original size."""

import numpy as np
from PIL import Image

from .errors import DatasetError
from .images import read_image
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

    Raises
    ------
    DatasetError
        A mask has another size than its photo.
    """
    classes = len(dataset.classes)
    confusion = np.zeros((classes, classes), np.int64)
    for done, (image_path, mask_path) in enumerate(dataset.samples, 1):
        image = read_image(image_path)
        truth = dataset.label_map[np.asarray(Image.open(mask_path))]
        if truth.shape != image.shape[:2]:
            raise DatasetError(f"{mask_path}: {truth.shape} pixels, but {image_path} has {image.shape[:2]}")
        confusion += confusion_matrix(truth, label_map(image), classes)
        if progress is not None:
            progress(done)
    return confusion


def scores(confusion, dataset):
    """Accuracy figures of a confusion matrix, as plain data for JSON."""
    return {
        "dataset": dataset.name,
        "photos": len(dataset.samples),
        "miou": round(mean_iou(confusion), 4),
        "pixel_accuracy": round(pixel_accuracy(confusion), 4),
        "iou": {name: round(float(iou), 4) for name, iou in zip(dataset.classes, class_iou(confusion), strict=True)},
    }
