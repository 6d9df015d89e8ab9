"""evaluate: the accuracy of a network on your own labeled images, with a row for each image on request."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from .._arguments import check_choice, check_flag, check_int, check_items, check_local_path, check_text, is_module
from .._digest import hash_arrays, hash_file
from ..checkpoints import Checkpoint, CheckpointMetadata
from ..checkpoints.state_dict import class_count
from ..errors import ArgumentError, PathLike
from ..hub import fetch_verified
from ..hub.progress import Progress
from ..image.label_file import read_label_file
from ..image.labels import Label, class_labels
from ..image.preprocess import metadata_of, open_model
from ..inference.quantized_network import QuantizedNetwork
from ..registry.specs import CheckpointSpec
from .counts import Counts, Row, count_rows
from .engine import BATCH_SIZE, ON_ERROR, Output, compute
from .evaluation_report import EvaluationReport
from .label_csv import Labels
from .labels import label_matcher, match_labels
from .progress import image_progress
from .rows import RowFile
from .sources import ImageSource, Sample, open_images


class Classifier(NamedTuple):
    """A network that is evaluated: what the caller passed, what ``compute`` takes, and what is known about it.

    ``classes`` are in the order of the logits, or empty if they are not known.
    """

    model: Any
    network: Any
    name: str
    classes: Tuple[Label, ...]
    num_classes: int
    metadata: CheckpointMetadata
    checkpoint: Optional[CheckpointSpec]

    @property
    def class_names(self) -> Tuple[str, ...]:
        """A name for each class."""
        return tuple(label.name for label in self.classes) or tuple(f"class {i}" for i in range(self.num_classes))


def evaluate(
    model: Any,
    data: Any,
    *,
    labels: Optional[Labels] = None,
    class_names: Union[Sequence[str], PathLike, None] = None,
    output: Optional[PathLike] = None,
    overwrite: bool = False,
    on_error: str = "error",
    threads: Optional[int] = None,
    batch_size: int = BATCH_SIZE,
    progress: Union[bool, Progress, None] = None,
) -> EvaluationReport:
    """Return the accuracy of a network on labeled images, beside the one that its publisher states.

    ``model`` is a name, a file, a Checkpoint, or a network of ``create``, ``compile`` or ``quantize``. ``data`` is a
    folder with a folder for each class, a folder and ``labels`` (a CSV file, or a mapping), ``.tar`` files in
    webdataset's convention, a URL of these, a list of them, or a list of pairs (image, label). Labels are matched with
    the classes of the network by synset or class name, never by the order of the folders; an index counts unless
    class names are numbers. ``class_names``, a list or a file, replaces the names that the network carries.

    ``output`` is a CSV file with a row for each image: key, label, class index, prediction, its probability, and the
    rank of the label's class. A run that was interrupted continues where it stopped when it is called again with the
    same arguments; ``overwrite`` replaces a finished file, and one of a run with other arguments.

    An image that cannot be read is an error, unless ``on_error`` is "skip": then the report names it. ``progress`` is
    by default shown on terminals and in notebooks, and logged elsewhere. All cores are used unless ``threads`` is set.

    Raises ArgumentError for data without labels, for labels that the network has no classes for, with both lists, for
    an image that cannot be read, and for an interrupted run of another model or other data; MissingFileError;
    DependencyError for URLs without megfile; and what ``compile`` raises.
    """
    on_error, overwrite = check_choice("on_error", on_error, ON_ERROR), check_flag("overwrite", overwrite)
    batch_size = check_int("batch_size", batch_size, minimum=1)
    threads = None if threads is None else check_int("threads", threads, minimum=1)
    path = None if output is None else check_local_path("output", output)
    names = None if class_names is None else read_class_names(class_names)
    classifier = open_classifier(model, names)
    source = open_images(data, labels=labels)
    targets = match_classes(classifier, source.class_names or ())
    model_sha256, data_sha256 = digest_weights(classifier), source.digest()
    identity = {
        "model": model_sha256 or secrets.token_hex(8),  # a compiled network is not known a second time
        "preprocessing": str(tuple(classifier.metadata.preprocessing or ())),
        "classes": _digest(classifier.class_names),
        "data": data_sha256,
    }
    with ExitStack() as stack:
        file = None
        if path is not None:
            file = stack.enter_context(RowFile(path, identity, batch_size=batch_size, overwrite=overwrite))
        old_rows: Tuple[Row, ...] = () if file is None else file.rows
        report_progress = image_progress(progress)
        stack.callback(report_progress.close)
        samples = _Samples(source, old_rows)
        options = {"threads": threads, "batch_size": batch_size, "on_error": on_error}
        computed, start = 0, time.perf_counter()

        def rows() -> Iterator[Row]:
            nonlocal computed
            yield from old_rows
            report_progress.update(classifier.name, len(old_rows), samples.total)
            for batch in _batches(score(classifier, samples, targets, **options), batch_size):
                if file is not None:
                    file.write(batch)
                computed += len(batch)
                report_progress.update(classifier.name, len(old_rows) + computed, samples.total)
                yield from batch

        counts = count_rows(rows())
        seconds = time.perf_counter() - start
        if file is not None:
            file.finish()
    digests = (model_sha256, data_sha256)
    return build_report(classifier, source, digests, counts, seconds=seconds, computed=computed)


def score(
    classifier: Classifier, samples: Iterable[Sample], targets: Optional[Dict[str, int]] = None, **options: Any
) -> Iterator[Row]:
    """Yield a row for each image in order; ``options`` are those of ``compute``.

    ``targets`` are labels that were matched with classes before; others are matched when they occur.
    """
    known: Dict[str, int] = {} if targets is None else targets
    match = label_matcher(classifier.classes, classifier.num_classes, classifier.name)

    def labeled() -> Iterator[Sample]:
        for sample in samples:
            if sample.label is None:
                raise ArgumentError(
                    f"{sample.key} has no label",
                    expected="a folder for each class, or labels=, a CSV file",
                    actual=sample.key,
                    hint="put it into the folder of its class, or pass labels=, a CSV file with names and labels",
                )
            if sample.label not in known:
                known.update(match([sample.label]))
            yield sample

    names = classifier.class_names
    for item in compute(classifier.network, labeled(), output="logits", **options):
        yield _row(item, known[item.label or ""], names)


def match_classes(classifier: Classifier, labels: Iterable[str]) -> Dict[str, int]:
    """Return the index of the logit of each label; raise ArgumentError as ``match_labels`` does."""
    return match_labels(labels, classifier.classes, classifier.num_classes, classifier.name)


def open_classifier(model: Any, class_names: Optional[Sequence[str]] = None) -> Classifier:
    """Return a network with its classes; raise ArgumentError for one without a head, or for other numbers of names."""
    network = open_model(model)
    metadata = metadata_of(network)
    num_classes = _num_classes(network)
    if not num_classes:
        raise ArgumentError(
            f"{_name(model, network, metadata)} has no head, so it predicts no classes",
            expected="a classifier",
            hint="pass the file or the network of a classifier",
        )
    name = _name(model, network, metadata)
    if class_names is not None and len(class_names) != num_classes:
        raise ArgumentError(
            f"{len(class_names)} class names for the {num_classes} classes of {name}",
            expected=num_classes,
            actual=len(class_names),
            hint="pass a name for each class, in the order of the logits",
        )
    classes = class_labels(metadata, num_classes) if class_names is None else tuple(map(Label, class_names))
    checkpoint = network if isinstance(network, CheckpointSpec) else getattr(network, "checkpoint", None)
    checkpoint = checkpoint if isinstance(checkpoint, CheckpointSpec) else None
    return Classifier(model, network, name, classes, num_classes, metadata, checkpoint)


def build_report(
    classifier: Classifier,
    source: ImageSource,
    digests: Tuple[Optional[str], str],
    counts: Counts,
    *,
    seconds: float = 0.0,
    computed: int = 0,
) -> EvaluationReport:
    """Return the report of what was counted; ``digests`` are those of the weights and of the source."""
    metadata, checkpoint = classifier.metadata, classifier.checkpoint
    assert metadata.preprocessing is not None
    return EvaluationReport(
        model=classifier.name,
        model_sha256=digests[0],
        data=source.name,
        data_sha256=digests[1],
        class_names=classifier.class_names,
        preprocessing=metadata.preprocessing,
        counts=counts,
        dataset=metadata.dataset,
        stated_top1=None if checkpoint is None else checkpoint.top1,
        stated_top5=None if checkpoint is None else checkpoint.top5,
        empty_classes=source.empty_classes,
        preprocessing_source=metadata.preprocessing_source,
        seconds=seconds,
        computed=computed,
    )


def read_class_names(class_names: Union[Sequence[str], PathLike]) -> Tuple[str, ...]:
    """Return the names of a list, or of a file as ``predict --labels`` takes it."""
    if isinstance(class_names, (str, os.PathLike)):
        return read_label_file(check_local_path("class_names", class_names))
    return tuple(check_text("class_names", name, "a list of names") for name in check_items("class_names", class_names))


class _Samples:
    """The samples that have no row yet; ``total`` is the number of all images, estimated for tar files."""

    def __init__(self, source: ImageSource, rows: Sequence[Row]) -> None:
        self._source, self._rows = source, rows
        self.total = source.count

    def __iter__(self) -> Iterator[Sample]:
        rows, number = self._rows, 0
        for index, shard in enumerate(self._source.shards):
            if shard.count is not None and number + shard.count <= len(rows):
                number += shard.count  # its images need not be read
                continue
            for sample in shard:
                if number >= len(rows):
                    yield sample
                elif rows[number].key != sample.key:
                    raise ArgumentError(
                        f"the interrupted run has {rows[number].key} where the data has {sample.key}",
                        expected=rows[number].key,
                        actual=sample.key,
                        hint="start over with overwrite=True",
                    )
                number += 1
            if self._source.count is None:
                self.total = number * len(self._source.shards) // (index + 1)


def _row(item: Output, target: int, names: Sequence[str]) -> Row:
    label = item.label or ""
    if item.values is None:
        return Row(item.key, label, target, error=item.error or "it cannot be read")
    logits = item.values.astype(np.float64)
    best = int(np.argmax(logits))
    probability = 1 / np.exp(logits - logits[best]).sum()
    # Of equal logits the first one counts, as in predict.
    rank = 1 + int((logits > logits[target]).sum() + (logits[:target] == logits[target]).sum())
    return Row(item.key, label, target, names[best], best, round(float(probability), 6), rank)


def _batches(rows: Iterator[Row], size: int) -> Iterator[List[Row]]:
    """Yield rows in lists; those before an error are yielded before it is raised."""
    batch: List[Row] = []
    error: Optional[Exception] = None
    while error is None:
        try:
            batch.append(next(rows))
        except StopIteration:
            break
        except Exception as caught:
            error = caught
            break
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
    if error is not None:
        raise error


def _num_classes(network: Any) -> Optional[int]:
    if isinstance(network, Checkpoint):
        return class_count(network.state_dict)
    if hasattr(network, "num_classes"):
        return int(network.num_classes or 0)
    shape = getattr(network, "shape", None)  # a compiled network
    logits: Any = network(np.zeros((1, *shape[1:]), np.float32)) if shape is not None else None
    return logits.shape[1] if getattr(logits, "ndim", None) == 2 else None


def _name(model: Any, network: Any, metadata: CheckpointMetadata) -> str:
    if isinstance(network, CheckpointSpec):
        return network.name
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else getattr(network, "path", None)
    return Path(path).name if path else metadata.source or metadata.variant or type(network).__name__


def digest_weights(classifier: Classifier) -> Optional[str]:
    """Return the digest of the file, or else of the arrays; None for a compiled network, which has neither.

    A checkpoint of the registry is fetched.
    """
    model, network = classifier.model, classifier.network
    if isinstance(network, CheckpointSpec):
        return fetch_verified(network.file).sha256
    if isinstance(model, (str, os.PathLike)):
        return hash_file(check_local_path("model", model))
    if isinstance(network, Checkpoint):
        return hash_arrays(network.state_dict.items())
    if isinstance(network, QuantizedNetwork):
        layers = enumerate(network.weights.layers)
        values = ((f"{index}.{name}", value) for index, layer in layers for name, value in vars(layer).items())
        return hash_arrays((name, value) for name, value in values if isinstance(value, np.ndarray))
    return hash_arrays(network.state_dict().items()) if is_module(network) else None


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
