"""The comparison with other engines, with stand-ins for these: what is compared, and when nothing is."""

import json
import time

import numpy as np
import pytest
from click.testing import CliRunner

from tools import compare_engines

ENGINES = "bitseg", "onnxruntime fp32", "openvino fp32", "onnxruntime int8", "openvino int8"


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """Run the command with engines of which one finds class 1 in so many of the first pixels, the others class 0."""
    monkeypatch.setattr(compare_engines, "version", lambda package: "1.0")

    def run(differing, *options):
        class Engine:
            def __init__(self, name, height, width):
                self.labels = np.zeros((height, width), np.uint8)
                if name == "openvino fp32":
                    self.labels.flat[:differing] = 1

            def __call__(self, image):
                assert image.dtype == np.uint8 and image.shape == (*self.labels.shape, 3)
                time.sleep(0.001)
                return self.labels

        def maker(name):
            return lambda model, height, width, threads, folder: Engine(name, height, width)

        engines = {name: maker(name) for name in ENGINES}
        monkeypatch.setattr(compare_engines, "ENGINES", engines)
        arguments = ["--preset", "thin50", "--bits", "1-2", "--size", "64x32", "--rounds", "3", "--no-memory"]
        return CliRunner().invoke(compare_engines.main, [*arguments, "--json", str(tmp_path / "out.json"), *options])

    return run


def test_nothing_is_compared_where_the_two_fp32_engines_differ(compare, tmp_path):
    result = compare(10)
    assert result.exit_code == 1 and "the two fp32 engines agree on 99.51% of pixels only" in result.stderr
    assert not (tmp_path / "out.json").exists()


def test_the_json_has_ratios_medians_and_where_they_come_from(compare, tmp_path):
    result = compare(2)
    assert result.exit_code == 0 and "against the fastest fp32: " in result.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["median_ms"]) == list(report["spread_ms"]) == list(ENGINES)
    assert report["ratio_fp32"] > 0 and report["ratio_int8"] > 0
    assert (report["model"], report["bits"], report["size"], report["threads"]) == ("thin50", "1-2", "64x32", 1)
    assert (report["rounds"], report["warm_up"]) == (3, 2) and 0.999 <= report["fp32_agreement"] < 1
    assert report["commit"] and len(report["date"]) == 10 and report["cpu"]["cores"] >= 1


def test_memory_that_cannot_be_measured_costs_no_timings(compare, tmp_path, monkeypatch):
    def fail(*arguments):
        raise compare_engines.BitsegError("the memory of bitseg cannot be measured: killed")

    monkeypatch.setattr(compare_engines, "peak_memory_mb", fail)
    result = compare(0, "--memory")
    assert result.exit_code == 0 and "cannot be measured" in result.stderr
    assert "peak_memory_mb" not in json.loads((tmp_path / "out.json").read_text())


@pytest.mark.parametrize("options", [["--size", "65x32"], ["--model", "voc7-w2a2"]])
def test_wrong_usage_exits_with_2(compare, options):
    assert compare(0, *options).exit_code == 2
