"""What a PyTorch network sees in a photo, in floating point and at the photo's own size."""

from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F

from bitseg.network.graph import SIZE_MULTIPLE

from .data import normalise


@torch.no_grad()
def predict_label_map(network, image, preprocessing):
    """Segment one photo at its own size.

    Parameters
    ----------
    network : BitFCN
        In float32 or float64; left in evaluation mode.
    image : ndarray of uint8, shape (height, width, 3), RGB
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of uint8, shape (height, width)
        Class ids: the arg-max of the stride-4 scores, bilinearly upsampled.
    """
    height, width = image.shape[:2]
    tensor = next(chain(network.parameters(), network.buffers()))
    padded = torch.from_numpy(_pad(image, preprocessing.mean)).to(tensor.device)[None]
    network.eval()
    scores = network(normalise(padded, preprocessing).to(tensor.dtype), scales=(4,))[4]
    scores = F.interpolate(scores, scale_factor=4, mode="bilinear", align_corners=False)
    return scores[0, :, :height, :width].argmax(0).cpu().numpy().astype(np.uint8)


def _pad(image, mean):
    """Pad an image at the right and below with the mean colour, to a size that the network takes."""
    height, width = image.shape[:2]
    padded = np.empty((-height % SIZE_MULTIPLE + height, -width % SIZE_MULTIPLE + width, 3), np.uint8)
    padded[:] = mean
    padded[:height, :width] = image
    return padded
