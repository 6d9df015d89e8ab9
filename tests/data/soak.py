"""A soak of ``run``: workers, nodes and drivers killed with SIGKILL at random moments, until each row is there.

``python -m tests.data.soak --kills 50`` takes about half an hour with ``--engine ray`` and a few minutes with
``--engine processes``. In each round a driver computes eight shards on two workers, of Ray on a node each. At a moment
drawn from the whole time that this takes, a worker, a node or the driver is killed; a killed driver is started again.
It ends with an error if a row is missing or there twice, if more than a shard of each worker was done again, or if
anything takes longer than two minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, List, Optional

from . import runs

TIMEOUT_S = 120.0
VICTIMS = {"ray": ("worker", "node", "driver"), "processes": ("worker", "driver")}


class Nodes:
    """A Ray cluster of two nodes with a core each, beside a head without any; a killed node gets a successor."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ["PYTHONPATH"] = str(runs.ROOT)
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: List[Any] = []
        self.restore()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def restore(self) -> None:
        deadline = time.monotonic() + 5 * TIMEOUT_S
        while len(self._nodes) < 2:
            try:
                self._nodes.append(self._cluster.add_node(num_cpus=1))
            except Exception as error:  # on a busy machine a raylet may not start in the time that Ray allows
                if time.monotonic() > deadline:
                    raise
                print(f"a node did not start, once more: {error}", flush=True)

    def kill_one(self, chance: random.Random) -> None:
        self._cluster.remove_node(self._nodes.pop(chance.randrange(2)), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


def kill_worker(log: Path) -> None:
    """Kill the process that has begun a shard last."""
    for _, process in runs.begun(log)[-1:]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def time_of_one(images: Path, folder: Path, engine: str, nodes: Optional[Nodes]) -> float:
    """Return how long a run takes that nothing disturbs."""
    began = time.monotonic()
    address = "" if nodes is None else nodes.address
    assert runs.start_driver(images, folder / "output", folder / "log", engine, address).wait(TIMEOUT_S) == 0
    return time.monotonic() - began


def one_round(
    images: Path, folder: Path, engine: str, nodes: Optional[Nodes], chance: random.Random, typical: float
) -> str:
    """Kill something in the middle of a run, let it end, and check what is there; return what was killed."""
    output, log = folder / "output", folder / "log"
    victim = chance.choice(VICTIMS[engine])
    address = "" if nodes is None else nodes.address
    driver = runs.start_driver(images, output, log, engine, address)
    time.sleep(chance.uniform(0.0, typical))
    if victim == "worker":
        kill_worker(log)
    elif victim == "node" and nodes is not None:
        nodes.kill_one(chance)
    else:
        driver.kill()
        driver.wait()
        driver = runs.start_driver(images, output, log, engine, address)
    code = driver.wait(TIMEOUT_S)
    assert code == 0, f"the driver ended with {code} after a {victim} was killed"
    assert runs.keys(output) == runs.all_keys(images), f"rows are missing or there twice after a {victim} was killed"
    again = sum(count - 1 for count in Counter(name for name, _ in runs.begun(log)).values())
    assert again <= (2 if victim == "driver" else 1), f"{again} shards were done again after a {victim} was killed"
    if nodes is not None:
        nodes.restore()
    return victim


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--engine", choices=list(VICTIMS), default="ray")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, began = random.Random(options.seed), time.monotonic()
    victims: Counter[str] = Counter()
    nodes = Nodes() if options.engine == "ray" else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            images = runs.write_digits(Path(folder, "images"))
            typical = time_of_one(images, Path(folder), options.engine, nodes)
            for number in range(options.kills):
                round_folder = Path(folder, str(number))
                round_folder.mkdir()
                victim = one_round(images, round_folder, options.engine, nodes, chance, typical)
                victims[victim] += 1
                shutil.rmtree(round_folder)
                print(f"{number + 1}: {victim}, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        if nodes is not None:
            nodes.close()
    print(f"{options.engine}: {dict(victims)} killed in {time.monotonic() - began:.0f} s, each row is there once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
