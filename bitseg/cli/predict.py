"""``bitseg predict``."""

import io
import os
import sys
import time

import click

from ..errors import BitsegError, ImageError
from .common import (
    FileName,
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
    table,
    threads_option,
    working_size_option,
    write_standard_output,
)

KINDS = "mask", "color", "overlay", "cutout", "json", "scores"

KEPT_BLOCKS = 16
"""Blocks of memory, of up to 16 MB, that Pillow keeps for the next photo instead of asking the system for them anew,
which is a fifth of the time for a photo of 12 megapixels."""

SECONDS_BETWEEN_LINES = 10
"""How often progress is reported where it cannot be a bar, for example in the log of a nightly job."""


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=FileName())
@click.option(
    "-o",
    "--output",
    type=FileName(),
    show_default="PHOTO.mask.png or the like, beside each photo",
    help="File, folder (it exists, or has no ending or a / at its end), or - for standard output.",
)
@click.option("--as", "kind", type=click.Choice(KINDS), default="mask", help="What to write, see above.")
@click.option("--overlay", is_flag=True, help="Short for --as overlay.")
@model_option
@classes_option
@opacity_option
@palette_option
@working_size_option(
    "--size", "Long side at which a larger photo is segmented. The result is always of the photo's size."
)
@click.option(
    "-r", "--recursive", is_flag=True, help="Also the photos in a folder's folders; OUTPUT gets the same tree."
)
@click.option(
    "--skip-existing/--overwrite",
    default=False,
    show_default="overwrite",
    help="What to do where a result exists already. A photo is never overwritten.",
)
@threads_option
@jobs_option
@kernel_option
@quiet_option
def predict(
    inputs,
    output,
    kind,
    overlay,
    model,
    classes,
    opacity,
    palette,
    size,
    recursive,
    skip_existing,
    threads,
    jobs,
    kernel,
    quiet,
):
    """Segment photos: files, folders, quoted patterns like "*.jpg", or - for standard input.

    \b
    --as mask     indexed PNG: a pixel's value is its class id, shown in the class colour
         color    the class colours alone (.png, .jpg)
         overlay  the photo, tinted, with a legend (.png, .jpg, .webp)
         cutout   the photo without its background (.png, .webp)
         json     for each class its pixels, share, bounding box and COCO run lengths
         scores   NumPy's .npz: what the network gives each class

    Of several photos that fail, each is named at the end, and the exit status is 1.
    """
    if overlay and kind not in ("mask", "overlay"):
        raise click.UsageError(f"--overlay is short for --as overlay; leave it or --as {kind} out")
    kind = "overlay" if overlay else kind
    if opacity is not None and kind != "overlay":
        raise click.UsageError("--opacity is for --as overlay")
    if classes and kind == "scores":
        raise click.UsageError("--classes is not for --as scores, which has those of every class")
    from .photos import find_photos, plan

    inputs = ["-" if text == "/dev/stdin" else text for text in inputs]
    output = "-" if output == "/dev/stdout" else output
    failures: list[BitsegError] = []
    tasks = plan(find_photos(inputs, recursive, failures.append), kind, output, failures.append)
    named = len(tasks) + len(failures)
    waiting = [task for task in tasks if not (skip_existing and task.target and os.path.exists(task.target))]
    to_standard_output = any(task.target is None for task in waiting)
    if to_standard_output:
        check_standard_output("the result")

    lines = []
    if waiting:
        segmenter, jobs = load_segmenter(model, threads, jobs, kernel, palette, classes, len(waiting), quiet)
        segment = _segment_function(segmenter, kind, classes, opacity, size)
        if named == 1:
            lines = _describe(segment(*waiting), kind, *waiting)
        else:
            from PIL import Image

            from ..segmenter import in_order

            Image.core.set_blocks_max(KEPT_BLOCKS)
            began = time.perf_counter()
            outcomes = in_order(_returning_errors(segment), waiting, jobs)
            errors = [error for error in _show_progress(outcomes, len(waiting), quiet) if error]
            seconds = time.perf_counter() - began
            done, speed = len(waiting) - len(errors), len(waiting) / seconds
            lines = [f"{done} of {named} photos in {seconds:.1f} s, {speed:.1f} photos/s"]
            failures += errors
    if len(waiting) < len(tasks):
        lines.append(f"{len(tasks) - len(waiting)} skipped: the {kind} exists already")
    if not quiet:
        for line in lines:
            click.echo(line, err=to_standard_output)
    _report(failures, named)


def _segment_function(segmenter, kind, classes, opacity, size):
    """A function that segments the photo of a `photos.Task`, writes the result, and returns a `Segmentation`."""
    options = {} if opacity is None else {"opacity": opacity}

    def segment(task):
        try:
            image = task.photo.path or _photo_from_standard_input()
            segmentation = segmenter.predict(image, size, scores=kind == "scores")
            if classes:
                segmentation = segmentation.keep(classes)
            if task.target is None:
                content = io.BytesIO()
                segmentation.save(content, kind, **options)
                write_standard_output(content.getvalue())
            else:
                _make_folder(task.target.parent)
                segmentation.save(task.target, kind, **options)
        except MemoryError as error:
            mend = "make the photo smaller, or give a smaller --size"
            raise ImageError(f"{task.photo}: not enough memory; {mend}") from error
        return segmentation

    return segment


def _photo_from_standard_input():
    content = standard_input("a photo").read()
    if not content:
        raise ImageError("standard input: nothing came; look at the program before the pipe")
    photo = io.BytesIO(content)
    photo.name = "standard input"  # for messages
    return photo


def _make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: cannot be created ({error.strerror}); choose another place with -o") from error


def _returning_errors(segment):
    """The function without its results, which would fill the memory, but with its errors as results."""

    def attempt(task):
        try:
            segment(task)
        except BitsegError as error:
            return error

    return attempt


def _describe(segmentation, kind, task):
    """Lines that say what is on a photo."""
    rows = [(found.name, f"{found.share:6.1%}") for found in segmentation.classes]
    rows.append(("time", f"{segmentation.seconds:.3f} s"))
    if task.target is not None:
        rows.append((kind, click.format_filename(task.target)))
    return table(rows)


def _show_progress(outcomes, total, quiet):
    """Pass outcomes on, and show on stderr how far the work is."""
    began = last_line = time.perf_counter()
    if quiet:
        yield from outcomes
    elif sys.stderr.isatty():
        bar = click.progressbar(
            outcomes,
            total,
            file=sys.stderr,
            show_pos=True,
            item_show_func=lambda _: f"{bar.pos / (time.perf_counter() - began):.1f} photos/s",
        )
        with bar:
            yield from bar
    else:
        for done, outcome in enumerate(outcomes, 1):
            yield outcome
            now = time.perf_counter()
            if now - last_line >= SECONDS_BETWEEN_LINES:
                last_line, speed = now, done / (now - began)
                left = (total - done) / speed
                click.echo(f"{done} of {total} photos, {speed:.1f} photos/s, {left:.0f} s left", err=True)


def _report(failures, named):
    """Report errors, if there are any: each in a line of its own, one alone as it is."""
    if not failures:
        return
    if named == 1:
        raise failures[0]
    lines = [" ".join(str(error).splitlines()) for error in failures]
    raise click.ClickException("\n  ".join([f"{len(failures)} of {named} failed:", *lines]))
