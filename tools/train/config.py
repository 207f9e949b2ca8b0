"""The configuration of a training run: one TOML file, read into dataclasses and stored in every checkpoint."""

import math
import re
import sys
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

from bitseg.architecture import STRIDES, Architecture, Preprocessing
from bitseg.datasets import CLASSES, KINDS, read_class_names
from bitseg.model_file import check_architecture, check_name, check_preprocessing
from bitseg.network.graph import SIZE_MULTIPLE

from .data import Augmentation
from .errors import TrainingError
from .quantizers import FLOAT_BITS, QUANTIZERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUN_CHECKPOINT = "checkpoint"
"""Name of the checkpoint from which a run continues; a stage cannot have it."""

LARGEST = 65536
"""Batch, and side of a crop: more fill any memory."""

LARGEST_ZOOM = 100

_FREE_TO_CHANGE = {
    "name",
    "stages",
    "preprocessing.working_size",
    "architecture.weight_bits",
    "architecture.activation_bits",
}
"""Entries that have no part in what is trained; the bits are those of the last stage. Stages are compared apart."""


@dataclass(frozen=True)
class Stage:
    """One stage of the schedule: bit widths, supervised scales, length and learning rates.

    Attributes
    ----------
    name : str
        Names the stage's checkpoint.
    weight_bits, activation_bits : int
        1 to 8, or 32 for floating point. Where they are not those of the stage before, all scales are set anew, from
        the weights and the first batch.
    iterations : int
        Batches to train on; 0: the network is only measured, its statistics estimated anew before if asked for.
    encoder_rate, decoder_rate : float
        Peak learning rates of AdamW, which is new in each stage. Half a cosine falls from them to zero; in the first 50
        iterations it is multiplied by a factor that rises from a fiftieth to 1. With an `encoder_rate` of 0 the decoder
        alone is trained: the encoder's weights and scales stay as they are, but its BatchNorm's statistics follow the
        batches, unless `frozen_norms`.
    scales : tuple of int
        Strides that carry a loss: [32] to [32, 16, 8, 4].
    quantizer_rate : float
        Peak rate of the logarithms of the quantisers' scales: under Adam about the largest relative change in a step.
    labels : float
        Weight of the loss on the labels; 0: the network learns from its teacher alone.
    distillation : float
        Weight of the distance to the teacher, see `distillation.distillation_loss`; 0: there is no teacher.
    task : {"segmentation", "classification"}
        What the labels are used for: the class of every pixel, or only which classes are in the picture, to be told
        from the mean of the stride-32 scores.
    patience : int
        The stage ends early when the mean loss of the last 50 iterations has not fallen for so many, not counting those
        of `blend`; 0: it never does.
    evaluate : bool
        Score the network on the val split at the end of the stage.
    blend : float
        Part of the stage, from its beginning, during which feature maps and weights of fewer than 8 bits are rounded
        more and more, see `quantizers.Quantizer`; 0: they are rounded at once.
    norm_batches : int
        Batches from which BatchNorm's statistics are estimated anew, at the end of the stage or, if they are frozen, at
        its beginning; 0: they stay what they are.
    norm_augmented : bool
        Whether these are augmented as for training; otherwise each is a crop at the photo's own size and colour.
    frozen_norms : bool
        BatchNorm normalises by these statistics while it trains, as the converted network will, and not by those of
        each batch.
    """

    name: str
    weight_bits: int
    activation_bits: int
    iterations: int
    encoder_rate: float
    decoder_rate: float
    scales: tuple = (32, 16, 8, 4)
    quantizer_rate: float = 2e-3
    labels: float = 1.0
    distillation: float = 0.0
    task: str = "segmentation"
    patience: int = 0
    evaluate: bool = True
    blend: float = 0.0
    norm_batches: int = 0
    norm_augmented: bool = False
    frozen_norms: bool = False


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
    quantizer : {"learned", "dorefa"}
        How weights and feature maps are rounded, see `quantizers`.
    bfloat16 : bool
        Run convolutions in bfloat16 where the device multiplies it: twice as fast there, ten times slower elsewhere.
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
    quantizer: str = "learned"

    def as_dict(self):
        """Nested plain data, as stored in checkpoints and model files."""
        return asdict(self)


def read_config(path, data=None):
    """Read a configuration file.

    Parameters
    ----------
    path : path
        TOML file; see `read_toml`.
    data : path or None
        Folder of the data set, for a kind whose folder names the classes.

    Returns
    -------
    Config

    Raises
    ------
    TrainingError
        The file is missing, is no TOML, lacks an entry, or has an unknown or impossible one.
    DatasetError
        The class names in the folder cannot be read.
    """
    values = read_toml(path)
    values.pop("experiment", None)
    try:
        return config_from_dict(values, data)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from None


