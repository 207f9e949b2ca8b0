"""``bitseg models``, ``bitseg info`` and ``bitseg bench``, run as users run them."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from models import random_model

from bitseg.cli import main
from bitseg.cost import network_cost
from bitseg.model_file import find_model, installed_models, read_model, write_model
from bitseg.palette import palette_for
from bitseg.presets import preset_model
from bitseg.segmenter import DEFAULT_MODEL


def bitseg(*arguments):
    return subprocess.run([sys.executable, "-m", "bitseg", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def text():
    """What `bitseg info` prints about the default model."""
    result = bitseg("info", DEFAULT_MODEL)
    assert result.returncode == 0 and result.stderr == ""
    return result.stdout


@pytest.fixture
def model_file(tmp_path):
    """A function that writes a random model with given `training` and returns its path."""

    def write(training):
        path = tmp_path / "model.h5"
        write_model(path, replace(random_model(), training=training))
        return path

    return write


def lines_of(text, title):
    """Words of the lines below a title, up to the next empty line."""
    below = text.split(f"{title}\n")[1].split("\n\n")[0]
    return [line.split() for line in below.splitlines()]


def test_models_as_json_are_those_of_the_table():
    models = json.loads(bitseg("models", "--json").stdout)
    assert [model["name"] for model in models] == [path.stem for path in installed_models()]
    table = [line.split() for line in bitseg("models").stdout.splitlines()[1:-1]]
    for model, row in zip(models, table, strict=True):
        assert row[:2] == [model["name"], f"{model['weight_bits']}-{model['activation_bits']}"]
        assert row[2] == f"{model['file_size'] / 1e6:.1f}" and row[4] == f"{model['miou']:.3f}"


def test_a_damaged_model_does_not_spoil_the_json_of_the_others(tmp_path, monkeypatch, model_file):
    whole = model_file({})
    (tmp_path / "broken.h5").write_bytes(whole.read_bytes()[:-1])
    monkeypatch.setattr("bitseg.model_file.WEIGHTS_FOLDER", tmp_path)
    result = CliRunner().invoke(main, ["models", "--json"])
    assert result.exit_code == 1 and "broken.h5" in result.stderr
    assert [model["name"] for model in json.loads(result.stdout)] == ["model"]


def test_info_as_json_has_everything():
    about = json.loads(bitseg("info", DEFAULT_MODEL, "--json", "--size", "256x160").stdout)
    assert about["name"] == DEFAULT_MODEL and about["size"] == [256, 160]
    layer = about["layers"][0]
    assert (layer["name"], layer["kernel"], layer["stride"]) == ("encoder.stem", 7, 2)
    assert (layer["in_channels"], layer["out_channels"]) == (3, 64)
    assert (layer["weight_bits"], layer["input_bits"], layer["output_size"]) == (8, 8, [128, 80])
    assert layer["multiplications"] == 128 * 80 * 64 * 3 * 49
    assert about["predicted_speedup"] == 4.5 and about["fpga_share"] == pytest.approx(0.01173, abs=1e-5)
    assert about["fp32_bytes"] > 10 * about["file"]["bytes"]
    assert about["training"]["accuracy"]["miou"] > 0.5 and about["training"]["command"] and about["licence"]
    assert len(about["file"]["sha256"]) == 64 and about["classes"][1]["name"] == "cat"


def test_info_shows_each_class_with_its_colour_and_accuracy(text):
    _, *rows = lines_of(text, "Classes:")
    model = read_model(find_model(DEFAULT_MODEL))
    classes, iou = model.architecture.classes, model.training["accuracy"]["iou"]
    for number, (color, name, row) in enumerate(zip(palette_for(classes), classes, rows, strict=True)):
        assert row == [str(number), name, f"#{bytes(color).hex()}", f"{iou[name]:.3f}"]


def test_info_shows_each_layer(text):
    _, *rows = lines_of(text, "Layers at 384x288:")
    assert len(rows) == 69
    assert rows[0] == ["encoder.stem", "7x7", "2", "3", "to", "64", "8-8", "192x144", "260.1"]


def test_info_shows_cost_and_origin(text):
    about = json.loads(bitseg("info", DEFAULT_MODEL, "--json").stdout)
    cost = dict((" ".join(row[:2]), " ".join(row[2:])) for row in lines_of(text, "Cost at 384x288:"))
    assert cost["bit operations"] == f"{about['bit_operations'] / 1e9:.2f} billion"
    assert cost["predicted speed-up"].startswith("4.5x")
    assert cost["FPGA estimate"].startswith(f"{about['fpga_share']:.2%}")
    origin = lines_of(text, "Origin:")
    assert [row[0] for row in origin] == ["data", "command", "conversion", "commit", "licence"]
    assert about["file"]["sha256"] in text and about["file"]["path"] in text


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_colours_are_shown_on_a_terminal_only(text):
    assert "\x1b" not in text
    reader, terminal = os.openpty()
    with subprocess.Popen([sys.executable, "-m", "bitseg", "info", DEFAULT_MODEL], stdout=terminal) as process:
        os.close(terminal)
        shown = b""
        while chunk := _read(reader):
            shown += chunk
    os.close(reader)
    assert process.returncode == 0
    for color in palette_for(read_model(find_model(DEFAULT_MODEL)).architecture.classes):
        assert "\x1b[48;2;{};{};{}m".format(*color).encode() in shown


def _read(descriptor):
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the end of a pseudo-terminal
        return b""


def test_a_model_that_was_not_measured_is_described_too(model_file):
    result = CliRunner().invoke(main, ["info", str(model_file({}))])
    assert result.exit_code == 0
    assert "not measured" in result.stdout and "not stated" in result.stdout


def test_a_model_file_cannot_write_to_the_terminal_what_it_likes(model_file):
    training = {"data": "\x1b[31mred\nline", "command": ["a", 1], "accuracy": {"dataset": "d", "miou": 0.5, "iou": "x"}}
    result = CliRunner().invoke(main, ["info", str(model_file(training))])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout and "[31mredline\n" in result.stdout and "['a', 1]" in result.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["voc7w2a2"], ["Error: unknown model 'voc7w2a2'", f"did you mean '{DEFAULT_MODEL}'?"]),
        ([DEFAULT_MODEL, "--size", "100x100"], ["multiples of 32"]),
        (["missing.h5"], ["missing.h5", "check the path"]),
    ],
)
def test_info_says_what_is_wrong_with_its_arguments(arguments, words):
    result = CliRunner().invoke(main, ["info", *arguments])
    assert result.exit_code in (1, 2) and result.stdout == ""
    for word in words:
        assert word in result.stderr


def test_bench_and_info_count_the_same_operations():
    report = json.loads(bitseg("bench", "--preset", "thin50", "--size", "96x64", "--rounds", 1, "--json").stdout)
    assert report["threads"] >= 1 and report["kernel"] == "auto"
    assert 0.5 < sum(operation["share"] for operation in report["operations"]) < 2
    counted = {operation["name"]: operation["multiplications"] for operation in report["operations"]}
    cost = network_cost(preset_model("thin50", "2-2").architecture, 64, 96)
    layers = {layer.name: layer.multiplications for layer in cost.layers}
    assert counted["encoder.stem"] == layers["encoder.stem"]
    both = "encoder.stage2.0.conv3 + encoder.stage2.0.downsample"
    assert counted[both] == sum(layers[name] for name in both.split(" + "))
    assert sum(counted.values()) == cost.multiplications
