"""What several commands share: kinds of option values, common options, tables."""

import click


class WorkingSize(click.ParamType):
    name = "size"

    def convert(self, value, param, context):
        if value == "native":
            return value
        if value.isdecimal() and int(value) > 0:
            return int(value)
        self.fail(f"'{value}' is neither a number of pixels nor 'native'", param, context)


class ImageSize(click.ParamType):
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


model_option = click.option(
    "-m", "--model", default="voc7-w2a2", help="Name of an installed model, or path of an .h5 file."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), show_default="one per core", help="Threads to use."
)
kernel_option = click.option(
    "--kernel",
    type=click.Choice(["auto", "popcount", "lookup", "dot"]),
    default="auto",
    help="How convolutions are computed; the mask is the same.",
)


def print_table(rows):
    """Print rows of strings, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
