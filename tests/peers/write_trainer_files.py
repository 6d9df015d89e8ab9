"""Train networks for a few steps with real trainers and keep what they save, for tests/peers/test_trainers.py.

Usage: write_trainer_files.py FOLDER. Beside each trainer's file <name>.<suffix> it writes <name>.<weights>.npz, the
state dict of the peer's network itself, and <name>.<weights>.logits.npz, an image and that network's logits for it.
<weights> is "plain" or, where the trainer averages, "averaged". The files take 900 MB together.
"""

from __future__ import annotations

import argparse
import copy
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict
from unittest.mock import Mock

import numpy as np
import pytorch_lightning as lightning
import reference
import timm
import torch
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset
from without_init import without_init
from yacs.config import CfgNode

CLASSES, STEPS = 10, 2
Batches = DataLoader
States = Dict[str, Dict[str, torch.Tensor]]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for write in (write_timm, write_official, write_lightning, write_lightning_average, write_torch, write_mmengine):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            write(folder, Path(work))


def write_timm(folder: Path, work: Path) -> None:
    """timm's train.py, which is not in its wheel: its saver, options, optimizer, AMP scaler and average."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="repvgg_a0")
    parser.add_argument("--opt", default="sgd")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--decay-epochs", nargs="+", default=[90, 180])
    args = parser.parse_args([])
    network = timm.create_model(args.model, num_classes=CLASSES)
    optimizer = create_optimizer_v2(network, opt=args.opt, lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scaler, average = NativeScaler(device="cpu"), ModelEmaV3(network, decay=0.5)
    saver = CheckpointSaver(
        network, optimizer, args, model_ema=average, amp_scaler=scaler, checkpoint_dir=str(work), recovery_dir=str(work)
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    for step, (images, targets) in enumerate(batches()):
        with torch.autocast("cpu"):
            loss = criterion(network(images), targets)
        scaler(loss, optimizer, clip_grad=1.0, parameters=network.parameters())
        optimizer.zero_grad()
        average.update(network, step=100 + step)  # the first step of all is a copy
    saver.save_checkpoint(0, metric=71.5)
    keep(work / "model_best.pth.tar", folder / "timm.pth.tar")
    write_expected(folder / "timm", network, {"plain": network.state_dict(), "averaged": average.module.state_dict()})


def write_official(folder: Path, work: Path) -> None:
    """The official repository's main.py: a dict with its yacs configuration, as Swin Transformer's."""
    config = CfgNode({"MODEL": {"ARCH": "RepVGG-A0", "RESUME": ""}, "TRAIN": {"EMA_ALPHA": 0.5, "EPOCHS": 120}})
    config.freeze()
    network = reference.repvgg("A0")
    average = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    scheduler = CosineLRScheduler(optimizer, t_initial=100, warmup_t=5, t_in_epochs=False)
    for step, (images, targets) in enumerate(batches()):
        optimize(network, optimizer, images, targets)
        scheduler.step_update(step)
        for name, value in average.state_dict().items():
            value.copy_(value * 0.5 + network.state_dict()[name] * 0.5)
    content = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "max_accuracy": 71.5,
        "epoch": 0,
        "config": config,
        "ema": average.state_dict(),
    }
    torch.save(content, folder / "official.pth")
    write_expected(folder / "official", network, {"plain": network.state_dict(), "averaged": average.state_dict()})


class Classifier(lightning.LightningModule):
    """A LightningModule as its tutorials write it: the network is an attribute, and all options are saved."""

    def __init__(self, name: str, options: argparse.Namespace, data: Path) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = timm.create_model(name, num_classes=CLASSES)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.criterion(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)]


def write_lightning(folder: Path, work: Path) -> None:
    module = fit(work)
    keep(work / "last.ckpt", folder / "lightning.ckpt")
    write_expected(folder / "lightning", module.model, {"plain": module.model.state_dict()})


def write_lightning_average(folder: Path, work: Path) -> None:
    """Lightning's callback saves the average in place of the module's own weights, which get another key."""
    last: States = {}

    class Remember(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            last["plain"] = copy.deepcopy(module.model.state_dict())

    module = fit(work, Remember(), EMAWeightAveraging(decay=0.5))  # when it ends, the module has the average
    keep(work / "last.ckpt", folder / "lightning_average.ckpt")
    states = {**last, "averaged": module.model.state_dict()}
    write_expected(folder / "lightning_average", module.model, states)


def fit(work: Path, *callbacks: Any) -> Classifier:
    module = Classifier("repvgg_a0", argparse.Namespace(lr=0.05, tags={"a", "b"}), Path("/data"))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, ModelCheckpoint(work, save_last=True, every_n_train_steps=1)],
    )
    trainer.fit(module, batches())
    return module


def write_torch(folder: Path, work: Path) -> None:
    """A loop of one's own: torch.compile, DistributedDataParallel and torch's AveragedModel put prefixes on keys."""
    network = timm.create_model("repvgg_a0", num_classes=CLASSES)
    init_process_group("gloo", init_method=(work / "store").as_uri(), rank=0, world_size=1)
    wrapped = DistributedDataParallel(torch.compile(network, backend="eager"))
    average = AveragedModel(wrapped, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters())
    for images, targets in batches():
        optimize(wrapped, optimizer, images, targets)
        average.update_parameters(wrapped)
    destroy_process_group()
    torch.save({"net": wrapped.state_dict(), "acc": 71.5, "optim": optimizer.state_dict()}, folder / "torch.pt")
    torch.save(average.state_dict(), folder / "torch_average.pt")
    write_expected(folder / "torch", network, {"plain": network.state_dict()})
    averaged = average.module.module._orig_mod
    write_expected(folder / "torch_average", averaged, {"averaged": averaged.state_dict()})


def write_mmengine(folder: Path, work: Path) -> None:
    """mmpretrain's classifier under mmengine's Runner, whose EMAHook swaps the plain and the averaged weights."""
    registry = import_mmpretrain()
    network = registry.build(
        {
            "type": "ImageClassifier",
            "backbone": {"type": "RepVGG", "arch": "A0", "out_indices": (3,)},
            "neck": {"type": "GlobalAveragePooling"},
            "head": {"type": "LinearClsHead", "num_classes": CLASSES, "in_channels": 1280},
            "data_preprocessor": {"type": "ClsDataPreprocessor", "to_rgb": False},
        }
    )
    from mmpretrain.structures import DataSample

    samples = [
        {"inputs": image, "data_samples": DataSample().set_gt_label(int(label))}
        for images, labels in batches()
        for image, label in zip(images, labels)
    ]
    runner = Runner(
        network,
        work_dir=str(work),
        train_dataloader={
            "dataset": samples,
            "batch_size": 4,
            "sampler": {"type": DefaultSampler, "shuffle": False},
            "collate_fn": {"type": "pseudo_collate"},
        },
        train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9}},
        param_scheduler={"type": "MultiStepLR", "milestones": [60], "by_epoch": True},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": None}},
        custom_hooks=[{"type": "EMAHook", "momentum": 0.5, "update_buffers": True}],
        visualizer=Blind(),
        cfg={"model": {"type": "ImageClassifier"}},
        experiment_name="peers",
        log_level="ERROR",
    )
    (average,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    runner.train()
    keep(work / "epoch_1.pth", folder / "mmengine.pth")
    states = {"plain": network.state_dict(), "averaged": average.ema_model.module.state_dict()}
    write_expected(folder / "mmengine", network, states)


class Blind(Visualizer):
    """The logs need no figure, which would need matplotlib."""

    def _initialize_fig(self, _: Any) -> Any:
        return Mock(), Mock(), Mock()


def import_mmpretrain() -> Any:
    """Import what the classifier is made of; all of mmpretrain requires packages that have nothing to do with it."""
    parts = ("backbones", "classifiers", "heads", "necks", "utils", "losses")
    without_init("mmpretrain", "models", *(f"models.{part}" for part in parts), "evaluation", "evaluation.metrics")
    from mmpretrain.evaluation.metrics import single_label

    sys.modules["mmpretrain.evaluation.metrics"].Accuracy = single_label.Accuracy
    import mmpretrain.models.backbones.repvgg
    import mmpretrain.models.classifiers.image
    import mmpretrain.models.heads.linear_head
    import mmpretrain.models.losses.cross_entropy_loss
    import mmpretrain.models.necks.gap
    import mmpretrain.models.utils.data_preprocessor  # noqa: F401
    from mmpretrain.registry import MODELS

    return MODELS


def batches() -> Batches:
    images, targets = torch.randn(4 * STEPS, 3, 32, 32), torch.arange(4 * STEPS) % CLASSES
    return DataLoader(TensorDataset(images, targets), batch_size=4)


def optimize(network: nn.Module, optimizer: Any, images: torch.Tensor, targets: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(network(images), targets).backward()
    optimizer.step()


def keep(written: Path, path: Path) -> None:
    shutil.copyfile(written, path)


def write_expected(stem: Path, network: nn.Module, states: States) -> None:
    image = torch.randn(2, 3, 32, 32)
    network.eval()
    for name, state in copy.deepcopy(states).items():  # some are the network's own tensors
        network.load_state_dict(state)
        with torch.no_grad():
            logits = network(image)
        np.savez(f"{stem}.{name}.npz", **{key: value.numpy() for key, value in state.items()})
        np.savez(f"{stem}.{name}.logits.npz", image=image.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
