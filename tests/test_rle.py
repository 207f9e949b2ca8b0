"""COCO's run-length encoding of masks."""

import numpy as np
import pytest

from bitseg.rle import encode_rle


def decoded(rle):
    """The mask of an encoding, character by character, as `rleFrString` of COCO's `maskApi.c` reads it."""
    characters, runs = iter(rle["counts"]), []
    for character in characters:
        number = shift = 0
        while True:
            group = ord(character) - 48
            number |= (group & 31) << shift
            shift += 5
            if not group & 32:
                break
            character = next(characters)
        if group & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape(rle["size"], order="F")


@pytest.mark.parametrize(
    "pixels, counts",
    [
        # Runs 2 3 1 1 and 0 6 1 are the examples in maskApi.h; the fourth run is written as 1 - 3 = -2.
        ([0, 0, 1, 1, 1, 0, 1], "231N"),
        ([1, 1, 1, 1, 1, 1, 0], "061"),
        ([0], "1"),
        ([1], "01"),
        # 1000 is 01000, 11111 and, as a group that begins with 1 stands for a negative number, 00000.
        ([0] * 1000, "Xo0"),
    ],
)
def test_runs_become_the_characters_of_the_definition(pixels, counts):
    assert encode_rle(np.array([pixels], bool).T) == {"size": [len(pixels), 1], "counts": counts}


def test_pixels_are_taken_column_by_column():
    # Runs 2 1 1 2; the last is written as 2 - 1.
    assert encode_rle(np.array([[0, 1, 1], [0, 0, 1]], bool)) == {"size": [2, 3], "counts": "2111"}


@pytest.mark.parametrize("seed", range(20))
def test_every_mask_is_decoded_as_itself(seed):
    random = np.random.default_rng(seed)
    height, width, block = random.integers(1, 60, 3)
    mask = random.random((height, width)) < random.choice([0, 0.01, 0.5, 0.99, 1])
    mask = np.kron(mask, np.ones((block, 1), bool))
    np.testing.assert_array_equal(decoded(encode_rle(mask)), mask)
