"""Speed of the deploy form on the CPU: ours against torch, ONNX Runtime, OpenVINO and MegEngine eager, in the same run.

``python -m benchmarks.inference`` times each variant at batch 1 with 1 and 2 threads and at batch 8 with 2. A runtime
has its own process, bound to the same cores, with the same weights and images; before anything is timed its logits must
agree with the reference. Then they take turns in bursts of a few runs, in a new random order each time, while all
others are stopped (SIGSTOP), so that no spinning threads disturb the measurement. A figure is the median of the bursts'
medians, from NumPy array to NumPy array.

``--variants A0,B1 --settings 1x1,8x2`` (batch x threads) and ``--bursts`` select less or more.
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
from typing import Any, Dict, List, Sequence

import numpy as np

from .results_file import ROOT, Results, background_load, peers_environment, peers_python, resident, summarize
from .runtimes.serve import RUNTIMES

VARIANTS = ("A0", "A1", "A2", "B0", "B1", "B1g2", "B1g4", "B2g4", "B3", "D2se")
SETTINGS = ("1x1", "1x2", "8x2")
OUR_ENVIRONMENT = ("megengine eager", "ours")  # and what begins with these
# ONNX Runtime without spinning runs on request only: as the others are stopped, its own default does no harm.
DEFAULT = tuple(name for name in RUNTIMES if name != "onnxruntime, not spinning" and not name.endswith("int8"))
SAMPLED_LESS = "megengine eager"  # slower than the others; it runs a quarter as many bursts
MAX_ERROR = 1e-4  # relative to the scale of the logits
MAX_INT8_ERROR = 0.3  # that of a wrong network is about 1
BURST_SECONDS = 0.12
BURSTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="batch x threads, such as 1x1,8x2")
    parser.add_argument("--runtimes", default=";".join(DEFAULT), help="separated by ;")
    parser.add_argument("--bursts", type=int, default=BURSTS)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = Results.resume(options.results, "inference")
    for name in options.variants.split(","):
        for setting in options.settings.split(","):
            batch, threads = (int(text) for text in setting.split("x"))
            key = {"variant": f"RepVGG_{name}", "batch": batch, "threads": threads}
            row = measure(results, "inference", key, options.runtimes.split(";"), options.bursts)
            print(format_row(key, row), flush=True)


def measure(
    results: Results,
    benchmark: str,
    key: Dict[str, Any],
    names: Sequence[str],
    bursts: int,
) -> Dict[str, Any]:
    """Return the row of this key: from the results if it exists, else measured and written."""
    existing = results.find(benchmark, key)
    if existing is not None:
        return existing
    import repvgg_zoo

    architecture = repvgg_zoo.model_info(key["variant"]).architecture
    size = key.get("image_size", architecture.image_size)
    shape = (key["batch"], architecture.in_chans, size, size)
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as name:
        folder = Path(name)
        write_network(folder, key["variant"])
        images = np.random.RandomState(1).standard_normal(shape).astype(np.float32)
        np.save(folder / "images.npy", images)
        load = background_load()
        start = time.perf_counter()
        runtimes = run_interleaved(folder, key, list(names), bursts)
    measured = {"runtimes": runtimes, "wall_s": round(time.perf_counter() - start, 1)}
    results.add(benchmark, {**key, "image_size": size}, background_load=max(load, background_load()), **measured)
    return measured


def write_network(folder: Path, variant: str) -> None:
    """Write deploy weights in torch's shapes, random but such that the activations keep their scale."""
    import repvgg_zoo

    random_state = np.random.RandomState(0)
    network = repvgg_zoo.create(variant, deploy=True)
    arrays = {}
    for key, array in network.state_dict().items():
        fan_in = array[0, 0].size * array.shape[1] if array.ndim == 4 else array[0, 0].size if array.ndim == 5 else 0
        scale = (2 / fan_in) ** 0.5 if fan_in and array.ndim > 1 else 0.02
        arrays[key] = (scale * random_state.standard_normal(array.shape)).astype(np.float32)
    repvgg_zoo.save_checkpoint(folder / f"{variant}.safetensors", arrays, layout="official")


