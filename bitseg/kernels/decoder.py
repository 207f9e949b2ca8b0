"""Laplacian refinement in float32: upsampling, softmax, boundary gate, and the final arg-max.

Every expression is written in the order of its NumPy twin and rounded step by step, so results agree bit for bit.
"""

import numpy as np

from .jit import kernel

EXP_LOWEST = np.float32(-87.0)
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
EXP_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
"""Cephes' polynomial for ``(exp(r) - 1 - r) / r**2`` on half an octave, highest power first."""


@kernel
def _exp(x):
    """e**x for x <= 0, float32, by a fixed polynomial: libm's last bit differs from CPU to CPU."""
    x = max(x, EXP_LOWEST)
    octave = np.rint(x * LOG2_E)
    r = x - octave * LN2_HIGH
    r = r - octave * LN2_LOW
    p = EXP_COEFFICIENTS[0]
    p = p * r + EXP_COEFFICIENTS[1]
    p = p * r + EXP_COEFFICIENTS[2]
    p = p * r + EXP_COEFFICIENTS[3]
    p = p * r + EXP_COEFFICIENTS[4]
    p = p * r + EXP_COEFFICIENTS[5]
    p = p * (r * r)
    p = p + r
    p = p + np.float32(1)
    return p * _power_of_two(np.int32(octave))


@kernel
def _power_of_two(exponent):
    return np.int32((exponent + np.int32(127)) << np.int32(23)).view(np.float32)


@kernel
def upsample2x_rows(coarse, y0, y1, fine):
    """Rows y0 to y1 of bilinear upsampling by two, float32 (classes, height, width); edges are repeated."""
    classes, height, width = coarse.shape
    row = np.empty(width, np.float32)
    near, far = np.float32(0.75), np.float32(0.25)
    for y in range(y0, y1):
        centre = y // 2
        other = min(max(centre + (1 if y % 2 else -1), 0), height - 1)
        for c in range(classes):
            for x in range(width):
                row[x] = near * coarse[c, centre, x] + far * coarse[c, other, x]
            for x in range(width):
                fine[c, y, 2 * x] = near * row[x] + far * row[max(x - 1, 0)]
                fine[c, y, 2 * x + 1] = near * row[x] + far * row[min(x + 1, width - 1)]


@kernel
def softmax_rows(scores, y0, y1, probabilities):
    """Rows y0 to y1 of the softmax over classes, float32 (classes, height, width); sums run in class order."""
    classes, _, width = scores.shape
    for y in range(y0, y1):
        for x in range(width):
            largest = scores[0, y, x]
            for c in range(1, classes):
                largest = max(largest, scores[c, y, x])
            total = np.float32(0)
            for c in range(classes):
                value = _exp(scores[c, y, x] - largest)
                probabilities[c, y, x] = value
                total += value
            for c in range(classes):
                probabilities[c, y, x] /= total


@kernel
def refine_rows(scores, probabilities, branch, radius, y0, y1, refined):
    """Rows y0 to y1 of ``scores + gate * branch``; the gate is dilation minus erosion in a window of 2 radius + 1."""
    classes, height, width = scores.shape
    highest, lowest = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(y0, y1):
        top, bottom = max(y - radius, 0), min(y + radius + 1, height)
        for c in range(classes):
            highest[:] = probabilities[c, top]
            lowest[:] = probabilities[c, top]
            for row in range(top + 1, bottom):
                for x in range(width):
                    value = probabilities[c, row, x]
                    highest[x] = max(highest[x], value)
                    lowest[x] = min(lowest[x], value)
            for x in range(width):
                left, right = max(x - radius, 0), min(x + radius + 1, width)
                high, low = highest[left], lowest[left]
                for column in range(left + 1, right):
                    high = max(high, highest[column])
                    low = min(low, lowest[column])
                refined[c, y, x] = scores[c, y, x] + (high - low) * branch[c, y, x]


@kernel
def label_rows(scores, rows, columns, y0, y1, labels):
    """Rows y0 to y1 of the label map: bilinear upsampling of the scores and arg-max, one row in memory at a time.

    rows, columns : tuples (first index int32, second index int32, weight of the second float32), one per pixel.
    """
    classes, _, score_width = scores.shape
    first_row, second_row, row_weight = rows
    first_column, second_column, column_weight = columns
    row = np.empty((classes, score_width), np.float32)
    best = np.empty(labels.shape[1], np.float32)
    one = np.float32(1)
    for y in range(y0, y1):
        a, b, weight = first_row[y], second_row[y], row_weight[y]
        for c in range(classes):
            for x in range(score_width):
                row[c, x] = scores[c, a, x] * (one - weight) + scores[c, b, x] * weight
        for c in range(classes):
            for x in range(labels.shape[1]):
                weight_x = column_weight[x]
                value = row[c, first_column[x]] * (one - weight_x) + row[c, second_column[x]] * weight_x
                if c == 0 or value > best[x]:
                    best[x] = value
                    labels[y, x] = c
