"""What a PyTorch network sees in a photo."""

from itertools import chain

import torch
from PIL import Image

from bitseg.network.reference import label_map
from bitseg.segmenter import network_input

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
    padded, inside = network_input(Image.fromarray(image), preprocessing.working_size, preprocessing.mean)
    tensor = next(chain(network.parameters(), network.buffers()))
    batch = torch.from_numpy(padded).to(tensor.device)[None]
    network.eval()
    scores = network(normalise(batch, preprocessing).to(tensor.dtype), scales=(4,))[4]
    return label_map(scores[0].float().cpu().numpy(), image.shape[:2], inside)
