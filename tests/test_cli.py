"""The command ``bitseg``, run as users run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from bitseg.model_file import installed_models
from bitseg.segmenter import DEFAULT_MODEL

CHELSEA = Path(__file__).parents[1] / "examples" / "chelsea.jpg"
CAT = 1
ORIENTATION = 0x0112


def bitseg(*arguments):
    return subprocess.run([sys.executable, "-m", "bitseg", *map(str, arguments)], capture_output=True, text=True)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def assert_one_clear_line(result, *words):
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    for word in words:
        assert str(word) in result.stderr


@pytest.fixture(scope="module")
def chelsea(tmp_path_factory):
    """What `bitseg predict` prints for a photo of a cat, and the mask that it writes."""
    output = tmp_path_factory.mktemp("chelsea") / "mask.png"
    result = bitseg("predict", CHELSEA, "-o", output)
    assert result.returncode == 0, result.stderr
    return result.stdout, output


@pytest.fixture
def model_bytes():
    (path,) = (path for path in installed_models() if path.stem == DEFAULT_MODEL)
    return path.read_bytes()


def test_mask_has_the_size_of_the_photo_and_holds_class_ids(chelsea):
    _, output = chelsea
    with Image.open(output) as mask, Image.open(CHELSEA) as photo:
        assert mask.mode == "P" and mask.size == photo.size
        shares = np.bincount(np.asarray(mask).ravel(), minlength=7) / (mask.width * mask.height)
    assert len(shares) == 7 and shares[CAT] > 0.2


def test_found_classes_and_time_are_printed(chelsea):
    stdout, output = chelsea
    lines = [line.split(maxsplit=1) for line in stdout.splitlines()]
    values = dict(lines)
    assert values["cat"].endswith("%") and values["time"].endswith(" s") and values["mask"] == str(output)
    shares = [float(value.rstrip("%")) for _, value in lines[:-2]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


def test_output_lands_beside_the_photo_by_default(tmp_path):
    photo = tmp_path / "my.photo.jpg"
    photo.write_bytes(CHELSEA.read_bytes())
    assert bitseg("predict", photo).returncode == 0
    assert bitseg("predict", photo, "--overlay").returncode == 0
    assert sorted(os.listdir(tmp_path)) == ["my.photo.jpg", "my.photo.mask.png", "my.photo.overlay.png"]


def test_overlay_is_the_tinted_photo(tmp_path, chelsea):
    output = tmp_path / "overlay.jpg"
    assert bitseg("predict", CHELSEA, "--overlay", "-o", output).returncode == 0
    with Image.open(output) as overlay, Image.open(CHELSEA) as photo, Image.open(chelsea[1]) as mask:
        assert overlay.format == "JPEG" and overlay.mode == "RGB" and overlay.size == photo.size
        difference = np.abs(np.asarray(overlay, int) - np.asarray(photo, int)).max(axis=2)
        is_background = np.asarray(mask) == 0
    assert difference[~is_background].mean() > 3 * difference[is_background].mean()


def test_rotated_photo_gets_the_mask_of_the_upright_one(tmp_path, chelsea):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with Image.open(CHELSEA) as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    assert bitseg("predict", tmp_path / "rotated.png", "-o", tmp_path / "mask.png").returncode == 0
    with Image.open(tmp_path / "mask.png") as mask, Image.open(chelsea[1]) as expected:
        np.testing.assert_array_equal(np.asarray(mask), np.asarray(expected))


def test_threads_do_not_change_the_mask(tmp_path, chelsea):
    assert bitseg("predict", CHELSEA, "--threads", 1, "-o", tmp_path / "mask.png").returncode == 0
    assert (tmp_path / "mask.png").read_bytes() == chelsea[1].read_bytes()


@pytest.mark.parametrize("size", ["64", "native"])
def test_mask_keeps_the_size_of_the_photo_at_any_working_size(tmp_path, size):
    assert bitseg("predict", CHELSEA, "--size", size, "-o", tmp_path / "mask.png").returncode == 0
    with Image.open(tmp_path / "mask.png") as mask, Image.open(CHELSEA) as photo:
        assert mask.size == photo.size


def test_model_can_be_a_path(tmp_path, chelsea, model_bytes):
    (tmp_path / "mine.h5").write_bytes(model_bytes)
    assert bitseg("predict", CHELSEA, "-m", tmp_path / "mine.h5", "-o", tmp_path / "mask.png").returncode == 0
    assert (tmp_path / "mask.png").read_bytes() == chelsea[1].read_bytes()


@pytest.mark.parametrize(
    "content, reason",
    [(None, "not found"), (b"not a photo", "not a picture"), (CHELSEA.read_bytes()[:20000], "truncated")],
    ids=["missing", "text", "truncated"],
)
def test_unreadable_photo(tmp_path, content, reason):
    photo = tmp_path / "photo.jpg"
    if content is not None:
        photo.write_bytes(content)
    before = os.listdir(tmp_path)
    assert_one_clear_line(bitseg("predict", photo, "-o", tmp_path / "mask.png"), photo, reason)
    assert os.listdir(tmp_path) == before


def test_folder_instead_of_a_photo(tmp_path):
    assert_one_clear_line(bitseg("predict", tmp_path), tmp_path, "folder")


def test_truncated_model(tmp_path, model_bytes):
    model = tmp_path / "cut.h5"
    for length in (0, 100, len(model_bytes) // 2, len(model_bytes) - 1):
        model.write_bytes(model_bytes[:length])
        assert_one_clear_line(bitseg("predict", CHELSEA, "-m", model, "-o", tmp_path / "mask.png"), model)
    assert os.listdir(tmp_path) == ["cut.h5"]


def test_foreign_hdf5_file(tmp_path):
    model = tmp_path / "foreign.h5"
    with h5py.File(model, "w") as file:
        file["weights"] = np.zeros(10)
    assert_one_clear_line(bitseg("predict", CHELSEA, "-m", model, "-o", tmp_path / "mask.png"), model)
    assert os.listdir(tmp_path) == ["foreign.h5"]


def test_missing_model_file(tmp_path):
    model = tmp_path / "missing.h5"
    assert_one_clear_line(bitseg("predict", CHELSEA, "-m", model, "-o", tmp_path / "mask.png"), model)
    assert os.listdir(tmp_path) == []


def test_mistyped_model_name_gets_a_suggestion(tmp_path):
    result = bitseg("predict", CHELSEA, "-m", "voc7w2a2", "-o", tmp_path / "mask.png")
    assert_one_clear_line(result, "voc7w2a2", DEFAULT_MODEL)
    assert os.listdir(tmp_path) == []


def test_output_folder_that_does_not_exist(tmp_path):
    result = bitseg("predict", CHELSEA, "-o", tmp_path / "missing" / "mask.png")
    assert_one_clear_line(result, tmp_path / "missing", "create it")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_output_folder_that_is_write_protected(tmp_path):
    tmp_path.chmod(0o555)
    assert_one_clear_line(bitseg("predict", CHELSEA, "-o", tmp_path / "mask.png"), tmp_path, "write-protected")
    assert os.listdir(tmp_path) == []


def test_output_that_is_a_folder(tmp_path):
    (tmp_path / "mask.png").mkdir()
    assert_one_clear_line(bitseg("predict", CHELSEA, "-o", tmp_path / "mask.png"), tmp_path / "mask.png", "choose")
    assert os.listdir(tmp_path / "mask.png") == []


def test_mask_with_the_ending_of_a_lossy_format(tmp_path):
    assert_one_clear_line(bitseg("predict", CHELSEA, "-o", tmp_path / "mask.jpg"), "mask.jpg", ".png")
    assert os.listdir(tmp_path) == []


def test_photo_is_never_replaced(tmp_path):
    photo = tmp_path / "photo.png"
    with Image.open(CHELSEA) as picture:
        picture.save(photo)
    before = photo.read_bytes()
    result = bitseg("predict", photo, "-o", photo)
    assert result.returncode != 0 and "replace the photo" in result.stderr and "Traceback" not in result.stderr
    assert photo.read_bytes() == before


@pytest.mark.parametrize("options", [["--size", "0"], ["--size", "big"], ["--threads", "0"], ["--colour", "red"]])
def test_wrong_usage_exits_with_2(options):
    result = bitseg("predict", CHELSEA, *options)
    assert result.returncode == 2 and "Usage: bitseg predict" in result.stderr


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
    "options", [("--preset", "resnet99"), ("--preset", "thin50", "--bits", "9-1"), ("--size", "50x50"), ("--size", "a")]
)
def test_bench_refuses_what_it_cannot_time(options):
    result = bitseg("bench", *options)
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr and "Error: " in result.stderr
