"""plot_confusion: a confusion matrix as a figure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arguments import check_int, check_local_path
from .._atomic import atomic_write
from ..errors import ArgumentError, DependencyError, PathLike

if TYPE_CHECKING:
    from .evaluation_report import EvaluationReport

FORMATS = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
MAX_NAME = 24
MAX_NUMBERS = 15  # classes of a figure whose cells have numbers
INCHES_PER_CLASS, MIN_INCHES = 0.32, 4.0


def plot_confusion(report: EvaluationReport, path: PathLike, max_classes: int = 30) -> None:
    """Draw the classes with images, at most ``max_classes`` of them: those that are in most mistakes."""
    target, max_classes = check_figure_path(path), check_int("max_classes", max_classes, minimum=2)
    figure = new_figure()
    matrix = report.confusion_matrix
    mistakes = matrix - np.diag(np.diag(matrix))
    involved = mistakes.sum(axis=0) + mistakes.sum(axis=1)
    present = np.flatnonzero(matrix.sum(axis=1) + matrix.sum(axis=0))
    classes = np.sort(present[np.argsort(-involved[present], kind="stable")][:max_classes])
    totals = np.maximum(matrix[classes].sum(axis=1, keepdims=True), 1)
    matrix = matrix[np.ix_(classes, classes)]
    side = max(MIN_INCHES, INCHES_PER_CLASS * len(classes))
    figure.set_size_inches(side + 2, side + 1.6)
    axes = figure.subplots()
    image = axes.imshow(100 * matrix / totals, cmap="Blues", vmin=0, vmax=100)
    names = [_shorten(report.class_names[index]) for index in classes]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    axes.set_title(f"{_shorten(report.model)}: top-1 {report.top1.percent:.2f} %, {report.n:,} images", fontsize=10)
    for row, column in zip(*np.nonzero(matrix)) if len(classes) <= MAX_NUMBERS else ():
        color = "white" if 2 * matrix[row, column] > totals[row, 0] else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="% of the class", fraction=0.046, pad=0.04)
    save_figure(figure, target)


def check_figure_path(path: PathLike) -> Path:
    """Return the path of a figure; raise ArgumentError for another suffix, and DependencyError without matplotlib."""
    target = check_local_path("path", path)
    if target.suffix.lower() not in FORMATS:
        raise ArgumentError(
            f"{target} does not have the suffix of a figure", path=target, expected=FORMATS, hint="such as .png"
        )
    new_figure()
    return target


def new_figure() -> Any:
    """Return an empty matplotlib figure that needs no display; raise DependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "a figure needs matplotlib, which is not installed",
            expected="matplotlib>=3.5",
            hint="pip install 'repvgg-zoo[plot]'",
        ) from error
    return Figure(layout="constrained")


def save_figure(figure: Any, path: PathLike) -> None:
    """Write a figure, completely or not at all; the suffix decides on the format."""
    target, buffer = check_local_path("path", path), io.BytesIO()
    figure.savefig(buffer, format=target.suffix[1:].lower(), dpi=120)
    atomic_write(target, lambda stream: stream.write(buffer.getvalue()))


def _shorten(name: str) -> str:
    text = name.replace("$", r"\$")  # matplotlib reads formulas between dollars
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}…"
