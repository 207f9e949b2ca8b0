"""Training runs on tiny data: stages, checkpoints, resuming, the command line."""

import math
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_training
from click.testing import CliRunner
from tiny_training import Stopped, random_input, random_network, stop_after, torch

from bitseg.architecture import Preprocessing
from bitseg.datasets import IGNORE, open_dataset
from bitseg.errors import BitsegError
from bitseg.segmenter import Segmenter
from tools.convert import convert
from tools.train import trainer as trainer_module
from tools.train.__main__ import main
from tools.train.checkpoint import load_network, read_checkpoint, save_checkpoint
from tools.train.config import config_from_dict, read_config, read_toml
from tools.train.data import Augmentation, Batches, normalise
from tools.train.distillation import Teacher
from tools.train.errors import DivergenceError, TrainingError
from tools.train.folding import folded
from tools.train.prediction import predict_label_map
from tools.train.trainer import Trainer, presence_loss

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


SCHEDULE = tiny_training.stage("float"), tiny_training.stage("w2a2", (2, 2))


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    return tiny_training.write_config(tmp_path_factory.mktemp("config") / "tiny.toml", *SCHEDULE)


@pytest.fixture(scope="module")
def finished(tiny_data, config_path, tmp_path_factory):
    """Folder of a whole run."""
    output = tmp_path_factory.mktemp("run") / "tiny"
    arguments = [str(config_path), "--data", str(tiny_data), "--output", str(output), "--workers", "0"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return output


def assert_ended_alike(one, other, trained):
    """Two runs' last checkpoints hold the same weights and results, bit for bit."""
    one, other = (read_checkpoint(folder / "checkpoint.pt") for folder in (one, other))
    assert one["results"] == other["results"] and one["trained"] == other["trained"] == trained
    assert set(one["network"]) == set(other["network"])
    assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])