def run_interleaved(
    folder: Path,
    key: Dict[str, Any],
    names: List[str],
    bursts: int,
    module: str = "benchmarks.runtimes.serve",
    groups: Sequence[Sequence[str]] = (),
    max_error: float = MAX_ERROR,
) -> Dict[str, Any]:
    """Return the time of each runtime for one image, or why it did not run.

    ``module`` runs them. Their outputs must agree within each of the ``groups``, by default all of them.
    """
    cores = sorted(os.sched_getaffinity(0))[-key["threads"] :]
    runners = {name: Runner(name, cores, folder, module) for name in names}
    try:
        for runner in runners.values():
            runner.load(folder / f"{key['variant']}.safetensors", key["threads"])
        for group in groups or [names]:
            check_logits([runners[name] for name in group], max_error)
        order = [name for name in names if not runners[name].failed]
        shuffle = random.Random(0)
        for burst in range(bursts):
            shuffle.shuffle(order)
            for name in order:
                if name != SAMPLED_LESS or burst % 4 == 0:
                    runners[name].burst()
        return {name: runner.result(key["batch"]) for name, runner in runners.items()}
    finally:
        for runner in runners.values():
            runner.close()


def check_logits(runners: Sequence[Runner], max_error: float) -> None:
    """Compare everyone's logits with the first runtime's; a runtime whose logits differ is not timed."""
    reference = None
    for runner in runners:
        if runner.failed:
            continue
        logits = np.load(runner.logits)
        if reference is None:
            reference = logits
        runner.error = float(np.abs(logits - reference).max() / np.abs(reference).max())
        limit = MAX_INT8_ERROR if runner.name.endswith("int8") else max_error
        if not (runner.error <= limit and np.isfinite(logits).all()):
            runner.failed = f"its logits are {runner.error:.1e} off"


class Runner:
    """One process that runs one network on command; see ``runtimes.serve`` and ``runtimes.train``."""

    def __init__(self, name: str, cores: Sequence[int], folder: Path, module: str) -> None:
        self.name, self.failed, self.error = name, "", 0.0
        self.images, self.logits = folder / "images.npy", folder / f"{name}.npy"
        self.medians: List[float] = []
        self.runs, self.warm = 1, False
        self.loaded: Dict[str, Any] = {}
        is_ours = name.startswith(OUR_ENVIRONMENT)
        python = sys.executable if is_ours else peers_python()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if is_ours else peers_environment()
        environment.update(REPVGG_ZOO_HOME=str(folder / "cache"), OMP_NUM_THREADS=str(len(cores)))
        self.process = subprocess.Popen(
            [python, "-m", module, name, json.dumps(cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name}.log").open("w"),
            text=True,
            env=environment,
        )

    def load(self, weights: Path, threads: int) -> None:
        job = {"weights": str(weights), "images": str(self.images), "logits": str(self.logits), "threads": threads}
        self.loaded = self.ask(load=job)
        if self.failed:
            return
        seconds = min(self.ask(burst=1).get("ns", [0])) / 1e9
        if seconds < BURST_SECONDS:  # the second run may be much quicker than the first
            seconds = min(self.ask(burst=2).get("ns", [0])) / 1e9
        if not self.failed:
            self.runs = max(1, min(10, round(BURST_SECONDS / seconds)))
            self.warm = seconds < BURST_SECONDS / 2
        self.process.send_signal(signal.SIGSTOP)

    def burst(self) -> None:
        """Run a few times; where runs are short, the first one is a warm-up that does not count."""
        self.process.send_signal(signal.SIGCONT)
        times = self.ask(burst=self.runs + self.warm).get("ns", [])
        self.process.send_signal(signal.SIGSTOP)
        if times:
            self.medians.append(statistics.median(times[self.warm :]) / 1e6)

    def ask(self, **request: Any) -> Dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: Dict[str, Any] = json.loads(line) if line else {"failed": f"its process ended: {self.process.wait()}"}
        self.failed = self.failed or answer.get("failed", "")
        return answer

    def result(self, batch: int) -> Dict[str, Any]:
        if self.failed:
            return {"failed": self.failed}
        return {
            "ms": summarize([median / batch for median in self.medians]),
            "runs": self.runs,
            "error": float(f"{self.error:.1e}"),
            "load_s": round(self.loaded["load_s"], 2),
            "resident_mib": round(resident(self.process.pid) / 2**20),
            "versions": self.loaded["versions"],
        }

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def format_row(key: Dict[str, Any], row: Dict[str, Any]) -> str:
    """Format a row as one line for the terminal."""
    texts = {
        name: f"{each['ms']['median']:.1f}" if "ms" in each else "failed" for name, each in row["runtimes"].items()
    }
    cells = ", ".join(f"{name} {text}" for name, text in texts.items())
    return f"{key['variant']}, batch {key['batch']}, {key['threads']} threads, ms per image: {cells}"


if __name__ == "__main__":
    main()
