"""Run-length encoding of masks as the COCO data set defines it (Lin et al. 2014; `maskApi.c` of its tools)."""

import numpy as np


def encode_rle(mask):
    """Encode a mask as COCO's compressed run lengths.

    Pixels are taken column by column; runs of absent and present pixels alternate, beginning with absent ones. From
    the fourth on, a run is stored as its difference to the run two before. A number is written in groups of 5 bits,
    lowest first, in two's complement, one character each: 48 + group + 32 if more follow.

    Parameters
    ----------
    mask : ndarray of bool, shape (height, width)
        Where the object is. Fortran order is the fastest.

    Returns
    -------
    dict
        ``size``, [height, width]; ``counts``, the characters.

    Examples
    --------
    >>> encode_rle(np.array([[False, True], [False, True]]))
    {'size': [2, 2], 'counts': '22'}
    """
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate([[0] if pixels[:1].any() else [], [0], changes, [len(pixels)]])
    return {"size": list(mask.shape), "counts": _characters(np.diff(starts.astype(np.int64)))}


def _characters(runs):
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    characters, are_used = [], []
    remain = np.ones(len(numbers), bool)
    while remain.any():
        groups = numbers & 31
        numbers >>= 5
        are_used.append(remain)
        # The sign of what is written must be that of the number: a group's highest bit is its sign.
        remain = remain & (numbers != np.where(groups & 16, -1, 0))
        characters.append(48 + groups + 32 * remain)
    return np.stack(characters, 1)[np.stack(are_used, 1)].astype(np.uint8).tobytes().decode()
