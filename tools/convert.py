"""Convert a checkpoint of the training code to a bitseg model file: `python -m tools.convert CHECKPOINT MODEL.h5`."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click
import torch

from bitseg.datasets import open_dataset
from bitseg.errors import BitsegError, DatasetError, ModelFileError
from bitseg.evaluation import evaluate, scores
from bitseg.files import check_writable
from bitseg.model_file import Model, write_model
from bitseg.palette import palette_for
from bitseg.segmenter import Segmenter
from tools.provenance import current_commit
from tools.train.checkpoint import load_network
from tools.train.data import Batches, normalise
from tools.train.errors import TrainingError
from tools.train.folding import fold_network
from tools.train.quantizers import FLOAT_BITS

CALIBRATION_BATCHES = 4


def convert(checkpoint, name=None, command="", data=None):
    """Make a model of a checkpoint file.

    A floating-point network is quantised to 8 bits as it is, without training: its scales come from training photos.
    So are weights that carry the residual stream on, whatever bits the configuration has for them.

    Parameters
    ----------
    checkpoint : path
    name : str or None
        Name of the model; None: that of the configuration.
    command : str
        Command line that converts, to be kept in the model.
    data : path or None
        Folder of the data set, for a floating-point network.

    Returns
    -------
    bitseg.model_file.Model

    Raises
    ------
    TrainingError
        The checkpoint cannot be used, or a floating-point network lacks the data to quantise it, or only its weights,
        or only its feature maps, are in floating point.
    """
    network, config, saved = load_network(checkpoint)
    if network.architecture.weight_bits == network.architecture.activation_bits == FLOAT_BITS:
        if data is None:
            raise TrainingError(f"{checkpoint}: a floating-point network; give --data to quantise it to 8 bits")
        _quantize_to_8_bits(network, config, data)
    architecture = network.architecture
    layers, streams = fold_network(network, config.preprocessing)
    training = {
        "data": f"{config.dataset} train",
        "command": saved.get("command", "unknown"),
        "conversion": command,
        "commit": current_commit(),
        "config": config.as_dict(),
        "stages": saved["results"],
    }
    palette = palette_for(architecture.classes)
    return Model(name or config.name, architecture, config.preprocessing, palette, training, layers, streams)


def _quantize_to_8_bits(network, config, data):
    """Post-training quantisation: every scale from the weights and some training batches."""
    train_set = open_dataset(config.dataset, data, "train")
    batches = Batches(train_set, config.augmentation, config.preprocessing.mean, config.batch_size, config.seed)
    images = torch.cat([batches[number][0] for number in range(CALIBRATION_BATCHES)])
    if network.architecture.stream_weight_bits:
        # Fewer would have to be learned: 4 bits cost 3 points of mIoU on voc7.
        network.architecture = replace(network.architecture, stream_weight_bits=8)
    network.set_bits(8, 8)
    network.calibrate(normalise(images, config.preprocessing))


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("output", type=click.Path())
@click.option("--data", type=click.Path(), help="Folder of the data set: measure the accuracy on its val split.")
@click.option("--name", help="Name of the model, if not the configuration's.")
def main(checkpoint, output, data, name):
    """Convert CHECKPOINT to the model file OUTPUT and, with --data, store the accuracy that the engine measures.

    A floating-point checkpoint needs --data: it is quantised to 8 bits with scales from its training photos.
    """
    try:
        check_writable(output, ModelFileError)
        if all(map(os.path.exists, (checkpoint, output))) and os.path.samefile(checkpoint, output):
            raise ModelFileError(f"{output}: is the checkpoint itself; choose another name for the model")
        model = convert(checkpoint, name, f"python -m tools.convert {shlex.join(sys.argv[1:])}", data)
        if data:
            model.training["accuracy"] = _measure(model, data)
        write_model(output, model)
    except BitsegError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{output}: {Path(output).stat().st_size} bytes")


def _measure(model, data):
    dataset = open_dataset(model.training["config"]["dataset"], data, "val").mapped_to(model.architecture.classes)
    with click.progressbar(length=len(dataset), label="measuring", file=sys.stderr) as bar:
        confusion = evaluate(Segmenter(model).label_map, dataset, lambda _: bar.update(1))
    accuracy = scores(confusion, dataset)
    if accuracy["miou"] is None:
        raise DatasetError(f"{data}: no pixel of val has a class to be measured by; label some")
    click.echo(f"mIoU {accuracy['miou']} on {dataset.name}")
    return accuracy


if __name__ == "__main__":
    main(prog_name="python -m tools.convert")
