"""The operations of the network on Numba kernels: checks, results, and plans of whole networks.

The maths of each operation is its namesake in `reference.py`.
"""

import math
import os
import threading
from collections import namedtuple
from inspect import ismethod
from weakref import WeakMethod

import numpy as np

from ..kernels import convolution as bits
from ..kernels import decoder, stem, tile
from .layout import (
    LANES,
    WORD,
    bit_filters,
    bit_planes,
    check_kernel,
    column_samples,
    result_bound,
    row_samples,
    stem_filters,
    stream_rounding,
    sum_steps,
    with_rising_results,
)
from .plan import Helpers, Plan, Step, Window, Workspace, empty_bytes, in_one_piece, placeholder, with_shared_memory

KEPT_PLANS = 32
"""Each is made in some milliseconds, and takes 0.2 MB; photos of one long side are padded to at most 23 shapes if it is
384, 31 if it is 512."""

MOST_THREADS = 1024
"""Each has counters in every plan."""

Layer = namedtuple("Layer", "convolution filters steps bound")
"""A convolution, its weights laid out for a kernel, its `layout.sum_steps`, and its `layout.result_bound`."""

Rounding = namedtuple("Rounding", "stream_bits activation_bits shortcut_multiplier kernel")


def available_threads():
    """How many threads run at the same time: one for each processor this process may use, if they are not too many."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, MOST_THREADS)


class _Planning(threading.local):
    """Steps of the plan that a thread is making; None while it makes none."""

    steps = None


class Operations:
    """The operations of `graph.Network` on Numba kernels.

    A feature map is a `Planes`; the residual stream is uint8 codes of shape (height, width, 32 n).
    Calls from several threads at once are safe. Each operation is carried out at once, or, in a function that is
    being planned (see `run`), later.

    Parameters
    ----------
    threads : int or None
        Threads that share the rows of each operation; None: one for each processor this process may use.
    kernel : {"auto", "popcount", "lookup", "dot", "tile"}
        Kernel of the bit convolutions, see `layout.select_kernel`; the results are the same.
    jobs : int
        Calls at a time that have these threads among them, each a part.

    Attributes
    ----------
    threads : int
        Threads of one call.
    kernel : str

    Raises
    ------
    ValueError
        Fewer than one thread or too many, an unknown kernel, or one that this CPU cannot run.
    """

    def __init__(self, threads=None, kernel="auto", jobs=1):
        if threads is None:
            threads = available_threads()
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        if threads > MOST_THREADS:
            raise ValueError(f"threads must be at most {MOST_THREADS}, not {threads}")
        check_kernel(kernel)
        self.threads, self.kernel = -(-threads // jobs), kernel
        # Beside the calling ones. Where the parts are not equal, whoever calls first gets one more.
        self._most_helpers = max(threads - jobs, 0)
        self._pool, self._pool_process = None, None
        self._plans, self._idle_workspaces = {}, []
        self._planning = _Planning()

    def run(self, function, image, *more):
        """``function(image, *more)``, planned once for an image's shape and all other arguments.

        The latest `KEPT_PLANS` are kept, and as much memory as the calls needed that were there at the same time.

        Parameters
        ----------
        function : callable
            Calls operations of this object and returns the result of the last one.
        image : ndarray of uint8
        more : hashable

        Returns
        -------
        ndarray
        """
        workspace = self._workspace()
        # Not under a lock, which a fork could find taken: dicts and lists lose and gain one element at once.
        key = _weak(function), image.shape, *more
        plan = self._plans.get(key) or self.plan(function, image.shape, *more, allocate=workspace.memory)
        self._plans.pop(key, None)
        self._plans[key] = plan
        for oldest in list(self._plans)[:-KEPT_PLANS]:
            self._plans.pop(oldest, None)
        return self._execute(plan, image, workspace)

    def plan(self, function, shape, *more, allocate=empty_bytes):
        """The `plan.Plan` of ``function(image, *more)`` for images of a shape; nothing is computed.

        It is made with memory from `allocate`, see `plan.with_shared_memory`, but does not keep it.
        """
        image = placeholder(shape, np.uint8)
        # A signal's handler may plan while this thread does.
        before = self._planning.steps
        self._planning.steps = steps = []
        try:
            function(image, *more)
        finally:
            self._planning.steps = before
        steps, placed = with_shared_memory(steps, image, allocate, self.threads)
        return Plan(steps, self.threads, placed)

    def execute(self, plan, image, times=None):
        """Run a plan on an image; its result. Arguments as for `plan.Plan.run`."""
        return self._execute(plan, image, self._workspace(), times)

    def _execute(self, plan, image, workspace, times=None):
        result = plan.execute(image, self._helpers(), workspace.memory(plan.size), times)
        # Not after an error: a helper may still write to the memory.
        self._idle_workspaces.append(workspace)
        return result

    def shrink(self):
        """Keep no piece of memory that has grown beyond `plan.KEPT_BYTES`."""
        for workspace in list(self._idle_workspaces):
            workspace.memory(0)

    def _workspace(self):
        try:
            return self._idle_workspaces.pop()
        except IndexError:
            return Workspace()

    @property
    def planned(self):
        """Number of steps in the plan that this thread is making."""
        return len(self._planning.steps)

    def prepare(self, convolution, weights):
        """Lay out a convolution and its `model_file.LayerWeights` for the kernel that suits it.

        Returns
        -------
        Layer

        Raises
        ------
        ValueError
            The integer sums could exceed 31 bits.
        """
        convolution.check_sums()
        weights = with_rising_results(convolution, weights)
        filters = bit_filters(convolution, weights, self.kernel)
        steps = sum_steps(convolution, weights, np.int32 if filters.levels is None else filters.levels.dtype)
        return Layer(convolution, filters, steps, result_bound(convolution, weights))

    def prepare_stem(self, convolution, weights):
        """Lay out the first layer, which reads the 8-bit image; arguments and result as for `prepare`."""
        return Layer(convolution, stem_filters(convolution, weights), None, result_bound(convolution, weights))

    def gather(self, layers):
        """The layers of a network, a dict, with all that kernels read of them in one piece of memory."""
        return dict(zip(layers, in_one_piece(tuple(layers.values()))))

    def prepare_rounding(self, stream_bits, activation_bits, scales):
        """Lay out `model_file.StreamScales` for the kernels."""
        kernel = stream_rounding(stream_bits, activation_bits, scales.activation_multiplier)
        return Rounding(stream_bits, activation_bits, scales.shortcut_multiplier, kernel)

    def stem(self, image, layer, mean, rounding):
        convolution = layer.convolution
        padding = convolution.padding
        height, width = image.shape[0] // 2, image.shape[1] // 2
        rows, columns = image.shape[0] + 2 * padding, image.shape[1] + 2 * padding
        values = _with_spare((rows, columns * 3), layer.filters.zero.dtype, stem.SPARE)
        sums = None if layer.filters.levels is None else np.empty((rows, columns), np.int32)
        self._step(rows * columns, rows, stem.border_rows, (tuple(mean), padding), (image,), (values, sums))
        bordered = stem.Image(values, sums, padding)
        stream = np.empty((height // 2, width // 2, len(layer.filters.multiplier)), np.uint8)
        planes = self._planes(height // 2, width // 2, convolution, rounding.activation_bits)
        work = _nanoseconds(height * width, layer)
        constants = layer.filters, _kernel_rounding(rounding, layer.bound)
        self._step(work, height // 2, stem.stem_rows, constants, (bordered,), (stream, planes))
        return stream, planes

    def convolve(self, activation, layer):
        height, width = self._output_size(activation, layer)
        result = self._planes(height, width, layer.convolution, layer.convolution.output_bits)
        largest = np.float32(2**layer.convolution.output_bits - 1)
        constants = layer.filters, layer.steps, largest
        work, more = _nanoseconds(height * width, layer), {"each_take": _each_take(layer), "window": _window(layer)}
        self._step(work, height, bits.convolve_to_planes, constants, (activation,), (result,), **more)
        return result

    def convolve_to_stream(self, features, layer, rounding):
        return self._stream(features, layer, rounding)

    def convolve_and_add(self, activation, layer, shortcut, rounding):
        return self._stream(activation, layer, rounding, shortcut=shortcut)

    def convolve_and_project(self, activation, layer, block_input, projection, rounding):
        return self._stream(activation, layer, rounding, block_input=block_input, projection=projection)

    def classify(self, features, layer):
        height, width = self._output_size(features, layer)
        scores = np.empty((layer.convolution.out_channels, height, width), np.float32)
        work = _nanoseconds(height * width, layer)
        window = _window(layer)
        self._step(work, height, bits.convolve_to_scores, (layer.filters,), (features,), (scores,), window=window)
        return scores

    def upsample2x(self, scores):
        classes, height, width = scores.shape
        fine = np.empty((classes, 2 * height, 2 * width), np.float32)
        self._step(fine.size, 2 * height, decoder.upsample2x_rows, (), (scores,), (fine,))
        return fine

    def refine(self, scores, branch, radius):
        if scores.shape != branch.shape:
            raise ValueError(f"scores of shape {scores.shape}, but a branch of shape {branch.shape}")
        probabilities = _with_spare(scores.shape, np.float32, 15)
        height = scores.shape[1]
        self._step(2 * scores.size, height, decoder.softmax_rows, (), (scores,), (probabilities,))
        refined = np.empty_like(scores)
        inputs = scores, probabilities, branch
        self._step(5 * scores.size, height, decoder.refine_rows, (radius,), inputs, (refined,))
        return refined

    def label_map(self, scores, shape, inside):
        labels = np.empty(shape, np.uint8)
        rows = row_samples(shape[0], inside[0] / 4, scores.shape[1])
        columns = column_samples(shape[1], inside[1] / 4, scores.shape[2])
        work = labels.size * len(scores) / 10
        self._step(work, shape[0], decoder.label_rows, (rows, columns), (scores,), (labels,))
        return labels

    def _stream(self, features, layer, rounding, shortcut=None, block_input=None, projection=None):
        height, width = self._output_size(features, layer)
        shape = height, width, len(layer.filters.multiplier)
        work = _nanoseconds(height * width, layer)
        each_take = _each_take(layer)
        multiplier = projecting = None
        bound = layer.bound
        if shortcut is not None:
            if shortcut.shape != shape:
                raise ValueError(f"the shortcut has shape {shortcut.shape}, the block's result {shape}")
            multiplier = rounding.shortcut_multiplier
            bound += (2**rounding.stream_bits - 1) * abs(float(multiplier))
        if projection is not None:
            projected = (*self._output_size(block_input, projection), len(projection.filters.multiplier))
            if projected != shape:
                raise ValueError(f"the projection has shape {projected}, the block's result {shape}")
            projecting = projection.filters
            bound += projection.bound
            work += _nanoseconds(height * width, projection)
            each_take += _each_take(projection)
        stream = np.empty(shape, np.uint8)
        planes = None
        if rounding.activation_bits:
            planes = self._planes(height, width, layer.convolution, rounding.activation_bits)
        constants = layer.filters, _kernel_rounding(rounding, bound), multiplier, projecting
        inputs = features, shortcut, block_input
        outputs, more = (stream, planes), {"updated": shortcut, "each_take": each_take, "window": _window(layer)}
        self._step(work, height, bits.convolve_to_stream, constants, inputs, outputs, **more)
        return stream, planes

    def _output_size(self, features, layer):
        """Height and width of a convolution's result; refuses a feature map that the kernel would misread."""
        convolution = layer.convolution
        if convolution.reads_stream:
            return _size_of_stream_reader(features, convolution)
        given_bits, (rows, columns, words) = len(features.words), features.words[0].shape
        if (given_bits, words) != (convolution.input_bits, -(-convolution.in_channels // WORD)):
            raise ValueError(
                f"the convolution reads {convolution.input_bits} bits of {convolution.in_channels} channels, "
                f"but was given {given_bits} bits of {words} words: pack with bits={convolution.input_bits}"
            )
        if features.margin < convolution.padding:
            raise ValueError(f"planes with margin {features.margin}: pack with margin={convolution.padding}")
        border = 2 * (features.margin - convolution.padding) + convolution.kernel
        return (rows - border) // convolution.stride + 1, (columns - border) // convolution.stride + 1

    def _planes(self, height, width, convolution, bits):
        """Empty planes for what a convolution gives; in a plan, which brings memory of its own, without any."""
        zeros = np.zeros if self._planning.steps is None else placeholder
        return bit_planes(height, width, convolution.out_channels, bits, zeros=zeros)

    def _step(self, nanoseconds, height, kernel, constants, inputs, outputs, **more):
        """Run a kernel on rows 0 to `height`, or make it the next step of the plan: a `Step` of these fields."""
        step = Step(kernel, constants, inputs, height, nanoseconds, outputs, **more)
        steps = self._planning.steps
        if steps is None:
            Plan([step], self.threads).run(self._helpers())
        else:
            steps.append(step)

    def _helpers(self):
        """The other threads; a forked process has none of its parent's and gets its own."""
        if self._most_helpers and self._pool_process != os.getpid():
            # In this order: a thread that sees the process sees its pool.
            self._pool = Helpers(self._most_helpers)
            self._pool_process = os.getpid()
        return self._pool


def _weak(function):
    """What stands for a function in the key of a plan.

    A method would keep its network, and that these operations, until Python looks for garbage.
    """
    return WeakMethod(function) if ismethod(function) else function


def _window(layer):
    """Rows of its input that a row of a convolution needs."""
    convolution = layer.convolution
    return Window(convolution.stride, -convolution.padding, convolution.kernel - 1 - convolution.padding)


def _size_of_stream_reader(stream, convolution):
    """Height and width of the result of a convolution of the residual stream."""
    if convolution.kernel != 1:
        raise ValueError(f"a {convolution.kernel}x{convolution.kernel} convolution of the stream: it has no border")
    channels = -(-convolution.in_channels // LANES) * LANES
    if stream.dtype != np.uint8 or stream.ndim != 3 or stream.shape[2] != channels or not stream.flags.c_contiguous:
        raise ValueError(
            f"the convolution reads a stream of {channels} channels, but was given {stream.dtype} of shape "
            f"{stream.shape}: pad its channels to a multiple of {LANES}"
        )
    return tuple((size - 1) // convolution.stride + 1 for size in stream.shape[:2])


def _kernel_rounding(rounding, bound):
    """What kernels take of a `Rounding` for values up to `bound`: no largest code where saturation alone gives it."""
    saturates = rounding.stream_bits == 8 and bound < 2**30
    return rounding.kernel._replace(largest=None) if saturates else rounding.kernel


def _with_spare(shape, dtype, spare):
    """An empty array with that many values of memory behind its last one, which vectors may reach into."""
    size = math.prod(shape)
    return np.empty(size + spare, dtype)[:size].reshape(shape)


def _nanoseconds(pixels, layer):
    """About how long a convolution takes: a thousand one-bit products a nanosecond, and three results."""
    convolution = layer.convolution
    # A dot product takes as long as about eight one-bit products, whatever the bits, and one in tiles less than one.
    most = 0.7 if isinstance(layer.filters, tile.TileFilters) else 8
    products = convolution.weights * min(convolution.weight_bits * convolution.input_bits, most)
    return pixels * (products / 1000 + convolution.out_channels / 3)


def _each_take(layer):
    """About how long it takes to make bytes of a layer's weights, in nanoseconds: 200 of them take one."""
    return layer.convolution.weights / 200 if isinstance(layer.filters, tile.TileFilters) else 0
