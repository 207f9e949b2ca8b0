"""The scores of a model as one HTML page that needs no other file: figures, confusion matrix, best and worst photos."""

import base64
import math
from bisect import bisect
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from .datasets import IGNORE
from .errors import ImageError
from .evaluation import class_scores
from .files import check_writable, write_safely
from .images import resize, working_shape
from .metrics import class_iou, mean_iou, pixel_accuracy
from .palette import palette_for

_THUMBNAIL_SIDE = 400
_THUMBNAIL_QUALITY = 80

_TINT = 0.6
"""Strength of the class colours on a photo."""

_IGNORED_COLOR = (255, 255, 255)


@dataclass(frozen=True)
class GalleryPhoto:
    """A photo in a report.

    Attributes
    ----------
    name : str
        Name of its file.
    miou : float
        Mean intersection over union in this photo alone, 0 to 1.
    iou : dict
        Intersection over union by class name; NaN where the photo has nothing of a class and none was found.
    truth, prediction : bytes
        The photo under the colours of the true and of the predicted classes, as small JPEG files.
    """

    name: str
    miou: float
    iou: dict
    truth: bytes
    prediction: bytes


class Gallery:
    """The best and the worst of any number of photos, as a bounded number of small pictures.

    Parameters
    ----------
    classes : sequence of str
        Class names; the position is the class id.
    size : int
        How many of the best, and how many of the worst, are kept.
    """

    def __init__(self, classes, size=6):
        self.classes, self.size = classes, size
        self._photos = []

    def add(self, evaluated):
        """Take a photo in, unless there are better ones and worse ones enough.

        Parameters
        ----------
        evaluated : bitseg.evaluation.EvaluatedPhoto
        """
        miou = mean_iou(evaluated.confusion)
        if math.isnan(miou):
            return
        full = len(self._photos) == 2 * self.size
        place = bisect(self._photos, miou, key=lambda photo: photo.miou)
        if full and place == self.size:
            return
        self._photos.insert(place, self._photo(evaluated, miou))
        if full:
            del self._photos[self.size]

    @property
    def best(self):
        """List of `GalleryPhoto`, the highest mIoU first."""
        return self._photos[len(self._photos) // 2 :][::-1]

    @property
    def worst(self):
        """List of `GalleryPhoto`, the lowest mIoU first; none of them is among the best."""
        return self._photos[: len(self._photos) // 2]

    def _photo(self, evaluated, miou):
        shape = working_shape(*evaluated.truth.shape, _THUMBNAIL_SIDE)
        photo = resize(evaluated.photo, shape)
        pictures = [
            _jpeg(_tinted(photo, _resize_labels(labels, shape), self.classes))
            for labels in (evaluated.truth, evaluated.prediction)
        ]
        iou = dict(zip(self.classes, class_iou(evaluated.confusion).tolist(), strict=True))
        return GalleryPhoto(evaluated.path.name, miou, iou, *pictures)


def check_report(path):
    """Find out, before any work is done, whether a report can be written.

    Parameters
    ----------
    path : path
        File to be written.

    Raises
    ------
    ImageError
        The name does not end in ``.html``, or the file cannot be written there.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ImageError(f"{path}: reports end in .html; change the name")
    check_writable(path, ImageError)


def write_report(path, title, facts, classes, confusion, gallery):
    """Write a report, whole or not at all.

    Parameters
    ----------
    path : path
        File to be written, ending in ``.html``; an existing one is replaced.
    title : str
        Heading of the page.
    facts : dict of str to str
        What was measured, and how: names and values.
    classes : sequence of str
        Class names; the position is the class id.
    confusion : ndarray of int64, shape (classes, classes)
        Row: true class; column: predicted class; unit: pixels.
    gallery : Gallery

    Raises
    ------
    ImageError
        As in `check_report`, or the disk is full.
    """
    check_report(path)
    with write_safely(path, ImageError) as file:
        # A file name need not be valid text.
        file.write(_page(title, facts, classes, confusion, gallery).encode("utf-8", "replace"))


def percent(share):
    """A share from 0 to 1 as text; a dash for NaN."""
    return "-" if math.isnan(share) else f"{share:.1%}"


def _page(title, facts, classes, confusion, gallery):
    figures = [
        ("mIoU", percent(mean_iou(confusion))),
        ("pixel accuracy", percent(pixel_accuracy(confusion))),
        ("classes", str(len(classes))),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<dl class="figures">{_pairs(figures)}</dl>
<dl class="facts">{_pairs(facts.items())}</dl>
<h2>Classes</h2>
{_class_table(classes, confusion)}
<h2>Confusion matrix</h2>
<p>Of all pixels of the class at the left, per cent found as the class above.</p>
{_confusion_table(classes, confusion)}
{_gallery_section("Best photos", gallery.best, classes)}
{_gallery_section("Worst photos", gallery.worst, classes)}
</body>
</html>
"""


def _pairs(items):
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)


def _class_table(classes, confusion):
    rows = []
    for row, color in zip(class_scores(confusion, classes), palette_for(classes), strict=True):
        bar = 0 if math.isnan(row.iou) else row.iou
        rows.append(
            f'<tr><th scope="row">{_swatch(color)}{escape(row.name)}</th>'
            f'<td class="bar" style="--bar:{bar:.1%}">{percent(row.iou)}</td>'
            f"<td>{percent(row.precision)}</td><td>{percent(row.recall)}</td><td>{percent(row.share)}</td></tr>"
        )
    heads = "".join(
        f'<th scope="col" title="{meaning}">{head}</th>'
        for head, meaning in (
            ("IoU", "pixels rightly found, of those that are of the class or were found as it"),
            ("precision", "pixels rightly found, of those found as the class"),
            ("recall", "pixels rightly found, of those of the class"),
            ("share", "pixels of the class, of all that count"),
        )
    )
    return (
        f'<div class="wide"><table class="classes"><thead><tr><th scope="col">class</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confusion_table(classes, confusion):
    heads = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    rows = []
    for true, name in enumerate(classes):
        total = confusion[true].sum()
        cells = "".join(
            _confusion_cell(confusion[true, found], total, f"{name} found as {classes[found]}", found == true)
            for found in range(len(classes))
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="confusion"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confusion_cell(pixels, total, meaning, is_hit):
    if total == 0:
        return "<td></td>"
    share = pixels / total
    kind = "hit" if is_hit else "miss"
    # The square root, so that an error of a few per cent shows.
    heat = f'class="{kind}{" deep" if share > 0.3 else ""}" style="--heat:{math.sqrt(share):.2f}"'
    title = escape(f"{meaning}: {share:.1%}, {pixels:,} pixels")
    return f'<td {heat} title="{title}">{f"{share * 100:.0f}" if share >= 0.005 else ""}</td>'


def _gallery_section(title, photos, classes):
    if not photos:
        return ""
    cards = "".join(_photo_card(photo, classes) for photo in photos)
    note = "By mIoU in the photo alone. Pale areas do not count."
    return f'<h2>{title}</h2>\n<p>{note}</p>\n<div class="gallery">{cards}</div>'


def _photo_card(photo, classes):
    pictures = "".join(
        f'<figure><img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" '
        f'alt="{kind} of {escape(photo.name)}"><figcaption>{kind}</figcaption></figure>'
        for kind, jpeg in (("truth", photo.truth), ("prediction", photo.prediction))
    )
    scores = ", ".join(
        f"<span>{_swatch(color)}{escape(name)} {percent(photo.iou[name])}</span>"
        for name, color in zip(classes, palette_for(classes), strict=True)
        if not math.isnan(photo.iou[name])
    )
    return (
        f'<article><h3>{escape(photo.name)} <b>{percent(photo.miou)}</b></h3><div class="pair">{pictures}</div>'
        f"<p>{scores}</p></article>"
    )


def _swatch(color):
    return f'<i style="background:#{bytes(color).hex()}"></i>'


def _resize_labels(labels, shape):
    return np.array(Image.fromarray(labels).resize(shape[::-1], Image.Resampling.NEAREST))


def _tinted(photo, labels, classes):
    """A photo, uint8 (height, width, 3), under the colours of its labels: background shows, ignored pixels are pale."""
    colors, strength = np.zeros((256, 3)), np.zeros(256)
    colors[: len(classes)], colors[IGNORE] = palette_for(classes), _IGNORED_COLOR
    strength[: len(classes)], strength[IGNORE] = [_TINT * (name != "background") for name in classes], _TINT
    strength = strength[labels][:, :, None]
    return (photo * (1 - strength) + colors[labels] * strength).astype(np.uint8)


def _jpeg(pixels):
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_THUMBNAIL_QUALITY)
    return file.getvalue()


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --text: #1b1f24; --quiet: #5d6672; --line: #d9dee4;
  --hit: 9, 105, 218; --miss: 200, 80, 0;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --text: #e4e8ed; --quiet: #98a3b0; --line: #313943;
    --hit: 56, 130, 230; --miss: 214, 98, 20;
  }
}
* { box-sizing: border-box; }
body {
  max-width: 68rem; margin: 2rem auto; padding: 0 1.25rem; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .6rem; break-after: avoid; }