def read_toml(path, heirs=()):
    """Read a configuration file as plain data.

    An entry ``base`` names another file, relative to this one, whose entries hold where this one has none. Tables are
    merged entry by entry; ``stages`` and ``experiment`` stand as a whole.

    Parameters
    ----------
    path : path
    heirs : tuple of Path
        Files that have it as their base, directly or not.

    Returns
    -------
    dict

    Raises
    ------
    TrainingError
        The file or its base is missing, no TOML, or its own base.
    """
    if Path(path).resolve() in heirs:
        raise TrainingError(f"{path}: is its own base; remove the entry base from it")
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror}); give a configuration file") from None
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, or a number of 5,000 digits
        raise TrainingError(f"{path}: not valid TOML: {error}") from None
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise TrainingError(f"{path}: base must be the name of a file, not {base!r}")
    inherited = read_toml(Path(path).parent / base, (*heirs, Path(path).resolve()))
    inherited.pop("experiment", None)
    for name, value in values.items():
        merges = isinstance(value, dict) and isinstance(inherited.get(name), dict)
        inherited[name] = inherited[name] | value if merges else value
    return inherited


def config_from_dict(data, root=None):
    """Build a `Config` from plain data; class names and the final bits are filled in.

    Parameters
    ----------
    data : dict
        What a TOML file holds, or `Config.as_dict` returns.
    root : path or None
        Folder of the data set, for a kind whose folder names the classes; None: `data` holds them.

    Raises
    ------
    TrainingError
        An entry is missing, unknown or impossible.
    DatasetError
        The class names in the folder cannot be read.
    """
    data = dict(data)
    stages = data.get("stages")
    if not stages or not isinstance(stages, list | tuple) or not all(isinstance(stage, dict) for stage in stages):
        raise TrainingError("there must be at least one [[stages]] table")
    data["stages"] = stages = tuple(_build(Stage, stage, "stages") for stage in stages)
    if data.get("dataset") not in KINDS:
        raise TrainingError(f"dataset must be one of {', '.join(KINDS)}, not {data.get('dataset')!r}")
    implied = {"weight_bits": stages[-1].weight_bits, "activation_bits": stages[-1].activation_bits}
    if data["dataset"] in CLASSES:
        implied["classes"] = CLASSES[data["dataset"]]
    elif root is not None:
        implied["classes"] = read_class_names(root)
    data["architecture"] = _build(Architecture, _table(data, "architecture") | implied, "architecture")
    data["augmentation"] = _build(Augmentation, _table(data, "augmentation"), "augmentation")
    data["preprocessing"] = _build(Preprocessing, _table(data, "preprocessing"), "preprocessing")
    config = _build(Config, data, "the configuration")
    _check(config)
    return config


def check_continuation(begun, config, stages_begun):
    """Make sure that a run may go on under a configuration.

    Only what is still to come may differ: later stages, the model's name, and the size photos are segmented at.

    Parameters
    ----------
    begun, config : Config
        What the run began with, and what it is to go on with.
    stages_begun : int
        Number of stages that are finished or under way.

    Raises
    ------
    TrainingError
        They contradict each other.
    """
    advice = "restore it, or begin a new run with another --output and --start"
    old, new = _flat(begun.as_dict()), _flat(config.as_dict())
    for entry in old:
        if entry not in _FREE_TO_CHANGE and old[entry] != new[entry]:
            raise TrainingError(f"{entry} is {new[entry]!r}, but the run began with {old[entry]!r}; {advice}")
    for index, stage in enumerate(begun.stages[:stages_begun]):
        if config.stages[index : index + 1] != (stage,):
            raise TrainingError(f"stage '{stage.name}' has begun and can no longer change; {advice}")


