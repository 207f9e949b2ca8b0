"""``bitseg predict``."""

from pathlib import Path

import click

from .common import WorkingSize, kernel_option, model_option, print_table, threads_option


@click.command()
@click.argument("photo", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    show_default="PHOTO.mask.png or PHOTO.overlay.png beside the photo",
    help="File to write: .png, or also .jpg for an overlay.",
)
@click.option("--overlay", is_flag=True, help="Write the photo with its classes tinted, instead of the mask.")
@model_option
@click.option(
    "--size",
    type=WorkingSize(),
    metavar="PIXELS|native",
    show_default="the model's own",
    help="Long side at which a larger photo is segmented. The mask is always of the photo's size.",
)
@threads_option
@kernel_option
def predict(photo, output, overlay, model, size, threads, kernel):
    """Segment PHOTO and write its mask.

    The mask is an indexed PNG of the photo's size: a pixel's value is its class id, its colour is the class colour.
    """
    from ..images import check_output, read_image
    from ..segmenter import load

    kind = "overlay" if overlay else "mask"
    image = read_image(photo)
    output = output or photo.with_suffix(f".{kind}.png")
    check_output(output, kind)
    if output.exists() and output.samefile(photo):
        raise click.UsageError("the output would replace the photo; choose another name with -o")

    segmentation = load(model, threads, kernel).predict(image, size=size)
    segmentation.save(output, kind)

    lines = [(found.name, f"{found.share:6.1%}") for found in segmentation.classes]
    lines += [("time", f"{segmentation.seconds:.3f} s"), (kind, click.format_filename(output))]
    print_table(lines)
