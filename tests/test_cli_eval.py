"""``bitseg eval`` on labelled photos."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from models import random_model
from PIL import Image

from bitseg.cli import main
from bitseg.cli.evaluate import evaluate
from bitseg.datasets import KINDS
from bitseg.model_file import write_model
from bitseg.segmenter import load


@pytest.fixture(scope="module")
def folder(examples, tmp_path_factory):
    """The example photos with what the default model finds as the truth, but a quarter of one is void."""
    root = tmp_path_factory.mktemp("labelled")
    segmenter = load()
    (root / "classes.txt").write_text("\n".join(segmenter.model.architecture.classes))
    for part in ("images", "masks"):
        (root / part).mkdir()
    for name in ("chelsea", "astronaut"):
        (root / "images" / f"{name}.jpg").write_bytes((examples / f"{name}.jpg").read_bytes())
        mask = segmenter.predict(examples / f"{name}.jpg").mask
        mask[: mask.shape[0] // 2, : mask.shape[1] // 2] = 255
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "val.txt").write_text("chelsea\n")
    return root


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A model of three classes, of which the rest of VOC is background."""
    path = tmp_path_factory.mktemp("model") / "tiny.h5"
    write_model(path, random_model(classes=("background", "cat", "dog")))
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["eval", *map(str, arguments)])


def assert_one_clear_line(result, *words):
    assert result.exit_code == 1
    assert result.stdout == "" and result.stderr.splitlines()[-1].startswith("Error: "), result.output
    assert "Traceback" not in result.output
    for word in words:
        assert str(word) in result.stderr


def test_the_command_prints_a_table_and_writes_a_report(folder, tmp_path):
    report = tmp_path / "report.html"
    command = [sys.executable, "-m", "bitseg", "eval", "--dataset", "folder", "--root", folder, "--report", report]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "voc7-w2a2 on folder val\n"
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["CLASS", "IoU", "PRECISION", "RECALL", "SHARE"]
    assert [row[0] for row in rows[1:8]] == ["background", "cat", "cow", "dog", "horse", "person", "sheep"]
    # The truth is what the model itself found.
    assert rows[2][:4] == ["cat", "100.0%", "100.0%", "100.0%"]
    assert rows[-3:] == [["mIoU", "100.0%"], ["pixel", "accuracy", "100.0%"], ["photos", "1"]]
    page = report.read_text(encoding="utf-8")
    for words in ("voc7-w2a2 on folder val", "2-bit weights", "chelsea.jpg", f"--report {report}", "data:image/jpeg"):
        assert words in page


def test_json_holds_the_scores_and_the_confusion_matrix(folder):
    result = run("--dataset", "folder", "--root", folder, "--split", "all", "--threads", 1, "--json")
    figures = json.loads(result.stdout)
    assert figures["model"] == "voc7-w2a2" and figures["dataset"] == "folder all" and figures["photos"] == 2
    assert figures["miou"] == figures["pixel_accuracy"] == figures["iou"]["cat"] == 1
    assert figures["counted_as_background"] == []
    confusion = np.array(figures["confusion"])
    assert confusion.shape == (7, 7) and np.array_equal(confusion, np.diag(np.diag(confusion)))


def test_the_working_size_changes_the_scores(folder):
    result = run("--dataset", "folder", "--root", folder, "--size", 96, "--json")
    assert 0.3 < json.loads(result.stdout)["miou"] < 1


def test_what_the_model_does_not_know_counts_as_background(folder, tiny_model, tmp_path):
    report = tmp_path / "report.html"
    result = run("-m", tiny_model, "--dataset", "folder", "--root", folder, "--json", "--report", report)
    figures = json.loads(result.stdout)
    assert list(figures["iou"]) == ["background", "cat", "dog"]
    assert figures["counted_as_background"] == ["cow", "horse", "person", "sheep"]
    assert "counted as background, since the model does not know it: cow, horse, person, sheep" in result.stderr
    assert "does not know: cow, horse, person, sheep" in report.read_text(encoding="utf-8")


def test_a_data_set_with_other_classes_is_refused(folder, tmp_path):
    write_model(tmp_path / "zebra.h5", random_model(classes=("background", "zebra")))
    result = run("-m", tmp_path / "zebra.h5", "--dataset", "folder", "--root", folder)
    assert_one_clear_line(result, "folder val lacks classes of the model (zebra)")


def test_a_mask_of_another_size_ends_the_command_with_its_name_and_no_report(folder, tiny_model, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        Image.new("L", (10, 10 if part == "images" else 11)).save(tmp_path / part / "a.png")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    report = tmp_path / "report.html"
    arguments = ("-m", tiny_model, "--dataset", "folder", "--root", tmp_path, "--split", "all", "--report", report)
    assert_one_clear_line(run(*arguments), tmp_path / "masks" / "a.png", "10x11 pixels", "10x10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.txt", "images", "masks"]


def test_a_report_is_not_written_over_a_photo(folder):
    photo = folder / "images" / "chelsea.jpg"
    before = photo.read_bytes()
    result = run("--dataset", "folder", "--root", folder, "--report", photo)
    assert_one_clear_line(result, photo, "reports end in .html")
    assert photo.read_bytes() == before


@pytest.mark.parametrize("option", ["--root", "--split"])
def test_the_empty_name_of_an_unset_variable_is_refused(folder, option):
    options = {"--root": str(folder), "--split": "val", option: ""}
    arguments = [word for pair in options.items() for word in pair]
    result = CliRunner().invoke(evaluate, ["--dataset", "folder", *arguments])
    assert result.exit_code == 2 and "the name is empty" in result.stderr


def test_a_missing_root_is_named(tmp_path):
    result = run("--dataset", "cityscapes", "--root", tmp_path / "nowhere", "--split", "test")
    assert_one_clear_line(result, f"{tmp_path / 'nowhere'}: there is no such folder")


def test_every_kind_of_data_set_can_be_chosen():
    (dataset,) = (option for option in evaluate.params if option.name == "dataset")
    assert tuple(dataset.type.choices) == KINDS
    explained = {line.split()[0] for line in run("--help").stdout.splitlines() if line.strip()}
    assert set(KINDS) <= explained
