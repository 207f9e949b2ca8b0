"""Blur people in photos.

    python privacy_filter.py PHOTO... FOLDER

Each photo is written to FOLDER as NAME.blurred.jpg, without its metadata (which may say where it was taken). Models
miss people, above all small ones: look at each photo before you publish it. To be on the safe side, this blurs wherever
a person is likely to some degree, not only where a person is the most likely, and a margin around it.
"""

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageFilter

import bitseg


def blur(segmentation, name, least_probability):
    """The photo, with everything blurred that is likely to be of a class.

    Parameters
    ----------
    segmentation : bitseg.Segmentation
        With scores.
    name : str
    least_probability : float
        0 to 1.

    Returns
    -------
    PIL.Image.Image
    """
    scores = np.exp(segmentation.scores - segmentation.scores.max(axis=0))
    probability = (scores / scores.sum(axis=0))[segmentation.class_names.index(name)]
    # One cell of the scores is the margin.
    is_likely = Image.fromarray(np.uint8(255 * (probability >= least_probability))).filter(ImageFilter.MaxFilter(3))
    photo = segmentation.picture.copy()
    # First to a few large cells, because a blur alone can partly be undone.
    cells = photo.reduce(max(1, max(photo.size) // 25)).resize(photo.size, Image.Resampling.BICUBIC)
    photo.paste(cells, mask=is_likely.resize(photo.size, Image.Resampling.NEAREST))
    return photo


@click.command(context_settings={"show_default": True})
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--class", "name", default="person", help="What is blurred.")
@click.option("--probability", type=click.FloatRange(0, 1), default=0.1, help="How likely it must be; 0 blurs all.")
@click.option("--model", default="voc7-w4a4", help="Name of an installed model, or path of an .h5 file.")
def main(photos, folder, name, probability, model):
    """Blur people in PHOTOS and write the results to FOLDER."""
    failed = []

    def report(photo, error):
        failed.append(photo)
        click.echo(f"Error: {error}", err=True)

    if not 0 <= probability <= 1:  # FloatRange lets through what is no number
        raise click.UsageError("--probability must be a number from 0 to 1")
    try:
        segmenter = bitseg.load(model)
        if name not in segmenter.class_names:
            raise bitseg.BitsegError(f"the model knows no '{name}': choose one of {', '.join(segmenter.class_names)}")
        for segmentation in segmenter.predict_many(photos, on_error=report, scores=True):
            target = folder / f"{segmentation.path.stem}.blurred.jpg"
            if target.exists():
                report(segmentation.path, f"{target}: exists already; choose another folder")
                continue
            try:
                blur(segmentation, name, probability).save(target, quality=90)
            except OSError as error:
                target.unlink(missing_ok=True)
                report(segmentation.path, f"{target}: cannot be written ({error})")
                continue
            click.echo(target)
    except (bitseg.BitsegError, OSError) as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
