"""What an engine of ``repvgg_zoo.run`` costs: images a second of Ray's actors and Dask's workers beside processes.

``python -m benchmarks.scale_out`` starts the workers of each engine once and then lets the engines take turns, a few
shards of JPEGs of 500 x 375 pixels each, while the workers of the others wait. A ratio is of two turns of the same
round; the median of all rounds is printed with its quartiles, so that a busy machine is noticed. CPU is that of all
processes that the benchmark has started, for each image: it shows what an engine itself takes, also on a busy machine.
``--least 0.9`` ends with an error if Ray's median is less than that part of the processes'. Ray would run its workers
at nice 15, which compares the rest of the machine and not the engine, so they are at nice 0 here.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple

import numpy as np
from PIL import Image

from repvgg_zoo._cpu import usable_cores
from repvgg_zoo.data.engines import load_engine
from repvgg_zoo.data.manifest import ShardRecord
from repvgg_zoo.data.sources import open_images
from repvgg_zoo.data.tasks import Plan, Task, model_sha256

SIZE = (500, 375)
SETTLE_S = 5.0  # until the shards that were handed out at the start are finished


class Turn(NamedTuple):
    """Images a second, and milliseconds of CPU for each image."""

    rate: float
    cpu_ms: float


def write_images(folder: Path, count: int) -> None:
    """Write JPEGs that take about as long to decode as photographs."""
    chance = np.random.default_rng(0)
    for index in range(count):
        coarse = chance.integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg", quality=90)


def cpu_seconds() -> float:
    """Return the CPU time of this process and all that descend from it."""
    parents: Dict[int, int] = {}
    ticks: Dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        process = int(path.parent.name)
        parents[process], ticks[process] = int(fields[1]), int(fields[11]) + int(fields[12])

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return sum(ticks[process] for process in ticks if is_ours(process)) / os.sysconf("SC_CLK_TCK")


def take_turn(records: Iterator[ShardRecord], shards: int, workers: int) -> Turn:
    """Let the workers of an engine, which all wait, compute some shards; return once they wait again."""
    for _ in range(workers):  # what they have finished since their last turn; each gets a new shard
        next(records)
    began, cpu = time.monotonic(), cpu_seconds()
    images = sum(next(records).images for _ in range(shards))
    seconds = time.monotonic() - began
    # The shards that were handed out meanwhile; they are finished when nothing takes CPU time any more.
    idle = cpu_seconds()
    cpu_ms = 1e3 * (idle - cpu) / images
    while True:
        time.sleep(0.5)
        last, idle = idle, cpu_seconds()
        if idle - last < 0.1:
            return Turn(images / seconds, cpu_ms)


def compare(model: str, options: argparse.Namespace, folder: Path) -> Dict[str, float]:
    """Print how fast the engines are, and return the ratio of each to the first one."""
    source = open_images(folder / "images").split(options.shard_size)
    job = {"topk": 5, "class_names": None, "batch_size": 16, "on_error": "error"}
    count = options.workers + options.rounds * (options.workers + options.shards) + options.workers
    shards = [shard for _, shard in zip(range(count), itertools.cycle(source.shards))]
    tasks = [Task(index, shard, shard.digest()) for index, shard in enumerate(shards)]
    running: Dict[str, Iterator[ShardRecord]] = {}
    turns: Dict[str, List[Turn]] = {engine: [] for engine in options.engines}
    for engine in options.engines:
        output = folder / f"{engine}-{len(list(folder.iterdir()))}"
        output.mkdir()
        plan = Plan("predict", model, model_sha256(model), "csv", job, str(output), "")
        running[engine] = iter(load_engine(engine).distribute(plan, tasks, options.workers, None))
        began = time.monotonic()
        for _ in range(options.workers):
            next(running[engine])
        print(f"{model}: {engine} has started after {time.monotonic() - began:.1f} s", flush=True)
    time.sleep(SETTLE_S)
    for number in range(options.rounds):
        for engine in options.engines if number % 2 == 0 else options.engines[::-1]:
            turns[engine].append(take_turn(running[engine], options.shards, options.workers))
    for records in running.values():
        records.close()  # type: ignore[attr-defined]  # a generator, which ends its workers
    ratios: Dict[str, float] = {}
    for engine, rows in turns.items():
        pairs = sorted(one.rate / other.rate for one, other in zip(rows, turns[options.engines[0]]))
        ratios[engine] = statistics.median(pairs)
        rate, cpu = (statistics.median(column) for column in zip(*rows))
        quarter = len(pairs) // 4
        spread = f"{pairs[quarter]:.2f} to {pairs[-1 - quarter]:.2f}"
        print(
            f"{engine:10} {rate:7.1f} images/s  {ratios[engine]:.2f} ({spread})  CPU {cpu:.2f} ms an image", flush=True
        )
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["RepVGG_N0.digits", "RepVGG_A0"], help="names or files")
    parser.add_argument("--engines", nargs="+", default=["processes", "ray", "dask"])
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--shards", type=int, default=8, help="in each turn")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--least", type=float, default=0.0, metavar="RATIO", help="of Ray's rate to the processes'")
    options = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # as Ray spells it
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        write_images(folder / "images", options.shards * options.shard_size)
        ratios = [compare(model, options, folder) for model in options.models]
    return int(any(ratio.get("ray", 1.0) < options.least for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
