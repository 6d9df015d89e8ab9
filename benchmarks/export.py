"""Time and memory to write RepVGG_B3 as ONNX: ours beside torch.onnx.export, from the same file of timm's weights.

``python -m benchmarks.export`` writes timm's file (493 MB), then exports its deploy form with each in turn, in a new
process after the imports: read, fuse, write, and for ours the check of what was written. torch runs in the peers'
environment, with its exporter that needs no package beside onnx. Memory is the peak of the process over what it had
after the imports. A figure counts only if the file's logits agree with timm's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Union

from .results_file import peak_resident, peers_environment, peers_python, resident

MAX_ERROR = 1e-5  # of the logits, relative to their scale
# In the peers' environment: prints that error of deploy.onnx.
CHECK = """
import sys
import numpy as np, onnxruntime
folder = sys.argv[1]
session = onnxruntime.InferenceSession(f"{folder}/deploy.onnx", providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"input": np.load(f"{folder}/image.npy")})
expected = np.load(f"{folder}/logits.npy")
print(np.abs(logits - expected).max() / np.abs(expected).max())
"""
CHILD = {
    "ours": [sys.executable, "-m", "benchmarks.export", "--child"],
    "torch.onnx.export": ["{peers}", "-m", "benchmarks.runtimes.export_onnx"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(options.child)))
        return
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as name:
        folder = Path(name)
        run_peer("-m", "benchmarks.runtimes.write_weights", folder)
        samples = run_interleaved(folder, options.rounds)
    print("| exporter | seconds | CPU seconds | peak memory, MB | file, MB |\n| --- | ---: | ---: | ---: | ---: |")
    for exporter, runs in samples.items():
        seconds, cpu, memory, size = (
            statistics.median(run[key] for run in runs) for key in ("seconds", "cpu", "memory", "size")
        )
        print(f"| {exporter} | {seconds:.2f} | {cpu:.2f} | {memory / 1e6:.0f} | {size / 1e6:.0f} |")


def run_interleaved(folder: Path, rounds: int) -> Dict[str, List[Dict[str, float]]]:
    """Run each exporter in every round; round 0 fills the page cache."""
    samples: Dict[str, List[Dict[str, float]]] = {exporter: [] for exporter in CHILD}
    for round_ in range(rounds + 1):
        for exporter, command in CHILD.items():
            words = [word.format(peers=peers_python()) for word in command]
            environment = peers_environment() if words[0] == peers_python() else dict(os.environ)
            done = subprocess.run([*words, str(folder)], env=environment, check=True, stdout=subprocess.PIPE, text=True)
            sample = json.loads(done.stdout.splitlines()[-1])
            if round_ == 0:
                error = float(run_peer("-c", CHECK, folder))
                assert error <= MAX_ERROR, f"the logits of {exporter}'s file are {error:.1e} off"
            else:
                samples[exporter].append(sample)
    return samples


def run_peer(*arguments: Union[str, Path]) -> str:
    command = [peers_python(), *map(str, arguments)]
    return subprocess.run(command, env=peers_environment(), check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(folder: Path) -> Dict[str, Any]:
    """In the child process: export once."""
    import repvgg_zoo

    export = repvgg_zoo.export  # imports its module
    os.environ["REPVGG_ZOO_HOME"] = str(folder / "cache")
    before, cpu, start = resident(), time.process_time(), time.perf_counter()
    report = export(folder / "timm.safetensors", folder / "deploy.onnx", image_size=64)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "memory": peak_resident() - before, "size": report.size}


if __name__ == "__main__":
    main()
