"""FinetuneReport: what a fine-tuning run has reached, as text, as JSON and as curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .._escape import escape
from ..data.confusion_figure import new_figure, save_figure
from ..data.counts import Accuracy

FIGURE_INCHES = (9.0, 3.6)


@dataclass(frozen=True)
class Epoch:
    """One pass over the images: ``lr`` is the last learning rate, the losses are cross-entropies, top-1 is in percent.

    The training loss has the label smoothing, the validation loss does not.
    """

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_top1: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}: loss {self.train_loss:.4f}, validation loss {self.val_loss:.4f},"
            f" top-1 {self.val_top1:.2f} %, {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class FinetuneReport:
    """What ``finetune`` returns.

    ``path`` is the best checkpoint: in the train form, with its class names and its preprocessing. ``top1`` is its
    accuracy on the images for validation, of which ``top1.n`` could be read; ``best_epoch`` says which epoch it is
    from, 0 for the head alone, whose accuracy is ``probe_top1``. ``skipped`` are the images that could not be read,
    each with the reason. ``settings`` are all that decided on the weights. ``curves`` is a figure of ``epochs``, or
    None. ``notes`` are for whoever reads the report.
    """

    path: Path
    top1: Accuracy
    probe_top1: Accuracy
    best_epoch: int
    epochs: Tuple[Epoch, ...]
    class_names: Tuple[str, ...]
    train_images: int
    skipped: Tuple[Tuple[str, str], ...]
    settings: Mapping[str, Any]
    curves: Optional[Path]
    notes: Tuple[str, ...] = ()

    def __str__(self) -> str:
        origin = "the head alone" if self.best_epoch == 0 else f"epoch {self.best_epoch} of {len(self.epochs)}"
        lines = [
            f"top-1: {_line(self.top1)}, {origin}",
            f"the head alone: {_line(self.probe_top1)}",
            f"images: {self.train_images:,} of {len(self.class_names)} classes, {self.top1.n:,} for validation",
        ]
        if self.skipped:
            lines.append(f"skipped: {len(self.skipped)}, such as {escape(self.skipped[0][0])}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *(f"wrote {escape(str(file))}" for file in (self.path, self.curves) if file)])

    def to_dict(self) -> Dict[str, Any]:
        """Return the report as values of JSON."""
        return {
            "path": str(self.path),
            "top1": self.top1._asdict(),
            "probe_top1": self.probe_top1._asdict(),
            "best_epoch": self.best_epoch,
            "epochs": [dict(vars(epoch)) for epoch in self.epochs],
            "class_names": list(self.class_names),
            "train_images": self.train_images,
            "skipped": [list(item) for item in self.skipped],
            "settings": dict(self.settings),
            "curves": None if self.curves is None else str(self.curves),
            "notes": list(self.notes),
        }


def read_report(values: Mapping[str, Any], folder: Path) -> FinetuneReport:
    """Return the report that ``to_dict`` was called of; its folder may have been moved."""
    curves = values["curves"]
    return FinetuneReport(
        path=folder / Path(values["path"]).name,
        top1=Accuracy(**values["top1"]),
        probe_top1=Accuracy(**values["probe_top1"]),
        best_epoch=values["best_epoch"],
        epochs=tuple(Epoch(**epoch) for epoch in values["epochs"]),
        class_names=tuple(values["class_names"]),
        train_images=values["train_images"],
        skipped=tuple((key, reason) for key, reason in values["skipped"]),
        settings=values["settings"],
        curves=None if curves is None else folder / Path(curves).name,
        notes=tuple(values["notes"]),
    )


def draw_curves(path: Path, epochs: Tuple[Epoch, ...], *, probe_top1: float, best_epoch: int) -> None:
    """Draw the losses and the accuracy of each epoch; raise DependencyError where matplotlib is missing."""
    figure = new_figure()
    figure.set_size_inches(*FIGURE_INCHES)
    losses, accuracy = figure.subplots(1, 2)
    numbers: List[int] = [epoch.epoch for epoch in epochs]
    losses.plot(numbers, [epoch.train_loss for epoch in epochs], marker=".", label="training")
    losses.plot(numbers, [epoch.val_loss for epoch in epochs], marker=".", label="validation")
    losses.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
    top1 = [probe_top1, *(epoch.val_top1 for epoch in epochs)]
    accuracy.plot([0, *numbers], top1, marker=".", color="tab:orange", label="validation")
    accuracy.axhline(probe_top1, linestyle=":", color="gray", label="the head alone")
    accuracy.plot([best_epoch], [top1[best_epoch]], marker="o", color="tab:red", label="best", linestyle="none")
    accuracy.set(xlabel="epoch", ylabel="top-1, %", title="Accuracy")
    for axes in (losses, accuracy):
        axes.legend()
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


def _line(result: Accuracy) -> str:
    return f"{result.percent:.2f} % (95 % interval {result.low:.2f} to {result.high:.2f})"
