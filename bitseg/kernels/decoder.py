"""Laplacian refinement in float32: upsampling, softmax, boundary gate, and the final arg-max.

Every expression is written in the order of its NumPy twin and rounded step by step, so results agree bit for bit.
"""

import numpy as np

from .jit import kernel
from .sharing import next_row, take_row

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
def upsample2x_rows(coarse, share, fine):
    """Bilinear upsampling by two, float32 (classes, height, width); edges are repeated."""
    classes, height, width = coarse.shape
    row = np.empty(width, np.float32)
    near, far = np.float32(0.75), np.float32(0.25)
    y = take_row(share)
    while y < share.height:
        centre = y // 2
        other = min(max(centre + (1 if y % 2 else -1), 0), height - 1)
        for c in range(classes):
            for x in range(width):
                row[x] = near * coarse[c, centre, x] + far * coarse[c, other, x]
            for x in range(width):
                fine[c, y, 2 * x] = near * row[x] + far * row[max(x - 1, 0)]
                fine[c, y, 2 * x + 1] = near * row[x] + far * row[min(x + 1, width - 1)]
        y = next_row(share, y)


@kernel
def softmax_rows(scores, share, probabilities):
    """Softmax over classes, float32 (classes, height, width); sums run in class order."""
    classes, _, width = scores.shape
    largest, total = np.empty(width, np.float32), np.empty(width, np.float32)
    y = take_row(share)
    while y < share.height:
        _copy(scores[0, y], largest)
        for c in range(1, classes):
            for x in range(width):
                largest[x] = max(largest[x], scores[c, y, x])
        for x in range(width):
            total[x] = 0
        for c in range(classes):
            for x in range(width):
                value = _exp(scores[c, y, x] - largest[x])
                probabilities[c, y, x] = value
                total[x] += value
        for c in range(classes):
            for x in range(width):
                probabilities[c, y, x] /= total[x]
        y = next_row(share, y)


@kernel
def refine_rows(scores, probabilities, branch, radius, share, refined):
    """``scores + gate * branch``; the gate is dilation minus erosion in a window of 2 radius + 1."""
    classes, height, width = scores.shape
    # Extremes of the columns, with a border that never wins, and of the windows. Slices, because an index that might
    # be negative keeps LLVM from using vectors.
    column_high = np.full(width + 2 * radius, -np.inf, np.float32)
    column_low = np.full(width + 2 * radius, np.inf, np.float32)
    inner_high, inner_low = column_high[radius : radius + width], column_low[radius : radius + width]
    high, low = np.empty(width, np.float32), np.empty(width, np.float32)
    y = take_row(share)
    while y < share.height:
        top, bottom = max(y - radius, 0), min(y + radius + 1, height)
        for c in range(classes):
            _copy(probabilities[c, top], inner_high)
            _copy(probabilities[c, top], inner_low)
            for row in range(top + 1, bottom):
                _extend(inner_high, inner_low, probabilities[c, row], probabilities[c, row])
            _copy(column_high[:width], high)
            _copy(column_low[:width], low)
            for shift in range(1, 2 * radius + 1):
                _extend(high, low, column_high[shift : shift + width], column_low[shift : shift + width])
            coarse, fine, result = scores[c, y], branch[c, y], refined[c, y]
            for x in range(width):
                result[x] = coarse[x] + (high[x] - low[x]) * fine[x]
        y = next_row(share, y)


@kernel
def _copy(row, result):
    """Copy a float32 row; assignment to a slice would take seconds to compile."""
    for x in range(len(result)):
        result[x] = row[x]


@kernel
def _extend(high, low, more_high, more_low):
    """Widen running extremes by those of other pixels; float32 rows."""
    for x in range(len(high)):
        high[x] = max(high[x], more_high[x])
        low[x] = min(low[x], more_low[x])


@kernel
def _stretch_row(scores, y, columns, result):
    """Row `y` of all classes, brought to the width of the result: float32 (classes, width)."""
    first, second, weight = columns
    one = np.float32(1)
    for c in range(result.shape[0]):
        for x in range(result.shape[1]):
            result[c, x] = scores[c, y, first[x]] * (one - weight[x]) + scores[c, y, second[x]] * weight[x]


@kernel
def label_rows(scores, rows, columns, share, labels):
    """Label map: bilinear upsampling of the scores and arg-max, two score rows in memory.

    rows, columns : tuples (first index int32, second index int32, weight of the second float32), one per pixel.
    """
    classes, width = scores.shape[0], labels.shape[1]
    first_row, second_row, row_weight = rows
    above, below = np.empty((classes, width), np.float32), np.empty((classes, width), np.float32)
    best, best_class = np.empty(width, np.float32), np.empty(width, np.int32)
    above_row, below_row = -1, -1
    y = take_row(share)
    while y < share.height:
        if second_row[y] != below_row:
            if first_row[y] == below_row:
                above, below = below, above
            else:
                _stretch_row(scores, first_row[y], columns, above)
            _stretch_row(scores, second_row[y], columns, below)
            above_row, below_row = first_row[y], second_row[y]
        elif first_row[y] != above_row:
            _stretch_row(scores, first_row[y], columns, above)
            above_row = first_row[y]
        far = row_weight[y]
        near = np.float32(1) - far
        for x in range(width):
            best[x] = above[0, x] * near + below[0, x] * far
            best_class[x] = 0
        for c in range(1, classes):
            for x in range(width):
                value = above[c, x] * near + below[c, x] * far
                if value > best[x]:
                    best[x] = value
                    best_class[x] = c
        for x in range(width):
            labels[y, x] = best_class[x]
        y = next_row(share, y)
