"""Make the picture at the top of README with the default model: `python -m tools.make_pictures`."""

from pathlib import Path

import click
from PIL import Image

import bitseg

ROOT = Path(__file__).parent.parent
HEIGHT = 300


@click.command(context_settings={"show_default": True})
@click.option("--output", type=click.Path(), default=ROOT / "docs" / "pictures" / "examples.jpg", help="File to write.")
def main(output):
    """Write the example photos, each beside its overlay."""
    segmenter = bitseg.load()
    pictures = []
    for name in ("chelsea.jpg", "astronaut.jpg"):
        segmentation = segmenter.predict(ROOT / "examples" / name)
        for picture in (segmentation.picture, segmentation.overlay()):
            pictures.append(picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT)))
    strip = Image.new("RGB", (sum(picture.width for picture in pictures), HEIGHT))
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    strip.save(output, quality=90)


if __name__ == "__main__":
    main()
