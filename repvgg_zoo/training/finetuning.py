"""finetune: from a published checkpoint and a folder of images to a checkpoint of their classes.

First a linear head on the pooled features of all images, which are computed once; then, in mode "full", all weights
from there. The first part needs NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable, NamedTuple, Optional, Tuple, Union

import numpy as np

from .._arguments import check_choice, check_flag, check_int, check_local_path
from .._digest import hash_arrays
from .._escape import escape
from .._log import get_logger
from .._requirements import needed_by
from ..checkpoints import Checkpoint, save_checkpoint
from ..checkpoints.layouts import CLASSIFIERS
from ..checkpoints.publisher import variant_of
from ..data.confusion_figure import new_figure
from ..data.counts import accuracy
from ..errors import ArgumentError, DependencyError, PathLike
from ..image.preprocess import metadata_of, open_model
from ..registry.specs import CheckpointSpec, Preprocessing
from ..reparam.fusion import to_form
from ..weights import fetch_weights
from .augmentation import may_flip
from .features import pooled_features
from .head import Head, count_correct, cross_entropy, fit_head
from .recipe import Recipe, check_recipe
from .report import Epoch, FinetuneReport, draw_curves, read_report
from .run_folder import (
    BEST,
    CURVES,
    FEATURES,
    REPORT,
    SETTINGS,
    STATE,
    open_run,
    read_arrays,
    read_json,
    remove_intermediate_files,
    write_arrays,
    write_json,
)
from .samples import Labeled, Split, split_samples

BUILDERS = ("repvgg", "repvggplus")

logger = get_logger(__name__)


def finetune(
    model: Union[PathLike, Checkpoint],
    data: Any,
    *,
    output: PathLike,
    val: Any = None,
    labels: Any = None,
    mode: str = "full",
    bn: Optional[str] = None,
    freeze_until: Optional[str] = None,
    epochs: Optional[int] = None,
    lr: Optional[float] = None,
    batch_size: Optional[int] = None,
    warmup_epochs: Optional[float] = None,
    momentum: Optional[float] = None,
    weight_decay: Optional[float] = None,
    custom_l2: Optional[bool] = None,
    label_smoothing: Optional[float] = None,
    min_crop: Optional[float] = None,
    flip: Optional[bool] = None,
    ema: Optional[float] = None,
    seed: Optional[int] = None,
    image_size: Optional[int] = None,
    on_error: str = "error",
    resume: bool = True,
    curves: Optional[bool] = None,
    threads: Optional[int] = None,
    devices: Optional[int] = None,
    amp: Optional[bool] = None,
    on_epoch: Optional[Callable[[Epoch], None]] = None,
) -> FinetuneReport:
    """Train a checkpoint for the classes of your images, and return where the best weights are and how good they are.

    ``model`` is a name, a file or a Checkpoint, ``data`` a folder with a folder of images for each class, or anything
    else that ``data.open_images`` takes, with ``labels``. ``val`` are images for validation, or the share of ``data``
    that is held out for it, of each class: a tenth by default.

    ``mode="probe"`` fits the head alone, by softmax regression on pooled features, without MegEngine. ``mode="full"``
    goes on from that head: SGD with Nesterov momentum on random crops (``min_crop`` to all of the area), mirrored if
    ``flip``, which by default is off where classes are single characters or numbers, or say left or right. The learning
    rate rises to ``lr`` in ``warmup_epochs`` epochs and falls as a cosine. With ``bn="frozen"``, the statistics of BN
    stay those of the checkpoint, which is much faster on a CPU; ``lr`` is then 0.005 by default, otherwise 0.02.
    ``freeze_until`` is the last stage that is not trained, such as ``"stage2"``. ``custom_l2`` replaces the weight
    decay of the blocks' kernels by the official repository's. ``ema`` is the decay of averaged weights, such as 0.99,
    which are then the ones that are evaluated and saved.

    ``output`` is a folder, which gets ``best.safetensors``, in mode "full" also ``last.safetensors``, ``report.json``
    and, with matplotlib, ``curves.png``; with ``curves=True`` it is an error where that is not installed. Checkpoints
    are in the train form, and say their classes and preprocessing. The same call with ``resume=True`` goes on with a
    run that was interrupted, to the same bytes on a CPU, and returns the report of a run that is finished. ``on_epoch``
    is called with each ``Epoch``.

    Where MegEngine's default device is a GPU, its own kernels are used, on ``devices`` GPUs, by default all, with
    automatic mixed precision unless ``amp=False``. ``on_error="skip"`` passes over images that cannot be read.

    Raises ArgumentError, FormError for deploy weights in mode "full", TrainingError if training diverges, and what
    ``fetch``, ``load_checkpoint`` and ``open_images`` raise.
    """
    recipe = check_recipe(
        mode=mode,
        bn=bn,
        freeze_until=freeze_until,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        warmup_epochs=warmup_epochs,
        momentum=momentum,
        weight_decay=weight_decay,
        custom_l2=custom_l2,
        label_smoothing=label_smoothing,
        min_crop=min_crop,
        flip=flip,
        ema=ema,
        seed=seed,
    )
    image_size = None if image_size is None else check_int("image_size", image_size, minimum=1)
    threads = None if threads is None else check_int("threads", threads, minimum=1)
    devices = None if devices is None else check_int("devices", devices, minimum=1)
    amp = None if amp is None else check_flag("amp", amp)
    curves = None if curves is None else check_flag("curves", curves)
    on_error = check_choice("on_error", on_error, ("error", "skip"))
    resume = check_flag("resume", resume)
    if on_epoch is not None and not callable(on_epoch):
        raise ArgumentError(
            f"on_epoch is {type(on_epoch).__name__}", expected="a function", actual=on_epoch, hint="pass a function"
        )
    check_local_path("output", output)
    if curves:
        new_figure()
    if recipe.mode == "full":
        with needed_by('mode "full"'):
            from .trainer import check_devices

        check_devices(devices, amp, recipe)
    weights = load_trunk(model, image_size)
    if recipe.mode == "full":
        to_form(weights, "train")
    split = split_samples(data, val, labels=labels, seed=recipe.seed)
    recipe, notes = _complete(recipe, split)
    settings = {
        **recipe._asdict(),
        "model": weights.metadata.source or weights.metadata.variant,
        "weights": hash_arrays(weights.state_dict.items()),
        "images": split.digest,
        "val": None if val is None else val if isinstance(val, (int, float)) else "images",
        "preprocessing": _preprocessing(weights)._asdict(),
        "on_error": on_error,
    }
    folder = open_run(output, settings, resume=resume)
    finished = read_json(folder / REPORT)
    if finished is not None and (folder / BEST).is_file():
        return read_report(finished, folder)
    run = _Run(folder, weights, split, recipe, threads, on_error)
    report = _finish(run, _train(run, devices, amp, on_epoch or _log_epoch), curves=curves, notes=notes)
    write_json(folder / REPORT, report.to_dict())
    remove_intermediate_files(folder)
    return report


class _Run(NamedTuple):
    folder: Path
    weights: Checkpoint
    split: Split
    recipe: Recipe
    threads: Optional[int]
    on_error: str


def load_trunk(model: Any, image_size: Optional[int]) -> Checkpoint:
    """Return the weights of a name, a file or a Checkpoint, in their own form, for an image size.

    The metadata say variant and preprocessing. Raises ArgumentError for anything else, and for a network that is
    neither RepVGG nor RepVGGplus.
    """
    opened = open_model(model)
    if isinstance(opened, CheckpointSpec):
        weights = fetch_weights(opened, deploy=False)
    elif isinstance(opened, Checkpoint):
        weights = opened
    else:
        raise ArgumentError(
            f"a {type(opened).__name__} cannot be fine-tuned",
            expected="a name, a file or a Checkpoint",
            actual=type(opened).__name__,
            hint="save a network with save_checkpoint, and pass the path",
        )
    spec = variant_of(weights)
    if spec.architecture.builder not in BUILDERS:
        raise ArgumentError(
            f"{spec.name} is built by a plugin, and cannot be fine-tuned by this function",
            expected=BUILDERS,
            actual=spec.architecture.builder,
            hint="train the network that create returns",
        )
    metadata = metadata_of(weights)
    preprocessing = metadata.preprocessing
    assert preprocessing is not None  # metadata_of has raised
    if image_size is not None and image_size != preprocessing.image_size:
        resize = math.ceil(preprocessing.resize * image_size / preprocessing.image_size)
        preprocessing = preprocessing._replace(image_size=image_size, resize=resize)
    return replace(weights, metadata=replace(metadata, preprocessing=preprocessing))


def _complete(recipe: Recipe, split: Split) -> Tuple[Recipe, Tuple[str, ...]]:
    """Return the recipe with what depends on the images, and notes about it; raise ArgumentError if it does not fit."""
    if recipe.mode == "probe":
        return recipe, ()
    if recipe.batch_size > len(split.train.labels):
        raise ArgumentError(
            f"a batch has {recipe.batch_size} images, and there are {len(split.train.labels)} for training",
            expected=f"at most {len(split.train.labels)}",
            actual=recipe.batch_size,
            hint="pass a smaller batch_size, or add images",
        )
    if recipe.flip is not None:
        return recipe, ()
    flip = may_flip(split.class_names)
    note = "images were not mirrored, as the classes are symbols or sides; flip=True mirrors them"
    return recipe._replace(flip=flip), () if flip else (note,)


def _preprocessing(weights: Checkpoint) -> Preprocessing:
    assert weights.metadata.preprocessing is not None  # load_trunk has set it
    return weights.metadata.preprocessing


class _Result(NamedTuple):
    """Epochs and counts of correct images, and the images that were skipped, of ``train`` and ``val`` that were not."""

    epochs: Tuple[Epoch, ...]
    best_epoch: int
    best_correct: int
    probe_correct: int
    train_images: int
    val_images: int
    skipped: Tuple[Tuple[str, str], ...]


def _train(run: _Run, devices: Optional[int], amp: Optional[bool], on_epoch: Callable[[Epoch], None]) -> _Result:
    """Fit the head and, in mode "full", train all weights; the best ones are then in the run's folder."""
    features = {
        part: pooled_features(
            run.folder,
            part,
            run.weights,
            labeled.samples,
            threads=run.threads,
            on_error=run.on_error,
        )
        for part, labeled in (("train", run.split.train), ("val", run.split.val))
    }
    train_set = run.split.train.subset(features["train"].indices.tolist())
    val_set = run.split.val.subset(features["val"].indices.tolist())
    _check_classes(train_set, run.split.class_names)
    head = _fitted_head(run, features["train"].values, train_set, features["val"].values, val_set)
    logits = head.logits(features["val"].values)
    correct = count_correct(logits, val_set.labels)
    with_head = _with_head(run, head)
    if not (run.folder / STATE).exists():
        save_checkpoint(run.folder / BEST, with_head)
    skipped = (*features["train"].skipped, *features["val"].skipped)
    counts = (len(train_set.labels), len(val_set.labels), skipped)
    if run.recipe.mode == "probe":
        return _Result((), 0, correct, correct, *counts)
    from .trainer import Job, train

    job = Job(
        folder=run.folder,
        weights=with_head,
        preprocessing=_preprocessing(run.weights),
        train=train_set,
        val=val_set,
        recipe=run.recipe,
        probe_correct=correct,
        probe_loss=cross_entropy(logits, val_set.labels),
        threads=run.threads,
        amp=amp,
    )
    outcome = train(job, devices, on_epoch)
    return _Result(outcome.epochs, outcome.best_epoch, outcome.best_correct, correct, *counts)


