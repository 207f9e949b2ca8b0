"""The result of segmenting one photo."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .images import save_picture

_SMALLEST_FONT = 9
"""Height in pixels below which a legend is left out, because nobody could read it."""


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
    image : ndarray of uint8, shape (height, width, 3)
        The photo, upright: red, green, blue.
    mask : ndarray of uint8, shape (height, width)
        Class id of every pixel.
    class_names : tuple of str
        All classes that the model knows; the position is the class id.
    palette : ndarray of uint8, shape (classes, 3)
        Colour of every class: red, green, blue.
    seconds : float
        How long the network took.
    """

    image: np.ndarray
    mask: np.ndarray
    class_names: tuple
    palette: np.ndarray
    seconds: float

    @cached_property
    def classes(self):
        """Classes that occur in the picture: list of `FoundClass`, the largest first."""
        pixels = np.bincount(self.mask.ravel(), minlength=len(self.class_names))
        return [
            FoundClass(int(i), self.class_names[i], int(pixels[i]), float(pixels[i] / self.mask.size))
            for i in np.argsort(-pixels, kind="stable")
            if pixels[i]
        ]

    def overlay(self, opacity=0.5):
        """Tint the photo with the colours of its classes, outline them, and add a legend.

        Background keeps the photo's own colours. The legend grows with the picture, takes the corner where it hides
        least, and is left out where it does not fit.

        Parameters
        ----------
        opacity : float
            Strength of the tint: 0 shows the photo alone, 1 the class colours alone.

        Returns
        -------
        PIL.Image.Image
            Mode RGB, of the photo's size.

        Raises
        ------
        ValueError
            `opacity` is not between 0 and 1.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity {opacity}: give a number from 0 to 1")
        tinted_ids = np.array([name != "background" for name in self.class_names])
        tinted = tinted_ids[self.mask]
        line_width = max(1, round(max(self.mask.shape) / 800))
        outline = _outline(self.mask, line_width) & tinted
        colors = np.where(tinted[:, :, None], self.palette[self.mask], self.image)
        overlay = np.array(Image.blend(Image.fromarray(self.image), Image.fromarray(colors), opacity))
        overlay[outline] = 255
        picture = Image.fromarray(overlay)
        shown = [(found.name, tuple(self.palette[found.id].tolist())) for found in self.classes if tinted_ids[found.id]]
        if shown:
            _draw_legend(picture, shown, tinted)
        return picture

    def save(self, path):
        """Save the mask as an indexed PNG: a pixel's value is its class id, its colour comes from the palette.

        Parameters
        ----------
        path : path
            File to be written, ending in ``.png``; an existing one is replaced.

        Raises
        ------
        ImageError
            The name does not end in ``.png``, or the file cannot be written. Nothing partial is left behind.
        """
        indexed = Image.fromarray(self.mask)
        indexed.putpalette(self.palette.tobytes())
        save_picture(indexed, path, "mask")

    def __repr__(self):
        height, width = self.mask.shape
        found = ", ".join(f"{found.name} {found.share:.1%}" for found in self.classes)
        return f"<Segmentation {width}x{height}: {found}>"


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
    x, y = min(corners, key=lambda corner: np.count_nonzero(_box(occupied, corner, width, height)))
    panel = picture.crop((x, y, x + width, y + height))
    panel = Image.blend(panel, Image.new("RGB", panel.size), 0.65)
    draw = ImageDraw.Draw(panel)
    for i, (name, color) in enumerate(entries):
        middle = padding + row * i + row // 2
        swatch = (padding, middle - size // 2, padding + size, middle - size // 2 + size)
        draw.rectangle(swatch, fill=color, outline="white", width=max(1, size // 16))
        draw.text((text_left, middle), name, fill="white", font=font, anchor="lm")
    picture.paste(panel, (x, y))


def _box(array, corner, width, height):
    x, y = corner
    return array[y : y + height, x : x + width]
