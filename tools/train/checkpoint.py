"""Checkpoints: everything a run needs to go on, or another program to use its network."""

import os

import torch

from bitseg.architecture import Architecture

from .config import config_from_dict
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
    """
    state = {
        "config": config.as_dict(),
        "network": network.state_dict(),
        "weight_bits": network.weight_bits,
        "activation_bits": network.activation_bits,
        **progress,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def read_checkpoint(path):
    """Read a checkpoint: a dict with at least ``config``, ``network``, ``weight_bits`` and ``activation_bits``.

    Raises
    ------
    TrainingError
        There is no such file, or it is no checkpoint.
    """
    try:
        saved = torch.load(path, weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    except Exception as error:  # torch.load raises many types on foreign files
        raise TrainingError(f"{path}: not a checkpoint of this training code ({type(error).__name__})") from None
    if not isinstance(saved, dict) or "network" not in saved:
        raise TrainingError(f"{path}: not a checkpoint of this training code")
    return saved


def load_network(path):
    """The network of a checkpoint, ready to evaluate.

    Returns
    -------
    network : BitFCN
        At the bits it was trained at, which its architecture names too.
    config : Config
    saved : dict
        The whole checkpoint.
    """
    saved = read_checkpoint(path)
    config = config_from_dict(saved["config"])
    bits = {"weight_bits": saved["weight_bits"], "activation_bits": saved["activation_bits"]}
    network = BitFCN(Architecture(**{**vars(config.architecture), **bits}))
    network.load_state_dict(saved["network"])
    network.set_bits(**bits)
    network.eval()
    return network, config, saved
