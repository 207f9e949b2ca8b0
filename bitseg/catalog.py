"""What models are installed, and all about one of them."""

from dataclasses import asdict, dataclass

from .cost import fp32_bytes, network_cost, packed_bytes, predicted_speedup, weight_count
from .errors import ModelFileError
from .model_file import VERSION, find_model, installed_models, read_model, stored_checksum
from .network.graph import SIZE_MULTIPLE
from .palette import palette_for

INSTALLED_LICENCE = "MIT, as bitseg; NOTICE names the encoder that training started from"
"""Of the models in weights/: a model file need not state a licence."""


@dataclass(frozen=True)
class InstalledModel:
    """One installed model, as ``bitseg models`` lists it.

    Attributes
    ----------
    name : str
        What `load` takes.
    classes : tuple of str
        Class names; the position is the class id.
    weight_bits, activation_bits : int
        Bits of its convolutions.
    file_size : int
        Size of its file in bytes.
    miou : float or None
        Mean intersection over union, 0 to 1, on `dataset`; None if it was not measured.
    dataset : str or None
        Labelled photos that it was measured on.
    """

    name: str
    classes: tuple
    weight_bits: int
    activation_bits: int
    file_size: int
    miou: float | None
    dataset: str | None


def list_models(on_error=None):
    """List the installed models.

    Parameters
    ----------
    on_error : callable or None
        Called with the `ModelFileError` of each damaged file, which is then left out; None: the error is raised.

    Returns
    -------
    list of InstalledModel
        By name.

    Raises
    ------
    ModelFileError
        The file of an installed model is damaged, and `on_error` is None.
    """
    found = []
    for path in installed_models():
        try:
            found.append(_entry(path))
        except ModelFileError as error:
            if on_error is None:
                raise
            on_error(error)
    return found


def _entry(path):
    model = read_model(path)
    accuracy = model.training.get("accuracy", {})
    return InstalledModel(
        name=path.stem,
        classes=model.architecture.classes,
        weight_bits=model.architecture.weight_bits,
        activation_bits=model.architecture.activation_bits,
        file_size=model.file_size,
        miou=accuracy.get("miou"),
        dataset=accuracy.get("dataset"),
    )


def describe_model(name, size=None):
    """All about one model, as ``bitseg info --json`` prints it.

    Parameters
    ----------
    name : str or path
        Name of an installed model, or path of an ``.h5`` file.
    size : (int, int) or None
        Width and height, multiples of 32, of the image whose cost is counted; None: the model's working size at 4:3.

    Returns
    -------
    dict
        What JSON can hold. Totals are of all layers, whose ``output_size`` is width and height; ``packed_bytes`` and
        ``fp32_bytes`` are those of the weights alone, at their own bits and in fp32; the colour of a class is the one
        that `Segmentation.overlay` gives it by default.

    Raises
    ------
    ModelFileError
        There is no such model, or its file is damaged.
    ValueError
        A side is no multiple of 32.
    """
    path = find_model(name)
    model = read_model(path)
    architecture, working_size = model.architecture, model.preprocessing.working_size
    width, height = size or (working_size, -(-working_size * 3 // 4 // SIZE_MULTIPLE) * SIZE_MULTIPLE)
    cost = network_cost(architecture, height, width)
    is_installed = path.resolve() in (installed.resolve() for installed in installed_models())
    return {
        "name": model.name,
        "architecture": asdict(architecture),
        "preprocessing": asdict(model.preprocessing),
        "classes": [
            {"id": i, "name": name, "color": color}
            for i, (name, color) in enumerate(zip(architecture.classes, palette_for(architecture.classes).tolist()))
        ],
        "size": [width, height],
        "layers": [_layer_entry(layer) for layer in cost.layers],
        "multiplications": cost.multiplications,
        "bit_operations": cost.bit_operations,
        "predicted_speedup": predicted_speedup(architecture.weight_bits, architecture.activation_bits),
        "fpga_share": cost.fpga_share,
        "weights": weight_count(architecture),
        "packed_bytes": packed_bytes(architecture),
        "fp32_bytes": fp32_bytes(architecture),
        "file": {
            "path": str(path.resolve()),
            "bytes": model.file_size,
            "format_version": VERSION,
            "sha256": stored_checksum(path),
        },
        "training": model.training,
        "licence": model.training.get("licence", INSTALLED_LICENCE if is_installed else None),
    }


def _layer_entry(layer):
    convolution = layer.convolution
    return {
        "name": layer.name,
        **asdict(convolution),
        "output_size": [layer.width, layer.height],
        "weights": convolution.weights,
        "multiplications": layer.multiplications,
        "bit_operations": layer.bit_operations,
    }
