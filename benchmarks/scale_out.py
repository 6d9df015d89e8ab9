"""What an engine of ``repvgg_zoo.run`` costs: images a second of Ray's actors and Dask's workers beside processes.

``python -m benchmarks.scale_out`` predicts the same shards of JPEGs of 500 x 375 pixels with each engine in turn, on as
many workers, for several rounds, and prints the medians. The time is from the first finished shard to the last, so that
starting a cluster does not count; it is printed beside it. ``--least 0.9`` ends with an error if Ray is slower than
that part of the processes. The machine must have nothing else to do: Ray runs its workers at nice 15.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, NamedTuple

import numpy as np
from PIL import Image

from repvgg_zoo._cpu import usable_cores
from repvgg_zoo.data.engines import load_engine
from repvgg_zoo.data.sources import open_images
from repvgg_zoo.data.tasks import Plan, Task, model_sha256

SIZE = (500, 375)


class Timing(NamedTuple):
    """Seconds until the first shard was finished, and images a second after that."""

    start: float
    rate: float


def write_images(folder: Path, count: int) -> None:
    """Write JPEGs that take about as long to decode as photographs."""
    chance = np.random.default_rng(0)
    for index in range(count):
        coarse = chance.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg", quality=90)


def measure(engine: str, tasks: List[Task], plan: Plan, workers: int) -> Timing:
    """Return how fast an engine is once each worker has started."""
    began = time.monotonic()
    times: List[float] = []
    images: List[int] = []
    for record in load_engine(engine).distribute(plan, tasks, workers, None):
        times.append(time.monotonic())
        images.append(record.images)
    # The first shard of each worker is finished at about the same time; those do not count.
    return Timing(times[0] - began, sum(images[workers:]) / (times[-1] - times[workers - 1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RepVGG_N0.digits", help="a name or a file; the images are prepared for it")
    parser.add_argument("--engines", nargs="+", default=["processes", "ray", "dask"])
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--least", type=float, default=0.0, metavar="RATIO", help="of Ray's rate to the processes'")
    options = parser.parse_args()
    timings: Dict[str, List[Timing]] = {engine: [] for engine in options.engines}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        write_images(images, options.images)
        shards = open_images(images).split(options.shard_size).shards
        tasks = [Task(index, shard, shard.digest()) for index, shard in enumerate(shards)]
        job = {"topk": 5, "class_names": None, "batch_size": 16, "on_error": "error"}
        for number in range(options.rounds):
            for engine in options.engines:
                output = Path(folder, f"{engine}-{number}")
                output.mkdir()
                plan = Plan("predict", options.model, model_sha256(options.model), "csv", job, str(output), "")
                timings[engine].append(measure(engine, tasks, plan, options.workers))
                print(f"round {number + 1}: {engine:10} {timings[engine][-1].rate:7.1f} images/s", flush=True)
    reference = statistics.median(one.rate for one in timings[options.engines[0]])
    ratios = {engine: statistics.median(one.rate for one in timings[engine]) / reference for engine in timings}
    print(f"{options.model}, {options.workers} workers, {options.images} images, median of {options.rounds} rounds")
    for engine, rows in timings.items():
        rate, start = (statistics.median(column) for column in ([r.rate for r in rows], [r.start for r in rows]))
        print(f"{engine:10} {rate:7.1f} images/s  {ratios[engine]:.2f}  first shard after {start:.1f} s")
    return int(ratios.get("ray", 1.0) < options.least)


if __name__ == "__main__":
    sys.exit(main())
