"""Counts: how often which class was predicted for which, as integers that merge, so that parts can be counted apart."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054  # of the normal distribution: 95 % of it is within so many standard deviations
TOP = 5


class Row(NamedTuple):
    """One image: its label and that class, the predicted class, and the rank of the label's class, from 1.

    ``error`` says why an image was skipped; it then has no prediction.
    """

    key: str
    label: str
    class_index: int
    prediction: str = ""
    prediction_index: int = -1
    probability: float = 0.0
    rank: int = 0
    error: str = ""


class Accuracy(NamedTuple):
    """Percent of images that are correct, with Wilson's 95 % interval."""

    correct: int
    n: int
    percent: float
    low: float
    high: float


class ClassAccuracy(NamedTuple):
    """A class that has images, and their accuracy; ``mistaken_for`` is the class that is most often predicted instead.

    It is None where no other class is predicted.
    """

    class_index: int
    name: str
    top1: Accuracy
    mistaken_for: Optional[str]


@dataclass(frozen=True)
class Counts:
    """``predicted`` has the number of images by (class of the label, predicted class), ``top5`` by class of the label.

    ``skipped`` are the keys of images that could not be read, each with the reason.
    """

    predicted: Mapping[Tuple[int, int], int]
    top5: Mapping[int, int]
    skipped: Tuple[Tuple[str, str], ...] = ()

    @property
    def n(self) -> int:
        """The number of images that were computed."""
        return sum(self.predicted.values())

    @property
    def correct(self) -> int:
        """The number of images whose class was predicted."""
        return sum(count for (label, prediction), count in self.predicted.items() if label == prediction)

    def merge(self, other: Counts) -> Counts:
        """Return the counts of both; the order does not matter but for that of ``skipped``."""
        return merge_counts((self, other))

    def to_plain(self) -> Dict[str, Any]:
        """Return the counts as values of JSON."""
        return {
            "predicted": [[*pair, count] for pair, count in self.predicted.items()],
            "top5": [list(item) for item in self.top5.items()],
            "skipped": [list(item) for item in self.skipped],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Counts:
        """Return the counts of what ``to_plain`` returned."""
        return cls(
            {(label, prediction): count for label, prediction, count in plain["predicted"]},
            dict(plain["top5"]),
            tuple((key, reason) for key, reason in plain["skipped"]),
        )


def merge_counts(parts: Iterable[Counts]) -> Counts:
    """Return the sum of counts; those of ``skipped`` stay in their order."""
    predicted: Counter[Tuple[int, int]] = Counter()
    top5: Counter[int] = Counter()
    skipped: List[Tuple[str, str]] = []
    for part in parts:
        predicted.update(part.predicted)
        top5.update(part.top5)
        skipped += part.skipped
    return _sorted_counts(predicted, top5, skipped)


def count_rows(rows: Iterable[Row]) -> Counts:
    """Return the counts of some images."""
    predicted: Counter[Tuple[int, int]] = Counter()
    top5: Counter[int] = Counter()
    skipped: List[Tuple[str, str]] = []
    for row in rows:
        if row.error:
            skipped.append((row.key, row.error))
            continue
        predicted[row.class_index, row.prediction_index] += 1
        top5[row.class_index] += row.rank <= TOP
    return _sorted_counts(predicted, top5, skipped)


def _sorted_counts(
    predicted: Mapping[Tuple[int, int], int], top5: Mapping[int, int], skipped: Iterable[Tuple[str, str]]
) -> Counts:
    return Counts(dict(sorted(predicted.items())), dict(sorted(top5.items())), tuple(skipped))


def accuracy(correct: int, n: int) -> Accuracy:
    """Return the accuracy with its interval, in percent.

    >>> accuracy(358, 360)
    Accuracy(correct=358, n=360, percent=99.44, low=98.0, high=99.85)
    """
    if n == 0:
        return Accuracy(0, 0, math.nan, 0.0, 100.0)
    share, z2 = correct / n, Z_95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = max(0.0, center - half), min(1.0, center + half)
    return Accuracy(correct, n, *(round(100 * value, 2) for value in (share, low, high)))


def class_accuracies(counts: Counts, names: Tuple[str, ...]) -> Tuple[ClassAccuracy, ...]:
    """Return the accuracy of each class that has images, in the order of the logits."""
    by_class: Dict[int, Dict[int, int]] = {}
    for (label, prediction), count in counts.predicted.items():
        by_class.setdefault(label, {})[prediction] = count
    results = []
    for label, predictions in sorted(by_class.items()):
        wrong = {prediction: count for prediction, count in predictions.items() if prediction != label}
        most = max(wrong, key=lambda prediction: (wrong[prediction], -prediction)) if wrong else None
        top1 = accuracy(predictions.get(label, 0), sum(predictions.values()))
        results.append(ClassAccuracy(label, names[label], top1, None if most is None else names[most]))
    return tuple(results)


def confusion_matrix(counts: Counts, num_classes: int) -> NDArray[Any]:
    """Return the number of images for each class of the label (rows) and predicted class (columns), int64."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for pair, count in counts.predicted.items():
        matrix[pair] = count
    return matrix
