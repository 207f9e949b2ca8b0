"""How far the engine's masks agree with the PyTorch network's: `python -m tools.agreement CHECKPOINT MODEL --data DIR`.

A rounding to codes is a step function: a floating-point sum that lands on the other side of a step by its last bit
changes a code, and later layers carry that on. How much of a disagreement is that, and not a difference between the
networks, shows a control: the PyTorch network against itself, in float32 and in float64.
"""

import json

import click
import numpy as np
import torch

from bitseg.datasets import open_dataset
from bitseg.errors import BitsegError
from bitseg.images import read_image
from bitseg.segmenter import load
from tools.train.checkpoint import load_network
from tools.train.prediction import predict_label_map


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path())
@click.argument("model")
@click.option("--data", required=True, type=click.Path(), help="Folder of the data set.")
@click.option("--split", default="val", help="Split to take photos from.")
@click.option("--photos", default=20, type=click.IntRange(min=1), help="Number of photos, from the first on.")
def main(checkpoint, model, data, split, photos):
    """Print the share of pixels with the same class, of the engine and of PyTorch in float32 and float64."""
    # Compiled quantisers are written for the precisions of training.
    torch.compiler.set_stance("force_eager")
    try:
        network, config, _ = load_network(checkpoint)
        exact, _, _ = load_network(checkpoint)
        exact = exact.double()
        segmenter = load(model)
        dataset = open_dataset(config.dataset, data, split)
    except BitsegError as error:
        raise click.ClickException(str(error)) from None
    pairs = {"engine, float32": 0, "engine, float64": 0, "float32, float64": 0}
    pixels = 0
    for path, _ in dataset.samples[:photos]:
        image = read_image(path)
        masks = {
            "engine": segmenter.label_map(image),
            "float32": predict_label_map(network, image, config.preprocessing),
            "float64": predict_label_map(exact, image, config.preprocessing),
        }
        pixels += masks["engine"].size
        for pair in pairs:
            first, second = pair.split(", ")
            pairs[pair] += int(np.count_nonzero(masks[first] == masks[second]))
    agreement = {pair: round(count / pixels, 5) for pair, count in pairs.items()}
    click.echo(json.dumps({"photos": min(photos, len(dataset.samples)), "agreement": agreement}, indent=2))


if __name__ == "__main__":
    main()
