"""Make the pictures of README and of the model cards: `python -m tools.make_pictures`."""

from pathlib import Path

import click
from PIL import Image

import bitseg

ROOT = Path(__file__).parent.parent
PHOTOS = "chelsea.jpg", "astronaut.jpg"
HEIGHT = 300


@click.command(context_settings={"show_default": True})
@click.option("--output", type=click.Path(), default=ROOT / "docs" / "pictures", help="Folder to write to.")
def main(output):
    """Write the example photos beside what the default model finds, and what the models of each bit width find."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    segmenter = bitseg.load()
    found = [segmenter.predict(ROOT / "examples" / name) for name in PHOTOS]
    pairs = [picture for segmentation in found for picture in (segmentation.picture, segmentation.overlay())]
    _strip(pairs).save(folder / "examples.jpg", quality=90)
    segmenters = [bitseg.load(f"voc7-{bits}") for bits in ("w4a4", "w2a2", "w1a2")]
    overlays = [segmenter.predict(ROOT / "examples" / name).overlay() for name in PHOTOS for segmenter in segmenters]
    _strip(overlays).save(folder / "bits.jpg", quality=90)


def _strip(pictures):
    """Pictures side by side, all of one height."""
    pictures = [picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT)) for picture in pictures]
    strip = Image.new("RGB", (sum(picture.width for picture in pictures), HEIGHT))
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    return strip


if __name__ == "__main__":
    main()