p { margin: .3rem 0 .7rem; color: var(--quiet); }
dl { margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
dt { color: var(--quiet); }
.figures { display: flex; flex-wrap: wrap; gap: 2.5rem; }
.figures dd { font-size: 2rem; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
.facts { margin-top: 1.25rem; border-bottom: 1px solid var(--line); }
.facts div { display: grid; grid-template-columns: 7rem 1fr; padding: .25rem 0; border-top: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { font-weight: 500; text-align: left; white-space: nowrap; }
.classes th, .classes td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
.classes td, .classes thead th + th { text-align: right; }
.classes thead th { color: var(--quiet); }
i {
  display: inline-block; width: .8em; height: .8em; margin-right: .4em; vertical-align: -.05em;
  border: 1px solid var(--line); border-radius: 3px;
}
.classes .bar {
  width: 14rem;
  background: linear-gradient(rgba(var(--hit), .3) 0 0) left center / calc(var(--bar) * .7) 60% no-repeat;
}
.confusion { font-size: .85rem; }
.confusion td { min-width: 2.6rem; height: 2.1rem; text-align: center; border: 1px solid var(--page); }
.confusion th { padding: .2rem .6rem .2rem 0; text-align: right; position: sticky; left: 0; background: var(--page); }
.confusion thead th { padding: .2rem 0 .4rem; position: static; vertical-align: bottom; text-align: center; }
.confusion thead span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); }
.hit { background: rgba(var(--hit), var(--heat)); }
.miss { background: rgba(var(--miss), var(--heat)); }
.deep { color: #fff; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1.5rem; }
.gallery h3 { margin: 0 0 .35rem; font-size: .95rem; font-weight: 500; overflow-wrap: anywhere; }
.gallery b { float: right; font-variant-numeric: tabular-nums; }
.gallery span { white-space: nowrap; }
.gallery p { margin: .35rem 0 0; font-size: .85rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; align-items: start; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { color: var(--quiet); font-size: .8rem; }
article { break-inside: avoid; }
@media (max-width: 40rem) {
  .gallery { grid-template-columns: 1fr; }
  .classes .bar { width: auto; background: none; }
}
@media print {
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  .gallery { grid-template-columns: 1fr 1fr; }
  .wide { overflow: visible; }
  .confusion td { min-width: 1.75rem; height: 1.75rem; }
  h2 + p { break-after: avoid; }
}
"""
