"""The fp32 twin of a bitseg model as an ONNX graph: the same layers and weights, nothing quantised."""

from collections import namedtuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bitseg.network.graph import Network
from bitseg.network.reference import ReferenceOperations

OPSET = 17

Real = namedtuple("Real", "name unit")
"""A feature map of real numbers: the name of the node that makes it, and the real number that one code stands for."""


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
    operations = OnnxOperations()
    Network(model, operations).compute_label_map("image", (height, width), (height, width))
    operations.nodes[-1].output[0] = "labels"
    proto = helper.make_model(
        helper.make_graph(
            operations.nodes,
            model.name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, height, width, 3])],
            [helper.make_tensor_value_info("labels", TensorProto.INT64, [1, height, width])],
            operations.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    return proto


class OnnxOperations(ReferenceOperations):
    """The operations of `graph.Network` as nodes of a growing ONNX graph; layers are prepared as for the specification.

    A feature map is `Real`. Rounding only says what a code stands for: a stream is real numbers, and so are the
    activations made of it, whose codes stand for others.
    """

    def __init__(self):
        self.nodes, self.constants = [], []

    def stem(self, image, layer, mean, rounding):
        mean = np.array(mean, np.float32)
        x = self._node("Cast", image, to=TensorProto.FLOAT)
        x = self._node("Transpose", x, perm=[0, 3, 1, 2])
        x = self._node("Sub", x, self._constant(mean.reshape(1, 3, 1, 1)))
        x = self._node("Relu", self._convolution(Real(x, 1.0), layer, 1.0, mean))
        x = self._node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
        return self._stream(Real(x, 1.0), rounding)

    def convolve(self, activation, layer):
        return Real(self._node("Relu", self._convolution(activation, layer, 1.0)), 1.0)

    def convolve_to_stream(self, features, layer, rounding):
        return self._stream(self.convolve(features, layer), rounding)

    def convolve_and_add(self, activation, layer, shortcut, rounding):
        # Real numbers stay what they are in a shortcut, which fixes what the codes of the block's result stand for.
        unit = shortcut.unit / float(rounding.shortcut_multiplier)
        return self._sum(self._convolution(activation, layer, unit), shortcut.name, unit, rounding)

    def convolve_and_project(self, activation, layer, block_input, projection, rounding):
        projected = self._convolution(block_input, projection, 1.0)
        return self._sum(self._convolution(activation, layer, 1.0), projected, 1.0, rounding)

    def classify(self, features, layer):
        return self._convolution(features, layer, 1.0)

    def upsample2x(self, scores):
        return self._resize(scores, 2)

    def refine(self, scores, branch, radius):
        probabilities = self._node("Softmax", scores, axis=1)
        window = {"kernel_shape": [2 * radius + 1] * 2, "pads": [radius] * 4}
        highest = self._node("MaxPool", probabilities, **window)
        lowest = self._node("MaxPool", self._node("Neg", probabilities), **window)
        gate = self._node("Add", highest, lowest)
        return self._node("Add", scores, self._node("Mul", gate, branch))

    def label_map(self, scores, shape, inside):
        """Four times the size of the scores, whatever `shape` and `inside`."""
        return self._node("ArgMax", self._resize(scores, 4), axis=1, keepdims=0)

    def _convolution(self, features, layer, unit, mean=None):
        """A convolution whose result is real numbers of which one code stands for `unit`.

        mean : float32, shape (3,), or None
            What has been taken from the codes of the input.
        """
        convolution = layer.convolution
        signed = 2.0 * layer.codes.transpose(0, 3, 1, 2) - (2**convolution.weight_bits - 1)
        gain = layer.multiplier.astype(np.float64) * unit
        bias = layer.offset.astype(np.float64) * unit
        if mean is not None:
            bias += gain * (signed.sum((2, 3)) * mean).sum(1)
        return self._node(
            "Conv",
            features.name,
            self._constant((signed * (gain / features.unit)[:, None, None, None]).astype(np.float32)),
            self._constant(bias.astype(np.float32)),
            kernel_shape=[convolution.kernel] * 2,
            strides=[convolution.stride] * 2,
            pads=[convolution.padding] * 4,
        )

    def _sum(self, first, second, unit, rounding):
        return self._stream(Real(self._node("Relu", self._node("Add", first, second)), unit), rounding)

    @staticmethod
    def _stream(stream, rounding):
        """A stream, and the activations made of it."""
        return stream, stream._replace(unit=stream.unit / float(rounding.activation_multiplier))

    def _resize(self, scores, factor):
        scales = self._constant(np.array([1, 1, factor, factor], np.float32))
        return self._node("Resize", scores, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")

    def _constant(self, array):
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, kind, *inputs, **attributes):
        """Add a node; the name of its output."""
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name
