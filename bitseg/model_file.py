"""The model file: HDF5 behind a 512-byte header with length and checksum. `docs/model-format.md` specifies it.

The header is checked before the HDF5 library sees a byte, so a damaged file never reaches it; after that every name,
shape, type and number is compared with what the architecture asks for.
"""

import hashlib
import io
import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import h5py
import numpy as np

from .architecture import ENCODERS, Architecture, Preprocessing
from .errors import ModelFileError

VERSION = 1
HEADER_BYTES = 512
LARGEST_FILE = 1 << 30
LARGEST_FACTOR = 1e20
"""Bound of all scales: a product with any 31-bit sum stays finite in float32."""

WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one convolution; BatchNorm, scales and the next quantiser are folded in.

    Attributes
    ----------
    codes : ndarray of uint8, shape (out, kernel, kernel, in)
        Weight codes q; the weight is proportional to ``2 q - (2**bits - 1)``.
    multiplier, offset : ndarray of float32, shape (out,)
        The layer's result is ``t * multiplier + offset`` for the integer sum t.
    """

    codes: np.ndarray
    multiplier: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class StreamScales:
    """Scales at the end of a residual block, float32.

    Attributes
    ----------
    shortcut_multiplier : numpy.float32
        From codes of the incoming stream to units of the outgoing stream's codes; 0 where nothing is added.
    activation_multiplier : numpy.float32
        From codes of the outgoing stream to units of the codes that convolutions read.
    """

    shortcut_multiplier: np.float32
    activation_multiplier: np.float32


@dataclass(frozen=True)
class Model:
    """Everything a model file says.

    Attributes
    ----------
    name : str
    architecture : Architecture
    preprocessing : Preprocessing
    palette : ndarray of uint8, shape (classes, 3)
        RGB colour of every class.
    training : dict
        Data, configuration, command, commit, and measured ``accuracy``.
    layers : dict of str to LayerWeights
    streams : dict of str to StreamScales
    file_size : int
        Bytes; 0 for a model that was not read from a file.
    """

    name: str
    architecture: Architecture
    preprocessing: Preprocessing
    palette: np.ndarray
    training: dict
    layers: dict
    streams: dict
    file_size: int = 0


def installed_models():
    """Paths of the models that are installed with the package, by name."""
    folder = WEIGHTS_FOLDER if WEIGHTS_FOLDER.is_dir() else WEIGHTS_FOLDER.parent.parent / "weights"
    return sorted(folder.glob("*.h5"))


def find_model(name):
    """Path of a model given by name or by path.

    Raises
    ------
    ModelFileError
        There is no such file, and no installed model of that name.
    """
    path = Path(name)
    if path.suffix == ".h5" or path.is_file() or len(path.parts) > 1:
        if path.is_dir():
            raise ModelFileError(f"{name}: this is a folder; give the .h5 file itself")
        if not path.exists():
            raise ModelFileError(f"{name}: no such model file")
        return path
    installed = {path.stem: path for path in installed_models()}
    if str(name) in installed:
        return installed[str(name)]
    near = get_close_matches(str(name), installed, 1, 0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    known = ", ".join(installed) or "none"
    raise ModelFileError(f"unknown model '{name}': {hint}installed: {known}; or give the path of an .h5 file")


def read_model(path):
    """Read and check a model file.

    Parameters
    ----------
    path : path

    Returns
    -------
    Model

    Raises
    ------
    ModelFileError
        The file cannot be read, is damaged, is no bitseg model, or contradicts itself.
    """
    payload, file_size = _read_payload(Path(path))
    try:
        with h5py.File(io.BytesIO(payload), "r") as file:
            return _parse(file, file_size)
    except (
        KeyError,
        ValueError,
        TypeError,
        OSError,
        RuntimeError,
        AttributeError,
        MemoryError,
        RecursionError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelFileError(f"{path}: not a valid bitseg model ({reason}); convert or download it again") from None


def _read_payload(path):
    """The HDF5 part of a file whose length and checksum are right."""
    try:
        if not path.is_file():
            raise ModelFileError(f"{path}: no such model file")
        if path.stat().st_size > LARGEST_FILE:
            raise ModelFileError(f"{path}: {path.stat().st_size} bytes are too many for a bitseg model")
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from None
    words = content[:HEADER_BYTES].split(b"\n", 1)[0].decode("ascii", "replace").split()
    if words[:2] != ["bitseg", "model"] or len(words) != 5:
        raise ModelFileError(f"{path}: not a bitseg model; make one with tools/convert.py")
    version, length, checksum = words[2:]
    if version != str(VERSION):
        raise ModelFileError(f"{path}: model format {version}, but this bitseg reads {VERSION}; update bitseg")
    payload = content[HEADER_BYTES:]
    if length != str(len(payload)):
        raise ModelFileError(f"{path}: damaged: {len(payload)} bytes of model data instead of {length}; copy it again")
    if hashlib.sha256(payload).hexdigest() != checksum:
        raise ModelFileError(f"{path}: damaged: the checksum does not match; copy it again")
    return payload, len(content)


def _parse(file, file_size):
    architecture = _dataclass(Architecture, file.attrs["architecture"])
    _check_architecture(architecture)
    preprocessing = _dataclass(Preprocessing, file.attrs["preprocessing"])
    _check_preprocessing(preprocessing)
    convolutions, outputs = architecture.convolutions(), architecture.stream_outputs()
    if set(file["layers"]) != set(convolutions) or set(file["streams"]) != set(outputs):
        raise ValueError("its layers are not those of its architecture")
    palette = _array(file["palette"], np.uint8, (len(architecture.classes), 3))
    training = json.loads(file.attrs["training"])
    if not isinstance(training, dict):
        raise ValueError("training is not an object")
    layers = {name: _layer(file["layers"][name], convolution) for name, convolution in convolutions.items()}
    streams = {name: StreamScales(*_factors(file["streams"][name], (2,))) for name in outputs}
    return Model(str(file.attrs["name"]), architecture, preprocessing, palette, training, layers, streams, file_size)


def _dataclass(kind, text):
    values = json.loads(text)
    if set(values) != {field.name for field in fields(kind)}:
        raise ValueError(f"{kind.__name__.lower()} lacks an entry or has an unknown one")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check_architecture(architecture):
    if architecture.encoder not in ENCODERS:
        raise ValueError(f"unknown encoder '{architecture.encoder}'")
    if not 1 <= len(architecture.classes) <= 255 or not all(isinstance(name, str) for name in architecture.classes):
        raise ValueError("there must be 1 to 255 class names")
    if len(architecture.stage_channels) != 4 or len(architecture.branch_channels) != 4:
        raise ValueError("there must be four stages and four branches")
    channels = (architecture.stem_channels, *architecture.stage_channels, *architecture.branch_channels)
    if not all(type(count) is int and 1 <= count <= 4096 for count in channels):
        raise ValueError("channels must be whole numbers from 1 to 4096")
    bits = (architecture.weight_bits, architecture.activation_bits, architecture.stream_bits or 8)
    if not all(type(width) is int and 1 <= width <= 8 for width in bits):
        raise ValueError("bits must be whole numbers from 1 to 8")


def _check_preprocessing(preprocessing):
    mean, size = preprocessing.mean, preprocessing.working_size
    if len(mean) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in mean):
        raise ValueError("the mean colour must be three whole numbers from 0 to 255")
    if type(size) is not int or not 32 <= size <= 65536 or size % 32:
        raise ValueError("the working size must be a multiple of 32")


def _layer(group, convolution):
    bits, out = convolution.weight_bits, convolution.out_channels
    per_filter = convolution.weights // out
    packed = _array(group["weight"], np.uint8, (bits, out, -(-per_filter // 8)))
    planes = np.unpackbits(packed, axis=-1, bitorder="little")[..., :per_filter]
    codes = (planes << np.arange(bits, dtype=np.uint8)[:, None, None]).sum(0, dtype=np.uint8)
    multiplier, offset = _factors(group["affine"], (2, out))
    shape = (out, convolution.kernel, convolution.kernel, convolution.in_channels)
    return LayerWeights(codes.reshape(shape), multiplier, offset)


def _factors(dataset, shape):
    values = _array(dataset, np.float32, shape)
    if not np.all(np.abs(values) <= LARGEST_FACTOR):
        raise ValueError(f"{dataset.name} has values that are not finite or too large")
    return values


def _array(dataset, dtype, shape):
    """Read a dataset of exactly this type and shape that is stored in the file itself."""
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != shape or dataset.dtype != dtype:
        raise ValueError(f"{dataset.name} is not {np.dtype(dtype)} of shape {shape}")
    if dataset.external or dataset.is_virtual or dataset.chunks:
        raise ValueError(f"{dataset.name} must be stored contiguously in the file")
    return dataset[()]


def write_model(path, model):
    """Write a model file; the file appears whole or not at all.

    Parameters
    ----------
    path : path
    model : Model

    Raises
    ------
    ModelFileError
        The file cannot be written.
    """
    payload = _payload(model)
    header = f"bitseg model {VERSION} {len(payload)} {hashlib.sha256(payload).hexdigest()}\n"
    path = Path(path)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as partial:
            partial.write(header.encode().ljust(HEADER_BYTES, b"\n") + payload)
        os.chmod(partial.name, 0o644)
        os.replace(partial.name, path)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be written ({error.strerror})") from None


def _payload(model):
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver="latest") as file:
        file.attrs["name"] = model.name
        file.attrs["architecture"] = json.dumps(asdict(model.architecture))
        file.attrs["preprocessing"] = json.dumps(asdict(model.preprocessing))
        file.attrs["training"] = json.dumps(model.training)
        file["palette"] = model.palette
        for name, convolution in model.architecture.convolutions().items():
            layer = model.layers[name]
            group = file.create_group(f"layers/{name}")
            flat = layer.codes.reshape(convolution.out_channels, -1)
            planes = [(flat >> bit) & 1 for bit in range(convolution.weight_bits)]
            group["weight"] = np.packbits(np.stack(planes), axis=-1, bitorder="little")
            group["affine"] = np.stack([layer.multiplier, layer.offset]).astype(np.float32)
        for name in model.architecture.stream_outputs():
            scales = model.streams[name]
            file[f"streams/{name}"] = np.array([scales.shortcut_multiplier, scales.activation_multiplier], np.float32)
    return memory.getvalue()
