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
    operations = Operations(threads, kernel)
    network = Network(model, operations)
    network.operations = recorder = _Recorder(network, network_cost(model.architecture, height, width))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    size = height, width

    plan = operations.plan(network.compute_label_map, image.shape, size, size)
    runs = []
    for _ in range(rounds + 2):
        times = [time.perf_counter()]
        operations.execute(plan, image, times)
        times.append(time.perf_counter())
        runs.append(times)
    runs = np.array(runs[2:]) * 1e3
    # The first step of each operation, and the end of the last.
    bounds = [0, *(last for _, last, _ in recorder.records)]
    medians = np.median(np.diff(runs[:, bounds], axis=1), axis=0)
    found = [
        OperationTime(name, float(median), multiplications)
        for (name, _, multiplications), median in zip(recorder.records, medians, strict=True)
    ]
    return found, float(np.median(runs[:, -1] - runs[:, 0]))


class _Recorder:
    """Passes operations on and keeps the name, the number of the last step, and the multiplications of each."""

    def __init__(self, network, cost):
        self.operations, self.records = network.operations, []
        self.costs = {id(network.layers[layer.name]): layer for layer in cost.layers}

    def __getattr__(self, operation):
        function = getattr(self.operations, operation)

        def recorded(*arguments):
            result = function(*arguments)
            layers = [self.costs[id(argument)] for argument in arguments if id(argument) in self.costs]
            name = " + ".join(layer.name for layer in layers) or operation
            multiplications = sum(layer.multiplications for layer in layers)
            self.records.append((name, self.operations.planned, multiplications))
            return result

        return recorded
