"""The training loop: stages of falling bit widths, a loss at every scale, checkpoints that resume exactly."""

import json
import math
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bitseg.datasets import IGNORE, open_dataset
from bitseg.metrics import class_iou, mean_iou, pixel_accuracy

from .checkpoint import read_checkpoint, save_checkpoint
from .data import Batches, batch_stream, normalise
from .evaluate import evaluate
from .initialize import load_pretrained_encoder
from .network import BitFCN
from .quantizers import FLOAT_BITS

CHECKPOINT_SECONDS = 240
WARM_UP_ITERATIONS = 50
QUANTIZER_RATE = 2e-3
"""Learning rate of the logarithms of all scales: at most 0.2 % a step under Adam."""


class Trainer:
    """One training run in one folder.

    Parameters
    ----------
    config : Config
    data : path
        Folder of the data set.
    output : Path
        Folder for checkpoints and the log; a run found there is continued.
    command : str
        Command line that trains, to be kept with the result.
    pretrained : path or None
        Folded ResNet to start the encoder from.
    start : path or None
        Checkpoint to take the weights from.
    workers : int
        Processes that make batches.
    """

    def __init__(self, config, data, output, command, pretrained=None, start=None, workers=1):
        torch.manual_seed(config.seed)
        self.config, self.output, self.command, self.workers = config, output, command, workers
        self.train_set = open_dataset(config.dataset, data, "train")
        self.val_set = open_dataset(config.dataset, data, "val")
        self.batches = Batches(
            self.train_set, config.augmentation, config.preprocessing.mean, config.batch_size, config.seed
        )
        self.network = BitFCN(config.architecture).to(memory_format=torch.channels_last)
        self.class_weights = self._class_weights()
        self.stage_index, self.iteration, self.trained = 0, 0, 0
        self.results = {}
        self.optimizer = None
        output.mkdir(parents=True, exist_ok=True)
        if (output / "checkpoint.pt").exists():
            self._resume()
        elif start is not None:
            saved = read_checkpoint(start)
            self.network.load_state_dict(saved["network"])
            self.network.set_bits(saved["weight_bits"], saved["activation_bits"])
        elif pretrained is not None:
            images, _ = self.batches[0]
            load_pretrained_encoder(
                self.network, pretrained, normalise(images, config.preprocessing), config.preprocessing.scale
            )

    def run(self):
        """Train all remaining stages and score each on the val split."""
        while self.stage_index < len(self.config.stages):
            stage = self.config.stages[self.stage_index]
            if self.iteration == 0:
                self._enter(stage)
            self._train(stage)
            self._finish(stage)

    def _enter(self, stage):
        bits = stage.weight_bits, stage.activation_bits
        if bits != (self.network.weight_bits, self.network.activation_bits):
            self.network.set_bits(*bits)
            if bits != (FLOAT_BITS, FLOAT_BITS):
                images, _ = self.batches[0]
                self.network.calibrate(normalise(images, self.config.preprocessing))
        self.optimizer = self._make_optimizer(stage)

    def _make_optimizer(self, stage):
        groups = {"encoder": [], "decoder": [], "plain": [], "scales": []}
        for name, parameter in self.network.named_parameters():
            if "log_" in name:
                groups["scales"].append(parameter)
            elif name.startswith("encoder"):
                groups["encoder" if parameter.dim() > 1 else "plain"].append(parameter)
            else:
                groups["decoder"].append(parameter)
        return torch.optim.AdamW(
            [
                {"params": groups["encoder"], "peak": stage.encoder_rate, "weight_decay": 0.01},
                {"params": groups["plain"], "peak": stage.encoder_rate, "weight_decay": 0.0},
                {"params": groups["decoder"], "peak": stage.decoder_rate, "weight_decay": 0.01},
                {"params": groups["scales"], "peak": QUANTIZER_RATE, "weight_decay": 0.0},
            ],
            fused=True,
        )

    def _train(self, stage):
        preprocessing = self.config.preprocessing
        first = self.trained + 1
        numbers = range(first, first + stage.iterations - self.iteration)
        begin = saved = shown = time.monotonic()
        begun_at = self.iteration
        losses = []
        for images, labels in batch_stream(self.batches, numbers, self.workers):
            self._set_rates(stage)
            self.network.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
                scores = self.network(normalise(images, preprocessing), stage.scales)
            loss = sum(self._loss(scores[stride], labels, stride) for stride in stage.scales)
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is {loss.item()} at iteration {self.iteration} of {stage.name}")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            self.iteration += 1
            self.trained += 1
            now = time.monotonic()
            if now - shown > 20 or self.iteration == stage.iterations:
                shown = now
                rate = (self.iteration - begun_at) / (now - begin)
                later = sum(other.iterations for other in self.config.stages[self.stage_index + 1 :])
                left = (stage.iterations - self.iteration + later) / rate
                print(
                    f"{stage.name} {self.iteration}/{stage.iterations}  loss {np.mean(losses[-50:]):.3f}  "
                    f"{rate * self.config.batch_size:.1f} images/s  {left / 60:.0f} min left",
                    file=sys.stderr,
                    flush=True,
                )
            if now - saved > CHECKPOINT_SECONDS:
                saved = now
                self._save(self.output / "checkpoint.pt")

    def _set_rates(self, stage):
        progress = self.iteration / stage.iterations
        factor = 0.5 * (1 + math.cos(math.pi * progress)) * min(1, (self.iteration + 1) / WARM_UP_ITERATIONS)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _loss(self, scores, labels, stride):
        # The finest scale is judged at full size, as it is used; coarser ones at the centre of each of their cells.
        if stride == 4:
            scores = F.interpolate(scores, scale_factor=4, mode="bilinear", align_corners=False)
        else:
            labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        return F.cross_entropy(scores, labels, self.class_weights, ignore_index=IGNORE)

    def _class_weights(self):
        if self.config.class_weights == "none":
            return None
        counts = np.zeros(256, np.int64)
        for _, mask_path in self.train_set.samples:
            labels = self.train_set.label_map[np.asarray(Image.open(mask_path))]
            counts += np.bincount(labels.ravel(), minlength=256)
        share = counts[: len(self.train_set.classes)] / counts[: len(self.train_set.classes)].sum()
        return torch.tensor(1 / np.log(1.4 + share), dtype=torch.float32)

    def _finish(self, stage):
        confusion = evaluate(self.network, self.val_set, self.config.preprocessing)
        result = {
            "stage": stage.name,
            "miou": mean_iou(confusion),
            "pixel_accuracy": pixel_accuracy(confusion),
            "iou": dict(zip(self.val_set.classes, class_iou(confusion).round(4).tolist())),
        }
        self.results[stage.name] = result
        print(json.dumps(result), flush=True)
        self.stage_index += 1
        self.iteration = 0
        self.optimizer = None
        self._save(self.output / f"{stage.name}.pt")
        self._save(self.output / "checkpoint.pt")

    def _save(self, path):
        save_checkpoint(
            path,
            self.config,
            self.network,
            command=self.command,
            optimizer=self.optimizer.state_dict() if self.optimizer else None,
            stage_index=self.stage_index,
            iteration=self.iteration,
            trained=self.trained,
            results=self.results,
        )

    def _resume(self):
        saved = read_checkpoint(self.output / "checkpoint.pt")
        self.network.set_bits(saved["weight_bits"], saved["activation_bits"])
        self.network.load_state_dict(saved["network"])
        self.stage_index, self.iteration = saved["stage_index"], saved["iteration"]
        self.trained, self.results = saved["trained"], saved["results"]
        if saved["optimizer"] is not None:
            self.optimizer = self._make_optimizer(self.config.stages[self.stage_index])
            self.optimizer.load_state_dict(saved["optimizer"])
        print(f"continuing at stage {self.stage_index}, iteration {self.iteration}", file=sys.stderr)
