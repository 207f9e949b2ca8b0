"""What several commands share: kinds of option values, common options, standard streams, tables."""

import gc
import math
import os
import sys
from contextlib import contextmanager, suppress

import click

from ..errors import BitsegError
from ..files import write_all

LARGEST_SIDE = 65535
"""Pixels; no JPEG is larger."""


class _NotEmpty(click.ParamType):
    """A text that is not the empty one that an unset shell variable gives."""

    def convert(self, value, param, context):
        if not value:
            self.fail("the name is empty", param, context)
        return super().convert(value, param, context)


class Name(_NotEmpty, click.types.StringParamType):
    """Some name."""


class FileName(_NotEmpty, click.Path):
    """A path as text, with completion."""

    def __init__(self):
        super().__init__(readable=False, path_type=str)


def _number(text):
    """A whole number above 0, of as many digits as anybody needs; else None, or 0."""
    return int(text) if text.isdecimal() and len(text) < 20 else None


class WorkingSize(click.ParamType):
    name = "size"

    def convert(self, value, param, context):
        if value == "native":
            return value
        if pixels := _number(value):
            return pixels
        self.fail(f"'{value}' is neither a number of pixels nor 'native'", param, context)


class ImageSize(click.ParamType):
    """WIDTHxHEIGHT as two numbers of pixels.

    Parameters
    ----------
    multiple : int
        Both must be multiples of this.
    """

    name = "size"

    def __init__(self, multiple=32):
        self.multiple = multiple

    def convert(self, value, param, context):
        if isinstance(value, tuple):
            return value
        width, _, height = value.lower().partition("x")
        sides = _number(width), _number(height)
        if not all(sides):
            self.fail(f"'{value}' is not WIDTHxHEIGHT, for example 512x384", param, context)
        if max(sides) > LARGEST_SIDE:
            self.fail(f"{value}: width and height must be at most {LARGEST_SIDE}", param, context)
        if any(side % self.multiple for side in sides):
            self.fail(f"{value}: width and height must be multiples of {self.multiple}", param, context)
        return sides


class ClassNames(click.ParamType):
    name = "names"

    def convert(self, value, param, context):
        if isinstance(value, tuple):
            return value
        import csv

        try:
            names = tuple(name.strip() for name in next(csv.reader([value], skipinitialspace=True), ()))
        except csv.Error:
            names = ()
        if not names or not all(names):
            self.fail(f"'{value}' is not a list of classes, for example cat,dog", param, context)
        return names


class FiniteRange(click.FloatRange):
    """A number in a range, which NaN is not."""

    def convert(self, value, param, context):
        number = super().convert(value, param, context)
        if math.isnan(number):
            self.fail(f"{value} is not a number", param, context)
        return number


def complete_model(context, param, incomplete):
    from click.shell_completion import CompletionItem

    from ..model_file import installed_models

    names = [path.stem for path in installed_models() if path.stem.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


model_option = click.option(
    "-m",
    "--model",
    default="voc7-w2a2",
    help="Name of an installed model, or path of an .h5 file.",
    shell_complete=complete_model,
)


def working_size_option(name, help):
    """Option for the long side at which pictures are segmented; commands name it and say what it does to them."""
    return click.option(name, type=WorkingSize(), metavar="PIXELS|native", show_default="the model's own", help=help)


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), show_default="one per core", help="Threads to use."
)
jobs_option = click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    show_default="as many as threads",
    help="Pictures in work at a time, each on its part of the threads.",
)
kernel_option = click.option(
    "--kernel",
    type=click.Choice(["auto", "popcount", "lookup", "dot", "tile"]),
    default="auto",
    help="How convolutions are computed; the mask is the same.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
palette_option = click.option(
    "--palette",
    type=click.Choice(["safe", "voc", "cityscapes", "model"]),
    default="safe",
    help="Colours of the classes; safe: colour-blind people can tell them apart; model: those in its file.",
)
classes_option = click.option(
    "--classes", type=ClassNames(), show_default="all", help="Keep only these, the rest becomes background: cat,dog."
)
opacity_option = click.option(
    "--opacity", type=FiniteRange(0, 1), show_default="0.5", help="Strength of the tint of an overlay."
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")


def load_segmenter(model, threads, jobs, kernel, palette=None, classes=None, pictures=math.inf, quiet=False):
    """Load a model for several pictures at a time, each on its part of the threads.

    Parameters
    ----------
    model, threads, jobs, kernel, palette, classes
        Values of the options of these names.
    pictures : int
        How many there are, and so how many at most are in work at a time.
    quiet : bool
        Whether to compile without a word.

    Returns
    -------
    Segmenter
    int
        Pictures in work at a time.

    Raises
    ------
    BitsegError
        The model does not exist, or does not know one of the classes.
    """
    with _no_garbage_collection():
        from ..kernels import cache
        from ..kernels.compilation import compile_in_two_processes
        from ..network.operations import available_threads
        from ..segmentation import class_id
        from ..segmenter import load

        cache.announces = not quiet
        compile_in_two_processes()
        threads = threads or available_threads()
        jobs = min(jobs or threads, pictures)
        segmenter = load(model, threads, kernel, palette, jobs)
    for name in classes or ():
        class_id(name, segmenter.class_names)
    return segmenter, jobs


@contextmanager
def _no_garbage_collection():
    """Python does not look for garbage in the meantime, nor later among what is made in it, all of which stays.

    While Numba is imported it would do so for a tenth of the time that a photo takes in all.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def table(rows):
    """Lines of rows of strings, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def print_table(rows):
    """Print rows of strings as a `table`."""
    click.echo("\n".join(table(rows)))


def standard_input(expected):
    """Standard input as a binary file.

    Raises
    ------
    BitsegError
        It is closed, or a terminal, where nobody types `expected`.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise BitsegError(f"standard input is closed; pipe {expected} into the command")
    if sys.stdin.isatty():
        raise BitsegError(f"standard input is the terminal; pipe {expected} into the command")
    return sys.stdin.buffer


def check_standard_output(written):
    """Find out, before any work is done, whether bytes can go to standard output.

    Raises
    ------
    BitsegError
        It is closed, or a terminal, which `written` would garble.
    """
    if sys.stdout is None:
        raise BitsegError(f"standard output is closed; send {written} to a file or a pipe")
    if sys.stdout.isatty():
        raise BitsegError(f"standard output is the terminal; send {written} to a file or a pipe")


def write_standard_output(data):
    """Write bytes to standard output at once.

    Raises
    ------
    BitsegError
        The reader is gone, or the operating system refuses, for example because the disk is full.
    """
    try:
        write_all(sys.stdout.buffer, data)
        sys.stdout.buffer.flush()
    except OSError as error:
        abandon_standard_output()
        raise BitsegError(f"standard output: cannot be written ({error.strerror or error})") from error


def abandon_standard_output():
    """Drop what waits to be written, because Python would try again, and complain, when it exits."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
