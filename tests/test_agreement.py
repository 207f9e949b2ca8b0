"""How far the engine's masks agree with PyTorch's, as `tools.agreement` counts it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_training import torch  # noqa: F401 -- skips where it is missing

from tools.agreement import main

WEIGHTS = Path(__file__).parents[1] / "weights"

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


def test_the_engine_agrees_with_pytorch_in_codes_on_every_pixel(tiny_data):
    arguments = [str(WEIGHTS / "voc7-w2a2.h5"), "voc7-w2a2", "--data", str(tiny_data), "--photos", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["photos"] == 2
    assert report["engine, codes"] == {"agreement": 1.0, "photos_with_equal_masks": 2, "worst_photo": 1.0}
    for pair in ("engine, float32", "engine, float64", "float32, float64"):
        assert 0.8 < report[pair]["agreement"] <= 1


def test_models_of_other_classes_are_not_compared(tiny_data):
    result = CliRunner().invoke(main, [str(WEIGHTS / "camvid-w2a2.h5"), "voc7-w2a2", "--data", str(tiny_data)])
    assert result.exit_code == 1 and "tell other classes apart" in result.stderr
