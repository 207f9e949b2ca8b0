"""docs/train-your-own.md: its commands, run as they stand on a small folder with a small network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_training
from PIL import Image
from tiny_training import MEAN, random_input, random_network, tiny_architecture

from bitseg.architecture import Preprocessing
from bitseg.model_file import Model, read_model, write_model
from bitseg.palette import palette_for
from tools.train.config import read_config
from tools.train.folding import fold_network

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tools" / "train" / "configs" / "own-data.toml"
DOCUMENT = (ROOT / "docs" / "train-your-own.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


@pytest.fixture
def own_data(tmp_path):
    """A folder of photos and masks as the document describes it, in an empty working directory."""
    source = tiny_training.write_data(tmp_path / "voc7")
    folder = tmp_path / "my-data"
    (folder / "masks").mkdir(parents=True)
    shutil.copytree(source / "images", folder / "images")
    ids = np.full(256, 255, np.uint8)
    ids[list(tiny_training.COLOURS)] = range(len(tiny_training.COLOURS))
    for mask in (source / "masks").iterdir():
        Image.fromarray(ids[np.asarray(Image.open(mask))]).save(folder / "masks" / mask.name)
    (folder / "classes.txt").write_text("background\ntomato\nblueberry\n")
    return folder


def small_model():
    """An untrained 8-bit model of three other classes, in place of the shipped one."""
    network = random_network(tiny_architecture())
    network.set_bits(8, 8)
    network.calibrate(random_input())
    architecture, preprocessing = network.architecture, Preprocessing(MEAN, 58.0, 512)
    palette = palette_for(architecture.classes)
    return Model("small", architecture, preprocessing, palette, {}, *fold_network(network.eval(), preprocessing))


@pytest.fixture
def checkout(tmp_path, own_data):
    """A copy of what the commands need of a checkout, with a small network and few iterations."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    stages = [
        tiny_training.stage(
            stage.name,
            (stage.weight_bits, stage.activation_bits),
            min(stage.iterations, 2),
            distillation=stage.distillation,
            norm_batches=min(stage.norm_batches, 1),
            norm_augmented=stage.norm_augmented,
        )
        for stage in read_config(CONFIG, own_data).stages
    ]
    tiny = tiny_training.write_config(tmp_path / "tools" / "train" / "configs" / "own-data.toml", *stages)
    tiny.write_text(tiny.read_text().replace('"voc7"', '"folder"'))
    (tmp_path / "weights").mkdir()
    write_model(tmp_path / "weights" / "voc7-w8a8.h5", small_model())
    shutil.copy(own_data / "images" / "0.jpg", tmp_path / "photo.jpg")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in {"python": "", "bitseg": " -m bitseg"}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
        (commands / name).chmod(0o755)
    return tmp_path


def run(command, folder):
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_four_commands_end_in_a_mask(checkout):
    install, train, convert, predict = COMMANDS[0].splitlines()
    assert install == "pip install . -r tools/requirements.txt"
    for command in (train, convert, predict):
        result = run(command, checkout)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    model = read_model(checkout / "own.h5")
    assert model.architecture.classes == ("background", "tomato", "blueberry")
    assert (model.architecture.weight_bits, model.architecture.activation_bits) == (2, 2)
    # Of eight photos every fifth is kept for measuring.
    assert model.training["accuracy"]["photos"] == 2
    with Image.open(checkout / "mask.png") as mask:
        assert mask.size == (48, 40) and np.asarray(mask).max() <= 2


def test_the_configuration_fits_the_model_it_starts_from_and_the_commands(own_data):
    config = read_config(CONFIG, own_data)
    start = read_model(ROOT / "weights" / "voc7-w8a8.h5")
    for entry in ("encoder", "stem_channels", "stage_channels", "branch_channels", "stream_bits", "reconstruction"):
        assert getattr(config.architecture, entry) == getattr(start.architecture, entry)
    assert (config.preprocessing.mean, config.preprocessing.scale) == (
        start.preprocessing.mean,
        start.preprocessing.scale,
    )
    checkpoints = {f"{stage.name}.pt" for stage in config.stages}
    mentioned = set(re.findall(r"runs/own/(\S+\.pt)", DOCUMENT))
    assert mentioned <= checkpoints and {"float.pt", "w2a2-augmented.pt"} <= mentioned
    assert config.stages[0].distillation == 0, "there is no teacher yet"


def test_the_configuration_in_the_document_is_valid(own_data, tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    shutil.copytree(ROOT / "tools" / "train" / "configs", tmp_path / "tools" / "train" / "configs")
    (tmp_path / "mine.toml").write_text(example)
    config = read_config(tmp_path / "mine.toml", own_data)
    assert (config.augmentation.crop, config.class_weights, config.batch_size) == (320, "none", 8)


def test_torchrun_trains_with_the_same_options():
    train = COMMANDS[0].splitlines()[1].removeprefix("python ")
    for command in COMMANDS[1:]:
        # Without the two dashes torchrun takes --start for its own.
        assert command.startswith("torchrun ") and command.strip().endswith(train.replace("-m ", "-m -- "))