def _flat(values, prefix=""):
    """Nested dicts as one, with dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _table(data, name):
    if not isinstance(data.get(name), dict):
        raise TrainingError(f"the table [{name}] is missing")
    return data[name]


def _build(kind, values, where):
    """An instance of a dataclass from plain data, names and types checked; lists become tuples."""
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(set(values) - set(known))
    missing = [name for name, field in known.items() if name not in values and field.default is MISSING]
    if unknown:
        raise TrainingError(f"{where}: unknown entry '{unknown[0]}'; known are {', '.join(known)}")
    if missing:
        raise TrainingError(f"{where}: the entry '{missing[0]}' is missing")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in values.items():
        if not all(map(_is_storable, value if isinstance(value, tuple) else (value,))):
            raise TrainingError(f"{where}: '{name}' must be finite, and a whole number less than 2^63")
        kind_of_value = (int, float) if known[name].type is float else known[name].type
        if not isinstance(value, kind_of_value) or (isinstance(value, bool) and known[name].type is not bool):
            shown = "list" if known[name].type is tuple else known[name].type.__name__
            raise TrainingError(f"{where}: '{name}' must be of type {shown}, not {value!r}")
    return kind(**values)


def _check(config):
    """Raise a `TrainingError` at the first entry whose value is impossible, or that no model file may have."""
    demands = _demands(config)
    for stage in config.stages:
        demands += [(holds, f"stage '{stage.name}': {message}") for holds, message in _stage_demands(stage)]
    for holds, message in demands:
        if not holds:
            raise TrainingError(message)
    with _explained("name"):
        check_name(config.name)
    with _explained("preprocessing"):
        check_preprocessing(config.preprocessing)
    for stage in config.stages:
        # Floating point becomes 8 bits when it is converted.
        bits = {name: min(getattr(stage, name), 8) for name in ("weight_bits", "activation_bits")}
        with _explained("architecture"):
            check_architecture(replace(config.architecture, **bits))


@contextmanager
def _explained(where):
    try:
        yield
    except ValueError as error:
        raise TrainingError(f"{where}: {error}") from None


def _demands(config):
    """Pairs of whether a demand on a configuration holds, and the demand."""
    crop, zoom = config.augmentation.crop, config.augmentation.scale
    names = [stage.name for stage in config.stages]
    return [
        (config.seed >= 0, "seed must not be negative"),
        (len(config.architecture.classes) > 1, "there must be at least two classes: is background one of them?"),
        (1 <= config.batch_size <= LARGEST, f"batch_size must be 1 to {LARGEST}"),
        (config.quantizer in QUANTIZERS, f"quantizer must be one of {', '.join(QUANTIZERS)}"),
        (config.class_weights in ("none", "log"), "class_weights must be 'none' or 'log'"),
        (
            0 < crop <= LARGEST and crop % SIZE_MULTIPLE == 0,
            f"augmentation: crop must be a multiple of {SIZE_MULTIPLE}, at most {LARGEST}",
        ),
        (
            len(zoom) == 2 and all(map(_is_number, zoom)) and 1 / LARGEST_ZOOM <= zoom[0] <= zoom[1] <= LARGEST_ZOOM,
            f"augmentation: scale must be the smallest and the largest zoom, from 1/{LARGEST_ZOOM} to {LARGEST_ZOOM}",
        ),
        (0 <= config.augmentation.colour <= 1, "augmentation: colour must lie between 0 and 1"),
        (len(set(names)) == len(names), "stages: two have the same name"),
    ]


def _stage_demands(stage):
    """The same for one stage."""
    bits = stage.weight_bits, stage.activation_bits
    rates = stage.decoder_rate, stage.quantizer_rate
    distinct = [stride for stride in STRIDES if stride in stage.scales]
    return [
        (
            re.fullmatch(r"\w[\w.-]*", stage.name) and stage.name != RUN_CHECKPOINT,
            f"the name must suit a file and not be '{RUN_CHECKPOINT}'",
        ),
        (
            all(width == FLOAT_BITS or 1 <= width <= 8 for width in bits),
            f"weight_bits and activation_bits must be 1 to 8, or {FLOAT_BITS} for floating point",
        ),
        (stage.iterations >= 0, "iterations must not be negative"),
        (all(rate > 0 for rate in rates), "learning rates must be positive"),
        (stage.encoder_rate >= 0, "encoder_rate must be positive, or 0 to train the decoder alone"),
        (stage.labels >= 0, "labels must not be negative"),
        (stage.distillation >= 0, "distillation must not be negative"),
        (stage.labels + stage.distillation > 0, "labels and distillation must not both be 0"),
        (stage.patience >= 0, "patience must not be negative"),
        (0 <= stage.blend <= 1, "blend must lie between 0 and 1"),
        (stage.norm_batches >= 0, "norm_batches must not be negative"),
        (
            not (stage.frozen_norms and stage.norm_batches and stage.blend),
            "frozen_norms would freeze statistics of whole rounding: norm_batches or blend must be 0",
        ),
        (stage.task in ("segmentation", "classification"), "task must be 'segmentation' or 'classification'"),
        (stage.task == "segmentation" or stage.scales == (32,), "classification needs scales = [32]"),
        (stage.task == "segmentation" or not stage.distillation, "classification can have no distillation"),
        (stage.task == "segmentation" or not stage.evaluate, "classification needs evaluate = false: val has masks"),
        (stage.norm_batches > 0 or not stage.norm_augmented, "norm_augmented needs norm_batches"),
        (
            distinct and len(distinct) == len(stage.scales) and all(type(scale) is int for scale in stage.scales),
            f"scales must be some of {', '.join(map(str, STRIDES))}",
        ),
    ]


def _is_storable(value):
    """Whether a value is no number, or finite, and, if whole, of 64 bits with its sign."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
