"""Training batches: seeded augmentation of labelled photos, one batch a function of its number alone."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance

from bitseg.datasets import IGNORE
from bitseg.errors import BitsegError, DatasetError


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training sample.

    Attributes
    ----------
    crop : int
        Side of the square crop, pixels; a multiple of 32.
    scale : (float, float)
        Range of the zoom, drawn log-uniformly.
    colour : float
        Largest relative change of brightness, contrast and saturation.
    """

    crop: int
    scale: tuple
    colour: float

    def __call__(self, image, mask, mean, generator):
        """Crop, zoom, flip and tint one sample.

        Parameters
        ----------
        image : PIL image, RGB
        mask : PIL image, mode L, class ids
        mean : tuple of 3 int
            Colour outside the photo.
        generator : numpy.random.Generator

        Returns
        -------
        (ndarray of uint8 (crop, crop, 3), ndarray of uint8 (crop, crop))
        """
        zoom = float(np.exp(generator.uniform(*np.log(self.scale))))
        width, height = (max(1, round(side * zoom)) for side in image.size)
        left = int(generator.integers(min(0, width - self.crop), max(0, width - self.crop) + 1))
        top = int(generator.integers(min(0, height - self.crop), max(0, height - self.crop) + 1))
        # The part of the zoomed photo inside the crop window, and where it lies in the window.
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(width, left + self.crop), min(height, top + self.crop)
        box = (
            x0 * image.width / width,
            y0 * image.height / height,
            x1 * image.width / width,
            y1 * image.height / height,
        )
        size = (x1 - x0, y1 - y0)
        part = image.resize(size, Image.BILINEAR, box)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            part = enhance(part).enhance(1 + generator.uniform(-self.colour, self.colour))
        window = np.empty((self.crop, self.crop, 3), np.uint8)
        window[:] = mean
        labels = np.full((self.crop, self.crop), IGNORE, np.uint8)
        inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        window[inside] = part
        labels[inside] = mask.resize(size, Image.NEAREST, box)
        if generator.random() < 0.5:
            window, labels = window[:, ::-1], labels[:, ::-1]
        return window, labels


class Batches(torch.utils.data.Dataset):
    """Training batches by number; the same number always gives the same batch.

    Every epoch is a new permutation of the samples. Photos are read anew each time: that costs about 4 ms, while
    keeping them decoded would cost gigabytes in every worker.

    Parameters
    ----------
    dataset : bitseg.datasets.Dataset
    augmentation : Augmentation
    mean : tuple of 3 int
        Colour outside the photo.
    batch_size : int
        Samples a batch.
    seed : int
        Decides the order and the augmentation.
    part : sequence of int or None
        Indices of the samples of a batch that are made; None: all.
    """

    def __init__(self, dataset, augmentation, mean, batch_size, seed, part=None):
        self.dataset, self.augmentation, self.mean = dataset, augmentation, mean
        self.batch_size, self.seed = batch_size, seed
        self.part = range(batch_size) if part is None else part

    def __getitem__(self, number):
        """Images, uint8 (batch, crop, crop, 3), and labels, int64 (batch, crop, crop)."""
        images, labels = zip(*(self._sample(number * self.batch_size + index) for index in self.part))
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64))

    def _sample(self, position):
        epoch, place = divmod(position, len(self.dataset))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))
        photo, labels = self.dataset.sample(order[place])
        generator = np.random.default_rng([self.seed, 1, position])
        return self.augmentation(Image.fromarray(photo), Image.fromarray(labels), self.mean, generator)


class _Carried(torch.utils.data.Dataset):
    """Batches whose errors are values: DataLoader would wrap an exception of a worker in its traceback."""

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, number):
        try:
            return self.batches[number]
        except BitsegError as error:
            return error


def batch_stream(batches, numbers, workers):
    """Iterate over batches, made ahead of time.

    Parameters
    ----------
    batches : Batches
    numbers : sequence of int
        Numbers of the batches, in order.
    workers : int
        Processes that make them; 0: this one does.

    Yields
    ------
    (tensor, tensor)
        See `Batches`.

    Raises
    ------
    ImageError, DatasetError
        A photo or mask cannot be used.
    """
    loader = torch.utils.data.DataLoader(
        _Carried(batches),
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, BitsegError):
            raise batch
        yield batch


def class_weights(dataset):
    """Weights that raise rare classes: ``1 / ln(1.4 + share of the class)``.

    Parameters
    ----------
    dataset : bitseg.datasets.Dataset

    Returns
    -------
    tensor of float32, shape (classes,)

    Raises
    ------
    DatasetError
        No pixel has a class.

    Source: Wen et al. 2016, section 5.
    """
    counts = np.zeros(256, np.int64)
    for index in range(len(dataset)):
        counts += np.bincount(dataset.labels(index).ravel(), minlength=256)
    counted = counts[: len(dataset.classes)]
    if not counted.any():
        raise DatasetError(f"{dataset.name}: no pixel of any mask has a class; check the values of the masks")
    return torch.tensor(1 / np.log(1.4 + counted / counted.sum()), dtype=torch.float32)


def normalise(images, preprocessing):
    """Bring images into the form the network takes: ``(image - mean) / scale``.

    Parameters
    ----------
    images : tensor of uint8, shape (batch, height, width, 3), RGB
    preprocessing : bitseg.architecture.Preprocessing

    Returns
    -------
    tensor of float32, shape (batch, 3, height, width)
        In channels-last memory order.
    """
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=images.device)
    x = (images.float() - mean) / preprocessing.scale
    return x.permute(0, 3, 1, 2)
