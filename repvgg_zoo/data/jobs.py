"""The jobs of a run: what a worker writes for the images of a shard, and which integers it counts."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from ..image.predict import top_k
from .counts import Row, count_rows
from .engine import Output, compute
from .evaluation import open_classifier, score
from .samples import Sample
from .tables import Table


class ShardResult(NamedTuple):
    """The rows of a shard; ``errors`` are (key, reason) of images that could not be read; ``counts`` are of JSON."""

    table: Table
    errors: Tuple[Tuple[str, str], ...]
    counts: Mapping[str, Any]


ComputeShard = Callable[[Iterable[Sample]], ShardResult]


class Job(NamedTuple):
    """Whether a job needs the network without its head, and the function that prepares a network for shards.

    ``prepare`` gets what ``open_model`` returned, the network that was compiled from it, and the options of the run.
    """

    needs_features: bool
    prepare: Callable[[Any, Any, Mapping[str, Any]], ComputeShard]


def prepare_predictions(model: Any, network: Any, options: Mapping[str, Any]) -> ComputeShard:
    """Return the function whose rows are an image's key, its most probable classes, and its error."""
    classes, topk = open_classifier(model, options["class_names"]).classes, options["topk"]
    numbers = ["", *(f"_{number}" for number in range(2, topk + 1))]
    columns = (f"{name}{number}" for number in numbers for name in ("index", "label", "probability"))
    header = ("key", *columns, "error")

    def run(samples: Iterable[Sample]) -> ShardResult:
        outputs = list(compute(network, samples, **_compute_options(options)))
        rows: List[Sequence[Any]] = []
        for output in outputs:
            cells: List[Any] = []
            if output.values is not None:
                for one in top_k(output.values.astype(np.float64), classes, topk):
                    cells += [one.index, one.label, one.probability]
            rows.append([output.key, *cells, *[None] * (3 * topk - len(cells)), output.error])
        return ShardResult(Table(header, rows), _errors(outputs), {})

    return run


def prepare_features(model: Any, network: Any, options: Mapping[str, Any]) -> ComputeShard:
    """Return the function whose rows are an image's key, its label and its error, beside its features."""
    empty = np.zeros((0, *network.shape[1:]), np.float32)
    width = network(empty).shape[1]

    def run(samples: Iterable[Sample]) -> ShardResult:
        outputs = list(compute(network, samples, **_compute_options(options)))
        features = np.full((len(outputs), width), np.nan, np.float32)
        for row, output in zip(features, outputs):
            if output.values is not None:
                row[:] = output.values
        rows = [(output.key, output.label, output.error) for output in outputs]
        return ShardResult(Table(("key", "label", "error"), rows, features), _errors(outputs), {})

    return run


def prepare_evaluation(model: Any, network: Any, options: Mapping[str, Any]) -> ComputeShard:
    """Return the function whose rows are those of ``evaluate``."""
    classifier = open_classifier(model, options["class_names"])._replace(network=network)

    def run(samples: Iterable[Sample]) -> ShardResult:
        rows = list(score(classifier, samples, **_compute_options(options)))
        counts = count_rows(rows)
        plain = counts.to_plain()
        return ShardResult(Table(Row._fields, rows), tuple(map(tuple, plain.pop("skipped"))), plain)

    return run


JOBS: Mapping[str, Job] = {
    "predict": Job(False, prepare_predictions),
    "features": Job(True, prepare_features),
    "evaluate": Job(False, prepare_evaluation),
}


def _compute_options(options: Mapping[str, Any]) -> Dict[str, Any]:
    return {"threads": 1, "batch_size": options["batch_size"], "on_error": options["on_error"]}


def _errors(outputs: Iterable[Output]) -> Tuple[Tuple[str, str], ...]:
    return tuple((output.key, output.error) for output in outputs if output.error is not None)
