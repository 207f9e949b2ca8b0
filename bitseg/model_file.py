"""The model file: HDF5 behind a 512-byte header with length and checksum. `docs/model-format.md` specifies it.

The header is checked before the HDF5 library sees a byte, so a damaged file never reaches it; after that every name,
shape, type and number is compared with what the architecture asks for.
"""

import hashlib
import io
import json
import math
import os
import re
import stat
import traceback
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5g, h5i, h5l, h5o, h5s

from .architecture import ENCODERS, RECONSTRUCTIONS, Architecture, Preprocessing
from .errors import ModelFileError
from .files import write_safely

VERSION = 1
HEADER_BYTES = 512
LARGEST_PAYLOAD = 1 << 28
"""Bytes; seven times the paper's full network at 8 bits. A model takes up to 8 times its file in memory."""

LARGEST_TEXT = 60_000
"""Bytes of an attribute; HDF5 keeps up to 64 KiB of them in one piece."""

FACTOR = np.dtype("<f4")
"""Type of all scales in the file."""

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
class PackedWeights:
    """`LayerWeights` as they lie in the file: an eighth of the memory for each bit, unpacked when asked for.

    Attributes
    ----------
    planes : ndarray of uint8, shape (bits, out, ceil(window / 8))
        Bit-planes of the codes.
    shape : (int, int, int, int)
        Of the codes: out, kernel, kernel, in.
    multiplier, offset : ndarray of float32, shape (out,)
    """

    planes: np.ndarray
    shape: tuple
    multiplier: np.ndarray
    offset: np.ndarray

    @property
    def codes(self):
        """A new array of the codes, as of `LayerWeights`."""
        window = math.prod(self.shape[1:])
        codes = np.zeros((self.shape[0], window), np.uint8)
        for bit, plane in enumerate(self.planes):
            codes |= np.unpackbits(plane, axis=-1, count=window, bitorder="little") << bit
        return codes.reshape(self.shape)


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
    layers : dict of str to LayerWeights or PackedWeights
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
        This is no path, and no installed model has this name.
    """
    path = Path(name)
    if path.suffix == ".h5" or len(path.parts) > 1 or os.path.isfile(path):
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
    payload = _read_payload(path)
    with _explained(path, "convert or download it again"):
        return _parse(payload)


def stored_checksum(path):
    """SHA-256 checksum, in hexadecimal, that the header of a model file states; `read_model` makes sure of it."""
    with open(path, "rb") as file:
        return file.readline(HEADER_BYTES).split()[-1].decode()


def write_model(path, model):
    """Write a model file; the file appears whole or not at all.

    Parameters
    ----------
    path : path
    model : Model

    Raises
    ------
    ModelFileError
        `read_model` would refuse the model, or the file cannot be written.
    """
    with _explained(path, "nothing was written"):
        payload = _payload(model)
        _require(len(payload) <= LARGEST_PAYLOAD, f"{len(payload)} bytes are too many")
        _parse(payload)
    with write_safely(path, ModelFileError) as file:
        file.write(_header(payload) + payload)


@contextmanager
def _explained(path, mend):
    """Turn whatever is wrong with a model into one line that begins with its file."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # Hostile content makes libhdf5, h5py and json raise many types, and their texts may quote it.
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = "".join(filter(str.isprintable, reason))[:200]
        # A file that h5py could open half only crashes it when it is dropped as late as at the end of the process.
        traceback.clear_frames(error.__traceback__)
        raise ModelFileError(f"{path}: not a valid bitseg model ({reason}); {mend}") from error


def _header(payload):
    line = f"bitseg model {VERSION} {len(payload)} {hashlib.sha256(payload).hexdigest()}"
    return line.encode().ljust(HEADER_BYTES, b"\n")


