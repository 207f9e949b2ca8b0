"""Laplacian refinement in float32: upsampling, softmax, boundary gate, and the final arg-max.

Every expression is written in the order of its NumPy twin and rounded step by step, so results agree bit for bit.
"""

import numpy as np

from . import simd
from .jit import part
from .program import kernel
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


@part
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


@part
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
        for x in range(width):
            largest[x] = scores[0, y, x]
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
def refine_rows(radius, scores, probabilities, branch, share, refined):
    """``scores + gate * branch``; the gate is dilation minus erosion in a window of 2 radius + 1.

    probabilities : float32 as `scores`, and 15 spare values behind: vectors are read past the end of a row.
    """
    classes, height, width = scores.shape
    # Extremes of the columns, with a border that never wins.
    column_high = np.full(width + 2 * radius + 32, -np.inf, np.float32)
    column_low = np.full(width + 2 * radius + 32, np.inf, np.float32)
    gate = np.empty(width + 16, np.float32)
    y = take_row(share)
    while y < share.height:
        top, bottom = max(y - radius, 0), min(y + radius + 1, height)
        for c in range(classes):
            for x in range(0, width, 16):
                high = simd.load_f32x16(probabilities, (c * height + top) * width + x)
                low = high
                for row in range(top + 1, bottom):
                    other = simd.load_f32x16(probabilities, (c * height + row) * width + x)
                    high, low = simd.maximum(high, other), simd.minimum(low, other)
                simd.store(column_high, radius + x, high)
                simd.store(column_low, radius + x, low)
            for x in range(radius + width, 2 * radius + width):
                column_high[x], column_low[x] = -np.inf, np.inf
            for x in range(0, width, 16):
                high, low = simd.load_f32x16(column_high, x), simd.load_f32x16(column_low, x)
                for shift in range(1, 2 * radius + 1):
                    high = simd.maximum(high, simd.load_f32x16(column_high, x + shift))
                    low = simd.minimum(low, simd.load_f32x16(column_low, x + shift))
                simd.store(gate, x, simd.subtract_float(high, low))
            coarse, fine, result = scores[c, y], branch[c, y], refined[c, y]
            for x in range(width):
                result[x] = coarse[x] + gate[x] * fine[x]
        y = next_row(share, y)


@part
def _stretch_row(scores, y, columns, result):
    """Row `y` of all classes, brought to the width of the result: float32 (classes, whole vectors of 16).

    columns : as for `label_rows`.
    """
    first, second, weight, bases = columns
    classes, height, cells = scores.shape
    if len(bases):
        one = simd.broadcast_f32x8(np.float32(1))
        for c in range(classes):
            for block in range(len(bases)):
                x, position = 8 * block, (c * height + y) * cells + bases[block]
                far = simd.load_f32x8(weight, x)
                value = simd.multiply_float(simd.pick_f32x8(scores, position, first, x), simd.subtract_float(one, far))
                other = simd.multiply_float(simd.pick_f32x8(scores, position, second, x), far)
                simd.store(result, c * result.shape[1] + x, simd.add_float(value, other))
    else:
        for c in range(classes):
            for x in range(len(first)):
                near, far = np.float32(1) - weight[x], weight[x]
                result[c, x] = scores[c, y, first[x]] * near + scores[c, y, second[x]] * far


@part
def _between(above, below, position, near, far):
    """``above * near + below * far`` of 16 values."""
    value = simd.multiply_float(simd.load_f32x16(above, position), near)
    return simd.add_float(value, simd.multiply_float(simd.load_f32x16(below, position), far))


@kernel
def label_rows(rows, columns, scores, share, labels):
    """Label map: bilinear upsampling of the scores and arg-max, two score rows in memory.

    rows : tuple (first index int32, second index int32, weight of the second float32), one per pixel.
    columns : the same, and bases, int32
        Of each block of 8 pixels the first cell of 8 in which all its neighbours lie: indices are counted from there.
        None where a block has neighbours farther apart, or there are fewer than 8 cells: counted from the first cell.
    """
    classes, width = scores.shape[0], labels.shape[1]
    first_row, second_row, row_weight = rows
    # Whole vectors: what lies past the last pixel is computed and dropped.
    above = np.zeros((classes, -(-width // 16) * 16), np.float32)
    below, row_labels = np.zeros_like(above), np.empty(above.shape[1], np.uint8)
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
        near = simd.broadcast_f32x16(np.float32(1) - row_weight[y])
        far = simd.broadcast_f32x16(row_weight[y])
        for x in range(0, width, 16):
            best, best_class = _between(above, below, x, near, far), simd.broadcast_i32x16(np.int32(0))
            for c in range(1, classes):
                value = _between(above, below, c * above.shape[1] + x, near, far)
                number = simd.broadcast_i32x16(np.int32(c))
                best_class = simd.select_greater(value, best, number, best_class)
                best = simd.maximum(value, best)
            simd.store(row_labels, x, simd.i32x16_to_u8x16(best_class))
        for x in range(width):
            labels[y, x] = row_labels[x]
        y = next_row(share, y)
