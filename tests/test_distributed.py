"""Training in several processes, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
from tiny_training import torch

from tools.train import distributed
from tools.train.checkpoint import read_checkpoint
from tools.train.config import read_config
from tools.train.data import normalise
from tools.train.distillation import distillation_loss, recorded_streams
from tools.train.errors import TrainingError
from tools.train.trainer import Trainer

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("uncompiled_on_one_thread")


TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TWO_PROCESSES += ["-m", "tools.train"]


class TwoPartTrainer(Trainer):
    """One process that does what two do: each half of a batch is normalised by itself, gradients are averaged."""

    def _train_batch(self, network, stage, images, labels):
        self._set_rates(stage)
        network.train()
        images = normalise(images, self.config.preprocessing)
        statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
        self.optimizer.zero_grad()
        losses = []
        # Process 0 comes last: its statistics of BatchNorm are those that are kept.
        for process in (1, 0):
            for name, buffer in network.named_buffers():
                buffer.copy_(statistics[name])
            part = images[process::2]
            with recorded_streams(network) as streams:
                scores = network(part, stage.scales)
            loss = self._labels_loss(stage, scores, labels[process::2])
            if stage.distillation:
                loss = loss + stage.distillation * distillation_loss(scores, streams, *self.teacher(part, stage.scales))
            (loss / 2).backward()
            losses.append(loss.item())
        self.optimizer.step()
        return sum(losses) / 2


def test_two_processes_train_like_one_that_averages_the_gradients_of_two_half_batches(tiny_data, tmp_path):
    """Compared: weights, scales and running statistics after 3 steps in floating point and 2 with a teacher at 2 bits.

    A process that takes the whole batch at once gets other weights, because BatchNorm then sees other statistics.
    """
    stages = tiny_training.stage("float", iterations=3), tiny_training.stage("w2a2", (2, 2), 2, distillation=1.0)
    path = tiny_training.write_config(tmp_path / "tiny.toml", *stages)
    command = [*TWO_PROCESSES, path, "--data", tiny_data, "--output", tmp_path / "two", "--workers", "0"]
    command += ["--teacher", tmp_path / "two" / "float.pt"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}
    result = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # Process 0 alone measures, reports and writes.
    assert [json.loads(line)["stage"] for line in result.stdout.splitlines()] == ["float", "w2a2"]
    assert result.stderr.count("float 3/3") == 1
    assert sorted(entry.name for entry in (tmp_path / "two").iterdir()) == [
        ".lock",
        "checkpoint.pt",
        "config.toml",
        "float.pt",
        "w2a2.pt",
    ]

    teacher = tmp_path / "one" / "float.pt"
    (tmp_path / "one").mkdir()
    TwoPartTrainer(read_config(path), tiny_data, tmp_path / "one", "command", teacher=teacher, workers=0).run()
    one, two = (read_checkpoint(tmp_path / folder / "w2a2.pt") for folder in ("one", "two"))
    assert two["trained"] == one["trained"] == 5
    assert set(one["network"]) == set(two["network"])
    for name, value in two["network"].items():
        # The same sums in another order: about the last of the 24 bits of a float32, grown over five steps.
        torch.testing.assert_close(
            value, one["network"][name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert two["losses"] == one["losses"] == []


def test_all_processes_are_refused_a_folder_and_say_so_in_one_line(tiny_data, tmp_path):
    path = tiny_training.write_config(tmp_path / "tiny.toml", tiny_training.stage("float", iterations=3))
    (tmp_path / "taken").write_text("")
    command = [*TWO_PROCESSES, path, "--data", tiny_data, "--output", tmp_path / "taken", "--workers", "0"]
    result = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.returncode == 1 and lines, result.stderr
    assert all("taken: cannot be made a folder (File exists)" in line for line in lines)
    assert "DistributedDataParallel" not in result.stderr


def test_a_batch_is_shared_out_evenly_or_not_at_all(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert list(distributed.share(6)) == [1, 3, 5]
    with pytest.raises(TrainingError, match="a batch of 7 cannot be shared out to 2 processes: change batch_size"):
        distributed.share(7)


def test_one_process_needs_none_of_this(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    distributed.join_processes()
    network = torch.nn.Linear(1, 1)
    assert distributed.parallel(network) is network
    assert (distributed.rank(), distributed.processes(), list(distributed.share(3))) == (0, 1, [0, 1, 2])
    assert distributed.mean(torch.tensor(2.5)) == 2.5
    assert distributed.of_the_first("said") == "said"
    distributed.wait()
    distributed.leave_processes()