def _read_payload(path):
    """The HDF5 part of a file whose header is the one that belongs to it."""
    try:
        # Asked first because opening a FIFO would wait for its other end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelFileError(f"{path}: a folder or device; give the .h5 file itself")
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
            found = re.match(rb"bitseg model (\d{1,9}) (\d{1,9}) ", header)
            if not found:
                raise ModelFileError(f"{path}: not a bitseg model; make one with tools/convert.py")
            version, length = map(int, found.groups())
            if version != VERSION:
                raise ModelFileError(f"{path}: model format {version}, but this bitseg reads {VERSION}; update bitseg")
            if length > LARGEST_PAYLOAD:
                raise ModelFileError(f"{path}: {length} bytes are too many for a bitseg model; use fewer channels")
            payload = file.read(length + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise ModelFileError(f"{path}: not a path ({error}); check the name") from error
    if header != _header(payload):
        raise ModelFileError(f"{path}: damaged or cut short; copy or download it again")
    return payload


def _payload(model):
    memory = io.BytesIO()
    # v108: files that HDF5 1.8 and newer can read, and a third smaller than those of older formats.
    with h5py.File(memory, "w", libver=("v108", "v108")) as file:
        for name, text in (
            ("name", model.name),
            ("architecture", json.dumps(asdict(model.architecture))),
            ("preprocessing", json.dumps(asdict(model.preprocessing), allow_nan=False)),
            ("training", json.dumps(model.training, allow_nan=False)),
        ):
            encoded = text.encode()
            # Of fixed length: libhdf5 2.0 loops forever on some damaged heaps of variable-length strings.
            file.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", len(encoded)))
        file["palette"] = model.palette
        # HDF5 would note the time in groups that it makes on the way to others, and no two files were the same.
        for name in ("layers", "streams"):
            file.create_group(name)
        for name, convolution in model.architecture.convolutions().items():
            layer = model.layers[name]
            group = file.create_group(f"layers/{name}")
            group["weight"] = _pack(layer.codes, convolution.weight_bits)
            group["affine"] = np.stack([layer.multiplier, layer.offset]).astype(FACTOR)
        for name in model.architecture.stream_outputs():
            scales = model.streams[name]
            file[f"streams/{name}"] = np.array([scales.shortcut_multiplier, scales.activation_multiplier], FACTOR)
    return memory.getvalue()


def _pack(codes, bits):
    """Bit-planes of weight codes, as `PackedWeights` has them, whose `codes` are the inverse."""
    if codes.max() >> bits:
        raise ValueError(f"weight code {codes.max()} needs more than {bits} bits")
    planes = [(codes.reshape(len(codes), -1) >> bit) & 1 for bit in range(bits)]
    return np.packbits(np.stack(planes), axis=-1, bitorder="little")


def _parse(payload):
    with h5py.File(io.BytesIO(payload), "r") as file:
        architecture = _dataclass(Architecture, _text(file, "architecture"))
        check_architecture(architecture)
        convolutions, outputs = architecture.convolutions(), architecture.stream_outputs()
        # Before any array is made: a small file must not ask for large ones.
        if sum(math.prod(_packed_shape(convolution)) for convolution in convolutions.values()) > len(payload):
            raise ValueError("it is too small for the weights of its architecture")
        # From here on by h5py's low-level interface, which takes a third of the time.
        root = file.id
        _check_members(root, {"palette", "layers", "streams"})
        layers, streams = (_child(root, name, h5g.GroupID) for name in ("layers", "streams"))
        _check_members(layers, convolutions)
        _check_members(streams, outputs)
        name, training = _text(file, "name"), _object(_text(file, "training"), "training")
        check_name(name)
        _check_training(training)
        preprocessing = _dataclass(Preprocessing, _text(file, "preprocessing"))
        check_preprocessing(preprocessing)
        return Model(
            name,
            architecture,
            preprocessing,
            _array(root, "palette", np.uint8, (len(architecture.classes), 3)),
            training,
            {name: _layer(_child(layers, name, h5g.GroupID), shape) for name, shape in convolutions.items()},
            {name: StreamScales(*_factors(streams, name, (2,))) for name in outputs},
            HEADER_BYTES + len(payload),
        )


def _check_members(group, names):
    if len(group) != len(names) or set(group) != {name.encode() for name in names}:
        raise ValueError(f"{_path(group)} has not the members that its architecture asks for")


def _child(group, name, kind):
    """A group or dataset that a group holds itself: a link could lead to another file."""
    encoded = name.encode()
    is_own = group.links.exists(encoded) and group.links.get_info(encoded).type == h5l.TYPE_HARD
    child = h5o.open(group, encoded) if is_own else None
    if not isinstance(child, kind):
        raise ValueError(f"{name} is missing or of another kind than {kind.__name__}")
    return child


def _path(part):
    """Where in its file a group or dataset lies."""
    return h5i.get_name(part).decode()


def _text(file, name):
    """An attribute that is one UTF-8 string of fixed length."""
    attribute = file.attrs.get_id(name)
    string = h5py.check_string_dtype(attribute.dtype)
    if attribute.shape != () or string is None or string.length is None or string.length > LARGEST_TEXT:
        raise ValueError(f"{name} is not one string of fixed length, up to {LARGEST_TEXT} bytes")
    return file.attrs[name].decode()


def _object(text, name):
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"{name} is not a JSON object")
    return values


