"""Images a second from JPEG files to logits: ours against a plain loop, torch's DataLoader and MegEngine's.

``python -m benchmarks.evaluate`` decodes, preprocesses and computes the same photographs of 500 x 375 pixels with the
same random weights of one variant. Each loop has its own processes, which are stopped while another one runs; they take
turns in a new random order each round. The DataLoaders run with several numbers of workers, of which the best one
counts. Logits must agree, but for MegEngine's, whose transforms resize in another way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from .inference import write_network
from .results_file import ROOT, Results, background_load, peers_environment, peers_python, summarize

BATCH, THREADS = 16, 2
IMAGES = 64
ROUNDS = 8
TORCH_WORKERS = (0, 1, 2, 4)
MEGENGINE_WORKERS = (0, 2)
MAX_ERROR = 1e-3  # of the scale of the logits
WIDTH, HEIGHT = 500, 375


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="A0")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kinds", default="ours,loop,megengine,torch", help="of loops (default: %(default)s)")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = Results.resume(options.results, "evaluate")
    key: Dict[str, Any] = {"variant": f"RepVGG_{options.variant}", "threads": THREADS}
    row = results.find("evaluate", key)
    if row is None:
        load = background_load()
        start = time.perf_counter()
        loops = measure(key["variant"], options.kinds.split(","), options.images, options.rounds)
        load, wall = max(load, background_load()), round(time.perf_counter() - start, 1)
        results.add("evaluate", key, loops=loops, background_load=load, wall_s=wall, batch=BATCH)
        row = results.find("evaluate", key)
        assert row is not None
    print(format_row(row))


def measure(variant: str, kinds: Sequence[str], images: int, rounds: int) -> Dict[str, Any]:
    """Return images a second, and CPU seconds of an image, for each loop, or why it did not run."""
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as name:
        folder = Path(name)
        write_network(folder, variant)
        paths = write_photographs(folder, images)
        job = {"weights": str(own_file(folder, variant)), "images": paths, "batch": BATCH, "threads": THREADS}
        peer = {**job, "weights": str(folder / f"{variant}.safetensors")}
        cases = [("ours", "ours", job), ("plain loop", "loop", job)]
        cases += [(f"MegEngine, {n} workers", "megengine", {**job, "workers": n}) for n in MEGENGINE_WORKERS]
        cases += [(f"torch, {n} workers", "torch", {**peer, "workers": n}) for n in TORCH_WORKERS]
        loops = [Loop(name, kind, one, folder) for name, kind, one in cases if kind in kinds]
        try:
            for loop in loops:
                loop.load(loops[0])
            order = [loop for loop in loops if not loop.failed]
            for _ in range(rounds):
                random.Random(len(order[0].seconds)).shuffle(order)
                for loop in order:
                    loop.run()
            return {loop.name: loop.result(images) for loop in loops}
        finally:
            for loop in loops:
                loop.close()


def own_file(folder: Path, variant: str) -> Path:
    """Return a file of the same weights that says how images are preprocessed."""
    import repvgg_zoo

    preprocessing = repvgg_zoo.model_info("RepVGG_A0").checkpoint("official").preprocessing
    path = folder / "own.safetensors"
    weights = repvgg_zoo.load_checkpoint(folder / f"{variant}.safetensors")
    repvgg_zoo.save_checkpoint(path, weights, preprocessing=preprocessing)
    return path


def write_photographs(folder: Path, count: int) -> List[str]:
    """Write parts of scikit-learn's two photographs as JPEG files of about 60 kB."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random_state = np.random.RandomState(0)
    paths = []
    for number in range(count):
        photograph = load_sample_images().images[number % 2]
        top, left = (random_state.randint(0, side + 1) for side in np.subtract(photograph.shape[:2], (HEIGHT, WIDTH)))
        part = photograph[top : top + HEIGHT, left : left + WIDTH]
        paths.append(str(folder / f"{number:04}.jpg"))
        Image.fromarray(part[:, :: random_state.choice([1, -1])]).save(paths[-1], quality=90)
    return paths


class Loop:
    """One loop in processes of its own, which are stopped between the rounds; see ``runtimes.data_loops``."""

    def __init__(self, name: str, kind: str, job: Dict[str, Any], folder: Path) -> None:
        self.name, self.failed = name, ""
        self.logits: Optional[Any] = None
        self.seconds: List[float] = []
        self.cpu: List[float] = []
        self._job = {**job, "loop": kind, "logits": str(folder / f"{name}.npy")}
        python = peers_python() if kind == "torch" else sys.executable
        environment = peers_environment() if kind == "torch" else {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.runtimes.data_loops"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("w"),
            text=True,
            env={**environment, "REPVGG_ZOO_HOME": str(folder / "cache")},
            start_new_session=True,  # so that a signal reaches its workers too
        )

    def load(self, reference: Loop) -> None:
        """Load, and run once; logits that differ from those of ``reference`` are a failure."""
        self._ask(load=self._job)
        if not self.failed:
            self.logits = np.load(self._job["logits"])
            if reference.logits is not None and self._job["loop"] != "megengine":
                error = float(np.abs(self.logits - reference.logits).max() / np.abs(reference.logits).max())
                self.failed = "" if error <= MAX_ERROR else f"its logits are {error:.1e} off"
        self._signal(signal.SIGSTOP)

    def run(self) -> None:
        """Run a round, if none has failed."""
        if self.failed:
            return
        self._signal(signal.SIGCONT)
        answer = self._ask(round=True)
        self._signal(signal.SIGSTOP)
        if "seconds" in answer:
            self.seconds.append(answer["seconds"])
            self.cpu.append(answer["cpu"])

    def result(self, images: int) -> Dict[str, Any]:
        """Return the figures of all rounds."""
        if self.failed or not self.seconds:
            return {"failed": self.failed or "no round"}
        return {
            "images_per_second": summarize([images / seconds for seconds in self.seconds]),
            "cpu_ms": summarize([1000 * seconds / images for seconds in self.cpu]),
        }

    def close(self) -> None:
        """End the processes."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _ask(self, **request: Any) -> Dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: Dict[str, Any] = json.loads(line) if line else {"failed": "its process ended"}
        self.failed = self.failed or answer.get("failed", "")
        return answer

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            self.failed = self.failed or "its process ended"


def ratios(row: Dict[str, Any]) -> Dict[str, float]:
    """Return ours over the best of each kind, of the medians of the rounds."""
    speeds = {
        name: statistics.median([loop["images_per_second"]["median"]])
        for name, loop in row["loops"].items()
        if "images_per_second" in loop
    }
    best: Dict[str, float] = {}
    for name, speed in speeds.items():
        kind = name.partition(",")[0]
        best[kind] = max(speed, best.get(kind, 0.0))
    return {kind: best["ours"] / speed for kind, speed in best.items() if kind != "ours" and "ours" in best}


def format_row(row: Dict[str, Any]) -> str:
    """Format a row as lines for the terminal."""
    lines = [f"{row['variant']}, batch {row['batch']}, {row['threads']} threads, images/s:"]
    for name, loop in row["loops"].items():
        text = loop.get("failed") or f"{loop['images_per_second']['median']:.1f}, CPU {loop['cpu_ms']['median']:.1f} ms"
        lines.append(f"  {name}: {text}")
    return "\n".join([*lines, *(f"  ours / {kind}: {ratio:.2f}" for kind, ratio in ratios(row).items())])


if __name__ == "__main__":
    main()
