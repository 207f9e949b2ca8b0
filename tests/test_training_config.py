"""The configuration of a training run: what is accepted, what is refused and how."""

import json
import math
from dataclasses import replace

import pytest
import tiny_training

from bitseg.errors import DatasetError
from tools.train.config import config_from_dict, read_config, read_toml
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
            (None, "batch_size", 0, "batch_size must be 1 to 65536"),
            (None, "batch_size", 10**9, "batch_size must be 1 to 65536"),
            (None, "seed", 2**63, r"the configuration: 'seed' must be finite, and a whole number less than 2\^63"),
            (None, "batch_size", "8", "the configuration: 'batch_size' must be of type int, not '8'"),
            (None, "bfloat16", 1, "'bfloat16' must be of type bool, not 1"),
            (None, "name", "n" * 101, "name: the name must be 1 to 100 printable characters"),
            ("preprocessing", "scale", 1e-9, "preprocessing: the scale must be a number from 1e-6 to 1e6"),
            (None, "stages", 5, r"at least one \[\[stages\]\] table"),
            (None, "stages", [], r"at least one \[\[stages\]\] table"),
            (None, "momentum", 0.9, "the configuration: unknown entry 'momentum'"),
            (None, "preprocessing", None, r"the table \[preprocessing\] is missing"),
            ("augmentation", "crop", 250, "augmentation: crop must be a multiple of 32"),
            ("augmentation", "scale", (1.5, 0.5), "augmentation: scale must be the smallest and the largest zoom"),
            ("augmentation", "scale", (0.5, math.inf), "augmentation: 'scale' must be finite"),
            ("augmentation", "scale", (1, 10**400), "augmentation: 'scale' must be finite, and a whole number less"),
            ("augmentation", "scale", (1, 1e300), "the largest zoom, from 1/100 to 100"),
            ("augmentation", "crop", 3_200_000_000, "augmentation: crop must be a multiple of 32, at most 65536"),
            ("architecture", "stem_channels", 10**9, "architecture: channels .* must be whole numbers from 1 to 4096"),
            ("augmentation", "colour", math.nan, "augmentation: 'colour' must be finite"),
            ("augmentation", "color", 0.3, "augmentation: unknown entry 'color'; known are crop, scale, colour"),
            ("architecture", "encoder", "vgg16", "architecture: the encoder must be one of resnet18, resnet34, "),
            ("architecture", "stage_channels", (8, 8, 16), "architecture: channels of the stem, four stages and"),
            ("architecture", "stream_bits", 9, "architecture: bits must be whole numbers from 1 to 8"),
            ("architecture", "stream_weight_bits", 9, "architecture: bits must be whole numbers from 1 to 8"),
            ("preprocessing", "mean", (0, 0, 300), "preprocessing: the mean colour must be 3 whole numbers"),
            ("preprocessing", "working_size", 500, "preprocessing: the working size must be a multiple of 32"),
            ("stage", "weight_bits", 16, "stage 'float': weight_bits and activation_bits must be 1 to 8, or 32"),
            ("stage", "scales", (32, 64), "stage 'float': scales must be some of 4, 8, 16, 32"),
            ("stage", "scales", (32.0, 16.0), "stage 'float': scales must be some of 4, 8, 16, 32"),
            ("stage", "decoder_rate", 10**400, "stages: 'decoder_rate' must be finite"),
            ("stage", "scales", (), "stage 'float': scales must be some of 4, 8, 16, 32"),
            ("stage", "iterations", -1, "stage 'float': iterations must not be negative"),
            ("stage", "encoder_rate", -1.0, "stage 'float': encoder_rate must be positive, or 0 to train"),
            ("stage", "decoder_rate", 0.0, "stage 'float': learning rates must be positive"),
            ("stage", "name", "checkpoint", "stage 'checkpoint': the name must suit a file and not be 'checkpoint'"),
            (None, "quantizer", "pact", "quantizer must be one of learned, dorefa"),
            ("architecture", "reconstruction", "fpn", "reconstruction must be one of residual_block, convolution, "),
            ("stage", "distillation", -1.0, "stage 'float': distillation must not be negative"),
            ("stage", "labels", -0.5, "stage 'float': labels must not be negative"),
            ("stage", "labels", 0, "stage 'float': labels and distillation must not both be 0"),
            ("stage", "patience", -1, "stage 'float': patience must not be negative"),
            ("stage", "blend", 1.5, "stage 'float': blend must lie between 0 and 1"),
            ("stage", "norm_batches", -1, "stage 'float': norm_batches must not be negative"),
            ("stage", "norm_augmented", True, "stage 'float': norm_augmented needs norm_batches"),
            ("stage", "task", "detection", "stage 'float': task must be 'segmentation' or 'classification'"),
            ("stage", "task", "classification", r"stage 'float': classification needs scales = \[32\]"),
            ("stage", "evaluate", "yes", "stages: 'evaluate' must be of type bool, not 'yes'"),
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

    def test_sums_that_no_engine_adds_up_are_refused_before_the_training(self, values):
        values["architecture"]["stage_channels"] = (8, 8, 16, 4096)
        assert config_from_dict({**values, "stages": [{**values["stages"][0], "weight_bits": 2, "activation_bits": 2}]})
        with pytest.raises(TrainingError, match=r"architecture: sums up to \d+ do not fit in 31 bits"):
            config_from_dict(values)

    def test_frozen_statistics_and_rounding_that_comes_in_do_not_go_together(self, values):
        values["stages"][0].update(frozen_norms=True, norm_batches=8)
        assert config_from_dict(values)
        values["stages"][0]["blend"] = 0.5
        with pytest.raises(TrainingError, match="norm_batches or blend must be 0"):
            config_from_dict(values)

    def test_classification_is_learned_from_the_labels_of_a_photo_alone(self, values):
        values["stages"][0].update(task="classification", scales=(32,), evaluate=False)
        assert config_from_dict(values)
        for entry, message in (
            ({"evaluate": True}, "needs evaluate = false"),
            ({"distillation": 1.0}, "no distillation"),
        ):
            stage = {**values["stages"][0], **entry}
            with pytest.raises(TrainingError, match=f"stage 'float': classification .*{message}"):
                config_from_dict({**values, "stages": [stage]})

    def test_there_is_nothing_to_learn_of_one_class(self, values):
        values |= {"dataset": "folder"}
        values["architecture"]["classes"] = ("cat",)
        with pytest.raises(TrainingError, match="at least two classes: is background one of them"):
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


