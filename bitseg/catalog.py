"""What models are installed."""

from dataclasses import dataclass

from .errors import ModelFileError
from .model_file import installed_models, read_model


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
