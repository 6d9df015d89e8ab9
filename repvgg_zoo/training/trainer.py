"""train: all weights of a network by SGD, from a head that fits its features; the part that needs MegEngine.

On a CPU it is bit-exact: a run that was interrupted, or killed, ends with the bytes of one that was not. On GPUs, which
need MegEngine's own kernels, it is data-parallel, with a process for each GPU.
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

import megengine
import megengine.distributed as dist
import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine import Tensor
from megengine.amp import GradScaler, autocast
from megengine.autodiff import GradManager
from megengine.device import get_default_device, get_device_count
from megengine.optimizer import SGD
from numpy.typing import NDArray

from .._cpu import usable_cores
from .._tensors import load_state_dict
from ..builder import create
from ..checkpoints import Checkpoint, save_checkpoint
from ..checkpoints.publisher import variant_of
from ..errors import ArgumentError, TrainingError
from ..registry.specs import Preprocessing
from .batches import training_batches, validation_batches
from .head import count_correct, cross_entropy
from .interrupts import deferred_interrupt
from .recipe import Recipe
from .report import Epoch
from .run_folder import BEST, LAST, State, read_state, write_state
from .samples import Labeled
from .schedule import learning_rate
from .structure import structure_of
from .trunk import forward_features, frozen_blocks

SAVE_INTERVAL_S = 600.0  # of an epoch that takes longer
BRANCHES = ("rbr_dense.conv", "rbr_1x1.conv")  # whose weight decay the custom L2 replaces


class Job(NamedTuple):
    """What a run trains: ``weights`` with the head to begin with, which gets ``probe_correct`` images right."""

    folder: Path
    weights: Checkpoint
    preprocessing: Preprocessing
    train: Labeled
    val: Labeled
    recipe: Recipe
    probe_correct: int
    probe_loss: float
    threads: Optional[int]
    amp: Optional[bool]


class Outcome(NamedTuple):
    """The epochs, the one with the best weights (0 for those it began with), and how many images they get right."""

    epochs: Tuple[Epoch, ...]
    best_epoch: int
    best_correct: int


def train(job: Job, devices: Optional[int], on_epoch: Callable[[Epoch], None]) -> Outcome:
    """Train, write each better network to the run's folder, and return the epochs; go on where the run is.

    Raises TrainingError if the loss is not finite, and KeyboardInterrupt after Ctrl-C, when everything is written.
    """
    count = count_gpus() if devices is None else devices
    if count <= 1:
        return _train(job, on_epoch)
    results = dist.launcher(_train_in_process, n_gpus=count)(job, on_epoch)
    if isinstance(results[0], BaseException):
        raise results[0]
    outcome: Outcome = results[0]
    return outcome


def check_devices(devices: Optional[int], amp: Optional[bool], recipe: Recipe) -> None:
    """Raise ArgumentError for GPUs that do not exist, or that cannot share a batch."""
    gpus = count_gpus()
    if devices is not None and devices > max(gpus, 1):
        raise ArgumentError(
            f"devices is {devices}, and MegEngine finds {gpus} GPUs",
            expected=f"at most {max(gpus, 1)}",
            actual=devices,
            hint="leave devices out",
        )
    if amp and not gpus:
        raise ArgumentError("amp needs a GPU", expected="amp=False", actual=True, hint="leave amp out")
    count = gpus if devices is None else devices
    if count > 1 and recipe.batch_size % count:
        raise ArgumentError(
            f"a batch of {recipe.batch_size} images cannot be shared by {count} GPUs",
            expected=f"a multiple of {count}",
            actual=recipe.batch_size,
            hint="pass another batch_size, or devices=1",
        )


def count_gpus() -> int:
    """Return the number of GPUs, 0 if MegEngine's default device is a CPU."""
    if get_default_device().startswith(("cpu", "multithread")):
        return 0
    return int(get_device_count("gpu"))


def _train_in_process(job: Job, on_epoch: Callable[[Epoch], None]) -> Any:
    """Return the outcome or, as every process meets it at the same step, the error."""
    try:
        return _train(job, on_epoch if dist.get_rank() == 0 else lambda epoch: None)
    except (TrainingError, KeyboardInterrupt) as error:
        return error


def _train(job: Job, on_epoch: Callable[[Epoch], None]) -> Outcome:
    trainer = Trainer(job)
    state = read_state(job.folder)
    if state is not None:
        trainer.restore(state)
    with ThreadPoolExecutor(job.threads or usable_cores()) as pool:
        while trainer.epoch < job.recipe.epochs:
            on_epoch(trainer.train_epoch(pool))
    return Outcome(tuple(trainer.epochs), trainer.best_epoch, trainer.best_correct)


