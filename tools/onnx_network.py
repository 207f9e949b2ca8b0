"""The fp32 twin of a bitseg model as an ONNX graph: the same layers and weights, nothing quantised."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bitseg.architecture import STRIDES
from bitseg.network.graph import GATE_RADIUS, STEM

OPSET = 17


class _Graph:
    """Nodes and constants of a growing ONNX graph; methods return the name of their output."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, array):
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind, *inputs, **attributes):
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name


def build_onnx(model, height, width):
    """Build the network of a model in floating point, from uint8 image to label map.

    Parameters
    ----------
    model : bitseg.model_file.Model
    height, width : int
        Size of the image, multiples of 32.

    Returns
    -------
    onnx.ModelProto
        Input ``image``: uint8 (1, height, width, 3); output ``labels``: int64 (1, height, width).
    """
    graph = _Graph()
    x = graph.node("Cast", "image", to=TensorProto.FLOAT)
    x = graph.node("Transpose", x, perm=[0, 3, 1, 2])
    mean = np.array(model.preprocessing.mean, np.float32).reshape(1, 3, 1, 1)
    x = graph.node("Sub", x, graph.constant(mean))
    scores = _decode(graph, model, _encode(graph, model, x))
    graph.node("ArgMax", _resize(graph, scores, 4), axis=1, keepdims=0)
    graph.nodes[-1].output[0] = "labels"
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            model.name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3])],
            [helper.make_tensor_value_info("labels", TensorProto.INT64, [1, height, width])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    return proto


def _convolve(graph, model, name, x, input_unit, output_unit, mean=None):
    """A convolution whose input and output are real numbers: codes times their units."""
    convolution, weights = model.architecture.convolutions()[name], model.layers[name]
    signed = 2.0 * weights.codes.transpose(0, 3, 1, 2) - (2**convolution.weight_bits - 1)
    gain = weights.multiplier.astype(np.float64) * output_unit
    bias = weights.offset.astype(np.float64) * output_unit
    if mean is not None:
        bias += gain * (signed.sum((2, 3)) * np.array(mean)).sum(1)
    kernel = (signed * (gain / input_unit)[:, None, None, None]).astype(np.float32)
    return graph.node(
        "Conv",
        x,
        graph.constant(kernel),
        graph.constant(bias.astype(np.float32)),
        kernel_shape=[convolution.kernel] * 2,
        strides=[convolution.stride] * 2,
        pads=[convolution.padding] * 4,
    )


def _block(graph, model, block, x, activation_unit, stream_unit):
    """A residual block; returns its output and the units of its stream's codes and of its activation's codes.

    The stream's real numbers are continuous through an identity shortcut, which fixes the unit of its codes.
    """
    scales = model.streams[f"{block.name}.output"]
    output_unit = 1.0 if block.projection else stream_unit / float(scales.shortcut_multiplier)
    y, unit = x, activation_unit
    for name in block.convolutions[:-1]:
        y, unit = graph.node("Relu", _convolve(graph, model, name, y, unit, 1.0)), 1.0
    y = _convolve(graph, model, block.convolutions[-1], y, unit, output_unit)
    shortcut = x
    if block.projection:
        unit = stream_unit if model.architecture.carries_stream else activation_unit
        shortcut = _convolve(graph, model, block.projection, x, unit, output_unit)
    y = graph.node("Relu", graph.node("Add", y, shortcut))
    return y, output_unit, output_unit / float(scales.activation_multiplier)


def _encode(graph, model, x):
    """Features of the four stages and the units of the codes that the decoder reads."""
    unit = 1.0
    x = graph.node("Relu", _convolve(graph, model, STEM, x, 1.0, unit, model.preprocessing.mean))
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    activation_unit = unit / float(model.streams["encoder.stem_output"].activation_multiplier)
    features = []
    for stage in model.architecture.stages():
        for block in stage:
            x, unit, activation_unit = _block(graph, model, block, x, activation_unit, unit)
        features.append((x, unit if model.architecture.carries_stream else activation_unit))
    return features


def _decode(graph, model, features):
    """Class scores at a quarter of the image's size."""
    scores = None
    for stride, (x, unit) in reversed(list(zip(STRIDES, features))):
        name = f"branch{stride}"
        x = graph.node("Relu", _convolve(graph, model, f"{name}.reduce", x, unit, 1.0))
        if model.architecture.reconstruction == "residual_block":
            unit = 1 / float(model.streams[f"{name}.reduce_output"].activation_multiplier)
            x, unit, _ = _block(graph, model, model.architecture.branch_block(stride), x, unit, 1.0)
        else:
            x, unit = graph.node("Relu", _convolve(graph, model, f"{name}.conv", x, 1.0, 1.0)), 1.0
        branch = _convolve(graph, model, f"{name}.classifier", x, unit, 1.0)
        if scores is None:
            scores = branch
            continue
        scores = _resize(graph, scores, 2)
        probabilities = graph.node("Softmax", scores, axis=1)
        window = {"kernel_shape": [2 * GATE_RADIUS + 1] * 2, "pads": [GATE_RADIUS] * 4}
        highest = graph.node("MaxPool", probabilities, **window)
        lowest = graph.node("MaxPool", graph.node("Neg", probabilities), **window)
        gated = graph.node("Mul", graph.node("Add", highest, lowest), branch)
        scores = graph.node("Add", scores, gated)
    return scores


def _resize(graph, x, factor):
    scales = graph.constant(np.array([1, 1, factor, factor], np.float32))
    return graph.node("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
