"""Photo in, segmentation out: sizes, padding, and the network bound to its threads."""

import time

import numpy as np

from .errors import BitsegError
from .images import read_image, resize, working_shape
from .model_file import find_model, read_model
from .network.graph import SIZE_MULTIPLE, Network
from .network.operations import Operations
from .segmentation import Segmentation

DEFAULT_MODEL = "voc7-w2a2"


def load(model=DEFAULT_MODEL, threads=None, kernel="auto"):
    """Load a model.

    Parameters
    ----------
    model : str or path
        Name of an installed model, or path of an ``.h5`` file.
    threads : int or None
        Threads to use; None: one for each processor this process may use.
    kernel : {"auto", "popcount", "lookup", "dot"}
        How convolutions are computed; auto takes what is fastest on this CPU. The masks are the same.

    Returns
    -------
    Segmenter

    Raises
    ------
    ModelFileError
        There is no such model, or its file is damaged.
    BitsegError
        The thread count or the kernel cannot be used.
    """
    return Segmenter(read_model(find_model(model)), threads, kernel)


class Segmenter:
    """A model ready to segment photos; may be used from several threads at once.

    Parameters
    ----------
    model : bitseg.model_file.Model
    threads : int or None
    kernel : {"auto", "popcount", "lookup", "dot"}
        As for `load`.

    Raises
    ------
    BitsegError
        The thread count or the kernel cannot be used.
    """

    def __init__(self, model, threads=None, kernel="auto"):
        self.model = model
        try:
            self.network = Network(model, Operations(threads, kernel))
        except ValueError as error:
            raise BitsegError(str(error)) from None
        # Kernels are compiled, or read from their cache, here and not while somebody waits for a mask.
        shape = SIZE_MULTIPLE, SIZE_MULTIPLE
        self.network.label_map(np.zeros((*shape, 3), np.uint8), shape, shape)

    def predict(self, image, size=None):
        """Segment a photo.

        Parameters
        ----------
        image : path, PIL image, or ndarray of uint8
            Arrays are RGB (height, width, 3) or grey (height, width).
        size : int, "native" or None
            Long side, in pixels, at which a larger photo is segmented; None: the model's working size. The mask
            always has the photo's own size.

        Returns
        -------
        Segmentation

        Raises
        ------
        ImageError
            The image cannot be read.
        BitsegError
            The size is not usable.
        """
        photo = read_image(image)
        began = time.perf_counter()
        mask = self.label_map(photo, size)
        seconds = time.perf_counter() - began
        return Segmentation(photo, mask, self.model.architecture.classes, self.model.palette, seconds)

    def label_map(self, photo, size=None):
        """Class ids of a photo: uint8 RGB array (height, width, 3) in, uint8 array (height, width) out."""
        shape = photo.shape[:2]
        inside = working_shape(*shape, self._long_side(size, shape))
        working = photo if inside == shape else resize(photo, inside)
        padded = np.empty((*(-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in inside), 3), np.uint8)
        padded[:] = self.model.preprocessing.mean
        padded[: inside[0], : inside[1]] = working
        return self.network.label_map(padded, shape, inside)

    def _long_side(self, size, shape):
        if size is None:
            return self.model.preprocessing.working_size
        if size == "native":
            return max(shape)
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise BitsegError(f"size must be a whole number of pixels or 'native', not {size!r}")
        return int(size)
