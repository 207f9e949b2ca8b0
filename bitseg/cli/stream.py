"""``bitseg stream``."""

import time

import click

from ..errors import BitsegError
from .common import (
    ImageSize,
    WorkingSize,
    check_standard_output,
    classes_option,
    jobs_option,
    kernel_option,
    model_option,
    opacity_option,
    palette_option,
    quiet_option,
    standard_input,
    threads_option,
    write_standard_output,
)


@click.command()
@click.option("--size", type=ImageSize(multiple=1), required=True, metavar="WIDTHxHEIGHT", help="Size of the frames.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["overlay", "mask"]),
    default="overlay",
    help="overlay: the frame, tinted, as rgb24; mask: class ids, as gray.",
)
@model_option
@classes_option
@opacity_option
@palette_option
@click.option(
    "--working-size",
    type=WorkingSize(),
    metavar="PIXELS|native",
    show_default="the model's own",
    help="Long side at which larger frames are segmented; smaller is faster.",
)
@threads_option
@jobs_option
@kernel_option
@quiet_option
def stream(size, kind, model, classes, opacity, palette, working_size, threads, jobs, kernel, quiet):
    """Segment video: raw frames on standard input (ffmpeg's rgb24), as many on standard output.

    \b
    ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 -s 640x360 - \\
      | bitseg stream --size 640x360 \\
      | ffmpeg -f rawvideo -pix_fmt rgb24 -s 640x360 -r 25 -i - out.mp4

    Frames are read ahead while others are in work. With --jobs 1 each is answered before the next is read.
    """
    if opacity is not None and kind != "overlay":
        raise click.UsageError("--opacity is for --as overlay")
    frames = _frames(standard_input("raw frames"), *size)
    check_standard_output("frames")
