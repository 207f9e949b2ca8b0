"""The command line: parse, call, print. Each command imports what it needs, so that ``bitseg --help`` is quick."""

import warnings
from pathlib import Path

import click

from . import __version__
from .errors import BitsegError


class _Commands(click.Group):
    """Commands that report an error the user can mend as one line, without a traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except BitsegError as error:
            raise click.ClickException(" ".join(str(error).splitlines())) from error


class _WorkingSize(click.ParamType):
    name = "size"

    def convert(self, value, param, context):
        if value == "native":
            return value
        if value.isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"'{value}' is neither a number of pixels nor 'native'", param, context)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="bitseg")
def main():
    """Find out what every pixel of a photo belongs to, with low-bit networks on an ordinary CPU."""
    # On a damaged or very large file; the error, if it comes to one, says it in one line.
    warnings.filterwarnings("ignore", module="PIL")


@main.command()
@click.argument("photo", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    show_default="PHOTO.mask.png or PHOTO.overlay.png beside the photo",
    help="File to write: .png, or also .jpg for an overlay.",
)
@click.option("--overlay", is_flag=True, help="Write the photo with its classes tinted, instead of the mask.")
@click.option("-m", "--model", default="voc7-w2a2", help="Name of an installed model, or path of an .h5 file.")
@click.option(
    "--size",
    type=_WorkingSize(),
    metavar="PIXELS|native",
    show_default="the model's own",
    help="Long side at which a larger photo is segmented. The mask is always of the photo's size.",
)
@click.option("--threads", type=click.IntRange(min=1), show_default="one per core", help="Threads to use.")
@click.option(
    "--kernel",
    type=click.Choice(["auto", "popcount", "lookup"]),
    default="auto",
    help="How convolutions are computed; the mask is the same.",
)
def predict(photo, output, overlay, model, size, threads, kernel):
    """Segment PHOTO and write its mask.

    The mask is an indexed PNG of the photo's size: a pixel's value is its class id, its colour is the class colour.
    """
    from .images import check_output, read_image, save_picture
    from .segmenter import load

    kind = "overlay" if overlay else "mask"
    image = read_image(photo)
    output = output or photo.with_suffix(f".{kind}.png")
    check_output(output, kind)
    if output.exists() and output.samefile(photo):
        raise click.UsageError("the output would replace the photo; choose another name with -o")

    segmentation = load(model, threads, kernel).predict(image, size=size)
    if overlay:
        save_picture(segmentation.overlay(), output, kind)
    else:
        segmentation.save(output)

    lines = [(found.name, f"{found.share:6.1%}") for found in segmentation.classes]
    lines += [("time", f"{segmentation.seconds:.3f} s"), (kind, click.format_filename(output))]
    _print_table(lines)


@main.command()
def models():
    """List the installed models with their measured accuracy.

    A damaged one is reported on stderr, with exit status 1, after the others.
    """
    from .catalog import list_models

    damaged = []
    rows = [("NAME", "BITS", "SIZE", "mIoU", "MEASURED ON", "CLASSES")]
    for model in list_models(on_error=damaged.append):
        rows.append(
            (
                model.name,
                f"{model.weight_bits}-{model.activation_bits}",
                f"{model.file_size / 1e6:.1f} MB",
                "-" if model.miou is None else f"{model.miou:.3f}",
                model.dataset or "-",
                f"{len(model.classes)}: {', '.join(model.classes)}",
            )
        )
    _print_table(rows)
    click.echo("BITS: of weights - of activations")
    if damaged:
        raise BitsegError("; ".join(map(str, damaged)))


class _ImageSize(click.ParamType):
    name = "size"

    def convert(self, value, param, context):
        if isinstance(value, tuple):
            return value
        width, _, height = value.lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) * int(height) > 0):
            self.fail(f"'{value}' is not WIDTHxHEIGHT, for example 512x384", param, context)
        if int(width) % 32 or int(height) % 32:
            self.fail(f"{value}: width and height must be multiples of 32", param, context)
        return int(width), int(height)


@main.command()
@click.option("-m", "--model", default="voc7-w2a2", help="Name of an installed model, or path of an .h5 file.")
@click.option("--preset", help="A network with random weights instead of a model: bfcn50 (the paper's) or thin50.")
@click.option("--bits", default="2-2", help="Bits of a preset's weights and activations.")
@click.option("--size", type=_ImageSize(), default="512x384", metavar="WIDTHxHEIGHT", help="Size of the image.")
@click.option("--threads", type=click.IntRange(min=1), show_default="one per core", help="Threads to use.")
@click.option("--kernel", type=click.Choice(["auto", "popcount", "lookup"]), default="auto", help="As for predict.")
@click.option("--rounds", type=click.IntRange(min=1), default=11, help="Runs, of which the medians are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(model, preset, bits, size, threads, kernel, rounds, as_json):
    """Time each layer of a network on this computer."""
    import json

    from .bench import time_operations
    from .model_file import find_model, read_model
    from .presets import preset_model

    network = preset_model(preset, bits) if preset else read_model(find_model(model))
    try:
        operations, total = time_operations(network, size[1], size[0], threads, kernel, rounds)
    except ValueError as error:
        raise BitsegError(str(error)) from None
    if as_json:
        layers = [{**vars(operation), "gmac_per_second": operation.gmac_per_second} for operation in operations]
        click.echo(json.dumps({"model": network.name, "size": size, "total_ms": total, "operations": layers}, indent=2))
        return
    rows = [("OPERATION", "ms", "SHARE", "MMAC", "GMAC/s")]
    for operation in operations:
        speed = (f"{operation.multiplications / 1e6:.1f}", f"{operation.gmac_per_second:.0f}")
        rows.append(
            (
                operation.name,
                f"{operation.milliseconds:.3f}",
                f"{operation.milliseconds / total:.1%}",
                *(speed if operation.multiplications else ("", "")),
            )
        )
    multiplications = sum(operation.multiplications for operation in operations)
    rows.append(("total", f"{total:.3f}", "", f"{multiplications / 1e6:.1f}", f"{multiplications / total / 1e6:.0f}"))
    _print_table(rows)


def _print_table(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
