"""The configuration of a training run: what is accepted, what is refused and how."""

import json

import pytest
import tiny_training

from bitseg.errors import DatasetError
from tools.train.config import config_from_dict, read_config
from tools.train.errors import TrainingError


class TestConfig:
    @pytest.fixture
    def values(self, tmp_path):
        path = tiny_training.write_config(tmp_path / "tiny.toml", tiny_training.stage("float"))
        return read_config(path).as_dict()

    def test_plain_data_gives_the_configuration_back(self, values):
        assert config_from_dict(values).as_dict() == values
        assert config_from_dict(json.loads(json.dumps(values))).as_dict() == values

    @pytest.mark.parametrize(
        ("table", "entry", "value", "message"),
        [
            (
                None,
                "dataset",
                "imagenet",
                "dataset must be one of camvid, cityscapes, folder, voc, voc7, not 'imagenet'",
            ),
            (None, "class_weights", "sqrt", "class_weights must be 'none' or 'log'"),
            (None, "batch_size", 0, "batch_size must be at least 1"),
            (None, "batch_size", "8", "the configuration: 'batch_size' must be of type int, not '8'"),
            (None, "bfloat16", 1, "'bfloat16' must be of type bool, not 1"),
            (None, "stages", [], r"at least one \[\[stages\]\] table"),
            (None, "momentum", 0.9, "the configuration: unknown entry 'momentum'"),
            (None, "preprocessing", None, r"the table \[preprocessing\] is missing"),
            ("augmentation", "crop", 250, "augmentation: crop must be a multiple of 32"),
            ("augmentation", "scale", (1.5, 0.5), "augmentation: scale must be the smallest and the largest zoom"),
            ("augmentation", "color", 0.3, "augmentation: unknown entry 'color'; known are crop, scale, colour"),
            ("architecture", "encoder", "vgg16", "architecture: encoder must be one of resnet18, resnet34, resnet50"),
            ("architecture", "stage_channels", (8, 8, 16), "architecture: there must be 4 stage_channels"),
            ("architecture", "stream_bits", 9, "architecture: stream_bits must be 1 to 8"),
            ("preprocessing", "mean", (0, 0, 300), "preprocessing: mean must be three whole numbers from 0 to 255"),
            ("preprocessing", "working_size", 500, "preprocessing: working_size must be a multiple of 32"),
            ("stage", "weight_bits", 16, "stage 'float': weight_bits and activation_bits must be 1 to 8, or 32"),
            ("stage", "scales", (32, 64), "stage 'float': scales must be some of 4, 8, 16, 32"),
            ("stage", "scales", (), "stage 'float': scales must be some of 4, 8, 16, 32"),
            ("stage", "iterations", 0, "stage 'float': iterations must be at least 1"),
            ("stage", "encoder_rate", -1.0, "stage 'float': learning rates must be positive"),
            ("stage", "name", "checkpoint", "stage 'checkpoint': the name must suit a file and not be 'checkpoint'"),
            ("stage", "name", "../w2a2", "stage '../w2a2': the name must suit a file"),
        ],
    )
    def test_impossible_entries_are_refused(self, values, table, entry, value, message):
        target = values if table is None else values["stages"][0] if table == "stage" else values[table]
        target[entry] = value
        with pytest.raises(TrainingError, match=message):
            config_from_dict(values)

    def test_a_missing_entry_is_named(self, values):
        del values["augmentation"]["crop"]
        with pytest.raises(TrainingError, match="augmentation: the entry 'crop' is missing"):
            config_from_dict(values)

    def test_bottlenecks_need_channels_divisible_by_4(self, values):
        values["architecture"] |= {"encoder": "resnet50", "stage_channels": (8, 8, 16, 18)}
        with pytest.raises(TrainingError, match="architecture: stages of resnet50 need channels divisible by 4"):
            config_from_dict(values)

    def test_two_stages_cannot_share_a_checkpoint(self, values):
        values["stages"] *= 2
        with pytest.raises(TrainingError, match="stages: two have the same name"):
            config_from_dict(values)

    def test_a_folder_names_the_classes_and_a_checkpoint_keeps_them(self, tmp_path):
        path = tiny_training.write_config(tmp_path / "own.toml", tiny_training.stage("float"))
        path.write_text(path.read_text().replace('"voc7"', '"folder"'))
        with pytest.raises(DatasetError, match=r"classes\.txt: not found"):
            read_config(path, tmp_path)
        (tmp_path / "classes.txt").write_text("background\nhand\n")
        config = read_config(path, tmp_path)
        assert config.architecture.classes == ("background", "hand")
        assert config_from_dict(json.loads(json.dumps(config.as_dict()))) == config

    def test_files_that_are_no_configuration_are_named(self, tmp_path):
        (tmp_path / "text.toml").write_text("not [ toml")
        for name, message in {"missing.toml": "missing.toml: cannot be read", "text.toml": "not valid TOML"}.items():
            with pytest.raises(TrainingError, match=message):
                read_config(tmp_path / name)
