"""run: predict, features or evaluate for any number of images, on many cores or machines, resumable at any moment."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence, Tuple, Union

from .. import __version__
from .._arguments import check_choice, check_int, check_path, check_text
from .._escape import escape
from .._log import get_logger
from .._text import pluralize
from ..errors import ArgumentError, PathLike
from ..image.preprocess import open_model
from ..registry.model_or_file import find_model_or_file
from .counts import Counts, merge_counts
from .engine import BATCH_SIZE, ON_ERROR
from .engines import ENGINES, load_engine
from .evaluation import build_report, match_classes, open_classifier, read_class_names
from .evaluation_report import EvaluationReport
from .jobs import JOBS
from .label_csv import Labels
from .manifest import Manifest, ShardRecord, begin, finished_shard
from .output_folder import OutputFolder
from .remote import is_url
from .sources import open_images
from .tables import FORMATS, check_format
from .tasks import Plan, Task, model_sha256

SHARD_SIZE = 1000  # images: what a lost worker has to do again, 20 seconds of a core for RepVGG_A0
MAX_LISTED_ERRORS = 20
ROW_OPTIONS = {"predict": ("topk", "class_names"), "features": (), "evaluate": ("class_names",)}
READERS = 16  # threads that read records

logger = get_logger("repvgg_zoo.data")


@dataclass(frozen=True)
class RunReport:
    """What a run, or its part, has done, in this call and in those before it.

    ``shards`` are those of the run or the part, ``resumed`` of them were finished before this call. ``images`` and
    ``errors`` count all of them; ``first_errors`` are the first 20 as pairs (key, reason), each row has its own.
    ``evaluation`` is the report of "evaluate", as ``repvgg_zoo.evaluate`` returns it, but for a part. ``seconds`` are
    those of this call.
    """

    job: str
    output: str
    shards: int
    resumed: int
    images: int
    errors: int
    first_errors: Tuple[Tuple[str, str], ...]
    evaluation: Optional[EvaluationReport]
    seconds: float

    def __str__(self) -> str:
        resumed = f", {self.resumed:,} of them finished before" if self.resumed else ""
        errors = f", {self.errors:,} could not be read" if self.errors else ""
        counts = f"{pluralize(self.images, 'image')} in {pluralize(self.shards, 'shard')}"
        return f"{self.job}: {counts}{resumed}{errors}; {escape(self.output)}"


def run(
    job: str,
    sources: Any,
    output: PathLike,
    *,
    model: PathLike,
    engine: str = "processes",
    workers: Optional[int] = None,
    address: Optional[str] = None,
    part: Union[str, Tuple[int, int], None] = None,
    labels: Optional[Labels] = None,
    class_names: Union[Sequence[str], PathLike, None] = None,
    format: str = "csv",
    shard_size: int = SHARD_SIZE,
    batch_size: int = BATCH_SIZE,
    topk: int = 5,
    on_error: str = "skip",
) -> RunReport:
    """Run "predict", "features" or "evaluate" over the images of ``sources``, shard by shard, and return a report.

    ``sources`` is what ``evaluate`` takes: a folder, tar files, URLs of those, or a list; a folder is cut into shards
    of ``shard_size`` images, a tar file is one. ``output`` is a folder, or a URL such as ``s3://bucket/run-1``, that
    gets the manifest of the run, and for each shard its rows and a record: ``000000.csv`` (predictions, or the rows of
    ``evaluate``), ``000000.npy`` (features, a row for each of the CSV), or ``000000.parquet``.

    A call with the same arguments continues a run that was interrupted in whatever way: finished shards are skipped,
    so each row is there once. ``part="3/16"`` does every sixteenth shard, beginning with the third, for job arrays of
    Slurm or Kubernetes that share ``output``.

    Each of ``workers`` workers is one core with a network of its own. ``engine`` is "processes" (of this machine),
    "ray" or "dask"; ``address`` is that of their cluster, "auto" for the Ray cluster of this machine, and without it
    the cluster is this machine. Every node needs this package, and the same files under the same names; ``model``, a
    name or a file, has its digest compared on each. A worker that is lost, with or without its machine, is replaced.

    ``labels`` and ``class_names`` are as in ``evaluate``. With ``on_error="skip"`` an image that cannot be read has the
    reason in its row and is counted; with "error" the run ends there.

    Raises ArgumentError, also if ``output`` is that of another run; IntegrityError if a worker's model is another one;
    WorkerLostError if workers are lost again and again, or none can be started; DependencyError; and what ``evaluate``
    and ``compile`` raise.
    """
    began = time.monotonic()
    job = check_choice("job", job, list(JOBS))
    engine = check_choice("engine", engine, list(ENGINES))
    workers = None if workers is None else check_int("workers", workers, minimum=1)
    address = None if address is None else check_text("address", address)
    if address is not None and engine == "processes":
        raise ArgumentError(
            "processes have no address",
            expected="engine='ray' or engine='dask' for a cluster",
            actual=address,
            hint="pass the engine of the cluster as well",
        )
    format = check_choice("format", format, FORMATS)
    number, count = (1, 1) if part is None else parse_part(part)
    shard_size = check_int("shard_size", shard_size, minimum=1)
    options: Dict[str, Any] = {
        "batch_size": check_int("batch_size", batch_size, minimum=1),
        "topk": check_int("topk", topk, minimum=1),
        "on_error": check_choice("on_error", on_error, ON_ERROR),
        "class_names": None if class_names is None else read_class_names(class_names),
    }
    folder = OutputFolder(check_output(output))
    target = find_model_or_file(model)
    # Workers may have another current folder. Machines may have a file at other paths: its digest tells what it is.
    model, name = (str(target.absolute()), target.name) if isinstance(target, Path) else (str(model), str(model))
    check_format(format)
    distribute = load_engine(engine).distribute  # before anything is read or written
    # What no worker could do is an error before anything is written.
    classifier = None if job == "features" else open_classifier(model, options["class_names"])
    if classifier is None:
        open_model(model)
    source = open_images(absolute(sources), labels=labels).split(shard_size)
    if classifier is not None and job == "evaluate":
        match_classes(classifier, source.class_names or ())
    digests = tuple((shard.name, shard.digest()) for shard in source.shards)
    row_options = {name: options[name] for name in ROW_OPTIONS[job] if options[name] is not None}
    manifest = Manifest(job, name, model_sha256(model), format, row_options, digests, __version__)
    begin(folder, manifest)
    tasks = [Task(index, shard, digests[index][1]) for index, shard in enumerate(source.shards)][number - 1 :: count]
    records = finished_shards(folder, manifest.sha256, tasks)
    resumed = len(records)
    plan = Plan(job, model, manifest.model_sha256, format, options, folder.path, manifest.sha256)
    remaining = [task for task in tasks if task.index not in records]
    for record in distribute(plan, remaining, workers, address) if remaining else ():
        records[record.shard] = record
        logger.info("%d of %d shards are finished", len(records), len(tasks))
    errors = tuple(error for task in tasks for error in records[task.index].errors)
    evaluation = None
    if classifier is not None and job == "evaluate" and count == 1:
        done = (records[task.index] for task in tasks)
        counts = merge_counts(Counts.from_plain({**record.counts, "skipped": record.errors}) for record in done)
        evaluation = build_report(classifier, source, (manifest.model_sha256, source.digest()), counts)
    return RunReport(
        job,
        folder.path,
        len(tasks),
        resumed,
        sum(record.images for record in records.values()),
        len(errors),
        errors[:MAX_LISTED_ERRORS],
        evaluation,
        time.monotonic() - began,
    )


def parse_part(part: Union[str, Tuple[int, int]]) -> Tuple[int, int]:
    """Return (number, count) of "3/16"; raise ArgumentError unless the number is one of 1 to the count."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part) if isinstance(part, str) else None
    pair = tuple(map(int, match.groups())) if match else part
    if isinstance(pair, tuple) and len(pair) == 2:
        count = check_int("the number of parts", pair[1], minimum=1)
        if check_int("part", pair[0], minimum=1) <= count:
            return int(pair[0]), count
    raise ArgumentError(
        f"part is {part!r}",
        expected="'3/16', or (3, 16)",
        actual=part,
        hint="parts are counted from 1: pass '1/16' to '16/16'",
    )


def finished_shards(folder: OutputFolder, manifest_sha256: str, tasks: Iterable[Task]) -> Dict[int, ShardRecord]:
    """Return the records of the tasks that are finished, by index."""
    sizes = folder.sizes()
    with ThreadPoolExecutor(READERS) as pool:  # a bucket takes some 20 ms for each
        records = pool.map(lambda task: finished_shard(folder, manifest_sha256, task.index, sizes), tasks)
        return {record.shard: record for record in records if record is not None}


def absolute(sources: Any) -> Any:
    """Return sources with absolute paths, as workers may have another current folder."""
    if isinstance(sources, (list, tuple)):
        # Of pairs (image, label) the paths are the keys.
        return [one if isinstance(one, (list, tuple)) else absolute(one) for one in sources]
    is_path = isinstance(sources, (str, os.PathLike)) and not is_url(os.fspath(sources))
    return str(check_path("sources", sources).absolute()) if is_path else sources


def check_output(output: Any) -> PathLike:
    """Return the path or the URL of an output folder."""
    if isinstance(output, str) and is_url(output):
        return output.rstrip("/")
    return check_path("output", output).absolute()
