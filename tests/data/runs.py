"""What the tests of ``repvgg_zoo.run`` share: shards that kill their workers, drivers, and what was written."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
from PIL import Image

import repvgg_zoo
from repvgg_zoo.data.runner import RunReport
from repvgg_zoo.data.samples import Sample, Shard
from repvgg_zoo.data.sources import ImageSource, open_images
from repvgg_zoo.data.tasks import Plan, Task, model_sha256
from repvgg_zoo.data.worker import Worker

ROOT = Path(__file__).resolve().parents[2]
SHARDS, IMAGES_OF_A_SHARD = 8, 5
IMAGES = SHARDS * IMAGES_OF_A_SHARD


def write_digits(folder: Path) -> Path:
    """Write the first of the digits' test images, in a folder for each class."""
    with np.load(ROOT / "hub" / "digits-test.npz", allow_pickle=False) as digits:
        for index, (image, label) in enumerate(zip(digits["images"][:IMAGES], digits["labels"])):
            path = folder / str(label) / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


@dataclass(frozen=True)
class LoggedShard:
    """A shard that notes in ``log`` each time it is begun, and takes ``seconds``.

    ``kill_once`` is a file: the process that creates it is killed in the middle of the shard. With ``kill_always``, so
    is every process.
    """

    shard: Shard
    log: Path
    seconds: float = 0.0
    kill_once: Optional[Path] = None
    kill_always: bool = False

    @property
    def name(self) -> str:
        return self.shard.name

    @property
    def count(self) -> Optional[int]:
        return self.shard.count

    def digest(self) -> str:
        return self.shard.digest()

    def split(self, size: int) -> Tuple[LoggedShard, ...]:
        return (self,)

    def __iter__(self) -> Iterator[Sample]:
        with self.log.open("a") as log:
            log.write(f"{self.name} {os.getpid()}\n")
        for number, sample in enumerate(self.shard):
            time.sleep(self.seconds / IMAGES_OF_A_SHARD)
            if number == 2 and (self.kill_always or self._is_first()):
                os.kill(os.getpid(), signal.SIGKILL)
            yield sample

    def _is_first(self) -> bool:
        try:
            if self.kill_once is not None:
                self.kill_once.touch(exist_ok=False)
                return True
        except FileExistsError:
            pass
        return False


def logged(images: Path, log: Path, **options: Any) -> ImageSource:
    """Return a folder of images in eight shards that note when they are begun; ``options`` are those of the third."""
    source = open_images(images).split(IMAGES_OF_A_SHARD)
    seconds = options.pop("seconds", 0.0)
    shards = [LoggedShard(shard, log, seconds) for shard in source.shards]
    shards[2] = LoggedShard(source.shards[2], log, seconds, **options)
    return ImageSource(source.name, tuple(shards), source.class_names)


def begun(log: Path) -> List[Tuple[str, int]]:
    """Return the name of each shard that was begun, and the process that did, one for each time."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(name, int(process)) for name, process in (line.rsplit(" ", 1) for line in lines)]


def rows(output: Path) -> List[List[str]]:
    """Return the rows of all CSV files of an output folder, without their headers."""
    return [row for path in sorted(output.glob("*.csv")) for row in list(csv.reader(path.open()))[1:]]


def keys(output: Path) -> List[str]:
    """Return the key of each row, sorted."""
    return sorted(row[0] for row in rows(output))


def all_keys(images: Path) -> List[str]:
    """Return the keys of all images, sorted."""
    return sorted(sample.key for sample in open_images(images))


def wait_for_records(output: Path, count: int, timeout: float = 60.0) -> None:
    """Wait until so many shards are committed."""
    deadline = time.monotonic() + timeout
    while len(list(output.glob("0*.json"))) < count:
        assert time.monotonic() < deadline, sorted(output.iterdir())
        time.sleep(0.02)


def start_driver(
    images: Path, output: Path, log: Path, engine: str = "processes", address: str = ""
) -> subprocess.Popen[bytes]:
    """Start a process that runs with two workers, and can be killed."""
    arguments = (str(images), str(output), str(log), engine, address)
    code = f"from tests.data.runs import drive; drive{arguments!r}"
    return subprocess.Popen([sys.executable, "-c", code], cwd=str(ROOT))


def drive(images: str, output: str, log: str, engine: str, address: str) -> RunReport:
    """Predict the images, half a second for each shard."""
    source = logged(Path(images), Path(log), seconds=0.5)
    return repvgg_zoo.run(
        "predict", source, output, model="RepVGG_N0", engine=engine, workers=2, address=address or None
    )


def compute_here(job: str, images: Path, output: Path, *, format: str = "csv", size: int = 10, **options: Any) -> None:
    """Compute and commit all shards in this process."""
    output.mkdir()
    defaults = {"topk": 5, "class_names": None, "batch_size": 16, "on_error": "skip"}
    plan = Plan(job, "RepVGG_N0", model_sha256("RepVGG_N0"), format, {**defaults, **options}, str(output), "")
    worker = Worker(plan)
    worker.prepare()
    for index, shard in enumerate(open_images(images).split(size).shards):
        worker.run(Task(index, shard, shard.digest()))
