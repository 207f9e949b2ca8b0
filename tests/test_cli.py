"""The command ``bitseg`` as a whole, and the commands that have no tests of their own file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import bitseg, command

from bitseg.segmenter import DEFAULT_MODEL

CHELSEA = Path(__file__).parents[1] / "examples" / "chelsea.jpg"


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_models_are_listed_with_their_accuracy():
    result = bitseg("models")
    (line,) = (line for line in result.stdout.splitlines() if line.startswith(f"{DEFAULT_MODEL} "))
    bits, size, unit, miou = line.split()[1:5]
    assert bits == "2-2" and unit == "MB" and float(size) > 0 and 0 < float(miou) < 1
    assert "background, cat, cow, dog, horse, person, sheep" in line


def test_version_and_help():
    import bitseg as package

    assert bitseg("--version").stdout == f"bitseg, version {package.__version__}\n"
    assert DEFAULT_MODEL in bitseg("predict", "--help").stdout


def test_predict_imports_no_deep_learning_framework(tmp_path):
    loaded = python(
        "import sys; from bitseg.cli import main;"
        f"main(['predict', {str(CHELSEA)!r}, '-o', {str(tmp_path / 'mask.png')!r}], standalone_mode=False);"
        "print('modules', *sys.modules)"
    ).split("modules ")[1]
    assert not {"torch", "onnx", "onnxruntime", "openvino", "scipy"} & set(loaded.split())


@pytest.mark.parametrize("module", ["bitseg", "bitseg.cli"])
def test_import_is_light(module):
    loaded = python(f"import sys, {module}; print(*sys.modules)")
    assert not {"torch", "onnx", "scipy", "numba", "numpy", "PIL", "h5py"} & set(loaded.split())


def test_public_names_are_there():
    import bitseg as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = package.nonsense


def test_bench_times_every_layer():
    result = bitseg("bench", "--preset", "thin50", "--size", "64x32", "--rounds", "1", "--json")
    report = json.loads(result.stdout)
    names = {operation["name"] for operation in report["operations"]}
    assert {"encoder.stem", "encoder.stage4.2.conv3", "branch4.classifier", "label_map"} <= names
    # A quarter of ResNet-50 at this size, and the decoder.
    assert 50e6 < sum(operation["multiplications"] for operation in report["operations"]) < 100e6
    assert report["total_ms"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "resnet99"),
        ("--preset", "thin50", "--bits", "9-1"),
        ("--bits", "1-2"),
        ("--preset", "thin50", "--model", "voc7-w1a2"),
        ("--size", "50x50"),
        ("--size", "a"),
    ],
)
def test_bench_refuses_what_it_cannot_time(options):
    result = bitseg("bench", *options)
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr and "Error: " in result.stderr


def test_a_photo_in_the_place_of_a_command_gets_a_hint(tmp_path):
    result = bitseg(CHELSEA)
    assert result.returncode == 2 and f"bitseg predict {CHELSEA}" in result.stderr
    shutil.copy(CHELSEA, tmp_path / "-photo.jpg")
    result = bitseg("--", "-photo.jpg", cwd=tmp_path)
    assert result.returncode == 2 and "bitseg predict ./-photo.jpg" in result.stderr


def test_info_needs_no_standard_output():
    result = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command(), "info", "voc7-w2a2"], capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["models"]])
def test_output_to_a_full_disk_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        result = bitseg(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (
        result.returncode == 1
        and result.stderr == "Error: standard output: cannot be written (No space left on device)\n"
    )


def test_output_to_a_reader_that_is_gone_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    result = bitseg("models", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert result.returncode == 1 and result.stderr == ""
