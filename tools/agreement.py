"""How far the engine's masks agree with the PyTorch network's: `python -m tools.agreement CHECKPOINT MODEL --data DIR`.

The PyTorch network is the checkpoint as its stages are scored: folded, in codes (`folding.folded`). Beside it stand
the networks that training computes with, in real values. A rounding to codes is a step function: a floating-point sum
that lands on the other side of a step by its last bit changes a code, and later layers carry that on. How much of a
disagreement is that, and not a difference between the networks, shows a control: real values against themselves, in
float32 and in float64.
"""

import copy
import json

import click
import numpy as np
import torch

from bitseg.datasets import open_dataset
from bitseg.errors import BitsegError, ModelFileError
from bitseg.images import read_image
from bitseg.model_file import read_model
from bitseg.segmenter import load
from tools.train.errors import TrainingError
from tools.train.folding import folded, in_codes
from tools.train.initialize import is_model_file, load_trained
from tools.train.network import BitConv
from tools.train.prediction import predict_label_map
from tools.train.quantizers import FLOAT_BITS


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path())
@click.argument("model")
@click.option("--data", required=True, type=click.Path(), help="Folder of the data set.")
@click.option("--split", default="val", help="Split to take photos from.")
@click.option("--photos", default=20, type=click.IntRange(min=1), help="Number of photos, from the first on.")
def main(checkpoint, model, data, split, photos):
    """Print the share of pixels with the same class, of the engine and of PyTorch in codes, float32 and float64.

    CHECKPOINT is one of the training code, or a model file.
    """
    # Compiled quantisers are written for the precisions of training.
    torch.compiler.set_stance("force_eager")
    try:
        network, preprocessing = load_trained(checkpoint)
        if is_model_file(checkpoint):
            # As the file has it: unfolding and folding again would round its factors anew.
            model_file = read_model(checkpoint)
            counted = in_codes(network, model_file.layers, model_file.streams, preprocessing)
        else:
            counted = folded(network, preprocessing)
        exact = _in_float64(network)
        segmenter = load(model)
        config = segmenter.model.training.get("config")
        if config is None:
            raise ModelFileError(f"{model}: does not say which data set it was trained on; convert it anew")
        dataset = open_dataset(config["dataset"], data, split)
        if network.architecture.classes != segmenter.model.architecture.classes:
            raise TrainingError(f"{checkpoint} and {model} tell other classes apart: give the model made of it")
        networks = {"codes": counted, "float32": network, "float64": exact}
        pairs, pixels = _count_equal(dataset.samples[:photos], segmenter, networks, preprocessing)
    except BitsegError as error:
        raise click.ClickException(str(error)) from None
    report = {
        pair: {
            "agreement": round(sum(equal) / sum(pixels), 5),
            "photos_with_equal_masks": int(np.count_nonzero(np.equal(equal, pixels))),
            "worst_photo": round(float(np.min(np.divide(equal, pixels))), 5),
        }
        for pair, equal in pairs.items()
    }
    click.echo(json.dumps({"photos": len(pixels), **report}, indent=2))


def _count_equal(samples, segmenter, networks, preprocessing):
    """Of each pair the pixels of the same class, photo by photo, and how many pixels each photo has."""
    pairs = {"engine, codes": [], "engine, float32": [], "engine, float64": [], "float32, float64": []}
    pixels = []
    for path, _ in samples:
        image = read_image(path)
        masks = {name: predict_label_map(network, image, preprocessing) for name, network in networks.items()}
        masks["engine"] = segmenter.label_map(image)
        pixels.append(masks["engine"].size)
        for pair, counts in pairs.items():
            first, second = pair.split(", ")
            counts.append(np.count_nonzero(masks[first] == masks[second]))
    return pairs, pixels


@torch.no_grad()
def _in_float64(network):
    """A copy of a network that computes in float64 with the very weights that it has in float32.

    They are rounded before they are widened: after training many lie so near a threshold that their codes depend on
    the precision.
    """
    exact = copy.deepcopy(network)
    for module in exact.modules():
        if isinstance(module, BitConv):
            module.conv.weight.copy_(module.weight_quantizer(module.conv.weight))
            module.weight_quantizer.bits = FLOAT_BITS
    return exact.double()


if __name__ == "__main__":
    main()