def _fitted_head(run: _Run, train: Any, train_set: Labeled, val: Any, val_set: Labeled) -> Head:
    """Return the head, which is fitted once: another number of threads may give other bits."""
    path = run.folder / FEATURES / "head.npz"
    arrays = read_arrays(path)
    if arrays is None:
        head = fit_head(train, train_set.labels, val, val_set.labels, len(run.split.class_names))
        write_arrays(path, head._asdict())
        return head
    return Head(arrays["weight"], arrays["bias"], float(arrays["l2"]))


def _check_classes(train: Labeled, class_names: Tuple[str, ...]) -> None:
    """Raise ArgumentError for a class of which no image can be read."""
    counts = np.bincount(train.labels, minlength=len(class_names))
    empty = [name for name, count in zip(class_names, counts) if count == 0]
    if empty:
        raise ArgumentError(
            f"no image of {len(empty)} classes can be read, such as {escape(empty[0])}",
            actual=tuple(empty),
            hint="check the files of these classes",
        )


def _with_head(run: _Run, head: Head) -> Checkpoint:
    """Return the weights with another head, and with the metadata that belong to it."""
    state_dict = {
        key: np.asarray(array)
        for key, array in run.weights.state_dict.items()
        if not key.startswith(tuple(f"{name}." for name in CLASSIFIERS))
    }
    state_dict.update({"linear.weight": head.weight, "linear.bias": head.bias})
    metadata = replace(run.weights.metadata, dataset=None, class_names=run.split.class_names)
    return replace(run.weights, state_dict=MappingProxyType(state_dict), metadata=metadata)


def _finish(run: _Run, result: _Result, *, curves: Optional[bool], notes: Tuple[str, ...]) -> FinetuneReport:
    """Draw the curves, and return the report."""
    path: Optional[Path] = None
    probe = accuracy(result.probe_correct, result.val_images)
    if result.epochs and curves is not False:
        try:
            draw_curves(
                run.folder / CURVES,
                result.epochs,
                probe_top1=probe.percent,
                best_epoch=result.best_epoch,
            )
            path = run.folder / CURVES
        except DependencyError as error:
            notes = (*notes, f"no curves: {error.message}; {error.hint}")
    return FinetuneReport(
        path=run.folder / BEST,
        top1=accuracy(result.best_correct, result.val_images),
        probe_top1=probe,
        best_epoch=result.best_epoch,
        epochs=result.epochs,
        class_names=run.split.class_names,
        train_images=result.train_images,
        skipped=result.skipped,
        settings=read_json(run.folder / SETTINGS) or {},
        curves=path,
        notes=notes,
    )


def _log_epoch(epoch: Epoch) -> None:
    logger.info("%s", epoch)
