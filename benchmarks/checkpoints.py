"""How fast a checkpoint of B3 gets from the page cache into arrays: ours, safetensors' own reader, and torch.

``python -m benchmarks.checkpoints`` writes RepVGG_B3 (123 M parameters in train form, 493 MB) with random weights as
safetensors, as a MegEngine pickle and under timm's keys, then reads each in turn, several rounds. Every reader ends
with the sum of every array, so that lazily mapped ones are read as well; `reading` is without that. torch runs in the
peers' environment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

import numpy as np

from .results_file import peers_environment, peers_python

# The reader in the other interpreter: writes a file of its own once, then reads it several times.
TORCH = """
import json, sys, time, torch
from safetensors.torch import load_file
folder, rounds = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.save(load_file(folder + "/timm.safetensors"), folder + "/timm.pth")
times = []
for _ in range(rounds + 1):
    start = time.perf_counter()
    state = torch.load(folder + "/timm.pth", mmap=True, weights_only=True)
    read = time.perf_counter()
    total = sum(float(value.sum()) for value in state.values())
    times.append([read - start, time.perf_counter() - start])
print(json.dumps(times[1:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        results = run_interleaved(folder, rounds)
        results["torch.load(mmap, weights_only)"] = by_torch(folder, rounds)
    print("| reader | reading ms | with touching all ms |\n|---|---|---|")
    for reader, runs in results.items():
        if runs:
            read, touched = (1000 * statistics.median(run[part] for run in runs) for part in (0, 1))
            print(f"| {reader} | {read:.1f} | {touched:.1f} |")


def write_files(folder: Path) -> None:
    import repvgg_zoo

    network = repvgg_zoo.create("RepVGG_B3")
    repvgg_zoo.save_checkpoint(folder / "canonical.safetensors", network)
    repvgg_zoo.save_checkpoint(folder / "canonical.pkl", network)
    repvgg_zoo.save_checkpoint(folder / "timm.safetensors", network, layout="timm")


def run_interleaved(folder: Path, rounds: int) -> Dict[str, List[List[float]]]:
    from safetensors.numpy import load_file

    from repvgg_zoo.checkpoints import load_checkpoint

    readers: Mapping[str, Callable[[], Mapping[str, Any]]] = {
        "safetensors.numpy.load_file": lambda: load_file(folder / "canonical.safetensors"),
        "load_checkpoint, our safetensors": lambda: load_checkpoint(folder / "canonical.safetensors").state_dict,
        "load_checkpoint, MegEngine pickle": lambda: load_checkpoint(folder / "canonical.pkl").state_dict,
        "load_checkpoint, timm's safetensors": lambda: load_checkpoint(folder / "timm.safetensors").state_dict,
    }
    results: Dict[str, List[List[float]]] = {name: [] for name in readers}
    for round_ in range(rounds + 1):
        for name, read in readers.items():
            start = time.perf_counter()
            arrays = read()
            done = time.perf_counter()
            sum(float(np.sum(array)) for array in arrays.values())
            if round_:
                results[name].append([done - start, time.perf_counter() - start])
            del arrays
    return results


def by_torch(folder: Path, rounds: int) -> List[List[float]]:
    command = [peers_python(), "-c", TORCH, str(folder), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, env=peers_environment(), check=False)
    if done.returncode != 0:
        print(f"torch is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return []
    result: List[List[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
