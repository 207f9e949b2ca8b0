"""Measure a model with the engine on a labelled split: `python -m tools.evaluate MODEL --data DIR`."""

import json

import click

from bitseg.datasets import CLASSES, open_dataset
from bitseg.errors import BitsegError
from bitseg.evaluation import evaluate, scores
from bitseg.segmenter import DEFAULT_MODEL, load


@click.command(context_settings={"show_default": True})
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--data", required=True, type=click.Path(), help="Folder of the data set.")
@click.option("--dataset", default="voc7", type=click.Choice(sorted(CLASSES)), help="Kind of data set.")
@click.option("--split", default="val", help="Split to measure on.")
def main(model, data, dataset, split):
    """Print mIoU, pixel accuracy and class-wise IoU of MODEL (a name or an .h5 file) as JSON."""
    try:
        found = open_dataset(dataset, data, split)
        segmenter = load(model)
        if segmenter.model.architecture.classes != found.classes:
            raise BitsegError(f"{model} knows other classes than {dataset}: choose the data set it was trained on")
        result = scores(evaluate(segmenter.label_map, found), found)
    except BitsegError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps({"model": model, **result}, indent=2))


if __name__ == "__main__":
    main()
