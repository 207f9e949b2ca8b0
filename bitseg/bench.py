"""Time a network by layer: where the milliseconds go, and how fast each convolution is."""

import time
from dataclasses import dataclass

import numpy as np

from .network.graph import Network
from .network.operations import Operations


@dataclass(frozen=True)
class OperationTime:
    """One operation of a network.

    Attributes
    ----------
    name : str
        Layer, or the operation where it is none.
    milliseconds : float
        Median over the rounds.
    multiplications : int
        Multiply-accumulates that it stands for; 0 where it is no convolution.
    """

    name: str
    milliseconds: float
    multiplications: int

    @property
    def gmac_per_second(self):
        """Billions of multiply-accumulates a second."""
        return self.multiplications / self.milliseconds / 1e6


def time_operations(model, height, width, threads=None, kernel="auto", rounds=11):
    """Run a network several times on noise and time each of its operations.

    Parameters
    ----------
    model : bitseg.model_file.Model
    height, width : int
        Size of the image, multiples of 32.
    threads : int or None
    kernel : str
        As for `bitseg.load`.
    rounds : int
        Runs that count, after two that do not.

    Returns
    -------
    operations : list of OperationTime
        In order of execution.
    total : float
        Median time of a whole run, milliseconds.

    Raises
    ------
    ValueError
        The size, the thread count or the kernel cannot be used.
    """
    network = Network(model, Operations(threads, kernel))
    clock = _Clock(network)
    network.operations = clock
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    runs, totals = [], []
    for _ in range(rounds + 2):
        clock.records = []
        began = time.perf_counter()
        network.label_map(image, (height, width), (height, width))
        totals.append((time.perf_counter() - began) * 1e3)
        runs.append(clock.records)
    medians = np.median([[seconds for _, seconds, _ in run] for run in runs[2:]], axis=0)
    operations = [
        OperationTime(name, float(median), multiplications)
        for (name, _, multiplications), median in zip(runs[-1], medians * 1e3, strict=True)
    ]
    return operations, float(np.median(totals[2:]))


class _Clock:
    """Passes operations on and keeps the name, the seconds and the multiplications of each."""

    def __init__(self, network):
        self.operations, self.records = network.operations, []
        self.names = {id(layer): name for name, layer in network.layers.items()}

    def __getattr__(self, operation):
        function = getattr(self.operations, operation)

        def timed(*arguments):
            began = time.perf_counter()
            result = function(*arguments)
            seconds = time.perf_counter() - began
            layers = [argument for argument in arguments if id(argument) in self.names]
            pixels = _pixels(result)
            # The stem's result is pooled: its convolution has four times the pixels.
            pixels *= 4 if operation == "stem" else 1
            multiplications = sum(layer.convolution.weights * pixels for layer in layers)
            name = " + ".join(self.names[id(layer)] for layer in layers) or operation
            self.records.append((name, seconds, multiplications))
            return result

        return timed


def _pixels(result):
    """Pixels of a feature map, as an operation returns it."""
    if hasattr(result, "sums"):
        rows, columns = result.sums.shape
        return (rows - 2 * result.margin) * (columns - 2 * result.margin)
    if isinstance(result, tuple):
        return result[0].shape[0] * result[0].shape[1]
    return result.shape[-2] * result.shape[-1]