class TestRun:
    def trainer(self, config, tiny_data, output, **arguments):
        config = config if not isinstance(config, Path) else read_config(config)
        output.mkdir(parents=True, exist_ok=True)
        return Trainer(config, tiny_data, output, "command", workers=0, **arguments)

    def stop_and_go_on(self, config, tiny_data, output, monkeypatch, iterations=6):
        """Train in two runs, of which the first stops after some iterations."""
        with monkeypatch.context() as context:
            stop_after(context, iterations)
            with pytest.raises(Stopped):
                self.trainer(config, tiny_data, output).run()
        self.trainer(config, tiny_data, output).run()

    def test_a_run_leaves_its_configuration_and_a_checkpoint_of_every_stage(self, finished, config_path):
        assert sorted(path.name for path in finished.iterdir()) == [
            ".lock",
            "checkpoint.pt",
            "config.toml",
            "float.pt",
            "w2a2.pt",
        ]
        assert read_toml(finished / "config.toml") == read_toml(config_path)
        saved = read_checkpoint(finished / "w2a2.pt")
        assert config_from_dict(saved["config"]) == read_config(config_path)
        assert saved["command"].startswith("python -m tools.train ")
        assert list(saved["results"]) == ["float", "w2a2"]
        assert saved["results"]["w2a2"]["dataset"] == "voc7 val"

    def test_the_configuration_of_a_run_needs_no_base(self, tiny_data, tmp_path):
        tiny_training.write_config(tmp_path / "base.toml", tiny_training.stage("float", iterations=0, evaluate=False))
        config, output = tmp_path / "configs" / "own.toml", tmp_path / "runs" / "own"
        config.parent.mkdir()
        config.write_text('base = "../base.toml"\nseed = 5\n')
        result = CliRunner().invoke(main, [str(config), "--data", str(tiny_data), "--output", str(output)])
        assert result.exit_code == 0, result.output
        (tmp_path / "base.toml").unlink()
        assert read_config(output / "config.toml") == config_from_dict(read_checkpoint(output / "float.pt")["config"])
        assert read_config(output / "config.toml").seed == 5

    @pytest.mark.parametrize("iterations", [2, 4, 7])
    def test_a_stopped_run_ends_like_one_that_was_not(
        self, tiny_data, config_path, finished, tmp_path, monkeypatch, iterations
    ):
        self.stop_and_go_on(config_path, tiny_data, tmp_path, monkeypatch, iterations)
        assert_ended_alike(finished, tmp_path, trained=8)

    @pytest.mark.parametrize("augmented", [False, True])
    def test_statistics_come_from_photos_as_they_are_or_as_they_are_trained_on(self, tiny_data, tmp_path, augmented):
        stage = tiny_training.stage("w2a2", (2, 2), norm_batches=3, norm_augmented=augmented)
        config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", stage))
        self.trainer(config, tiny_data, tmp_path / "run").run()
        network = load_network(tmp_path / "run" / "w2a2.pt")[0]
        preprocessing = config.preprocessing
        found = {name: value.clone() for name, value in network.named_buffers() if "running" in name}
        augmentation = config.augmentation if augmented else Augmentation(32, (1, 1), 0)
        batches = Batches(open_dataset("voc7", tiny_data, "train"), augmentation, preprocessing.mean, 4, seed=3)
        network.estimate_norms(normalise(batches[number][0], preprocessing) for number in range(3))
        for name, value in network.named_buffers():
            if name in found:
                torch.testing.assert_close(found[name], value)

    def test_frozen_statistics_stay_through_a_stage_and_a_stop(self, tiny_data, tmp_path, monkeypatch):
        stages = tiny_training.stage("float"), tiny_training.stage("w2a2", (2, 2), norm_batches=2, frozen_norms=True)
        config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", *stages))
        statistics = []
        train_batch = Trainer._train_batch

        def note(trainer, *arguments):
            loss = train_batch(trainer, *arguments)
            statistics.append(trainer.network.encoder.stage4[0].conv1.norm.running_mean.clone())
            return loss

        monkeypatch.setattr(Trainer, "_train_batch", note)
        self.trainer(config, tiny_data, tmp_path / "whole").run()
        assert not torch.equal(statistics[2], statistics[3])
        assert not torch.equal(statistics[3], statistics[4])
        assert all(torch.equal(value, statistics[4]) for value in statistics[5:]) and len(statistics) == 8
        self.stop_and_go_on(config, tiny_data, tmp_path / "stopped", monkeypatch)
        assert_ended_alike(tmp_path / "whole", tmp_path / "stopped", trained=8)

    def test_without_a_rate_for_the_encoder_the_decoder_alone_is_trained(self, tiny_data, tmp_path, monkeypatch):
        bits = {"norm_batches": 2, "quantizer_rate": 0.1}
        decoder_alone = tiny_training.stage("decoder", (2, 2), encoder_rate=0, **bits)
        stages = tiny_training.stage("w2a2", (2, 2), **bits), decoder_alone, tiny_training.stage("both", (2, 2), **bits)
        config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", *stages))
        self.trainer(config, tiny_data, tmp_path / "whole").run()
        before, frozen, after = (read_checkpoint(tmp_path / "whole" / f"{s.name}.pt")["network"] for s in config.stages)
        changed = {name for name in before if not torch.equal(before[name], frozen[name])}
        trained = dict(load_network(tmp_path / "whole" / "decoder.pt")[0].named_parameters())
        assert {name for name in trained if not name.startswith("encoder.")} >= changed & set(trained)
        assert {"branch4.reduce.conv.weight", "branch4.reduce.norm.weight", "branch4.classifier.conv.bias"} <= changed
        weight = "encoder.stage1.0.conv1.conv.weight"
        assert not torch.equal(frozen[weight], after[weight])
        self.stop_and_go_on(config, tiny_data, tmp_path / "stopped", monkeypatch)
        assert_ended_alike(tmp_path / "whole", tmp_path / "stopped", trained=12)

    def test_rounding_comes_in_little_by_little_and_is_whole_in_the_end(self, tiny_data, tmp_path, monkeypatch):
        stage = tiny_training.stage("w2a2", (2, 2), iterations=6, blend=0.5)
        config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", stage))
        trainer = self.trainer(config, tiny_data, tmp_path / "run")
        conv, stem = trainer.network.encoder.stage1[0].conv1, trainer.network.encoder.stem
        shares = []
        train_batch = Trainer._train_batch

        def note(trainer, *arguments):
            loss = train_batch(trainer, *arguments)
            shares.append((conv.weight_quantizer.rounded_share, stem.weight_quantizer.rounded_share))
            return loss

        monkeypatch.setattr(Trainer, "_train_batch", note)
        trainer.run()
        np.testing.assert_allclose(shares, [(share, 1) for share in (0, 1 / 3, 2 / 3, 1, 1, 1)])
        whole = replace(config, stages=(replace(config.stages[0], iterations=2, blend=1.0),))
        trainer = self.trainer(whole, tiny_data, tmp_path / "whole")
        trainer.run()
        assert trainer.network.encoder.stage1[0].conv1.weight_quantizer.rounded_share == 1

    def test_a_finished_run_can_be_extended(self, tiny_data, config_path, finished, tmp_path):
        shutil.copytree(finished, tmp_path / "run")
        longer = tiny_training.write_config(tmp_path / "c.toml", *SCHEDULE, tiny_training.stage("w1a2", (1, 2), 2))
        self.trainer(longer, tiny_data, tmp_path / "run").run()
        saved = read_checkpoint(tmp_path / "run" / "w1a2.pt")
        assert (saved["weight_bits"], saved["activation_bits"], saved["trained"]) == (1, 2, 10)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 4}, "seed is 4, but the run began with 3; restore it, or begin a new run"),
            ({"batch_size": 2}, "batch_size is 2, but the run began with 4"),
            ({"dataset": "camvid"}, "dataset is 'camvid', but the run began with 'voc7'"),
            (
                {"augmentation": Augmentation(64, (0.8, 1.25), 0.2)},
                r"augmentation.crop is 64, but the run began with 32",
            ),
            ({"architecture": {"stream_bits": 0}}, "architecture.stream_bits is 0, but the run began with 8"),
            ({"stages": slice(0, 1)}, "stage 'w2a2' has begun and can no longer change"),
        ],
    )
    def test_a_run_does_not_go_on_with_another_configuration(
        self, tiny_data, config_path, finished, monkeypatch, change, message
    ):
        config = read_config(config_path)
        if "stages" in change:
            change = {"stages": config.stages[change["stages"]]}
        if "architecture" in change:
            change = {"architecture": replace(config.architecture, **change["architecture"])}
        if "dataset" in change:
            monkeypatch.setattr(trainer_module, "open_dataset", lambda kind, *rest: open_dataset("voc7", *rest))
        with pytest.raises(TrainingError, match=f"checkpoint.pt: {message}"):
            self.trainer(replace(config, **change), tiny_data, finished)

    def test_name_and_working_size_may_change(self, tiny_data, config_path, finished):
        config = read_config(config_path)
        preprocessing = replace(config.preprocessing, working_size=96)
        self.trainer(replace(config, name="other", preprocessing=preprocessing), tiny_data, finished).run()

    @pytest.mark.parametrize(
        ("bits", "scales", "changes"),
        [
            ((32, 32), (32,), {}),
            ((32, 32), (32, 16, 8, 4), {}),
            ((8, 8), (32, 16, 8, 4), {}),
            ((2, 2), (4,), {}),
            ((1, 2), (32, 16, 8, 4), {}),
            ((2, 2), (32, 16, 8, 4), {"quantizer": "dorefa"}),
            ((2, 2), (32, 16, 8, 4), {"reconstruction": "convolution"}),
        ],
        ids=str,
    )
    def test_a_stage_of_any_bits_and_scales_learns(self, tiny_data, tmp_path, monkeypatch, bits, scales, changes):
        stage = tiny_training.stage("only", bits, 30, 5e-3, scales)
        config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", stage))
        if "reconstruction" in changes:
            changes = {"architecture": replace(config.architecture, **changes)}
        losses = self.losses_by_heart(monkeypatch)
        self.trainer(replace(config, **changes), tiny_data, tmp_path / "run").run()
        assert np.mean(losses[-5:]) < 0.85 * losses[0]

    @staticmethod
    def losses_by_heart(monkeypatch):
        """List to which a run that sees the same four crops again and again will add its losses."""
        sample, train_batch, losses = Batches._sample, Trainer._train_batch, []
        monkeypatch.setattr(Batches, "_sample", lambda batches, position: sample(batches, position % 4))
        monkeypatch.setattr(trainer_module, "WARM_UP_ITERATIONS", 1)
        monkeypatch.setattr(Trainer, "_train_batch", lambda *batch: losses.append(train_batch(*batch)) or losses[-1])
        return losses

    def test_a_stage_of_classification_learns_and_the_next_one_segments(self, tiny_data, tmp_path, monkeypatch):
        classify = {"task": "classification", "scales": (32,), "evaluate": False}
        stages = tiny_training.stage("classify", (32, 32), 40, 5e-3, **classify), tiny_training.stage("segment")
        losses = self.losses_by_heart(monkeypatch)
        trainer = self.trainer(tiny_training.write_config(tmp_path / "c.toml", *stages), tiny_data, tmp_path / "run")
        trainer.run()
        # Of 7 classes all but 3 are in no picture.
        assert np.mean(losses[35:40]) < 0.7 * losses[0] < 0.7
        assert list(trainer.results) == ["segment"], "a stage that is not to be evaluated is not"

    def test_a_stage_may_learn_from_an_earlier_stage_of_the_run(self, tiny_data, tmp_path, monkeypatch):
        stages = tiny_training.stage("float"), tiny_training.stage("w2a2", (2, 2), 25, 5e-3, distillation=4.0)
        config, output = tiny_training.write_config(tmp_path / "d.toml", *stages), tmp_path / "run"
        losses = self.losses_by_heart(monkeypatch)
        trainer = self.trainer(config, tiny_data, output, teacher=output / "float.pt")
        trainer.run()
        assert np.mean(losses[-5:]) < 0.85 * losses[4]
        teacher = Teacher(load_network(output / "float.pt")[0]).network.state_dict()
        assert all(torch.equal(value, teacher[name]) for name, value in trainer.teacher.network.state_dict().items())
        # The teacher adds to the loss: without it the same first batch costs less.
        alone = replace(trainer.config.stages[1], distillation=0.0, iterations=1)
        losses_with = losses[4]
        losses.clear()
        without = replace(trainer.config, stages=(trainer.config.stages[0], alone))
        self.trainer(without, tiny_data, tmp_path / "without").run()
        assert losses[4] < losses_with

    def test_a_stage_may_learn_from_its_teacher_alone(self, tiny_data, tmp_path, monkeypatch, finished):
        stage = tiny_training.stage("w2a2", (2, 2), 2, distillation=1.0, labels=0, evaluate=False)
        config = tiny_training.write_config(tmp_path / "d.toml", stage)
        original = Trainer._train_batch
        networks = []
        for shift in (0, 1):

            def train_batch(trainer, network, stage, images, labels, shift=shift):
                return original(trainer, network, stage, images, (labels + shift) % 3)

            monkeypatch.setattr(Trainer, "_train_batch", train_batch)
            start = {"start": finished / "float.pt", "teacher": finished / "float.pt"}
            trainer = self.trainer(config, tiny_data, tmp_path / f"run{shift}", **start)
            before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
            trainer.run()
            networks.append(trainer.network.state_dict())
        assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items()), "other labels"
        assert any(not torch.equal(value, before[name]) for name, value in networks[0].items())

    def test_a_teacher_that_does_not_fit_is_refused(self, tiny_data, tmp_path, finished):
        stage = tiny_training.stage("w2a2", (2, 2), distillation=1.0)
        config = read_config(tiny_training.write_config(tmp_path / "d.toml", stage))
        with pytest.raises(TrainingError, match=r"a stage has distillation: give .* with --teacher"):
            self.trainer(config, tiny_data, tmp_path / "run")
        with pytest.raises(TrainingError, match=r"flaot.pt: no such checkpoint"):
            self.trainer(config, tiny_data, tmp_path / "run", teacher=finished / "flaot.pt")
        with pytest.raises(TrainingError, match=r"w2a2.pt: no such checkpoint"):  # it would come too late
            self.trainer(config, tiny_data, tmp_path / "run", teacher=tmp_path / "run" / "w2a2.pt")
        narrow = replace(config, architecture=replace(config.architecture, stage_channels=(8, 8, 8, 8)))
        with pytest.raises(TrainingError, match="the teacher's stage_channels is"):
            self.trainer(narrow, tiny_data, tmp_path / "run", teacher=finished / "float.pt")
        grey = replace(config, preprocessing=Preprocessing((128, 128, 128), 58.0, 64))
        with pytest.raises(TrainingError, match=r"float.pt: its mean is \(123, 117, 104\), but the configuration's"):
            self.trainer(grey, tiny_data, tmp_path / "other", teacher=finished / "float.pt")

    def test_a_teacher_is_not_needed_any_longer_than_it_teaches(self, tiny_data, tmp_path, finished):
        teacher = shutil.copy(finished / "float.pt", tmp_path / "teacher.pt")
        taught = tiny_training.stage("w2a2", (2, 2), 1, distillation=1.0, evaluate=False)
        alone = tiny_training.stage("w2a2-alone", (2, 2), 1, evaluate=False)
        self.trainer(
            tiny_training.write_config(tmp_path / "one.toml", taught), tiny_data, tmp_path / "run", teacher=teacher
        ).run()
        Path(teacher).unlink()
        both = tiny_training.write_config(tmp_path / "both.toml", taught, alone)
        self.trainer(both, tiny_data, tmp_path / "run", teacher=teacher).run()
        assert (tmp_path / "run" / "w2a2-alone.pt").exists()

    def test_patience_counts_from_the_lowest_mean_loss(self, tiny_data, config_path, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer_module, "LOSS_WINDOW", 2)
        trainer = self.trainer(config_path, tiny_data, tmp_path)
        stage = replace(trainer.config.stages[0], patience=3)
        flat = []
        for loss in (9, 5, 4, 6, 3, 3, 8, 2, 9, 9):
            trainer._note_loss(stage, loss)
            flat.append(trainer._is_flat(stage))
        # Means of two: 7, 4.5, 5, 4.5, 3, 5.5, 5, 5.5, 9: the lowest after iteration 6.
        assert flat.index(True) == 8
        assert not trainer._is_flat(replace(stage, patience=0))

    def test_patience_does_not_count_while_rounding_comes_in(self, tiny_data, config_path, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer_module, "LOSS_WINDOW", 2)
        trainer = self.trainer(config_path, tiny_data, tmp_path)
        stage = replace(trainer.config.stages[0], patience=3, iterations=20, blend=0.25)
        flat = []
        for loss in (1, 2, 3, 4, 5, 6, 6, 5, 5, 6, 6, 6):
            trainer._note_loss(stage, loss)
            flat.append(trainer._is_flat(stage))
        # Rounding is whole after 5 iterations. Means of two from the seventh on: 6, 5.5, 5, 5.5, 6, 6.
        assert flat.index(True) == 11

    def test_patience_ends_a_stage_early_and_at_the_same_iteration_after_a_crash(
        self, tiny_data, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(trainer_module, "LOSS_WINDOW", 3)
        # Nothing is learned at these rates: the loss is noise.
        stages = [tiny_training.stage(name, (32, 32), 40, 1e-9, patience=4) for name in ("one", "two")]
        config = tiny_training.write_config(tmp_path / "p.toml", *stages)
        self.trainer(config, tiny_data, tmp_path / "whole").run()
        trained = [read_checkpoint(tmp_path / "whole" / f"{name}.pt")["trained"] for name in ("one", "two")]
        assert 7 <= trained[0] < 40 and 7 <= trained[1] - trained[0] < 40
        for iterations in (5, trained[0] - 1, trained[0] + 4):
            with monkeypatch.context() as context:
                stop_after(context, iterations)
                with pytest.raises(Stopped):
                    self.trainer(config, tiny_data, tmp_path / "stopped").run()
        self.trainer(config, tiny_data, tmp_path / "stopped").run()
        assert read_checkpoint(tmp_path / "stopped" / "one.pt")["trained"] == trained[0]
        assert_ended_alike(tmp_path / "whole", tmp_path / "stopped", trained[1])

    def test_crops_without_a_counted_pixel_do_no_harm(self, tiny_data, config_path, tmp_path):
        trainer = self.trainer(config_path, tiny_data, tmp_path)
        loss = trainer._scale_loss(torch.ones(1, 7, 2, 2, requires_grad=True), torch.full((1, 32, 32), IGNORE), 16)
        loss.backward()
        assert loss.item() == 0

    def test_a_diverged_run_says_so(self, tiny_data, config_path, tmp_path):
        trainer = self.trainer(config_path, tiny_data, tmp_path)
        trainer.network.branch32.classifier.conv.bias.data.fill_(math.nan)
        with pytest.raises(DivergenceError, match="the loss is nan at iteration 0 of stage 'float'"):
            trainer.run()

    def test_weights_that_are_no_numbers_are_not_kept(self, tiny_data, tmp_path, monkeypatch):
        original = Trainer._train_batch

        def train_batch(trainer, *arguments):
            value = original(trainer, *arguments)
            trainer.network.branch32.classifier.conv.bias.data.fill_(math.nan)
            return value

        monkeypatch.setattr(Trainer, "_train_batch", train_batch)
        path = tiny_training.write_config(tmp_path / "one.toml", tiny_training.stage("float", iterations=1))
        with pytest.raises(DivergenceError, match="weights are no longer finite at iteration 1 of stage 'float'"):
            self.trainer(path, tiny_data, tmp_path / "run").run()
        assert not list((tmp_path / "run").glob("*.pt"))

    def test_what_val_lacks_costs_no_training(self, tiny_data, config_path, finished, tmp_path, monkeypatch):
        data = shutil.copytree(tiny_data, tmp_path / "data")
        photo = open_dataset("voc7", data, "val").samples[0][0]
        whole = photo.read_bytes()
        photo.write_bytes(whole[:100])
        with pytest.raises(BitsegError, match=photo.name):
            self.trainer(config_path, data, tmp_path / "run").run()
        photo.write_bytes(whole)
        stages = []
        original = Trainer._train_batch

        def train_batch(trainer, network, stage, *arguments):
            stages.append(stage.name)
            return original(trainer, network, stage, *arguments)

        monkeypatch.setattr(Trainer, "_train_batch", train_batch)
        self.trainer(config_path, data, tmp_path / "run").run()
        assert set(stages) == {"w2a2"}
        assert_ended_alike(finished, tmp_path / "run", trained=8)

    def test_batch_normalisation_needs_two_values(self, tiny_data, config_path, tmp_path):
        config = replace(read_config(config_path), batch_size=1)
        with pytest.raises(TrainingError, match="a single value at stride 32: give a larger crop or batch_size"):
            self.trainer(config, tiny_data, tmp_path)

    def test_the_report_shows_loss_rate_and_time_left_of_the_whole_run(self, tiny_data, config_path, tmp_path, capsys):
        trainer = self.trainer(config_path, tiny_data, tmp_path)
        # 4 + 4 iterations, one of them done, at one in 10 minutes.
        trainer._note_loss(trainer.config.stages[0], 1.5)
        trainer._report(trainer.config.stages[0], 1 / 600)
        assert capsys.readouterr().err == "float 1/4  loss 1.500  0.0 images/s  1 h 10 min left\n"

    @pytest.mark.parametrize("shape", [(41, 50), (70, 91), (300, 20)])
    def test_prediction_is_that_of_the_converted_model(self, finished, shape):
        network, config, _ = load_network(finished / "w2a2.pt")
        photo = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
        mask = predict_label_map(folded(network, config.preprocessing), photo, config.preprocessing)
        expected = Segmenter(convert(finished / "w2a2.pt")).label_map(photo)
        assert mask.shape == shape and mask.dtype == np.uint8
        assert np.array_equal(mask, expected)

    def test_a_start_from_a_checkpoint_computes_the_same(self, tiny_data, config_path, finished, tmp_path):
        trainer = self.trainer(config_path, tiny_data, tmp_path / "run", start=finished / "w2a2.pt")
        network, _, _ = load_network(finished / "w2a2.pt")
        assert trainer.network.architecture == network.architecture
        assert torch.equal(trainer.network.eval()(random_input())[4], network(random_input())[4])

    def test_a_stage_without_batches_measures_what_it_starts_from(self, tiny_data, tmp_path, finished):
        path = tiny_training.write_config(tmp_path / "c.toml", tiny_training.stage("measured", (2, 2), 0))
        start = finished / "w2a2.pt"
        trainer = self.trainer(path, tiny_data, tmp_path / "run", start=start)
        trainer.run()
        saved = read_checkpoint(tmp_path / "run" / "measured.pt")
        assert all(
            torch.equal(value, saved["network"][name]) for name, value in read_checkpoint(start)["network"].items()
        )
        assert trainer.results["measured"]["miou"] == read_checkpoint(start)["results"]["w2a2"]["miou"]

    def test_starts_that_do_not_fit_are_refused(self, tiny_data, config_path, finished, tmp_path):
        config = read_config(config_path)
        (tmp_path / "text.pt").write_text("not a checkpoint")
        (tmp_path / "text.h5").write_text("not a model")
        torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
        narrow = replace(config, architecture=replace(config.architecture, branch_channels=(4, 4, 4, 4)))
        grey = replace(config, preprocessing=Preprocessing((128, 128, 128), 58.0, 64))
        for start, configuration, message in [
            (tmp_path / "missing.pt", config, "missing.pt: no such checkpoint"),
            (tmp_path / "text.pt", config, "text.pt: not a checkpoint of this training code"),
            (tmp_path / "foreign.pt", config, "foreign.pt: not a checkpoint of this training code"),
            (tmp_path / "text.h5", config, "text.h5: not a bitseg model"),
            (finished / "float.pt", narrow, r"its branch_channels is \(8, 8, 8, 8\), but the configuration's"),
            (finished / "float.pt", grey, r"its mean is \(123, 117, 104\), but the configuration's"),
        ]:
            with pytest.raises(BitsegError, match=message):
                self.trainer(configuration, tiny_data, tmp_path / "run", start=start)
        with pytest.raises(TrainingError, match="not from both"):
            self.trainer(config, tiny_data, tmp_path / "run", start=finished / "float.pt", pretrained="resnet.npz")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["missing.toml", "--data", "d"], "Error: missing.toml: cannot be read"),
            (["{config}", "--data", "missing"], "Error: missing: there is no such folder; check its name"),
            (["{config}", "--data", "{data}", "--pretrained", "no.npz"], "Error: no.npz: no such file of pretrained"),
            (["{config}", "--data", "{data}", "--start", "no.pt"], "Error: no.pt: no such checkpoint"),
            (["{distilling}", "--data", "{data}"], "Error: a stage has distillation: give the network to learn from"),
        ],
    )
    def test_the_command_line_says_in_one_line_what_is_wrong(
        self, tiny_data, config_path, tmp_path, arguments, message
    ):
        distilling = tiny_training.stage("w2a2", (2, 2), distillation=1.0)
        paths = {
            "config": config_path,
            "data": tiny_data,
            "distilling": tiny_training.write_config(tmp_path / "distilling.toml", distilling),
        }
        arguments = [argument.format(**paths) for argument in arguments]
        result = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "run")])
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in result.output

    def test_help_does_not_wait_for_pytorch(self):
        code = "import sys; sys.modules['torch'] = None; from tools.train.__main__ import main; main(['--help'])"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0 and "--pretrained" in result.stdout, result.stderr


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path):
    config = read_config(tiny_training.write_config(tmp_path / "tiny.toml", tiny_training.stage("float")))
    path = tmp_path / "checkpoint.pt"
    network = random_network(config.architecture)
    save_checkpoint(path, config, network, iteration=1)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a disk that is full in the middle of the file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: cannot be written \(File too large\)"):
            save_checkpoint(path, config, network, iteration=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_checkpoint(path)["iteration"] == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint.pt", "tiny.toml"]


class TestPresence:
    def test_hand_computed_loss(self):
        # One picture, mean scores 0, ln 3 and 0; classes 0 and 1 are there, 2 is not, and void is no class.
        scores = torch.tensor([[0.0, 0.0], [math.log(3) - 1, math.log(3) + 1], [2.0, -2.0]]).view(1, 3, 1, 2)
        labels = torch.tensor([[0, 1], [IGNORE, 1]])[None]
        expected = -(math.log(0.5) + math.log(0.75) + math.log(0.5)) / 3
        assert presence_loss(scores, labels).item() == pytest.approx(expected)

    def test_which_classes_are_there_is_learned(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.zeros(8, 64, 64, dtype=torch.int64)
        labels[::2, :20, :20], labels[::4, 40:, 40:], labels[1, 40:, 40:] = 1, 2, 2
        colours = torch.tensor([[0.0, 0, 0], [2, -1, 0], [-1, 0, 2]])
        images = colours[labels].permute(0, 3, 1, 2) + 0.1 * torch.randn(8, 3, 64, 64, generator=generator)
        network = random_network(tiny_training.tiny_architecture())
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(60):
            loss = presence_loss(network(images, (32,))[32], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        present = torch.stack([(labels == index).flatten(1).any(1) for index in range(3)], 1)
        assert torch.equal(network(images, (32,))[32].mean((2, 3)) > 0, present)
