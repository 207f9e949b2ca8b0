"""What a PyTorch network sees in a photo."""

from itertools import chain

import numpy as np
import torch

from bitseg.images import resize, working_shape
from bitseg.network.graph import SIZE_MULTIPLE
from bitseg.network.reference import label_map

from .data import normalise


@torch.no_grad()
def predict_label_map(network, image, preprocessing):
    """Segment one photo, a larger one at the working size, as `bitseg.segmenter.Segmenter.label_map` does.

    Parameters
    ----------
    network : BitFCN
        In float32 or float64; left in evaluation mode.
    image : ndarray of uint8, shape (height, width, 3), RGB
    preprocessing : Preprocessing

    Returns
    -------
    ndarray of uint8, shape (height, width)
        Class ids.
    """
    shape = image.shape[:2]
    inside = working_shape(*shape, preprocessing.working_size)
    working = image if inside == shape else resize(image, inside)
    tensor = next(chain(network.parameters(), network.buffers()))
    padded = torch.from_numpy(_pad(working, preprocessing.mean)).to(tensor.device)[None]
    network.eval()
    scores = network(normalise(padded, preprocessing).to(tensor.dtype), scales=(4,))[4]
    return label_map(scores[0].float().cpu().numpy(), shape, inside)


def _pad(image, mean):
    """Pad an image at the right and below with the mean colour, to a size that the network takes."""
    height, width = image.shape[:2]
    padded = np.empty((-height % SIZE_MULTIPLE + height, -width % SIZE_MULTIPLE + width, 3), np.uint8)
    padded[:] = mean
    padded[:height, :width] = image
    return padded
