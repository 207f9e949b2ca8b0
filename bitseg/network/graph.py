"""The graph of the bit fully convolutional network: ResNet encoder, Laplacian refinement decoder.

The graph says in which order what is computed; a set of operations says how. There are two, with the same methods
and, bit for bit, the same results: `operations.Operations` on Numba kernels, and `reference.ReferenceOperations` in
plain NumPy, which is the specification. A third one, in `tools.onnx_network`, writes the same layers down without any
rounding, for other engines.
"""

import numpy as np

from ..architecture import STRIDES

STEM = "encoder.stem"
"""Name of the first layer, which reads the image itself."""

SIZE_MULTIPLE = 32
"""Height and width of the input are multiples of this: the encoder halves them five times."""

GATE_RADIUS = 4
"""The boundary gate looks 4 pixels around: a 9x9 window (Ghiasi & Fowlkes 2016)."""


class Network:
    """A model bound to a set of operations.

    Parameters
    ----------
    model : bitseg.model_file.Model
    operations : Operations or ReferenceOperations
    """

    def __init__(self, model, operations):
        self.architecture, self.preprocessing = model.architecture, model.preprocessing
        self.operations = operations
        self._latest_sizes = None
        self.layers = operations.gather(
            {
                name: (operations.prepare_stem if name == STEM else operations.prepare)(convolution, model.layers[name])
                for name, convolution in model.architecture.convolutions().items()
            }
        )
        self.roundings = {
            name: operations.prepare_rounding(model.architecture.residual_bits, activation_bits, model.streams[name])
            for name, activation_bits in model.architecture.stream_outputs().items()
        }

    def scores(self, image):
        """Class scores of an image at a quarter of its size.

        Parameters
        ----------
        image : ndarray of uint8, shape (height, width, 3), RGB
            Height and width are multiples of 32.

        Returns
        -------
        ndarray of float32, shape (classes, height / 4, width / 4)

        Raises
        ------
        ValueError
            The image has another type, or a side that is no multiple of 32.

        Source: Wen et al. 2016, section 3; Laplacian refinement: Ghiasi & Fowlkes 2016.
        """
        self._check(image)
        return self.operations.run(self.compute_scores, image)

    @staticmethod
    def _check(image):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"the image is {image.dtype} of shape {image.shape}: give uint8 (height, width, 3)")
        if 0 in image.shape or image.shape[0] % SIZE_MULTIPLE or image.shape[1] % SIZE_MULTIPLE:
            raise ValueError(f"the image has {image.shape[:2]} pixels: pad it to multiples of {SIZE_MULTIPLE}")

    def compute_scores(self, image):
        """`scores` without checks and plan: the operations one by one."""
        operations = self.operations
        stages = self._encode(image)
        scores = None
        for stride, features in reversed(list(zip(STRIDES, stages, strict=True))):
            branch = self._branch(stride, features)
            if scores is None:
                scores = branch
            else:
                scores = operations.refine(operations.upsample2x(scores), branch, GATE_RADIUS)
        return scores

    def label_map(self, image, shape, inside):
        """Segment an image: the arg-max of its scores, brought to `shape`.

        Parameters
        ----------
        image : ndarray of uint8, shape (height, width, 3), RGB
            Height and width are multiples of 32.
        shape : (int, int)
            Height and width of the result.
        inside : (int, int)
            Height and width of the part of `image` that the result shows; the rest, right and below, is padding.

        Returns
        -------
        ndarray of uint8, shape `shape`
            Class ids.

        Raises
        ------
        ValueError
            As for `scores`.
        """
        self._check(image)
        sizes = image.shape, tuple(shape), tuple(inside)
        # Photos of many sizes are padded to few: only where the same come again are the last steps part of the plan,
        # which saves 0.2 milliseconds.
        again, self._latest_sizes = self._latest_sizes == sizes, sizes
        if again:
            return self.operations.run(self.compute_label_map, image, *sizes[1:])
        return self.operations.label_map(self.operations.run(self.compute_scores, image), shape, inside)

    def compute_label_map(self, image, shape, inside):
        """`label_map` without checks and plan: the operations one by one."""
        return self.operations.label_map(self.compute_scores(image), shape, inside)

    def _encode(self, image):
        """Feature maps of the four stages, fine to coarse: activations, or streams where the decoder reads these."""
        operations = self.operations
        stream, activation = operations.stem(
            image, self.layers[STEM], self.preprocessing.mean, self.roundings["encoder.stem_output"]
        )
        features = []
        for stage in self.architecture.stages():
            for block in stage:
                stream, activation = self._block(block, stream, activation)
            features.append(stream if self.architecture.carries_stream else activation)
        return features

    def _block(self, block, stream, activation):
        operations, layers = self.operations, self.layers
        y = activation
        for name in block.convolutions[:-1]:
            y = operations.convolve(y, layers[name])
        last, rounding = layers[block.convolutions[-1]], self.roundings[f"{block.name}.output"]
        if block.projection is None:
            return operations.convolve_and_add(y, last, stream, rounding)
        projected = stream if self.architecture.carries_stream else activation
        return operations.convolve_and_project(y, last, projected, layers[block.projection], rounding)

    def _branch(self, stride, features):
        operations, layers, name = self.operations, self.layers, f"branch{stride}"
        reduction = layers[f"{name}.reduce"]
        if self.architecture.reconstruction == "residual_block":
            reduced = operations.convolve_to_stream(features, reduction, self.roundings[f"{name}.reduce_output"])
            refined, _ = self._block(self.architecture.branch_block(stride), *reduced)
        else:
            refined = operations.convolve(operations.convolve(features, reduction), layers[f"{name}.conv"])
        return operations.classify(refined, layers[f"{name}.classifier"])
