"""Speed of the deploy form on the CPU: ours against torch, ONNX Runtime, OpenVINO and MegEngine eager, in the same run.

``python -m benchmarks.inference`` times each variant at batch 1 with 1 and 2 threads and at batch 8 with 2. Each
contender is a process of its own, bound to the same cores and given the same weights and images; before anything is
timed its logits must agree with the reference's. Then they take turns in bursts of a few runs, in a new random order
each time, while all others are stopped (SIGSTOP), so that no threads that spin for work can disturb. A figure is the
median of the bursts' medians, NumPy array in to NumPy array out.

``--variants A0,B1 --settings 1x1,8x2`` (batch x threads) and ``--bursts`` choose less or more.
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

from .results_file import ROOT, Record, disturbance, peers_environment, peers_python, resident, spread
from .runtimes.serve import CONTENDERS

VARIANTS = ("A0", "A1", "A2", "B0", "B1", "B1g2", "B1g4", "B2g4", "B3", "D2se")
SETTINGS = ("1x1", "1x2", "8x2")
OUR_PROCESSES = ("megengine eager", "ours")
# ONNX Runtime without spinning is for those who ask for it: as the others are stopped, its own default does no harm.
DEFAULT = tuple(name for name in CONTENDERS if name != "onnxruntime, not spinning")
NOT_RACING = "megengine eager"  # several times slower; its bursts are a quarter as many
BOUND = 1e-4  # of the logits' scale
BURST_SECONDS = 0.12
BURSTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="batch x threads, such as 1x1,8x2")
    parser.add_argument("--contenders", default=";".join(DEFAULT), help="separated by ;")
    parser.add_argument("--bursts", type=int, default=BURSTS)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    record = Record.resume(options.results, "inference")
    for name in options.variants.split(","):
        for setting in options.settings.split(","):
            batch, threads = (int(text) for text in setting.split("x"))
            key = {"variant": f"RepVGG_{name}", "batch": batch, "threads": threads}
            row = race(record, "inference", key, options.contenders.split(";"), options.bursts)
            print(summary(key, row), flush=True)


def race(
    record: Record,
    benchmark: str,
    key: Dict[str, Any],
    names: Sequence[str],
    bursts: int,
) -> Dict[str, Any]:
    """The row of this key: from the record if it is there, else measured and written."""
    known = record.find(benchmark, key)
    if known is not None:
        return known
    import repvgg_zoo

    architecture = repvgg_zoo.model_info(key["variant"]).architecture
    size = key.get("image_size", architecture.image_size)
    shape = (key["batch"], architecture.in_chans, size, size)
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as name:
        folder = Path(name)
        write_network(folder, key["variant"])
        images = np.random.RandomState(1).standard_normal(shape).astype(np.float32)
        np.save(folder / "images.npy", images)
        noise = disturbance()
        began = time.perf_counter()
        found = compete(folder, key, list(names), bursts)
    measured = {"contenders": found, "wall_s": round(time.perf_counter() - began, 1)}
    record.add(benchmark, {**key, "image_size": size}, disturbance=max(noise, disturbance()), **measured)
    return measured


def write_network(folder: Path, variant: str) -> None:
    """Deploy weights, random but such that the activations keep their size, in torch's shapes, for everyone."""
    import repvgg_zoo

    random_state = np.random.RandomState(0)
    network = repvgg_zoo.create(variant, deploy=True)
    arrays = {}
    for key, array in network.state_dict().items():
        fan_in = array[0, 0].size * array.shape[1] if array.ndim == 4 else array[0, 0].size if array.ndim == 5 else 0
        scale = (2 / fan_in) ** 0.5 if fan_in and array.ndim > 1 else 0.02
        arrays[key] = (scale * random_state.standard_normal(array.shape)).astype(np.float32)
    repvgg_zoo.save_checkpoint(folder / f"{variant}.safetensors", arrays, layout="official")


def compete(folder: Path, key: Dict[str, Any], names: List[str], bursts: int) -> Dict[str, Any]:
    """What each contender takes for one image, or why it did not run."""
    cores = sorted(os.sched_getaffinity(0))[-key["threads"] :]
    processes = {name: Contender(name, cores, folder) for name in names}
    try:
        for contender in processes.values():
            contender.load(folder / f"{key['variant']}.safetensors", key["threads"])
        check(processes, folder)
        order = [name for name in names if not processes[name].failed]
        shuffle = random.Random(0)
        for burst in range(bursts):
            shuffle.shuffle(order)
            for name in order:
                if name != NOT_RACING or burst % 4 == 0:
                    processes[name].burst()
        return {name: contender.result(key["batch"]) for name, contender in processes.items()}
    finally:
        for contender in processes.values():
            contender.close()


def check(processes: Dict[str, Contender], folder: Path) -> None:
    """Holds everyone's logits against those of the first that has any; who is off does not race."""
    reference = None
    for contender in processes.values():
        if contender.failed:
            continue
        logits = np.load(contender.logits)
        if reference is None:
            reference = logits
        contender.error = float(np.abs(logits - reference).max() / np.abs(reference).max())
        if not (contender.error <= BOUND and np.isfinite(logits).all()):
            contender.failed = f"its logits are {contender.error:.1e} off"


class Contender:
    """One process that runs one network on command; see ``contenders.serve``."""

    def __init__(self, name: str, cores: Sequence[int], folder: Path) -> None:
        self.name, self.failed, self.error = name, "", 0.0
        self.images, self.logits = folder / "images.npy", folder / f"{name}.npy"
        self.medians: List[float] = []
        self.runs, self.warm = 1, False
        self.loaded: Dict[str, Any] = {}
        is_ours = name in OUR_PROCESSES
        python = sys.executable if is_ours else peers_python()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if is_ours else peers_environment()
        environment.update(REPVGG_ZOO_HOME=str(folder / "cache"), OMP_NUM_THREADS=str(len(cores)))
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.runtimes.serve", name, json.dumps(cores)],
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
        """A few runs; where they are quick, one more goes before that does not count."""
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
            "ms": spread([median / batch for median in self.medians]),
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


def summary(key: Dict[str, Any], row: Dict[str, Any]) -> str:
    """One line for the terminal."""
    found = {name: f"{one['ms']['median']:.1f}" if "ms" in one else "failed" for name, one in row["contenders"].items()}
    cells = ", ".join(f"{name} {text}" for name, text in found.items())
    return f"{key['variant']}, batch {key['batch']}, {key['threads']} threads, ms per image: {cells}"


if __name__ == "__main__":
    main()
