"""Checkpoints: everything a run needs to go on, or another program to use its network."""

import io
import zipfile

import torch

from bitseg.files import write_safely

from .config import check_continuation, config_from_dict
from .errors import TrainingError
from .network import BitFCN


def save_checkpoint(path, config, network, **progress):
    """Write a checkpoint; the file appears whole or not at all.

    Parameters
    ----------
    path : Path
    config : Config
    network : BitFCN
    progress :
        Further entries: plain data and state dictionaries.

    Raises
    ------
    TrainingError
        The file cannot be written.
    """
    state = {
        "config": config.as_dict(),
        "network": network.state_dict(),
        "weight_bits": network.architecture.weight_bits,
        "activation_bits": network.architecture.activation_bits,
        **progress,
    }
    # PyTorch makes other errors of those of the operating system.
    memory = io.BytesIO()
    torch.save(state, memory)
    with write_safely(path, TrainingError) as file:
        file.write(memory.getbuffer())


def read_checkpoint(path):
    """Read a checkpoint.

    Returns
    -------
    dict
        At least ``config``, ``network``, ``weight_bits`` and ``activation_bits``.

    Raises
    ------
    TrainingError
        There is no such file, or it is no checkpoint, or damaged.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch.load raises many types on foreign files
        raise TrainingError(f"{path}: not a checkpoint of this training code ({type(error).__name__})") from None
    if damaged:
        raise TrainingError(f"{path}: damaged ({damaged}); copy it again, or use the checkpoint of an earlier stage")
    if not isinstance(saved, dict) or not {"config", "network", "weight_bits", "activation_bits"} <= set(saved):
        raise TrainingError(f"{path}: not a checkpoint of this training code")
    return saved


def check_checkpoint(path, saved, config, stages_begun):
    """Make sure that a checkpoint is of a run that may go on under a configuration.

    Parameters
    ----------
    path : path
        The checkpoint, for the message.
    saved : dict
        What `read_checkpoint` made of it.
    config, stages_begun
        As for `config.check_continuation`.

    Raises
    ------
    TrainingError
        It is not.
    """
    try:
        check_continuation(config_from_dict(saved["config"]), config, stages_begun)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from None


def load_network(path):
    """The network of a checkpoint, ready to evaluate.

    Returns
    -------
    network : BitFCN
        At the bits it was trained at, which its architecture names too.
    config : Config
    saved : dict
        The whole checkpoint.

    Raises
    ------
    TrainingError
        There is no such file, or it is no checkpoint.
    """
    saved = read_checkpoint(path)
    try:
        config = config_from_dict(saved["config"])
        network = BitFCN(config.architecture, config.quantizer)
        network.load_state_dict(saved["network"])
    except (TrainingError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"{path}: does not fit this version of the training code ({reason})") from None
    network.set_bits(saved["weight_bits"], saved["activation_bits"])
    network.eval()
    return network, config, saved