def _dataclass(kind, text):
    name = kind.__name__.lower()
    values = _object(text, name)
    known = {field.name: field.default is MISSING for field in fields(kind)}
    if not {field for field, required in known.items() if required} <= set(values) <= set(known):
        raise ValueError(f"{name} lacks an entry or has an unknown one")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _require(holds, rule):
    if not holds:
        raise ValueError(rule)


def _are_whole(values, count, low, high):
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(type(value) is int and low <= value <= high for value in values)
    )


def _is_label(value):
    return isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable() and value == value.strip()


def _is_number(value, low, high):
    # NaN fails the comparison.
    return type(value) in (int, float) and low <= value <= high


def check_name(name):
    """Refuse the name of a model that no file may have, with a ValueError."""
    _require(_is_label(name), "the name must be 1 to 100 printable characters")


def check_architecture(architecture):
    """Refuse an `Architecture` that no file may have, with a ValueError: its types, bounds, and 32-bit sums."""
    classes = architecture.classes
    _require(architecture.encoder in list(ENCODERS), f"the encoder must be one of {', '.join(ENCODERS)}")
    _require(
        architecture.reconstruction in RECONSTRUCTIONS,
        f"the reconstruction must be one of {', '.join(RECONSTRUCTIONS)}",
    )
    _require(
        _are_whole((architecture.stem_channels,), 1, 1, 4096)
        and _are_whole(architecture.stage_channels, 4, 1, 4096)
        and _are_whole(architecture.branch_channels, 4, 1, 4096),
        "channels of the stem, four stages and four branches must be whole numbers from 1 to 4096",
    )
    _require(
        _are_whole((architecture.weight_bits, architecture.activation_bits), 2, 1, 8)
        and _are_whole((architecture.stream_bits, architecture.stream_weight_bits), 2, 0, 8),
        "bits must be whole numbers from 1 to 8",
    )
    _require(
        isinstance(classes, tuple) and 1 <= len(classes) <= 255 and all(map(_is_label, classes)),
        "classes must be 1 to 255 names of 1 to 100 printable characters",
    )
    _require(len(set(classes)) == len(classes), "class names must differ")
    for convolution in architecture.convolutions().values():
        convolution.check_sums()


def check_preprocessing(preprocessing):
    """Refuse a `Preprocessing` that no file may have, with a ValueError."""
    size = preprocessing.working_size
    _require(_are_whole(preprocessing.mean, 3, 0, 255), "the mean colour must be 3 whole numbers from 0 to 255")
    _require(_is_number(preprocessing.scale, 1e-6, 1e6), "the scale must be a number from 1e-6 to 1e6")
    _require(_are_whole((size,), 1, 32, 65536) and size % 32 == 0, "the working size must be a multiple of 32")


def _check_training(training):
    """Of all that training says, bitseg reads where the accuracy was measured and what it was."""
    if "accuracy" in training:
        accuracy = training["accuracy"]
        _require(
            isinstance(accuracy, dict)
            and _is_label(accuracy.get("dataset"))
            and _is_number(accuracy.get("miou"), 0, 1),
            "accuracy must name its dataset and an miou from 0 to 1",
        )


def _packed_shape(convolution):
    return convolution.weight_bits, convolution.out_channels, -(-convolution.window // 8)


def _layer(group, convolution):
    _check_members(group, {"weight", "affine"})
    out, kernel = convolution.out_channels, convolution.kernel
    planes = _array(group, "weight", np.uint8, _packed_shape(convolution))
    return PackedWeights(planes, (out, kernel, kernel, convolution.in_channels), *_factors(group, "affine", (2, out)))


def _factors(group, name, shape):
    values = _array(group, name, FACTOR, shape)
    if not np.all(np.abs(values) <= LARGEST_FACTOR):
        raise ValueError(f"{_path(group)}/{name} has values that are not finite or too large")
    return values


def _array(group, name, dtype, shape):
    """Read a dataset of exactly this type and shape whose values lie in the file in one piece."""
    dataset = _child(group, name, h5d.DatasetID)
    start = dataset.get_offset()
    # Without a place: compressed, external, virtual, or never written. First, because a virtual one may open files.
    if start is None or start + math.prod(shape) * np.dtype(dtype).itemsize > h5i.get_file_id(dataset).get_filesize():
        raise ValueError(f"{_path(dataset)} is not stored contiguously in the file")
    if dataset.shape != shape or dataset.dtype != dtype:
        raise ValueError(f"{_path(dataset)} is not {np.dtype(dtype)} of shape {shape}")
    values = np.empty(shape, dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values
