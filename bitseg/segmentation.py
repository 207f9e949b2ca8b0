"""The result of segmenting one photo."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .errors import BitsegError, unknown
from .images import check_output, save_result
from .rle import encode_rle

NOTHING = 255
"""Value in a mask of pixels that `Segmentation.keep` takes out, where a model has no background."""

_SMALLEST_FONT = 9
"""Height in pixels below which a legend is left out, because nobody could read it."""


def class_id(name: str, class_names: tuple[str, ...]) -> int:
    """Find a class.

    Parameters
    ----------
    name : str
    class_names : tuple of str

    Returns
    -------
    int
        Its value in masks.

    Raises
    ------
    BitsegError
        There is no such class.
    """
    if name not in class_names:
        raise BitsegError(unknown("class", name, class_names))
    return class_names.index(name)


@dataclass(frozen=True)
class FoundClass:
    """A class that occurs in a picture.

    Attributes
    ----------
    id : int
        Its value in the mask.
    name : str
        Its name.
    pixels : int
        How many pixels it has.
    share : float
        Which part of the picture that is, above 0 and up to 1.
    """

    id: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A photo and the class of each of its pixels.

    Attributes
    ----------
    picture : PIL.Image.Image
        The photo, upright, mode RGB.
    image : ndarray of uint8, shape (height, width, 3)
        The same as an array, made when it is first asked for: red, green, blue.
    mask : ndarray of uint8, shape (height, width)
        Class id of every pixel; 255 for none, see `keep`.
    class_names : tuple of str
        All classes that the model knows; the position is the class id.
    palette : ndarray of uint8, shape (classes, 3)
        Colour of every class: red, green, blue.
    seconds : float
        How long it took from the photo, read, to the mask at its size.
    path : pathlib.Path or None
        Where the photo came from; None if it was not given by path.
    scores : ndarray of float32, shape (classes, rows, columns), or None
        What the network gives each class, at a quarter, rounded up, of the size at which it saw the photo. The mask is
        where they, brought to the photo's size, are largest. None unless asked for.

    Examples
    --------
    >>> import bitseg
    >>> segmentation = bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg")
    >>> [found.name for found in segmentation.classes]
    ['cat', 'background']
    """

    picture: Image.Image
    mask: np.ndarray
    class_names: tuple[str, ...]
    palette: np.ndarray
    seconds: float
    path: Path | None = None
    scores: np.ndarray | None = None

    @cached_property
    def image(self) -> np.ndarray:
        """The photo: uint8, shape (height, width, 3)."""
        return np.array(self.picture)

    @cached_property
    def classes(self) -> list[FoundClass]:
        """Classes that occur in the picture: list of `FoundClass`, the largest first."""
        pixels = Image.fromarray(self.mask).histogram()
        order = sorted(range(len(self.class_names)), key=lambda i: -pixels[i])
        return [FoundClass(i, self.class_names[i], pixels[i], pixels[i] / self.mask.size) for i in order if pixels[i]]

    def share(self, name: str) -> float:
        """Which part of the picture a class has, 0 to 1.

        Parameters
        ----------
        name : str
            One of `class_names`.

        Raises
        ------
        BitsegError
            The model knows no such class.

        Examples
        --------
        >>> import bitseg
        >>> bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg").share("dog")
        0.0
        """
        i = class_id(name, self.class_names)
        return sum((found.share for found in self.classes if found.id == i), 0.0)

    def keep(self, names: str | Iterable[str]) -> "Segmentation":
        """Take all classes but some out of the mask.

        Parameters
        ----------
        names : str or sequence of str
            Classes that stay, of `class_names`.

        Returns
        -------
        Segmentation
            Other pixels are background, or 255 where the model has no such class.

        Raises
        ------
        BitsegError
            The model knows no class of such a name.

        Examples
        --------
        >>> import bitseg
        >>> segmentation = bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg")
        >>> [found.name for found in segmentation.keep("person").classes]
        ['background']
        """
        names = [names] if isinstance(names, str) else names
        ids = [class_id(name, self.class_names) for name in names]
        nothing = self.class_names.index("background") if "background" in self.class_names else NOTHING
        new_ids = np.full(256, nothing, np.uint8)
        new_ids[ids] = ids
        return replace(self, mask=new_ids[self.mask])

    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """The smallest box around the pixels of each class that occurs, except background.

        Returns
        -------
        dict of str to (int, int, int, int)
            Left, top, right and bottom in pixels, right and bottom exclusive: what `PIL.Image.Image.crop` takes.

        Examples
        --------
        >>> import bitseg
        >>> segmentation = bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg")
        >>> left, top, right, bottom = segmentation.boxes()["cat"]
        >>> 0 <= left < right <= 451 and 0 <= top < bottom <= 300
        True
        """
        return {found.name: _box_of(self.mask == found.id) for found in self._found_objects()}

    def color(self) -> Image.Image:
        """The class colours alone: an RGB picture of the photo's size, black where there is no class."""
        return self._indexed().convert("RGB")

    def overlay(self, opacity: float = 0.5, legend: bool = True) -> Image.Image:
        """Tint the photo with the colours of its classes, outline them, and add a legend.

        Background keeps the photo's own colours. The legend grows with the picture, takes the corner where it hides
        least, and is left out where it does not fit.

        Parameters
        ----------
        opacity : float
            Strength of the tint: 0 shows the photo alone, 1 the class colours alone.
        legend : bool
            Whether to name the colours.

        Returns
        -------
        PIL.Image.Image
            Mode RGB, of the photo's size.

        Raises
        ------
        BitsegError
            `opacity` is not between 0 and 1.
        """
        if not 0 <= opacity <= 1:
            raise BitsegError(f"opacity {opacity}: give a number from 0 to 1")
        tinted = self._is_object()
        line_width = max(1, round(max(self.mask.shape) / 800))
        picture = self.picture.copy()
        picture.paste(Image.blend(picture, self.color(), opacity), mask=Image.fromarray(tinted))
        picture.paste("white", mask=Image.fromarray(_outline(self.mask, line_width) & tinted))
        shown = [(found.name, tuple(self.palette[found.id].tolist())) for found in self._found_objects()]
        if shown and legend:
            _draw_legend(picture, shown, tinted)
        return picture

    def cutout(self) -> Image.Image:
        """The photo without its background.

        Returns
        -------
        PIL.Image.Image
            Mode RGBA, of the photo's size. Background is transparent black, so nothing of it is left in the file; the
            outermost pixel of objects is translucent, but not where the picture ends.
        """
        is_object = self._is_object()
        picture = Image.new("RGB", is_object.shape[::-1])
        picture.paste(self.picture, mask=Image.fromarray(is_object))
        picture.putalpha(Image.fromarray(_soften(is_object)))
        picture.info = self.picture.info.copy()
        return picture

    def to_coco(self, image_id: int = 0, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Annotations as in the COCO data set, one for each class that occurs, except background.

        Parameters
        ----------
        image_id : int
            The photo's id in the data set.
        category_ids : dict of str to int, or None
            Category id of each class by name; None: the class ids.

        Returns
        -------
        list of dict
            ``image_id``, ``category_id``, ``category_name``, ``bbox`` ([x, y, width, height]), ``area`` (pixels),
            ``iscrowd`` (1: several objects of a class are one area) and ``segmentation``
            (`bitseg.rle.encode_rle`). `json.dumps` takes it. An ``id``, unique in the data set, is left to the caller.

        Raises
        ------
        BitsegError
            A class that occurs has no category id.

        Examples
        --------
        >>> import bitseg
        >>> segmentation = bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg")
        >>> (annotation,) = segmentation.to_coco(image_id=7, category_ids={"cat": 17})
        >>> annotation["image_id"], annotation["category_id"], annotation["segmentation"]["size"]
        (7, 17, [300, 451])
        """
        if category_ids is None:
            category_ids = {name: i for i, name in enumerate(self.class_names)}
        annotations = []
        for found, bbox, rle in self._areas(self._found_objects()):
            if found.name not in category_ids:
                raise BitsegError(f"no category id for '{found.name}': add it to category_ids, or keep() other classes")
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": category_ids[found.name],
                    "category_name": found.name,
                    "bbox": bbox,
                    "area": found.pixels,
                    "iscrowd": 1,
                    "segmentation": rle,
                }
            )
        return annotations

    def summary(self) -> dict[str, Any]:
        """What was found, as `json.dumps` takes it.

        Returns
        -------
        dict
            ``width`` and ``height`` of the photo, and ``classes``: for each class that occurs, the largest first, its
            ``id``, ``name``, ``pixels``, ``share``, ``bbox`` ([x, y, width, height]) and ``rle``
            (`bitseg.rle.encode_rle`).
        """
        height, width = self.mask.shape
        classes = [{**vars(found), "bbox": bbox, "rle": rle} for found, bbox, rle in self._areas(self.classes)]
        return {"width": width, "height": height, "classes": classes}

    def save(self, target: str | os.PathLike | BinaryIO, kind: str = "mask", **options):
        """Save the mask, or another view of the result.

        Parameters
        ----------
        target : path or binary file
            File to be written; an existing one is replaced. Its ending decides the format; a file object gets PNG,
            JSON or NPZ.
        kind : {"mask", "color", "overlay", "cutout", "json", "scores"}
            ``mask``: indexed PNG whose pixel values are class ids, shown in the colours of the palette. ``color``,
            ``overlay``, ``cutout``: the pictures that the methods of these names make. ``json``: `summary`.
            ``scores``: NumPy's ``.npz`` with `scores` and `class_names`.
        **options
            For the method that makes it, for example ``opacity=0.7`` for an overlay.

        Raises
        ------
        ImageError
            There is no such kind, the name has another ending than this kind can have, or the file cannot be written.
            Nothing partial is left behind.
        BitsegError
            `predict` was not asked for scores, or the kind has no such option.

        Examples
        --------
        >>> import bitseg
        >>> segmentation = bitseg.load("voc7-w2a2").predict("examples/chelsea.jpg")
        >>> segmentation.save("mask.png")
        >>> segmentation.save("overlay.jpg", "overlay", opacity=0.7)
        """
        make = {
            "mask": self._indexed,
            "color": self.color,
            "overlay": self.overlay,
            "cutout": self.cutout,
            "json": self.summary,
            "scores": self._named_scores,
        }
        check_output(target, kind)
        for name in options:
            if name not in signature(make[kind]).parameters:
                raise BitsegError(f"kind '{kind}' has no option '{name}'; an overlay has opacity and legend")
        save_result(make[kind](**options), target, kind)

    def __repr__(self):
        height, width = self.mask.shape
        found = ", ".join(f"{found.name} {found.share:.1%}" for found in self.classes)
        return f"<Segmentation {width}x{height}: {found}>"

    def _is_object(self):
        """Where the mask has a class other than background: bool, shape (height, width)."""
        is_object = np.zeros(256, bool)
        is_object[: len(self.class_names)] = [name != "background" for name in self.class_names]
        return is_object[self.mask]

    def _found_objects(self):
        return [found for found in self.classes if found.name != "background"]

    def _areas(self, classes):
        """Each class with its box, as COCO writes boxes, and its run-length encoding."""
        mask = np.asfortranarray(self.mask)
        for found in classes:
            is_here = mask == found.id
            left, top, right, bottom = _box_of(is_here)
            yield found, [left, top, right - left, bottom - top], encode_rle(is_here)

    def _colors(self):
        """Colour of every value that a mask can have; black where it is no class."""
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self.palette)] = self.palette
        return colors

    def _indexed(self):
        indexed = Image.fromarray(self.mask)
        # A PNG has as many bits a pixel as its palette needs.
        colors = self._colors() if (self.mask == NOTHING).any() else self.palette
        indexed.putpalette(colors.tobytes())
        return indexed

    def _named_scores(self):
        if self.scores is None:
            raise BitsegError("there are no scores: ask for them with predict(..., scores=True)")
        return {"scores": self.scores, "class_names": np.array(self.class_names)}


def _box_of(area):
    """Left, top, right and bottom of the True pixels of a (height, width) array."""
    rows, columns = (np.flatnonzero(area.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _soften(area):
    """Alpha of an area: weights 1 2 1 down and across, outside 0; beyond the picture it goes on as at the rim."""
    sums = np.pad(area.astype(np.uint8), 1, "edge")
    sums = sums[:-2] + 2 * sums[1:-1] + sums[2:]
    sums = sums[:, :-2] + 2 * sums[:, 1:-1] + sums[:, 2:]
    sixteenths = np.arange(17) * 255 // 16
    return sixteenths.astype(np.uint8)[sums] * area


def _outline(mask, line_width):
    """Pixels of a boolean (height, width) array that lie within `line_width` of another class."""
    outline = np.zeros(mask.shape, bool)
    ahead, behind = slice(line_width, None), slice(None, -line_width)
    for first, second in (((ahead,), (behind,)), ((slice(None), ahead), (slice(None), behind))):
        differs = mask[first] != mask[second]
        outline[first] |= differs
        outline[second] |= differs
    return outline


def _draw_legend(picture, entries, occupied):
    """Draw names and colours into the corner of `picture` where `occupied` has the fewest pixels, if they fit."""
    size = max(11, round((picture.width * picture.height) ** 0.5 / 30))
    while size >= _SMALLEST_FONT:
        font = ImageFont.load_default(size)
        row, padding = round(1.4 * size), size // 2
        text_left = padding + size + padding
        width = text_left + max(round(font.getlength(name)) for name, _ in entries) + padding
        height = padding + row * len(entries) + padding
        if width <= picture.width and height <= picture.height:
            break
        size = size * 4 // 5
    else:
        return

    corners = [(x, y) for y in (0, picture.height - height) for x in (0, picture.width - width)]
    x, y = min(corners, key=lambda corner: np.count_nonzero(_window(occupied, corner, width, height)))
    panel = picture.crop((x, y, x + width, y + height))
    panel = Image.blend(panel, Image.new("RGB", panel.size), 0.65)
    draw = ImageDraw.Draw(panel)
    for i, (name, color) in enumerate(entries):
        middle = padding + row * i + row // 2
        swatch = (padding, middle - size // 2, padding + size, middle - size // 2 + size)
        draw.rectangle(swatch, fill=color, outline="white", width=max(1, size // 16))
        draw.text((text_left, middle), name, fill="white", font=font, anchor="lm")
    picture.paste(panel, (x, y))


def _window(array, corner, width, height):
    x, y = corner
    return array[y : y + height, x : x + width]
