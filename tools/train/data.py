"""Training batches: seeded augmentation of labelled photos, one batch a function of its number alone."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance

from bitseg.datasets import IGNORE


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
    """Batch number -> images and labels; the same number always gives the same batch.

    Every epoch is a new permutation of the samples, drawn from the seed; decoded photos stay in memory.
    """

    def __init__(self, dataset, augmentation, mean, batch_size, seed):
        self.dataset, self.augmentation, self.mean = dataset, augmentation, mean
        self.batch_size, self.seed = batch_size, seed
        self._decoded = {}

    def __getitem__(self, number):
        images, labels = zip(*(self._sample(number * self.batch_size + i) for i in range(self.batch_size)))
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64))

    def _sample(self, position):
        epoch, place = divmod(position, len(self.dataset.samples))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset.samples))
        image, mask = self._load(order[place])
        generator = np.random.default_rng([self.seed, 1, position])
        return self.augmentation(image, mask, self.mean, generator)

    def _load(self, index):
        if index not in self._decoded:
            image_path, mask_path = self.dataset.samples[index]
            image = Image.open(image_path).convert("RGB")
            mask = Image.fromarray(self.dataset.label_map[np.asarray(Image.open(mask_path))])
            if image.size != mask.size:
                raise ValueError(f"{mask_path}: {mask.size} pixels, but {image_path} has {image.size}")
            self._decoded[index] = image, mask
        return self._decoded[index]


def batch_stream(batches, numbers, workers):
    """Iterate over the batches of the given numbers, made ahead in `workers` processes."""
    return torch.utils.data.DataLoader(
        batches, sampler=list(numbers), batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    )


def normalise(images, preprocessing):
    """uint8 images (batch, height, width, 3) to network input (batch, 3, height, width), float32, channels last."""
    x = (images.float() - torch.tensor(preprocessing.mean, dtype=torch.float32)) / preprocessing.scale
    return x.permute(0, 3, 1, 2)


def pad_to_multiple(image, mean, multiple=32):
    """Pad a uint8 image (height, width, 3) at the right and below with the mean colour."""
    height, width = image.shape[:2]
    padded = np.empty((-height % multiple + height, -width % multiple + width, 3), np.uint8)
    padded[:] = mean
    padded[:height, :width] = image
    return padded
