"""Score a PyTorch network on a labelled split, photo by photo at original size."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bitseg.metrics import confusion_matrix

from .data import normalise, pad_to_multiple


@torch.no_grad()
def predict_label_map(network, image, preprocessing):
    """Segment one photo at its own size.

    Parameters
    ----------
    network : BitFCN
    image : ndarray of uint8, shape (height, width, 3), RGB
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of uint8, shape (height, width)
        Class ids: the arg-max of the stride-4 scores, bilinearly upsampled.
    """
    height, width = image.shape[:2]
    padded = torch.from_numpy(pad_to_multiple(image, preprocessing.mean))[None]
    network.eval()
    scores = network(normalise(padded, preprocessing), scales=(4,))[4]
    scores = F.interpolate(scores, scale_factor=4, mode="bilinear", align_corners=False)
    return scores[0, :, :height, :width].argmax(0).numpy().astype(np.uint8)


def evaluate(network, dataset, preprocessing):
    """Confusion matrix of a network over a data set, shape (classes, classes)."""
    classes = len(dataset.classes)
    confusion = np.zeros((classes, classes), np.int64)
    for image_path, mask_path in dataset.samples:
        image = np.asarray(Image.open(image_path).convert("RGB"))
        truth = dataset.label_map[np.asarray(Image.open(mask_path))]
        confusion += confusion_matrix(truth, predict_label_map(network, image, preprocessing), classes)
    return confusion