class TestBase:
    @pytest.fixture
    def folder(self, tmp_path):
        """A folder with a whole configuration, ``base.toml``."""
        path = tiny_training.write_config(tmp_path / "base.toml", tiny_training.stage("float"))
        path.write_text(path.read_text() + '\n[experiment]\ntitle = "base"\n')
        return tmp_path

    def write(self, folder, name, text):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        return folder / name

    def test_what_a_file_lacks_is_that_of_its_base(self, folder):
        stages = tiny_training.stage("w2a2", (2, 2)) + tiny_training.stage("w1a2", (1, 2))
        path = self.write(
            folder, "tables/own.toml", f'base = "../base.toml"\nseed = 9\n[augmentation]\ncrop = 64\n{stages}'
        )
        config, base = read_config(path), read_config(folder / "base.toml")
        assert config.seed == 9 and config.batch_size == base.batch_size
        assert config.augmentation == replace(base.augmentation, crop=64), "tables are merged entry by entry"
        assert [stage.name for stage in config.stages] == ["w2a2", "w1a2"], "stages are replaced as a whole"
        assert (config.architecture.weight_bits, config.architecture.activation_bits) == (1, 2)

    def test_a_base_may_have_a_base(self, folder):
        self.write(folder, "middle.toml", 'base = "base.toml"\nseed = 9\nbatch_size = 2')
        config = read_config(self.write(folder, "own.toml", 'base = "middle.toml"\nseed = 10'))
        assert (config.seed, config.batch_size, config.name) == (10, 2, "tiny")

    def test_the_experiment_of_a_base_is_not_inherited(self, folder):
        path = self.write(folder, "own.toml", 'base = "base.toml"\n[experiment]\nposition = 1')
        assert read_toml(path)["experiment"] == {"position": 1}
        assert "experiment" not in read_toml(self.write(folder, "other.toml", 'base = "base.toml"'))
        assert read_toml(folder / "base.toml")["experiment"] == {"title": "base"}

    def test_bases_that_cannot_be_used_are_named(self, folder):
        self.write(folder, "a.toml", 'base = "b.toml"')
        self.write(folder, "b.toml", 'base = "./a.toml"')
        for base, message in {
            '"missing.toml"': r"missing\.toml: cannot be read",
            "3": r"own\.toml: base must be the name of a file, not 3",
            '"own.toml"': r"own\.toml: is its own base; remove the entry base from it",
            '"a.toml"': r"a\.toml: is its own base",
        }.items():
            with pytest.raises(TrainingError, match=message):
                read_config(self.write(folder, "own.toml", f"base = {base}"))

    def test_what_is_wrong_is_said_of_the_file_that_was_asked_for(self, folder):
        with pytest.raises(TrainingError, match=r"own\.toml: batch_size must be 1 to 65536"):
            read_config(self.write(folder, "own.toml", 'base = "base.toml"\nbatch_size = 0'))
