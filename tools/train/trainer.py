"""The training loop: stages of falling bit widths, a loss at every scale, checkpoints that resume exactly."""

import json
import math
import sys
import time
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F

from bitseg.datasets import IGNORE, open_dataset
from bitseg.evaluation import evaluate, scores

from .checkpoint import read_checkpoint, save_checkpoint
from .config import RUN_CHECKPOINT, check_continuation, config_from_dict
from .data import Batches, batch_stream, class_weights, normalise
from .errors import TrainingError
from .initialize import load_pretrained_encoder, load_start
from .network import BitFCN
from .prediction import predict_label_map
from .quantizers import FLOAT_BITS

CHECKPOINT_SECONDS = 240
REPORT_SECONDS = 20
WARM_UP_ITERATIONS = 50


class Trainer:
    """One training run in one folder.

    Parameters
    ----------
    config : Config
    data : path
        Folder of the data set.
    output : Path
        Folder for checkpoints; a run found there is continued.
    command : str
        Command line that trains, to be kept with the result.
    pretrained : path or None
        Folded ResNet to start the encoder from.
    start : path or None
        Checkpoint or model file to take all weights from.
    workers : int
        Processes that make batches.

    Raises
    ------
    BitsegError
        Data, starting point or output cannot be used, or the run found there began with another configuration.
    """

    def __init__(self, config, data, output, command, pretrained=None, start=None, workers=1):
        if start is not None and pretrained is not None:
            raise TrainingError("start from all weights or from a pretrained encoder, not from both")
        self.config, self.output, self.command, self.workers = config, output, command, workers
        train_set = open_dataset(config.dataset, data, "train")
        self.val_set = open_dataset(config.dataset, data, "val")
        self.batches = Batches(
            train_set, config.augmentation, config.preprocessing.mean, config.batch_size, config.seed
        )
        self.class_weights = class_weights(train_set) if config.class_weights == "log" else None
        torch.manual_seed(config.seed)
        self.network = BitFCN(config.architecture).to(memory_format=torch.channels_last)
        self.stage_index, self.iteration, self.trained = 0, 0, 0
        self.results = {}
        self.optimizer = None
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"{output}: cannot be made a folder ({error.strerror}); choose another --output"
            ) from None
        if self._checkpoint(RUN_CHECKPOINT).exists():
            self._resume()
        elif start is not None:
            load_start(self.network, start, config.preprocessing, self._calibration_images())
        elif pretrained is not None:
            load_pretrained_encoder(self.network, pretrained, self._calibration_images(), config.preprocessing.scale)

    def run(self):
        """Train all remaining stages and score each on the val split.

        Raises
        ------
        BitsegError
            The loss is no longer finite, a photo cannot be used, or a checkpoint cannot be written.
        """
        while self.stage_index < len(self.config.stages):
            stage = self.config.stages[self.stage_index]
            if self.iteration == 0:
                self._enter(stage)
            self._train(stage)
            self._finish(stage)

    def _enter(self, stage):
        bits = stage.weight_bits, stage.activation_bits
        if bits != (self.network.architecture.weight_bits, self.network.architecture.activation_bits):
            self.network.set_bits(*bits)
            if bits != (FLOAT_BITS, FLOAT_BITS):
                self.network.calibrate(self._calibration_images())
        self.optimizer = self._make_optimizer(stage)

    def _calibration_images(self):
        images, _ = self.batches[0]
        return normalise(images, self.config.preprocessing)

    def _make_optimizer(self, stage):
        groups = {"encoder": [], "plain": [], "decoder": [], "scales": []}
        for name, parameter in self.network.named_parameters():
            if name.endswith(("log_scale", "log_bound")):
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
                {"params": groups["scales"], "peak": stage.quantizer_rate, "weight_decay": 0.0},
            ],
            fused=True,
        )

    def _train(self, stage):
        first = self.trained + 1
        numbers = range(first, first + stage.iterations - self.iteration)
        begin = saved = shown = time.monotonic()
        begun_at = self.iteration
        losses = deque(maxlen=50)
        for images, labels in batch_stream(self.batches, numbers, self.workers):
            losses.append(self._train_batch(stage, images, labels))
            self.iteration += 1
            self.trained += 1
            now = time.monotonic()
            if now - shown > REPORT_SECONDS or self.iteration == stage.iterations:
                shown = now
                self._report(stage, np.mean(losses), (self.iteration - begun_at) / (now - begin))
            if now - saved > CHECKPOINT_SECONDS:
                saved = now
                self._save(RUN_CHECKPOINT)

    def _train_batch(self, stage, images, labels):
        """One step of the optimiser; returns the loss."""
        self._set_rates(stage)
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            predicted = self.network(normalise(images, self.config.preprocessing), stage.scales)
        loss = sum(self._loss(predicted[stride], labels, stride) for stride in stage.scales)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at iteration {self.iteration} of stage '{stage.name}': begin it again with "
                "lower learning rates"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return value

    def _set_rates(self, stage):
        progress = self.iteration / stage.iterations
        factor = 0.5 * (1 + math.cos(math.pi * progress)) * min(1, (self.iteration + 1) / WARM_UP_ITERATIONS)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _loss(self, predicted, labels, stride):
        # The finest scale is judged at full size, as it is used; coarser ones at the centre of each of their cells.
        if stride == 4:
            predicted = F.interpolate(predicted, scale_factor=4, mode="bilinear", align_corners=False)
        else:
            labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        if (labels == IGNORE).all():
            return predicted.sum() * 0  # a mean over no pixel would be NaN
        return F.cross_entropy(predicted, labels, self.class_weights, ignore_index=IGNORE)

    def _report(self, stage, loss, rate):
        later = sum(other.iterations for other in self.config.stages[self.stage_index + 1 :])
        minutes = round((stage.iterations - self.iteration + later) / rate / 60)
        print(
            f"{stage.name} {self.iteration}/{stage.iterations}  loss {loss:.3f}  "
            f"{rate * self.config.batch_size:.1f} images/s  {minutes // 60} h {minutes % 60:02d} min left",
            file=sys.stderr,
            flush=True,
        )

    def _finish(self, stage):
        confusion = evaluate(
            lambda photo: predict_label_map(self.network, photo, self.config.preprocessing), self.val_set
        )
        self.results[stage.name] = {"stage": stage.name, **scores(confusion, self.val_set)}
        print(json.dumps(self.results[stage.name]), flush=True)
        self.stage_index += 1
        self.iteration = 0
        self.optimizer = None
        self._save(stage.name)
        self._save(RUN_CHECKPOINT)

    def _checkpoint(self, name):
        return self.output / f"{name}.pt"

    def _save(self, name):
        save_checkpoint(
            self._checkpoint(name),
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
        path = self._checkpoint(RUN_CHECKPOINT)
        saved = read_checkpoint(path)
        self.stage_index, self.iteration = saved["stage_index"], saved["iteration"]
        self.trained, self.results = saved["trained"], saved["results"]
        try:
            check_continuation(config_from_dict(saved["config"]), self.config, self.stage_index + (self.iteration > 0))
        except TrainingError as error:
            raise TrainingError(f"{path}: {error}") from None
        self.network.load_state_dict(saved["network"])
        self.network.set_bits(saved["weight_bits"], saved["activation_bits"])
        if saved["optimizer"] is not None:
            self.optimizer = self._make_optimizer(self.config.stages[self.stage_index])
            self.optimizer.load_state_dict(saved["optimizer"])
        print(f"continuing after {self.trained} iterations, {self.stage_index} stages finished", file=sys.stderr)
