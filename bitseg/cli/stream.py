"""``bitseg stream``."""

import time
from itertools import count

import click

from ..errors import BitsegError
from .common import (
    ImageSize,
    check_standard_output,
    classes_option,
    jobs_option,
    kernel_option,
    load_segmenter,
    model_option,
    opacity_option,
    palette_option,
    quiet_option,
    standard_input,
    threads_option,
    working_size_option,
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
@working_size_option("--working-size", "Long side at which larger frames are segmented; smaller is faster.")
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
    errors: list[BitsegError] = []
    frames = _frames(standard_input("raw frames"), *size, errors.append)
    check_standard_output("the frames")

    segmenter, jobs = load_segmenter(model, threads, jobs, kernel, palette, classes, quiet=quiet)

    from ..segmenter import in_order

    options = {} if opacity is None else {"opacity": opacity}

    def segment(frame):
        segmentation = segmenter.predict(frame, working_size)
        if classes:
            segmentation = segmentation.keep(classes)
        if kind == "mask":
            return segmentation.mask.tobytes()
        # No legend, which would jump from corner to corner.
        return segmentation.overlay(legend=False, **options).tobytes()

    began = time.perf_counter()
    written = 0
    for result in map(segment, frames) if jobs == 1 else in_order(segment, frames, jobs):
        write_standard_output(result)
        written += 1
    if errors:
        raise errors[0]
    if not quiet:
        seconds = time.perf_counter() - began
        click.echo(f"{written} frames in {seconds:.1f} s, {written / seconds:.1f} frames/s", err=True)


def _frames(file, width, height, on_error):
    """Frames of raw RGB video: uint8 arrays of shape (height, width, 3).

    Those before an incomplete or missing frame are whole, so its error is for the end: `on_error` is called with it.
    """
    import numpy as np

    size = 3 * width * height
    for number in count(1):
        content = file.read(size)
        if len(content) == size:
            yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
            continue
        if content:
            cut = f"standard input: ended within frame {number}, after {len(content)} of its {size} bytes"
            on_error(BitsegError(f"{cut}; are the frames rgb24 of {width}x{height}?"))
        elif number == 1:
            on_error(BitsegError("standard input: no frame came; look at the program before the pipe"))
        return
