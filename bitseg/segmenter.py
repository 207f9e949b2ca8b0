"""Photo in, segmentation out: sizes, padding, and the network bound to its threads."""

import copy
import io
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from PIL import Image

from .errors import BitsegError, unknown
from .images import ImageSource, held, read_picture, resize, working_shape
from .model_file import Model, find_model, read_model
from .network.graph import SIZE_MULTIPLE, Network
from .network.operations import Operations, available_threads
from .palette import PALETTES, palette_for
from .segmentation import Segmentation

DEFAULT_MODEL = "voc7-w2a2"


def load(
    model: str | os.PathLike = DEFAULT_MODEL,
    threads: int | None = None,
    kernel: Literal["auto", "popcount", "lookup", "dot", "tile"] = "auto",
    palette: Literal["safe", "voc", "cityscapes", "model"] | None = None,
    jobs: int = 1,
) -> "Segmenter":
    """Load a model.

    Parameters
    ----------
    model : str or path
        Name of an installed model, or path of an ``.h5`` file.
    threads : int or None
        Threads to use; None: one for each processor this process may use.
    kernel : {"auto", "popcount", "lookup", "dot", "tile"}
        How convolutions are computed; auto takes what is fastest on this CPU. The masks are the same.
    palette : {"safe", "voc", "cityscapes", "model"} or None
        Class colours: a key of `bitseg.palette.PALETTES`, or ``model`` for those in the model's file. None: safe,
        which colour-blind people can tell apart.
    jobs : int
        Photos that callers, in threads of their own, segment at a time, each on its part of the threads. One that is
        alone has no more than its part.

    Returns
    -------
    Segmenter

    Raises
    ------
    ModelFileError
        There is no such model, or its file is damaged.
    BitsegError
        The thread count, the kernel, the palette or the number of jobs cannot be used.

    Examples
    --------
    >>> import bitseg
    >>> segmenter = bitseg.load("voc7-w2a2", threads=1)
    >>> segmenter.class_names
    ('background', 'cat', 'cow', 'dog', 'horse', 'person', 'sheep')
    """
    return Segmenter(read_model(find_model(model)), threads, kernel, palette, jobs)


