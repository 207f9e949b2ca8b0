"""``bitseg models`` and ``bitseg info``."""

import sys

import click

from ..errors import BitsegError
from .common import ImageSize, complete_model, json_option, print_table


@click.command()
@json_option
def models(as_json):
    """List the installed models with their measured accuracy.

    A damaged one is reported on stderr, with exit status 1, after the others.
    """
    import json
    from dataclasses import asdict

    from ..catalog import list_models

    damaged = []
    found = list_models(on_error=damaged.append)
    if as_json:
        click.echo(json.dumps([asdict(model) for model in found], indent=2))
    else:
        _print_models(found)
    if damaged:
        raise BitsegError("; ".join(map(str, damaged)))


def _print_models(found):
    rows = [("NAME", "BITS", "SIZE", "mIoU", "MEASURED ON", "CLASSES")]
    for model in found:
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


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--size",
    type=ImageSize(),
    metavar="WIDTHxHEIGHT",
    show_default="the model's working size at 4:3",
    help="Size of the image whose operations are counted.",
)
@json_option
def info(model, size, as_json):
    """Tell all about MODEL: classes, layers, cost, accuracy, and how it was made.

    MODEL is the name of an installed model, or the path of an .h5 file.
    """
    import json

    from ..catalog import describe_model

    about = describe_model(model, size)
    if as_json:
        click.echo(json.dumps(about, indent=2))
        return
    tables = {
        f"{about['name']}:": _summary(about),
        "Classes:": _classes(about),
        "Layers at {}x{}:".format(*about["size"]): _layers(about),
        "Cost at {}x{}:".format(*about["size"]): _cost(about),
        "Origin:": _origin(about),
    }
    for number, (title, rows) in enumerate(tables.items()):
        click.echo(f"\n{title}" if number else title)
        print_table([("", *row) for row in rows])


def _summary(about):
    architecture, file = about["architecture"], about["file"]
    accuracy = about["training"].get("accuracy")
    measured = f"{accuracy['miou']:.3f} mIoU on {accuracy['dataset']}" if accuracy else "not measured"
    stream = f"{architecture['stream_bits'] or architecture['activation_bits']}-bit residual stream"
    if architecture["stream_weight_bits"]:
        stream += f", carried on by {architecture['stream_weight_bits']}-bit weights"
    return [
        ("accuracy", measured),
        (
            "bits",
            f"{architecture['weight_bits']}-bit weights, {architecture['activation_bits']}-bit activations, {stream}",
        ),
        ("network", f"{architecture['encoder']}, {len(about['layers'])} convolutions"),
        ("working size", f"long side {about['preprocessing']['working_size']}"),
        ("file", file["path"]),
        ("", f"{file['bytes'] / 1e6:.2f} MB, format {file['format_version']}, sha256 {file['sha256']}"),
    ]


def _classes(about):
    accuracy = about["training"].get("accuracy", {})
    scores = accuracy.get("iou") if isinstance(accuracy.get("iou"), dict) else {}
    rows = [("ID", "NAME", "COLOUR", "IoU", "")]
    for found in about["classes"]:
        color, score = tuple(found["color"]), scores.get(found["name"])
        rows.append(
            (
                str(found["id"]),
                found["name"],
                "#{:02x}{:02x}{:02x}".format(*color),
                f"{score:.3f}" if isinstance(score, int | float) and 0 <= score <= 1 else "-",
                click.style("    ", bg=color) if sys.stdout is not None and sys.stdout.isatty() else "",
            )
        )
    return rows


def _layers(about):
    rows = [("NAME", "KERNEL", "STRIDE", "CHANNELS", "BITS", "RESULT", "MMAC")]
    for layer in about["layers"]:
        rows.append(
            (
                layer["name"],
                f"{layer['kernel']}x{layer['kernel']}",
                str(layer["stride"]),
                f"{layer['in_channels']} to {layer['out_channels']}",
                f"{layer['weight_bits']}-{layer['input_bits']}",
                "{}x{}".format(*layer["output_size"]),
                f"{layer['multiplications'] / 1e6:.1f}",
            )
        )
    return rows


def _cost(about):
    weights, fp32 = about["weights"], about["fp32_bytes"]
    return [
        ("multiply-accumulates", f"{about['multiplications'] / 1e9:.2f} billion"),
        ("bit operations", f"{about['bit_operations'] / 1e9:.2f} billion"),
        ("predicted speed-up", f"{about['predicted_speedup']:.3g}x over fp32: 18 / (weight bits x activation bits)"),
        ("FPGA estimate", f"{about['fpga_share']:.2%} of fp32's resources: 1024 bit operations for one in fp32"),
        ("weights", f"{weights / 1e6:.2f} million: {about['packed_bytes'] / 1e6:.2f} MB, {fp32 / 1e6:.2f} MB in fp32"),
        ("file", f"{about['file']['bytes'] / 1e6:.2f} MB, {fp32 / about['file']['bytes']:.1f} times less than fp32"),
    ]


def _origin(about):
    training = about["training"]
    rows = [(key, _one_line(training[key])) for key in ("data", "command", "conversion", "commit") if key in training]
    return [*rows, ("licence", _one_line(about["licence"] or "not stated"))]


def _one_line(value):
    """Text of whatever a model file says: it may hold anything, for example what a terminal would obey."""
    return "".join(filter(str.isprintable, str(value)))
