"""Time a network by layer: where the milliseconds go, and how fast each convolution is."""

import time
from dataclasses import dataclass

import numpy as np

from .cost import network_cost
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
    clock = _Clock(network, network_cost(model.architecture, height, width))
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

    def __init__(self, network, cost):
        self.operations, self.records = network.operations, []
        self.costs = {id(network.layers[layer.name]): layer for layer in cost.layers}

    def __getattr__(self, operation):
        function = getattr(self.operations, operation)

        def timed(*arguments):
            began = time.perf_counter()
            result = function(*arguments)
            seconds = time.perf_counter() - began
            layers = [self.costs[id(argument)] for argument in arguments if id(argument) in self.costs]
            name = " + ".join(layer.name for layer in layers) or operation
            multiplications = sum(layer.multiplications for layer in layers)
            self.records.append((name, seconds, multiplications))
            return result

        return timed