class Trainer:
    """A network, its optimizer, and where the run is: ``step`` of ``epoch``, both counted from 0."""

    def __init__(self, job: Job) -> None:
        self.job, self.recipe = job, job.recipe
        megengine.random.seed(job.recipe.seed)  # for heads that the weights lack: RepVGGplus's auxiliary ones
        name = variant_of(job.weights).name
        self.network = create(name, checkpoint=job.weights, num_classes=len(job.weights.state_dict["linear.bias"]))
        self.is_distributed = bool(dist.is_distributed())
        self.rank = int(dist.get_rank()) if self.is_distributed else 0
        self.world_size = int(dist.get_world_size()) if self.is_distributed else 1
        structure = structure_of(self.network)
        frozen = frozen_blocks(structure, job.recipe.freeze_until)
        self.blocks = [block.module for block in structure.blocks.values()][frozen:]
        groups = self._parameter_groups()
        self.optimizer = SGD(groups, lr=job.recipe.lr, momentum=job.recipe.momentum, nesterov=True, weight_decay=0.0)
        parameters = [parameter for group in groups for parameter in group["params"]]
        callbacks = [dist.make_allreduce_cb("mean")] if self.is_distributed else []
        self.gradients = GradManager().attach(parameters, callbacks=callbacks)
        self.amp = count_gpus() > 0 if job.amp is None else job.amp
        self.scaler = GradScaler()
        if self.is_distributed:
            dist.bcast_list_(list(self.network.tensors()))
        self.ema: Dict[str, Tensor] = {}
        if job.recipe.ema:
            self.ema = {key: Tensor(tensor.numpy()) for key, tensor in self.network.named_tensors()}
        self.epoch = self.step = 0
        self.loss_sum = 0.0
        self.seconds = 0.0  # that earlier processes took for this epoch
        self.epochs: List[Epoch] = []
        self.best_epoch, self.best_correct, self.best_loss = 0, job.probe_correct, job.probe_loss

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return len(self.job.train.labels) // self.recipe.batch_size

    def train_epoch(self, pool: ThreadPoolExecutor) -> Epoch:
        """Train to the end of the epoch, and return how it went; its results are written by then."""
        started = saved = time.monotonic()
        batches = training_batches(
            self.job.train,
            self.job.preprocessing,
            self.recipe,
            pool,
            epoch=self.epoch,
            first=self.step,
            part=self.rank,
            parts=self.world_size,
        )
        earlier = self.seconds
        with deferred_interrupt() as interrupt, closing(batches):
            for images, labels in batches:
                loss, is_interrupted = self._agree(self._train_step(images, labels), interrupt.requested)
                self._check_loss(loss)
                self.loss_sum += loss
                self.step += 1
                self.seconds = earlier + time.monotonic() - started
                if is_interrupted and self.step < self.steps_per_epoch:
                    self.save()
                    raise KeyboardInterrupt(
                        f"interrupted after step {self.step} of {self.steps_per_epoch} of epoch {self.epoch + 1};"
                        " the same call goes on from there"
                    )
                if time.monotonic() - saved > SAVE_INTERVAL_S:
                    self.save()
                    saved = time.monotonic()
            row = self._finish_epoch(pool)
        if interrupt.requested:
            raise KeyboardInterrupt(f"interrupted after epoch {row.epoch}; the same call goes on from there")
        return row

    def _train_step(self, images: NDArray[Any], labels: NDArray[Any]) -> Tensor:
        """Update the weights by one batch, and return its loss."""
        total_steps = self.steps_per_epoch * self.recipe.epochs
        step = self.epoch * self.steps_per_epoch + self.step
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step, total_steps, warmup_steps=self.recipe.warmup_epochs * self.steps_per_epoch, peak=self.recipe.lr
            )
        with autocast(enabled=self.amp), self.gradients:
            loss = F.nn.cross_entropy(
                self._logits(images, self.recipe.bn), Tensor(labels), label_smooth=self.recipe.label_smoothing
            )
            objective = loss + self._custom_l2() if self.recipe.custom_l2 else loss
            if self.amp:
                self.scaler.backward(self.gradients, objective)
            else:
                self.gradients.backward(objective)
        self.optimizer.step().clear_grad()
        decay = min(self.recipe.ema, (1 + step) / (10 + step))
        for key, tensor in self.network.named_tensors() if self.ema else ():
            self.ema[key] = self.ema[key] * decay + tensor.detach() * (1 - decay)
        return loss

    def _logits(self, images: NDArray[Any], bn: str) -> Tensor:
        features = forward_features(
            self.network, Tensor(images), bn=bn, freeze_until=self.recipe.freeze_until, threads=self.job.threads
        )
        return self.network.linear(features)

    def _custom_l2(self) -> Tensor:
        return sum(block.get_custom_L2() for block in self.blocks) * (0.5 * self.recipe.weight_decay)

    def _agree(self, loss: Tensor, is_interrupted: bool) -> Tuple[float, bool]:
        """Return the mean loss of all processes, and whether any was interrupted, the same in each of them."""
        if not self.is_distributed:
            return float(loss.item()), is_interrupted
        sums = dist.functional.all_reduce_sum(Tensor([float(loss.item()), float(is_interrupted)])).numpy()
        return float(sums[0]) / self.world_size, bool(sums[1])

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in step {self.step + 1} of epoch {self.epoch + 1}: training diverged",
                path=self.job.folder,
                actual=loss,
                hint=f"pass a lower lr than {self.recipe.lr:g}, such as {self.recipe.lr / 10:g}, and another output",
            )

    def _finish_epoch(self, pool: ThreadPoolExecutor) -> Epoch:
        """Evaluate the epoch, and write its weights if they are the best so far, and where the run is."""
        trained = self.network.state_dict()
        if self.ema:
            load_state_dict(self.network, {key: value.numpy() for key, value in self.ema.items()})
        correct, loss = self._evaluate(pool)
        number = self.epoch + 1
        if (correct, -loss) > (self.best_correct, -self.best_loss):
            self.best_epoch, self.best_correct, self.best_loss = number, correct, loss
            self._write_weights(BEST)
        if number == self.recipe.epochs:
            self._write_weights(LAST)
        if self.ema:
            load_state_dict(self.network, trained)
        row = Epoch(
            number,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            train_loss=self.loss_sum / self.steps_per_epoch,
            val_loss=loss,
            val_top1=100 * correct / len(self.job.val.labels),
            seconds=round(self.seconds, 3),
        )
        self.epochs.append(row)
        self.epoch, self.step, self.loss_sum, self.seconds = number, 0, 0.0, 0.0
        self.save()
        return row

    def _write_weights(self, name: str) -> None:
        if self.rank == 0:
            weights = replace(self.job.weights, state_dict=MappingProxyType(dict(self.network.state_dict())))
            save_checkpoint(self.job.folder / name, weights)

    def _evaluate(self, pool: ThreadPoolExecutor) -> Tuple[int, float]:
        """Return how many of the validation images are right, and the cross-entropy; each process does it."""
        rows, size = [], self.recipe.batch_size
        for images, _ in validation_batches(self.job.val, self.job.preprocessing, size, pool):
            padding = np.zeros((size - len(images), *images.shape[1:]), np.float32)
            logits = self._logits(np.concatenate([images, padding]), "frozen")
            rows.append(logits.numpy()[: len(images)].astype(np.float32))
        logits = np.concatenate(rows)
        return count_correct(logits, self.job.val.labels), cross_entropy(logits, self.job.val.labels)

    def _parameter_groups(self) -> List[Dict[str, Any]]:
        """Return the trained parameters: kernels, which decay, and biases and those of BN, which do not.

        So the official recipe has it.
        """
        trained: Set[int] = {id(module) for block in self.blocks for module in block.modules()}
        decayed: List[Any] = []
        others: List[Any] = []
        for name, module in self.network.named_modules():
            if id(module) not in trained and name != "linear":
                continue
            is_layer = isinstance(module, (M.Conv2d, M.Linear))
            has_custom_l2 = self.recipe.custom_l2 and name.endswith(BRANCHES)
            for parameter_name, parameter in module.named_parameters(recursive=False):
                decays = is_layer and parameter_name == "weight" and not has_custom_l2
                (decayed if decays else others).append(parameter)
        return [{"params": decayed, "weight_decay": self.recipe.weight_decay}, {"params": others}]

    def save(self) -> None:
        """Write where the run is."""
        if self.rank != 0:
            return
        momentum = self.optimizer.state_dict()["state"]
        arrays = {
            **{f"network.{key}": value for key, value in self.network.state_dict().items()},
            **{f"ema.{key}": value.numpy() for key, value in self.ema.items()},
            **{f"momentum.{index}": state["momentum_buffer"] for index, state in momentum.items()},
        }
        progress = {
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "epochs": [asdict(row) for row in self.epochs],
            "best": [self.best_epoch, self.best_correct, self.best_loss],
        }
        write_state(self.job.folder, State(arrays, progress))

    def restore(self, state: State) -> None:
        """Go on from what ``save`` has written."""

        def part(prefix: str) -> Dict[str, NDArray[Any]]:
            return {key[len(prefix) :]: array for key, array in state.arrays.items() if key.startswith(prefix)}

        load_state_dict(self.network, part("network."))
        self.ema = {key: Tensor(array) for key, array in part("ema.").items()}
        groups = self.optimizer.state_dict()["param_groups"]
        momentum = {int(index): {"momentum_buffer": array} for index, array in part("momentum.").items()}
        self.optimizer.load_state_dict({"param_groups": groups, "state": momentum})
        progress = state.progress
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.loss_sum, self.seconds = progress["loss_sum"], progress["seconds"]
        self.epochs = [Epoch(**row) for row in progress["epochs"]]
        self.best_epoch, self.best_correct, self.best_loss = progress["best"]
