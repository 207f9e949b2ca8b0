"""Labelled data sets: where their photos and masks lie, and how their ids become class ids."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import DatasetError

IGNORE = 255
"""Label of pixels that count neither in training nor in a score."""

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

_VOC7_IDS = (0, 8, 10, 12, 13, 15, 17)
"""PASCAL VOC's ids of the classes of ``voc7``."""


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
        Class id (or ``IGNORE``) of every value a mask file may hold.
    """

    name: str
    classes: tuple
    samples: tuple
    label_map: np.ndarray


def open_dataset(kind, root, split):
    """List one split of a data set.

    Parameters
    ----------
    kind : {"voc7", "camvid"}
        ``voc7``: ``images/ID.jpg``, ``masks/ID.png`` with PASCAL VOC ids and ``SPLIT.txt`` of ids;
        all but six animal and person classes count as background.
        ``camvid``: ``SPLIT/images`` and ``SPLIT/masks`` with the 11 ids of SegNet's CamVid.
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
    label_map = np.zeros(256, np.uint8)
    label_map[list(_VOC7_IDS)] = np.arange(len(_VOC7_IDS))
    label_map[IGNORE] = IGNORE
    return samples, label_map


def _read_camvid(root, split):
    images, masks = root / split / "images", root / split / "masks"
    if not images.is_dir():
        raise DatasetError(f"{images}: not found; give the folder that holds train/ and val/")
    samples = [(path, masks / f"{path.stem}.png") for path in sorted(images.iterdir())]
    label_map = np.full(256, IGNORE, np.uint8)
    label_map[: len(CLASSES["camvid"])] = np.arange(len(CLASSES["camvid"]))
    return samples, label_map


_READERS = {"voc7": _read_voc7, "camvid": _read_camvid}
