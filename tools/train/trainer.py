"""The training loop: stages of falling bit widths, a loss at every scale, checkpoints that resume exactly."""

import json
import math
import platform
import time
from collections import deque
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bitseg.datasets import IGNORE, open_dataset
from bitseg.evaluation import evaluate, scores
from bitseg.network.graph import SIZE_MULTIPLE

from . import distributed
from .checkpoint import check_checkpoint, read_checkpoint, save_checkpoint
from .config import RUN_CHECKPOINT
from .data import Batches, batch_stream, class_weights, normalise
from .distillation import Teacher, distillation_loss, recorded_streams
from .errors import DivergenceError, TrainingError
from .folding import folded
from .initialize import load_pretrained_encoder, load_start, load_trained, require_same
from .network import BitFCN
from .prediction import predict_label_map
from .quantizers import FLOAT_BITS

LOSS_WINDOW = 50
"""Iterations whose mean loss is reported, and watched by a stage's patience."""

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
        Folder for checkpoints, held by this process (`folder.held_folder`); a run found there is continued.
    command : str
        Command line that trains, to be kept with the result.
    pretrained : path or None
        Folded ResNet to start the encoder from.
    start : path or None
        Checkpoint or model file to take all weights from.
    teacher : path or None
        Checkpoint or model file that stages with distillation learn from; it may be one that this run writes.
    workers : int
        Processes that make batches.

    Raises
    ------
    BitsegError
        Data, starting point or output cannot be used, or the run found there began with another configuration.
    """

    def __init__(self, config, data, output, command, pretrained=None, start=None, teacher=None, workers=1):
        if start is not None and pretrained is not None:
            raise TrainingError("start from all weights or from a pretrained encoder, not from both")
        if teacher is None and any(stage.distillation for stage in config.stages):
            raise TrainingError("a stage has distillation: give the network to learn from with --teacher")
        self.config, self.output, self.command, self.workers = config, output, command, workers
        self.device = distributed.device()
        self.bfloat16 = config.bfloat16 and multiplies_bfloat16(self.device)
        self.teacher_path, self.teacher = teacher, None
        train_set = open_dataset(config.dataset, data, "train")
        self.val_set = open_dataset(config.dataset, data, "val")
        batches = config.preprocessing.mean, config.batch_size, config.seed
        part = distributed.share(config.batch_size)
        self.batches = Batches(train_set, config.augmentation, *batches, part)
        if len(part) * (config.augmentation.crop // SIZE_MULTIPLE) ** 2 < 2:
            raise TrainingError(
                "BatchNorm would see a single value at stride 32: give a larger crop or batch_size, or fewer processes"
            )
        # The same on all processes, for what each of them works out for itself.
        self.whole_batches = Batches(train_set, config.augmentation, *batches)
        self.plain_batches = Batches(train_set, replace(config.augmentation, scale=(1, 1), colour=0), *batches)
        self.calibration_images = self._images(self.whole_batches[0][0])
        self.class_weights = class_weights(train_set).to(self.device) if config.class_weights == "log" else None
        torch.manual_seed(config.seed)
        network = BitFCN(config.architecture, config.quantizer)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.stage_index, self.iteration, self.trained = 0, 0, 0
        self.losses, self.best_loss, self.best_iteration = deque(maxlen=LOSS_WINDOW), math.inf, 0
        self.results = {}
        self.optimizer = None
        if self._checkpoint(RUN_CHECKPOINT).exists():
            self._resume()
        elif start is not None:
            load_start(self.network, start, config.preprocessing, self.calibration_images)
        elif pretrained is not None:
            load_pretrained_encoder(self.network, pretrained, self.calibration_images, config.preprocessing.scale)
        if any(stage.distillation for stage in self._stages_to_come) and not self._writes_in_time(teacher):
            self._load_teacher()

    def run(self):
        """Train all remaining stages and score each on the val split.

        Raises
        ------
        DivergenceError
            The loss is no longer finite.
        BitsegError
            A photo cannot be used, or a checkpoint cannot be written.
        """
        while self.stage_index < len(self.config.stages):
            stage = self.config.stages[self.stage_index]
            self.network.norms_frozen = stage.frozen_norms
            self.network.encoder.requires_grad_(stage.encoder_rate > 0)
            if self.iteration == 0:
                self._enter(stage)
            self._train(stage)
            if not all(values.isfinite().all() for values in self.network.state_dict().values()):
                raise _diverged("weights are no longer finite", self.iteration, stage)
            # What follows reads the photos of val, for the first time.
            self._save(RUN_CHECKPOINT)
            self._finish(stage)

    def _enter(self, stage):
        bits = stage.weight_bits, stage.activation_bits
        if bits != (self.network.architecture.weight_bits, self.network.architecture.activation_bits):
            self.network.set_bits(*bits)
            if bits != (FLOAT_BITS, FLOAT_BITS):
                self.network.calibrate(self.calibration_images)
        if stage.frozen_norms:
            self._estimate_norms(stage)
        self.optimizer = self._make_optimizer(stage)

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
                # With its BatchNorm and biases, which hardly changes them: results here are of such networks.
                {"params": groups["decoder"], "peak": stage.decoder_rate, "weight_decay": 0.01},
                {"params": groups["scales"], "peak": stage.quantizer_rate, "weight_decay": 0.0},
            ],
            fused=True,
        )

    def _images(self, photos):
        """Network input from uint8 photos."""
        return normalise(photos.to(self.device), self.config.preprocessing)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _estimate_norms(self, stage):
        if stage.norm_batches == 0:
            return
        batches = self.whole_batches if stage.norm_augmented else self.plain_batches
        batches = batch_stream(batches, range(stage.norm_batches), self.workers)
        with self._autocast():
            self.network.estimate_norms(self._images(photos) for photos, _ in batches)

    @property
    def _stages_to_come(self):
        """Stages that have not ended."""
        return self.config.stages[self.stage_index :]

    def _writes_in_time(self, path):
        """Whether a file is a checkpoint that this run has yet to make before the first stage that has a teacher."""
        before = takewhile(lambda stage: not stage.distillation, self._stages_to_come)
        return Path(path).resolve() in [self._checkpoint(stage.name).resolve() for stage in before]

    def _load_teacher(self):
        network, preprocessing = load_trained(self.teacher_path)
        require_same(self.teacher_path, vars(preprocessing), vars(self.config.preprocessing), ("mean", "scale"))
        self.teacher = Teacher(network.to(self.device, memory_format=torch.channels_last))
        self.teacher.check(self.network)

    def _train(self, stage):
        if self._is_flat(stage):
            return
        if stage.distillation and self.teacher is None:
            self._load_teacher()
        network = distributed.parallel(self.network)
        first = self.trained + 1
        numbers = range(first, first + stage.iterations - self.iteration)
        begin = saved = shown = time.monotonic()
        begun_at = self.iteration
        for images, labels in batch_stream(self.batches, numbers, self.workers):
            self._note_loss(stage, self._train_batch(network, stage, images, labels))
            now = time.monotonic()
            ends = self.iteration == stage.iterations or self._is_flat(stage)
            if now - shown > REPORT_SECONDS or ends:
                shown = now
                self._report(stage, (self.iteration - begun_at) / (now - begin))
            if ends:
                break
            if now - saved > CHECKPOINT_SECONDS:
                saved = now
                self._save(RUN_CHECKPOINT)

    def _note_loss(self, stage, loss):
        self.iteration += 1
        self.trained += 1
        self.losses.append(loss)
        if self.iteration >= _first_counted(stage) and np.mean(self.losses) < self.best_loss:
            self.best_loss, self.best_iteration = float(np.mean(self.losses)), self.iteration

    def _is_flat(self, stage):
        return 0 < stage.patience <= self.iteration - max(self.best_iteration, _first_counted(stage))

    def _train_batch(self, network, stage, images, labels):
        """One step of the optimiser; returns the loss."""
        self._set_rates(stage)
        self.network.round_partly(self._rounded_share(stage))
        network.train()
        images, labels = self._images(images), labels.to(self.device)
        with self._autocast(), recorded_streams(self.network) as streams:
            predicted = network(images, stage.scales)
            taught = self.teacher(images, stage.scales) if stage.distillation else None
        loss = 0
        if stage.labels:
            loss = loss + stage.labels * self._labels_loss(stage, predicted, labels)
        if taught is not None:
            loss = loss + stage.distillation * distillation_loss(predicted, streams, *taught)
        value = distributed.mean(loss)
        if not math.isfinite(value):
            raise _diverged(f"the loss is {value}", self.iteration, stage)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return value

    def _rounded_share(self, stage):
        rising = _blended(stage)
        return self.iteration / rising if self.iteration < rising else 1.0

    def _set_rates(self, stage):
        progress = self.iteration / stage.iterations
        factor = 0.5 * (1 + math.cos(math.pi * progress)) * min(1, (self.iteration + 1) / WARM_UP_ITERATIONS)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def _labels_loss(self, stage, predicted, labels):
        if stage.task == "classification":
            return presence_loss(predicted[32], labels)
        return sum(self._scale_loss(predicted[stride], labels, stride) for stride in stage.scales)

    def _scale_loss(self, predicted, labels, stride):
        # The finest scale is judged at full size, as it is used; coarser ones at the centre of each of their cells.
        if stride == 4:
            predicted = F.interpolate(predicted, scale_factor=4, mode="bilinear", align_corners=False)
        else:
            labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        if (labels == IGNORE).all():
            return predicted.sum() * 0  # a mean over no pixel would be NaN
        return F.cross_entropy(predicted, labels, self.class_weights, ignore_index=IGNORE)

    def _report(self, stage, rate):
        later = sum(other.iterations for other in self.config.stages[self.stage_index + 1 :])
        minutes = round((stage.iterations - self.iteration + later) / rate / 60)
        distributed.report(
            f"{stage.name} {self.iteration}/{stage.iterations}  loss {np.mean(self.losses):.3f}  "
            f"{rate * self.config.batch_size:.1f} images/s  {minutes // 60} h {minutes % 60:02d} min left"
        )

    def _finish(self, stage):
        self.network.round_partly(1.0)
        if not stage.frozen_norms:
            self._estimate_norms(stage)
        if stage.evaluate and distributed.rank() == 0:
            network, preprocessing = self.network, self.config.preprocessing
            if stage.weight_bits != FLOAT_BITS and stage.activation_bits != FLOAT_BITS:
                network = folded(network, preprocessing)
            confusion = evaluate(lambda photo: predict_label_map(network, photo, preprocessing), self.val_set)
            self.results[stage.name] = {"stage": stage.name, **scores(confusion, self.val_set)}
            print(json.dumps(self.results[stage.name]), flush=True)
        self.stage_index += 1
        self.iteration = 0
        self.losses.clear()
        self.best_loss, self.best_iteration = math.inf, 0
        self.optimizer = None
        self._save(stage.name)
        self._save(RUN_CHECKPOINT)
        distributed.wait()  # the next stage may read the checkpoint of this one as its teacher

    def _checkpoint(self, name):
        return self.output / f"{name}.pt"

    def _save(self, name):
        if distributed.rank():
            return
        save_checkpoint(
            self._checkpoint(name),
            self.config,
            self.network,
            command=self.command,
            optimizer=self.optimizer.state_dict() if self.optimizer else None,
            stage_index=self.stage_index,
            iteration=self.iteration,
            trained=self.trained,
            losses=list(self.losses),
            best_loss=self.best_loss,
            best_iteration=self.best_iteration,
            results=self.results,
        )

    def _resume(self):
        path = self._checkpoint(RUN_CHECKPOINT)
        try:
            self._restore(path, read_checkpoint(path))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            advice = "begin a new run with another --output"
            raise TrainingError(f"{path}: cannot be continued ({type(error).__name__}: {reason}); {advice}") from None
        distributed.report(f"continuing after {self.trained} iterations, {self.stage_index} stages finished")

    def _restore(self, path, saved):
        self.stage_index, self.iteration = saved["stage_index"], saved["iteration"]
        self.trained, self.results = saved["trained"], saved["results"]
        self.losses.extend(saved["losses"])
        self.best_loss, self.best_iteration = saved["best_loss"], saved["best_iteration"]
        check_checkpoint(path, saved, self.config, self.stage_index + (self.iteration > 0))
        self.network.load_state_dict(saved["network"])
        self.network.set_bits(saved["weight_bits"], saved["activation_bits"])
        if saved["optimizer"] is not None:
            self.optimizer = self._make_optimizer(self.config.stages[self.stage_index])
            self.optimizer.load_state_dict(saved["optimizer"])


def _blended(stage):
    """Iterations, not always a whole number, over which rounding comes in."""
    return stage.blend * stage.iterations


def _first_counted(stage):
    """First iteration whose mean loss counts: over a whole window, and after rounding, which raises it, has come in."""
    return math.ceil(_blended(stage)) + LOSS_WINDOW


def _diverged(what, iteration, stage):
    return DivergenceError(
        f"{what} at iteration {iteration} of stage '{stage.name}': begin it again with lower learning rates"
    )


def multiplies_bfloat16(device):
    """Whether a torch.device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN would say so of every CPU with AVX-512, and be slower there than with float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def presence_loss(scores, labels):
    """Cross-entropy of which classes are in a picture, told from the mean of its scores.

    Parameters
    ----------
    scores : tensor, shape (batch, classes, height, width)
    labels : tensor of int64, shape (batch, height, width)
        Class ids, or ``IGNORE``.

    Returns
    -------
    tensor, scalar
    """
    presence = torch.stack([(labels == index).flatten(1).any(1) for index in range(scores.shape[1])], 1)
    return F.binary_cross_entropy_with_logits(scores.mean((2, 3)), presence.to(scores.dtype))
