"""Labelled data sets: where their photos and masks lie, and how their ids become class ids."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import DatasetError
from .images import read_image

IGNORE = 255
"""Label of pixels that count neither in training nor in a score."""

INVALID = 254
"""Stands in a `Dataset.label_map` for values that no mask may hold."""

CLASSES = {
    "voc7": ("background", "cat", "cow", "dog", "horse", "person", "sheep"),
    "camvid": (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
}
"""Class names of each kind of data set; the position is the class id."""

_VOC_CLASSES = 21
_VOC7_IDS = (0, 8, 10, 12, 13, 15, 17)
"""PASCAL VOC's ids of the classes of ``voc7``."""

_CAMVID_UNLABELLED = 11

_PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Dataset:
    """One split of a labelled data set.

    Attributes
    ----------
    name : str
        Data set and split, as printed in reports.
    classes : tuple of str
        Class names; the position is the class id.
    samples : tuple of (Path, Path)
        Photo and mask of every sample.
    label_map : ndarray of uint8, shape (256,)
        Class id, ``IGNORE`` or ``INVALID`` for every value of a mask file.
    """

    name: str
    classes: tuple
    samples: tuple
    label_map: np.ndarray

    def __len__(self):
        return len(self.samples)

    def sample(self, index):
        """Read a photo and its labels.

        Returns
        -------
        photo : ndarray of uint8, shape (height, width, 3)
            Red, green, blue.
        labels : ndarray of uint8, shape (height, width)
            Class ids, or ``IGNORE``.

        Raises
        ------
        ImageError
            The photo cannot be read.
        DatasetError
            The mask cannot be read, holds a value that is no class id, or has another size than the photo.
        """
        photo_path, mask_path = self.samples[index]
        photo, labels = read_image(photo_path), self.labels(index)
        if labels.shape != photo.shape[:2]:
            sizes = [f"{width}x{height}" for height, width in (labels.shape, photo.shape[:2])]
            raise DatasetError(f"{mask_path}: {sizes[0]} pixels, but {photo_path} has {sizes[1]}; they must agree")
        return photo, labels

    def labels(self, index):
        """Read the labels alone; see `sample`."""
        mask_path = self.samples[index][1]
        try:
            with Image.open(mask_path) as mask:
                values, mode = np.asarray(mask), mask.mode
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(f"{mask_path}: cannot be read ({error}); copy it again") from None
        if values.ndim != 2 or values.dtype != np.uint8:
            raise DatasetError(f"{mask_path}: a picture of mode {mode}; a mask has one 8-bit class id a pixel")
        labels = self.label_map[values]
        if (labels == INVALID).any():
            raise DatasetError(
                f"{mask_path}: holds {values[labels == INVALID][0]}, which is no class id of {self.name}"
            )
        return labels


def open_dataset(kind, root, split):
    """List one split of a data set.

    Parameters
    ----------
    kind : {"voc7", "camvid"}
        ``voc7``: ``images/ID.jpg``, ``masks/ID.png`` with PASCAL VOC ids and ``SPLIT.txt`` of ids;
        all but six animal and person classes count as background.
        ``camvid``: ``SPLIT/images`` and ``SPLIT/masks`` with the 11 ids of SegNet's CamVid; 11 is unlabelled.
    root : path
        Folder of the data set.
    split : str
        For example ``train`` or ``val``.

    Returns
    -------
    Dataset

    Raises
    ------
    DatasetError
        The kind is unknown, or a listed file does not exist.
    """
    if kind not in _READERS:
        raise DatasetError(f"unknown data set '{kind}': choose one of {', '.join(sorted(_READERS))}")
    samples, label_map = _READERS[kind](Path(root), split)
    if not samples:
        raise DatasetError(f"{root}: the {split} split is empty")
    for path in (path for sample in samples for path in sample):
        if not path.is_file():
            raise DatasetError(f"{path}: listed in the {split} split but not there")
    return Dataset(f"{kind} {split}", CLASSES[kind], tuple(samples), label_map)


def _read_voc7(root, split):
    list_file = root / f"{split}.txt"
    if not list_file.is_file():
        raise DatasetError(f"{list_file}: not found; give the folder that holds images/, masks/ and {split}.txt")
    names = list_file.read_text().split()
    samples = [(root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png") for name in names]
    label_map = _label_map()
    label_map[:_VOC_CLASSES] = CLASSES["voc7"].index("background")
    label_map[list(_VOC7_IDS)] = np.arange(len(_VOC7_IDS))
    return samples, label_map


def _read_camvid(root, split):
    images, masks = root / split / "images", root / split / "masks"
    if not images.is_dir():
        raise DatasetError(f"{images}: not found; give the folder that holds train/ and val/")
    photos = sorted(path for path in images.iterdir() if path.suffix.lower() in _PHOTO_SUFFIXES)
    label_map = _label_map()
    label_map[: len(CLASSES["camvid"])] = np.arange(len(CLASSES["camvid"]))
    label_map[_CAMVID_UNLABELLED] = IGNORE
    return [(path, masks / f"{path.stem}.png") for path in photos], label_map


def _label_map():
    """A label map in which nothing but ``IGNORE`` is valid."""
    label_map = np.full(256, INVALID, np.uint8)
    label_map[IGNORE] = IGNORE
    return label_map


_READERS = {"voc7": _read_voc7, "camvid": _read_camvid}
