"""Labelled data sets: where their photos and masks lie, and how their ids become class ids."""

import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import DatasetError, unknown
from .images import PHOTO_ENDINGS, read_image

IGNORE = 255
"""Label of pixels that count neither in training nor in a score."""

INVALID = 254
"""Stands in a `Dataset.label_map` for values that no mask may hold."""

CLASSES = {
    "voc": tuple(
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
        "pottedplant sheep sofa train tvmonitor".split()
    ),
    "voc7": ("background", "cat", "cow", "dog", "horse", "person", "sheep"),
    "cityscapes": (
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
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
"""Class names of each kind of data set that has fixed ones; the position is the class id."""

_CITYSCAPES_VALUES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Values of ``*_labelIds.png`` in the order of the classes; the others of the 34 are ignored."""

_CAMVID_COLORS = {
    "sky": [(128, 128, 128)],
    "building": [(128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)],
    "pole": [(192, 192, 128), (0, 0, 64)],
    "road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],
    "pavement": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],
    "tree": [(128, 128, 0), (192, 192, 0)],
    "sign": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],
    "fence": [(64, 64, 128)],
    "car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],
    "pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],
    "bicyclist": [(0, 128, 192), (192, 0, 192)],
    "unlabelled": [(0, 0, 0)],
}
"""Colours of the 32 original CamVid classes, by the one of SegNet's classes that takes them in.

In order: sky; building, bridge, wall, tunnel, archway; column or pole, traffic cone; road, lane markings of two kinds;
sidewalk, parking block, road shoulder; tree, other vegetation; sign, other text, traffic light; fence; car, pick-up,
lorry or bus, train, other moving thing; pedestrian, child, cart or pram, animal; bicyclist, motorcycle; void.
"""

_CAMVID_FRAMES = {
    ("0001TP", 8520): "train",
    ("0001TP", 99999): "test",
    ("0006R0", 99999): "train",
    ("0016E5", 7958): "train",
    ("0016E5", 8159): "val",
    ("0016E5", 99999): "train",
    ("Seq05VD", 99999): "test",
}
"""SegNet's splits of the original frames: sequence and last frame of each of its parts, in order."""

_SPLITS = ("train.txt", "val.txt", "train", "val")
"""What a folder holds if its user has split it."""

_HELD_OUT = 5
"""Otherwise one photo in so many is not trained on."""


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
    colors : ndarray of uint8, shape (values, 3), or None
        Where masks are coloured: red, green and blue that stand for each value.
    """

    name: str
    classes: tuple
    samples: tuple
    label_map: np.ndarray
    colors: np.ndarray | None = None

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
                mode, scaled = mask.mode, _is_scaled(mask)
                # As the photo is.
                mask = ImageOps.exif_transpose(mask)
                values = np.asarray(mask if self.colors is None else mask.convert("RGB"))
        except Exception as error:  # Pillow raises many types on damaged files
            raise DatasetError(f"{mask_path}: cannot be read ({error}); copy it again") from None
        if self.colors is not None:
            values = self._values_of_colors(values, mask_path)
        if values.ndim != 2 or values.dtype != np.uint8 or scaled:
            mode = "L of fewer than 8 bits" if scaled else mode
            raise DatasetError(f"{mask_path}: a picture of mode {mode}; a mask has one 8-bit class id a pixel")
        labels = self.label_map[values]
        if (labels == INVALID).any():
            raise DatasetError(
                f"{mask_path}: holds {values[labels == INVALID][0]}, which is no class id of {self.name}"
            )
        return labels

    def mapped_to(self, classes):
        """The same samples, labelled with the class ids of a model.

        Parameters
        ----------
        classes : sequence of str
            Class names of the model; the position is the class id.

        Returns
        -------
        Dataset
            With these classes, found by name. What the model does not know counts as its background.

        Raises
        ------
        DatasetError
            The model has a class that the data set lacks, or lacks one and has no background.
        """
        classes = tuple(classes)
        advice = "choose the data set that the model was trained on, or name its classes as the model does"
        strange = [name for name in classes if name not in self.classes]
        if strange:
            raise DatasetError(f"{self.name} lacks classes of the model ({_listed(strange)}); {advice}")
        unknown = [name for name in self.classes if name not in classes]
        if unknown and "background" not in classes:
            raise DatasetError(f"the model lacks classes of {self.name} ({_listed(unknown)}); {advice}")
        label_map = self.label_map.copy()
        for label, name in enumerate(self.classes):
            label_map[self.label_map == label] = classes.index(name if name in classes else "background")
        return replace(self, classes=classes, label_map=label_map)

    def _values_of_colors(self, pixels, mask_path):
        """Mask values, uint8 (height, width), of colours, uint8 (height, width, 3)."""
        known, wanted = _color_codes(self.colors), _color_codes(pixels)
        order = np.argsort(known)
        places = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
        values = order[places]
        strange = wanted[known[values] != wanted]
        if strange.size:
            raise DatasetError(f"{mask_path}: holds the colour #{strange[0]:06x}, which is no class of {self.name}")
        return values.astype(np.uint8)


def open_dataset(kind, root, split):
    """List one split of a data set.

    Parameters
    ----------
    kind : {"camvid", "cityscapes", "folder", "voc", "voc7"}
        Layout of the folder:

        ``voc``: PASCAL VOC 2012 as distributed, with ``JPEGImages``, ``SegmentationClass`` and
        ``ImageSets/Segmentation/SPLIT.txt``; 21 classes. A split whose name contains ``aug``, such as ``train_aug``,
        takes its masks from ``SegmentationClassAug``; a line of its list may also hold the paths of photo and mask.
        ``voc7``: ``images/ID.jpg``, ``masks/ID.png`` with PASCAL VOC ids and ``SPLIT.txt`` of ids;
        all but six animal and person classes count as background.
        ``cityscapes``: ``leftImg8bit/SPLIT/CITY`` and ``gtFine/SPLIT/CITY`` with ``*_labelTrainIds.png`` where every
        photo has one, otherwise ``*_labelIds.png``; 19 classes.
        ``camvid``: ``SPLIT/images`` and ``SPLIT/masks``, or SegNet's ``SPLIT`` and ``SPLITannot``, with the 11 ids of
        SegNet's CamVid (11 is unlabelled); or the original ``701_StillsRaw_full`` and ``LabeledApproved_full``, whose
        32 colours become these 11 classes and whose frames SegNet's splits ``train``, ``val`` and ``test``.
        ``folder``: photos in ``images``, 8-bit PNG masks of the same names in ``masks``, and ``classes.txt`` with one
        class name a line, id 0 first; 255 is ignored. A split is a list ``SPLIT.txt`` of photo names, one a line, or
        has its own ``SPLIT/images`` and ``SPLIT/masks``; the split ``all`` takes every photo in ``images``. With
        neither for ``train`` nor for ``val``, every fifth photo by name belongs to ``val`` and the others to ``train``.
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
        The kind is unknown, or the folder or a file is missing or cannot be read.
    """
    if kind not in _READERS:
        raise DatasetError(unknown("data set", kind, KINDS))
    _check_folder(root)
    try:
        classes, samples, *labelling = _READERS[kind](Path(root), split)
        for path in (path for sample in samples for path in sample):
            if not path.is_file():
                raise DatasetError(f"{path}: belongs to the {split} split but is not there")
    except OSError as error:
        raise DatasetError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None
    if not samples:
        raise DatasetError(f"{root}: the {split} split is empty")
    dataset = Dataset(f"{kind} {split}", classes, tuple(samples), *labelling)
    return dataset.mapped_to(CLASSES[kind]) if kind in CLASSES else dataset


def read_class_names(root):
    """Class names of a data set of the kind ``folder``.

    Parameters
    ----------
    root : path
        Folder that holds ``classes.txt``, with one name a line.

    Returns
    -------
    tuple of str
        The position is the class id.

    Raises
    ------
    DatasetError
        Folder or file is missing or cannot be read, a line is no name, or a name stands there twice.
    """
    _check_folder(root)
    path = Path(root) / "classes.txt"
    classes = tuple(_read_lines(path, "write one class name a line into it, that of id 0 first"))
    for number, name in enumerate(classes, 1):
        if not (name.isprintable() and 1 <= len(name) <= 100):
            raise DatasetError(f"{path}: line {number} is no class name; every line names the class of the next id")
        if name in classes[: number - 1]:
            raise DatasetError(f"{path}: line {number} repeats '{name}'; class names must differ")
    # The ids must leave room for those with a meaning of their own.
    if not 1 <= len(classes) <= INVALID:
        raise DatasetError(f"{path}: {len(classes)} class names; there must be 1 to {INVALID}")
    return classes


def _check_folder(root):
    try:
        is_folder = stat.S_ISDIR(Path(root).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have this name
        is_folder = False
    except OSError as error:
        raise DatasetError(f"{root}: cannot be read ({error.strerror}); check its permissions") from None
    if not is_folder:
        raise DatasetError(f"{root}: there is no such folder; check its name")


def _read_voc(root, split):
    list_file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    masks = "SegmentationClassAug" if "aug" in split else "SegmentationClass"
    samples = []
    for line in _read_names(list_file, "give the folder that holds JPEGImages/, SegmentationClass/ and ImageSets/"):
        # DeepLab's lists hold both paths, from the root of the data set.
        photo, *mask = line.split()
        if mask:
            samples.append((root / photo.lstrip("/"), root / mask[0].lstrip("/")))
        else:
            samples.append((root / "JPEGImages" / f"{photo}.jpg", root / masks / f"{photo}.png"))
    return CLASSES["voc"], samples, _label_map(range(len(CLASSES["voc"])))


def _read_voc7(root, split):
    names = _read_names(root / f"{split}.txt", f"give the folder that holds images/, masks/ and {split}.txt")
    samples = [(root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png") for name in names]
    return CLASSES["voc"], samples, _label_map(range(len(CLASSES["voc"])))


def _read_cityscapes(root, split):
    classes = CLASSES["cityscapes"]
    photos, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    if not photos.is_dir():
        raise DatasetError(f"{photos}: not found; give the folder that holds leftImg8bit/ and gtFine/")
    ending = "_leftImg8bit.png"
    photos = [path for path in sorted(photos.glob(f"*/*{ending}")) if not path.name.startswith(".")]

    def samples(kind):
        name = f"_gtFine_{kind}.png"
        return [(path, masks / path.parent.name / (path.name.removesuffix(ending) + name)) for path in photos]

    if all(mask.is_file() for _, mask in samples("labelTrainIds")):
        return classes, samples("labelTrainIds"), _label_map(range(len(classes)))
    labels = dict(zip(_CITYSCAPES_VALUES, range(len(classes))))
    return classes, samples("labelIds"), _label_map(labels.get(value, IGNORE) for value in range(34))


def _read_camvid(root, split):
    classes = CLASSES["camvid"]
    stills = root / "701_StillsRaw_full"
    if stills.is_dir():
        photos = [path for path in _photos(stills) if _camvid_split(path.stem) == split]
        samples = [(path, root / "LabeledApproved_full" / f"{path.stem}_L.png") for path in photos]
        labels = dict(zip(classes, range(len(classes))))
        colors = [(labels.get(name, IGNORE), color) for name, group in _CAMVID_COLORS.items() for color in group]
        return classes, samples, _label_map(label for label, _ in colors), np.array([c for _, c in colors], np.uint8)
    for images, masks in ((root / split / "images", root / split / "masks"), (root / split, root / f"{split}annot")):
        if images.is_dir() and masks.is_dir():
            return classes, _pairs(_photos(images), masks), _label_map([*range(len(classes)), IGNORE])
    raise DatasetError(
        f"{root / split}: not found, or without masks; give the folder that holds {split}/images and {split}/masks, "
        f"{split} and {split}annot, or 701_StillsRaw_full and LabeledApproved_full"
    )


def _camvid_split(frame):
    """Split of an original frame, by a name such as 0016E5_08159; None for any other picture."""
    sequence, _, number = frame.partition("_")
    number = number.removeprefix("f")
    parts = (split for (name, last), split in _CAMVID_FRAMES.items() if name == sequence and int(number) <= last)
    return next(parts, None) if number.isdecimal() else None


def _read_folder(root, split):
    classes = read_class_names(root)
    images, masks, list_file = root / "images", root / "masks", root / f"{split}.txt"
    if (root / split / "images").is_dir():
        photos, masks = _photos(root / split / "images"), root / split / "masks"
    elif not images.is_dir():
        raise DatasetError(f"{images}: not found; give the folder that holds images/, masks/ and classes.txt")
    elif split == "all" and not list_file.exists():
        photos = _photos(images)
    elif split in ("train", "val") and not any((root / name).exists() for name in _SPLITS):
        numbered = enumerate(_photos(images))
        photos = [photo for number, photo in numbered if (number % _HELD_OUT == 0) == (split == "val")]
    else:
        advice = f"list the photos of the split in it, one name a line, or use {split}/images, or the split 'all'"
        found = _photos(images)
        by_name = {path.stem: path for path in found} | {path.name: path for path in found}
        photos = [by_name.get(name, images / name) for name in _read_names(list_file, advice)]
    return classes, _pairs(photos, masks), _label_map(range(len(classes)))


def _photos(folder):
    """Pictures in a folder, by name; hidden files are none."""
    photos = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PHOTO_ENDINGS and not path.name.startswith("."):
            if path.stem in photos:
                raise DatasetError(f"{path}: would have the same mask as {photos[path.stem].name}; rename one of them")
            photos[path.stem] = path
    return list(photos.values())


def _is_scaled(mask):
    """Whether Pillow brings the values of a grey picture of 2 or 4 bits to those of 8."""
    # A file's own mode is what its decoder is told first.
    told = (str(arguments) for *_, arguments in getattr(mask, "tile", ()))
    return mask.mode == "L" and any(re.match(r"\W*L;[24]", arguments) for arguments in told)


def _pairs(photos, masks):
    """Photos with the PNG masks of the same name in a folder."""
    return [(photo, masks / f"{photo.stem}.png") for photo in photos]


def _read_names(path, advice):
    """Lines of a file that are not empty."""
    return [line for line in _read_lines(path, advice) if line]


def _read_lines(path, advice):
    """Lines of a text file, without the spaces around them; `advice` says what to do where it is missing."""
    try:
        if path.exists() and not path.is_file():
            raise DatasetError(f"{path}: no file; {advice}")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise DatasetError(f"{path}: not found; {advice}") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: not a text in UTF-8; {advice}") from None


def _listed(names, most=4):
    """Names for a message; of many the first few."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} and {len(names) - most} more"


def _label_map(labels):
    """A label map for mask values that count from 0; beyond them nothing but ``IGNORE`` is valid."""
    labels = list(labels)
    label_map = np.full(256, INVALID, np.uint8)
    label_map[: len(labels)] = labels
    label_map[IGNORE] = IGNORE
    return label_map


def _color_codes(colors):
    """Colours, uint8 (..., 3), as one number each: 0xRRGGBB."""
    return colors.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


_READERS = {
    "camvid": _read_camvid,
    "cityscapes": _read_cityscapes,
    "folder": _read_folder,
    "voc": _read_voc,
    "voc7": _read_voc7,
}
"""For each kind, from its folder and a split: classes that its masks tell apart, samples, label map, colours if any."""

KINDS = tuple(_READERS)
"""What `open_dataset` reads."""