class Segmenter:
    """A model ready to segment photos.

    It may be used from several threads at once, pickled (the model and the settings travel), and used after a fork.

    Parameters
    ----------
    model : bitseg.model_file.Model
    threads : int or None
    kernel : {"auto", "popcount", "lookup", "dot", "tile"}
    palette : {"safe", "voc", "cityscapes", "model"} or None
    jobs : int
        As for `load`.

    Attributes
    ----------
    model : bitseg.model_file.Model
    class_names : tuple of str
        All classes that the model knows; the position is the class id.
    palette : ndarray of uint8, shape (classes, 3)
        Colour of every class: red, green, blue.
    threads : int
        Threads that all jobs use together.
    jobs : int

    Raises
    ------
    BitsegError
        The thread count, the kernel, the palette or the number of jobs cannot be used.
    """

    def __init__(
        self,
        model: Model,
        threads: int | None = None,
        kernel: str = "auto",
        palette: str | None = None,
        jobs: int = 1,
    ):
        self._settings = threads, kernel, palette, jobs
        if palette not in (None, "model", *PALETTES):
            raise BitsegError(unknown("palette", palette, (*PALETTES, "model")))
        self.model = model
        self.class_names: tuple[str, ...] = model.architecture.classes
        self.palette = model.palette if palette == "model" else palette_for(self.class_names, palette or "safe")
        self.threads = available_threads() if threads is None else _count("threads", threads)
        self.jobs = _count("jobs", jobs)
        try:
            operations = Operations(self.threads, kernel, self.jobs)
        except ValueError as error:
            raise BitsegError(str(error)) from None
        self.network = Network(model, operations)
        self._shared = self.jobs, self.network
        # Kernels are compiled, or read from their cache, here and not while somebody waits for a mask.
        size = SIZE_MULTIPLE, SIZE_MULTIPLE
        operations.run(self.network.compute_label_map, np.zeros((*size, 3), np.uint8), size, size)

    def __reduce__(self):
        return type(self), (self.model, *self._settings)

    def predict(
        self, image: ImageSource, size: int | Literal["native"] | None = None, scores: bool = False
    ) -> Segmentation:
        """Segment a photo.

        Parameters
        ----------
        image : path, bytes, binary file, PIL image, or ndarray of uint8
            Arrays are RGB (height, width, 3) or grey (height, width). Bytes and files are those of a picture file.
        size : int, "native" or None
            Long side, in pixels, at which a larger photo is segmented; None: the model's working size. The mask
            always has the photo's own size.
        scores : bool
            Whether the result keeps the scores of all classes.

        Returns
        -------
        Segmentation

        Raises
        ------
        ImageError
            The image cannot be read.
        BitsegError
            The size is not usable.

        Examples
        --------
        >>> import bitseg
        >>> segmentation = bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg")
        >>> segmentation.mask.shape, segmentation.mask.dtype
        ((300, 451), dtype('uint8'))
        >>> segmentation.share("cat") > 0.5
        True
        """
        return self._predict(self.network, image, self._long_side(size), scores)

    def predict_many(
        self,
        images: Iterable[ImageSource],
        size: int | Literal["native"] | None = None,
        jobs: int | None = None,
        on_error: Callable[[Any, BitsegError], object] | None = None,
        scores: bool = False,
    ) -> Iterator[Segmentation]:
        """Segment photos, several at a time, which is faster than one after the other.

        Parameters
        ----------
        images : iterable
            Whatever `predict` takes. It may be endless: at most twice `jobs` photos are read before they are asked
            for. All but paths may change, or be closed, as soon as the next one is taken.
        size : int, "native" or None
            As for `predict`.
        jobs : int or None
            Photos in work at a time, each on its part of the threads; None: as many as threads.
        on_error : callable or None
            Called with an image that cannot be segmented and its `BitsegError`, when its turn comes; the image is then
            left out. None: the error is raised at its turn, and later images are not segmented.
        scores : bool
            As for `predict`.

        Yields
        ------
        Segmentation
            In the order of `images`.

        Raises
        ------
        ImageError
            An image cannot be read, and `on_error` is None.
        BitsegError
            The size or the number of jobs is not usable, or `images` is a single photo.

        Examples
        --------
        >>> import bitseg
        >>> segmenter = bitseg.load("voc7-w2a2")
        >>> for segmentation in segmenter.predict_many(["examples/chelsea.jpg", "examples/astronaut.jpg"]):
        ...     print(segmentation.path.name, segmentation.mask.shape)
        chelsea.jpg (300, 451)
        astronaut.jpg (512, 512)
        """
        if _is_one_photo(images):
            raise BitsegError("predict_many takes several photos: pass a list of them, or use predict for one")
        long_side = self._long_side(size)
        jobs = self.threads if jobs is None else _count("jobs", jobs)
        network = self._network_for(jobs)

        def predict(taken):
            _, content = taken
            if isinstance(content, BitsegError):
                raise content
            return self._predict(network, content, long_side, scores)

        report = None if on_error is None else lambda taken, error: on_error(taken[0], error)
        segmentations = in_order(predict, ((image, _content(image)) for image in images), jobs, report)
        return _ended_by(network.operations.shrink, segmentations)

    def label_map(self, photo: np.ndarray, size: int | Literal["native"] | None = None) -> np.ndarray:
        """Class ids of a photo: uint8 RGB array (height, width, 3) in, uint8 array (height, width) out.

        `size` and errors are those of `predict`.
        """
        return self._segment(self.network, read_picture(photo), self._long_side(size))[0]

    def _predict(self, network, image, long_side, with_scores):
        photo = read_picture(image)
        began = time.perf_counter()
        mask, scores = self._segment(network, photo, long_side, with_scores)
        seconds = time.perf_counter() - began
        path = Path(os.fsdecode(image)) if isinstance(image, (str, os.PathLike)) else None
        return Segmentation(photo, mask, self.class_names, self.palette, seconds, path, scores)

    def _segment(self, network, photo, long_side, with_scores=False):
        """Class ids of a photo, at its own size, and, if asked for, scores at a quarter of the working size."""
        shape = photo.height, photo.width
        padded, inside = network_input(photo, long_side, self.model.preprocessing.mean)
        if not with_scores:
            return network.label_map(padded, shape, inside), None
        scores = network.scores(padded)
        mask = network.operations.label_map(scores, shape, inside)
        return mask, scores[:, : -(-inside[0] // 4), : -(-inside[1] // 4)]

    def _network_for(self, jobs):
        """The network, with the same weights, for so many photos at a time; the one for the latest number is kept."""
        jobs = min(jobs, self.threads)  # more have one thread each, too
        if jobs == min(self.jobs, self.threads):
            return self.network
        latest, network = self._shared
        if latest != jobs:
            network = copy.copy(self.network)
            network.operations = Operations(self.threads, network.operations.kernel, jobs)
            self._shared = jobs, network
        return network

    def _long_side(self, size):
        if size is None:
            return self.model.preprocessing.working_size
        if size == "native":
            return math.inf
        if not _is_count(size):
            raise BitsegError(f"size must be a whole number of pixels or 'native', not {size!r}")
        return int(size)


def network_input(photo, long_side, mean):
    """A photo as a network reads it: at its working size, padded at the right and below to a multiple of 32.

    Parameters
    ----------
    photo : PIL.Image.Image of mode RGB
    long_side : int or math.inf
        Long side to which a larger photo is brought.
    mean : tuple of 3 int
        Colour of the padding.

    Returns
    -------
    (ndarray of uint8, (int, int))
        The padded picture; height and width of the photo in it.
    """
    shape = photo.height, photo.width
    inside = height, width = working_shape(*shape, long_side)
    padded = np.empty((*(-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in inside), 3), np.uint8)
    padded[:height, :width] = photo if inside == shape else resize(photo, inside)
    padded[:height, width:] = mean
    padded[height:] = mean
    return padded, inside


def in_order(function, items, jobs, on_error=None):
    """Call a function on items, `jobs` at a time, and yield its results in order.

    Parameters
    ----------
    function : callable
        Called with one item, in a thread of its own.
    items : iterable
        At most twice `jobs` are taken before they are asked for. Its error comes after the results of those before.
    jobs : int
    on_error : callable or None
        As for `Segmenter.predict_many`.
    """
    items, failure = iter(items), None
    pending = deque()
    pool = ThreadPoolExecutor(jobs, "bitseg-photo")
    has_thread, is_alone = False, False

    def begin(item):
        """A queue that gets the result for an item and None, or None and the exception, in time."""
        nonlocal has_thread, is_alone
        # Not a future, which has a lock: an exception from a signal could leave it taken, and all would wait for ever.
        outcome = SimpleQueue()
        if not is_alone:
            try:
                pool.submit(_put_outcome, function, item, outcome)
                has_thread = True
            except RuntimeError as error:
                if "start new thread" not in str(error):
                    raise
                # The system allows no more. What was submitted is for those that are there.
                is_alone = not has_thread
        if is_alone:
            _put_outcome(function, item, outcome)
        return outcome

    def results(most_pending):
        """Results whose turn has come, as far as they are there; the rest until no more than so many are pending."""
        while pending and (len(pending) > most_pending or not pending[0][1].empty()):
            item, outcome = pending.popleft()
            result, error = outcome.get()
            if error is None:
                yield result
            elif on_error is None or not isinstance(error, BitsegError):
                try:
                    raise error
                finally:
                    del error  # which holds this frame
            else:
                on_error(item, error)

    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            pending.append((item, begin(item)))
            yield from results(2 * jobs - 1)
        yield from results(0)
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def _put_outcome(function, item, outcome):
    """Call a function, and put its result and None into a queue, or None and its exception."""
    try:
        outcome.put((function(item), None))
    except BaseException as error:
        outcome.put((None, error))


def _ended_by(function, results):
    """The results, after which, or after an error or an early end, a function is called."""
    try:
        yield from results
    finally:
        function()


def _is_one_photo(images):
    if isinstance(images, np.ndarray):
        return images.ndim < 3 or (images.ndim == 3 and images.shape[2] == 3)
    of_one = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, io.IOBase)
    return isinstance(images, of_one) or (hasattr(images, "read") and not hasattr(images, "__iter__"))


def _content(image):
    """An image as it is now, or the error that it is: what gives it may soon be closed, or hold the next one."""
    try:
        return held(image)
    except BitsegError as error:
        return error


def _is_count(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1


def _count(name, value):
    if not _is_count(value):
        raise BitsegError(f"{name} must be a whole number, at least 1, not {value!r}")
    return int(value)
