"""``bitseg models``."""

import click

from ..errors import BitsegError
from .common import print_table


@click.command()
def models():
    """List the installed models with their measured accuracy.

    A damaged one is reported on stderr, with exit status 1, after the others.
    """
    from ..catalog import list_models

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
    print_table(rows)
    click.echo("BITS: of weights - of activations")
    if damaged:
        raise BitsegError("; ".join(map(str, damaged)))
