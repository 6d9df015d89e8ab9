"""EvaluationReport: the accuracy of a network on your images, beside the one that its publisher states."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from numpy.typing import NDArray

from .._escape import escape
from .._html import html_table
from ..errors import PathLike
from ..registry.specs import IMAGENET, Preprocessing
from .counts import TOP, Accuracy, ClassAccuracy, Counts, accuracy, class_accuracies, confusion_matrix

# Images in the validation sets that the stated figures are of.
VALIDATION_IMAGES: Mapping[str, int] = {IMAGENET: 50_000, "scikit-learn's handwritten digits": 360}
WORST_CLASSES = 5
AGREES, DIFFERS, OTHER_DATA, NOT_STATED = "agrees", "differs", "other data", "not stated"


@dataclass(frozen=True)
class EvaluationReport:
    """What ``evaluate`` returns.

    ``model`` and ``data`` are names, with the digests of the weights and of the data (names, labels and sizes of the
    files). ``stated_top1`` and ``stated_top5`` are what the publisher states, in percent, or None. ``counts`` has the
    number of images for each pair of classes, and the skipped images. ``seconds`` is how long ``computed`` images took,
    loading included; with the rows of an interrupted run these are not all. Equal reports are about the same images,
    weights and predictions, however long they took. ``str`` is a summary.
    """

    model: str
    model_sha256: Optional[str]
    data: str
    data_sha256: str
    class_names: Tuple[str, ...] = field(repr=False)
    preprocessing: Preprocessing
    counts: Counts = field(repr=False)
    dataset: Optional[str] = None
    stated_top1: Optional[float] = None
    stated_top5: Optional[float] = None
    empty_classes: Tuple[str, ...] = ()
    preprocessing_source: Optional[str] = field(default=None, compare=False)
    seconds: float = field(default=0.0, compare=False)
    computed: int = field(default=0, compare=False)

    @property
    def n(self) -> int:
        """The number of images that were computed."""
        return self.counts.n

    @property
    def top1(self) -> Accuracy:
        """The share of images whose class had the greatest logit."""
        return accuracy(self.counts.correct, self.n)

    @property
    def top5(self) -> Optional[Accuracy]:
        """The share of images whose class was among the five greatest logits; None for up to five classes."""
        return accuracy(sum(self.counts.top5.values()), self.n) if len(self.class_names) > TOP else None

    @property
    def skipped(self) -> Tuple[Tuple[str, str], ...]:
        """The images that could not be read: (key, reason)."""
        return self.counts.skipped

    @property
    def per_class(self) -> Tuple[ClassAccuracy, ...]:
        """The accuracy of each class that has images."""
        return class_accuracies(self.counts, self.class_names)

    @property
    def confusion_matrix(self) -> NDArray[Any]:
        """The number of images for each class of the label (rows) and predicted class (columns), int64."""
        return confusion_matrix(self.counts, len(self.class_names))

    @property
    def images_per_second(self) -> float:
        """The speed, loading included."""
        return self.computed / self.seconds if self.seconds > 0 else 0.0

    @property
    def difference(self) -> Optional[float]:
        """Top-1 minus the stated one, in percentage points."""
        return None if self.stated_top1 is None or not self.n else round(self.top1.percent - self.stated_top1, 2)

    @property
    def verdict(self) -> str:
        """Whether the stated top-1 is confirmed: "agrees", "differs", "other data" or "not stated".

        It agrees if it is in the interval and the data has all classes. It differs if it is not, although there are as
        many images as in the publisher's validation set. Otherwise the data is other data.
        """
        if self.stated_top1 is None:
            return NOT_STATED
        if len(self.per_class) < len(self.class_names):
            return OTHER_DATA
        if self.top1.low <= self.stated_top1 <= self.top1.high:
            return AGREES
        images = self.n + len(self.skipped)
        return DIFFERS if images == VALIDATION_IMAGES.get(self.dataset or "") else OTHER_DATA

    def plot_confusion(self, path: PathLike, *, max_classes: int = 30) -> None:
        """Draw the confusion matrix into a file such as ``confusion.png``; of many classes, those with most mistakes.

        Raises DependencyError without matplotlib (the extra ``plot``), and ArgumentError for another suffix.
        """
        from .confusion_figure import plot_confusion

        plot_confusion(self, path, max_classes)

    def to_dict(self) -> Dict[str, Any]:
        """Return the report as values of JSON."""
        return {
            "model": self.model,
            "model_sha256": self.model_sha256,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "images": self.n,
            "top1": _plain(self.top1),
            "top5": None if self.top5 is None else _plain(self.top5),
            "stated_top1": self.stated_top1,
            "stated_top5": self.stated_top5,
            "difference": self.difference,
            "verdict": self.verdict,
            "classes": [
                {"index": item.class_index, "name": item.name, **_plain(item.top1), "mistaken_for": item.mistaken_for}
                for item in self.per_class
            ],
            "skipped": [{"key": key, "reason": reason} for key, reason in self.skipped],
            "empty_classes": list(self.empty_classes),
            "preprocessing": self.preprocessing._asdict(),
            "preprocessing_source": self.preprocessing_source,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
        }

    def __str__(self) -> str:
        return "\n".join(f"{title}: {escape(text)}" for title, text in self._lines())

    def _repr_html_(self) -> str:
        return html_table(f"{self.model} on {self.data}", (), self._lines())

    def _lines(self) -> List[Tuple[str, str]]:
        """Return the summary as titles and texts."""
        size, resize, interpolation, backend, color_order = self.preprocessing[:5]
        lines = [
            ("model", self.model),
            ("data", f"{self.data}, {self.n:,} images" + (f", {len(self.skipped)} skipped" if self.skipped else "")),
            ("top-1", _line(self.top1, self.stated_top1)),
        ]
        if self.top5 is not None:
            lines.append(("top-5", _line(self.top5, self.stated_top5)))
        if self.stated_top1 is not None:
            lines.append(("verdict", f"{self.verdict}{_EXPLANATIONS[self.verdict]}"))
        worst = sorted(self.per_class, key=lambda item: (item.top1.percent, item.class_index))[:WORST_CLASSES]
        texts = [f"{item.name} {item.top1.percent:.1f} %" for item in worst if item.top1.correct < item.top1.n]
        lines += [("worst classes", ", ".join(texts))] if texts else []
        lines += [("without images", ", ".join(self.empty_classes))] if self.empty_classes else []
        source = f", from {self.preprocessing_source}" if self.preprocessing_source else ""
        lines.append(("preprocessing", f"{size}x{size} {color_order}, {resize} {interpolation} by {backend}{source}"))
        if self.computed:
            lines.append(("speed", f"{self.images_per_second:.1f} images/s, {self.seconds:.1f} s"))
        return lines


_EXPLANATIONS: Mapping[str, str] = {
    AGREES: ": the stated top-1 is in the interval",
    DIFFERS: ": the stated top-1 is outside of the interval",
    OTHER_DATA: ": these are not the images that the publisher measured",
}


def _line(result: Accuracy, stated: Optional[float]) -> str:
    text = f"{result.percent:.2f} % (95 % interval {result.low:.2f} to {result.high:.2f})"
    return text if stated is None else f"{text}, stated {stated:g} %, difference {result.percent - stated:+.2f}"


def _plain(result: Accuracy) -> Dict[str, Any]:
    percent = None if result.n == 0 else result.percent
    return {"percent": percent, "low": result.low, "high": result.high, "correct": result.correct, "images": result.n}
