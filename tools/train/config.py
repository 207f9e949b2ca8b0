"""The configuration of a training run: one TOML file, read into dataclasses and stored in every checkpoint."""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bitseg.architecture import Architecture, Preprocessing
from bitseg.datasets import CLASSES
from bitseg.errors import BitsegError

from .data import Augmentation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ConfigError(BitsegError):
    """A configuration file is incomplete or has an unknown entry."""


@dataclass(frozen=True)
class Stage:
    """One stage of the schedule: bit widths, supervised scales, length and learning rates.

    Attributes
    ----------
    name : str
        Names the stage's checkpoint.
    weight_bits, activation_bits : int
        1 to 8, or 32 for floating point.
    iterations : int
        Batches to train on.
    encoder_rate, decoder_rate : float
        Peak AdamW learning rates; they fall along half a cosine to zero.
    scales : tuple of int
        Strides that carry a loss: [32] to [32, 16, 8, 4].
    """

    name: str
    weight_bits: int
    activation_bits: int
    iterations: int
    encoder_rate: float
    decoder_rate: float
    scales: tuple = (32, 16, 8, 4)


@dataclass(frozen=True)
class Config:
    """Everything that determines a run but the folder of the data.

    Attributes
    ----------
    name : str
        Name of the model.
    dataset : str
        Kind of data set, see `bitseg.datasets.open_dataset`.
    seed : int
        Seeds initialisation, order and augmentation.
    batch_size : int
        Samples a batch.
    class_weights : {"none", "log"}
        ``log``: 1 / ln(1.4 + share of the class), Wen et al. section 5.
    bfloat16 : bool
        Run convolutions in bfloat16 (twice as fast where the CPU has it, ten times slower elsewhere).
    augmentation : Augmentation
    architecture : Architecture
        With the bits of the last stage.
    preprocessing : Preprocessing
    stages : tuple of Stage
    """

    name: str
    dataset: str
    seed: int
    batch_size: int
    class_weights: str
    bfloat16: bool
    augmentation: Augmentation
    architecture: Architecture
    preprocessing: Preprocessing
    stages: tuple

    def as_dict(self):
        """Nested plain data, as stored in checkpoints and model files."""
        return asdict(self)


def read_config(path):
    """Read a configuration file.

    Parameters
    ----------
    path : path
        TOML file.

    Raises
    ------
    ConfigError
        The file is missing, is no TOML, lacks an entry or has an unknown one.
    """
    try:
        text = Path(path).read_text()
        return config_from_dict(tomllib.loads(text))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def config_from_dict(data):
    """Build a `Config` from plain data; class names and the final bits are filled in."""
    data = dict(data)
    stages = tuple(_build(Stage, stage) for stage in data.pop("stages"))
    architecture = {
        "classes": CLASSES[data["dataset"]],
        "weight_bits": stages[-1].weight_bits,
        "activation_bits": stages[-1].activation_bits,
        **data.pop("architecture"),
    }
    return _build(
        Config,
        {
            **data,
            "stages": stages,
            "augmentation": _build(Augmentation, data.pop("augmentation")),
            "architecture": _build(Architecture, architecture),
            "preprocessing": _build(Preprocessing, data.pop("preprocessing")),
        },
    )


def _build(kind, values):
    known = {field.name for field in fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise TypeError(f"unknown entry {', '.join(sorted(unknown))} in {kind.__name__.lower()}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
