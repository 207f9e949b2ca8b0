"""``bitseg bench``."""

import click
from click.core import ParameterSource

from ..errors import BitsegError
from .common import ImageSize, json_option, kernel_option, model_option, print_table, threads_option


@click.command()
@model_option
@click.option("--preset", help="A network with random weights instead of a model: bfcn50 (the paper's) or thin50.")
@click.option("--bits", show_default="2-2", help="Bits of a preset's weights and activations.")
@click.option("--size", type=ImageSize(), default="512x384", metavar="WIDTHxHEIGHT", help="Size of the image.")
@threads_option
@kernel_option
@click.option("--rounds", type=click.IntRange(min=1), default=11, help="Runs, of which the medians are shown.")
@json_option
def bench(model, preset, bits, size, threads, kernel, rounds, as_json):
    """Time each layer of a network on this computer."""
    import json

    if bits and not preset:
        raise click.UsageError("--bits is for --preset; a model has bits of its own")
    if preset and click.get_current_context().get_parameter_source("model") is not ParameterSource.DEFAULT:
        raise click.UsageError("give --preset or --model, not both")
    from ..bench import time_operations
    from ..model_file import find_model, read_model
    from ..network.operations import available_threads
    from ..presets import preset_model

    network = preset_model(preset, bits or "2-2") if preset else read_model(find_model(model))
    try:
        threads = threads or available_threads()
        operations, total = time_operations(network, size[1], size[0], threads, kernel, rounds)
    except ValueError as error:
        raise BitsegError(str(error)) from None
    if as_json:
        layers = [
            {
                **vars(operation),
                "share": operation.milliseconds / total,
                "gmac_per_second": operation.gmac_per_second,
            }
            for operation in operations
        ]
        settings = {"model": network.name, "size": size, "threads": threads, "kernel": kernel, "rounds": rounds}
        click.echo(json.dumps({**settings, "total_ms": total, "operations": layers}, indent=2))
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
    print_table(rows)
