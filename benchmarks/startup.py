"""Startup latency: imports, listings, the first logits of a published checkpoint, the demo and re-parameterization.

``python -m benchmarks.startup`` starts each command in a new process, in turn, and takes medians, with warm caches. The
import is counted without the interpreter's own start, the first logits without its end. They are those of
RepVGG_A0.timm with random weights, which a mirror has in place of timm's, and which are cached; ONNX Runtime reads
the fused network from another file. `to_deploy` of RepVGG_B3 is compared with timm's fusion in torch, both after a
warm-up call.
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
from typing import Dict, List, Optional, Sequence, Tuple

from .results_file import ROOT, Results, background_load, peers_environment, peers_python, summarize

BARE = "a bare interpreter"
PROCESSOR = "first logits of RepVGG_A0: first start on a processor"
CHECKPOINT = "first logits of RepVGG_A0: first start with a checkpoint"
LATER = "first logits of RepVGG_A0: later starts"
ONNX_RUNTIME = "first logits of RepVGG_A0: ONNX Runtime"
FIRST_LOGITS = """
import os, numpy, repvgg_zoo
model = repvgg_zoo.compile("RepVGG_A0.timm")
model(numpy.zeros(model.shape, "float32"))
os._exit(0)
"""
ONNX_LOGITS = """
import os, numpy, onnxruntime
session = onnxruntime.InferenceSession("deploy.onnx", providers=["CPUExecutionProvider"])
session.run(None, dict(images=numpy.zeros((1, 3, 224, 224), "float32")))
os._exit(0)
"""
COMMANDS: Dict[str, Sequence[str]] = {
    BARE: [sys.executable, "-c", "pass"],
    "import repvgg_zoo": [sys.executable, "-c", "import repvgg_zoo"],
    "list_models() after the import": [sys.executable, "-c", "import repvgg_zoo; repvgg_zoo.list_models()"],
    "repvgg-zoo list": [sys.executable, "-m", "repvgg_zoo", "list"],
    PROCESSOR: [sys.executable, "-c", FIRST_LOGITS],
    CHECKPOINT: [sys.executable, "-c", FIRST_LOGITS],
    LATER: [sys.executable, "-c", FIRST_LOGITS],
    ONNX_RUNTIME: ["{peers}", "-c", ONNX_LOGITS],
    "./dev demo": [str(ROOT / "dev"), "demo", "--output-image", "{folder}/demo.png"],
}
# What of the derived cache is deleted before a command.
REMOVED = {PROCESSOR: ("*",), CHECKPOINT: ("weights-*", "check-*")}
# The command whose seconds are subtracted, if any, and the upper bound in seconds.
TARGETS = {
    "import repvgg_zoo": (BARE, 0.030),
    "list_models() after the import": ("import repvgg_zoo", 0.080),
    "repvgg-zoo list": (None, 0.25),
    CHECKPOINT: (None, 0.5),
    LATER: (None, 0.35),
    "./dev demo": (None, 5.0),
}
TO_DEPLOY = "to_deploy of RepVGG_B3: ours over timm's"

WRITE_CHECKPOINT = """
import pathlib, sys, repvgg_zoo
from repvgg_zoo.hub.filenames import cache_filename
folder = pathlib.Path(sys.argv[1])
file = repvgg_zoo.model_info("RepVGG_A0").checkpoint("timm").file
network = repvgg_zoo.create("RepVGG_A0")
network.eval()
repvgg_zoo.save_checkpoint(folder / cache_filename(file), network, layout="timm")
repvgg_zoo.save_checkpoint(folder / "deploy.safetensors", repvgg_zoo.to_deploy(network, check=False), layout="official")
"""
WRITE_ONNX = """
import sys, onnx
from safetensors.numpy import load_file
from benchmarks.runtimes.networks import layers
from benchmarks.runtimes.onnx_network import onnx_network
network = layers(load_file(sys.argv[1] + "/deploy.safetensors"))
onnx.save(onnx_network(network, (1, 3, 224, 224)), sys.argv[1] + "/deploy.onnx")
"""
FUSION_OURS = """
import json, sys, time, megengine
from repvgg_zoo import create, to_deploy
times = []
for _ in range(int(sys.argv[1]) + 1):
    network = create("RepVGG_B3")
    megengine._full_sync()
    start = time.perf_counter()
    to_deploy(network, inplace=True, check=False)
    megengine._full_sync()
    times.append(time.perf_counter() - start)
print(json.dumps(times[1:]))
"""
FUSION_TORCH = """
import json, sys, time, timm
from timm.utils.model import reparameterize_model
times = []
for _ in range(int(sys.argv[1]) + 1):
    network = timm.create_model("repvgg_b3").eval()
    start = time.perf_counter()
    reparameterize_model(network, inplace=True)
    times.append(time.perf_counter() - start)
print(json.dumps(times[1:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = Results.resume(options.results, "startup")
    if results.rows_of("startup"):
        print("startup: measured already")
        return
    time_commands(results, options.rounds)
    time_fusion(results, max(3, options.rounds // 3))
    for row in results.rows_of("startup"):
        print(f"{row['command']}: {row['seconds']['median'] if 'seconds' in row else row['failed']}")


def time_commands(results: Results, rounds: int) -> None:
    """Time every command in every round; the first round only warms caches."""
    times: Dict[str, List[float]] = {name: [] for name in COMMANDS}
    failed: Dict[str, str] = {}
    load, peers = background_load(), peers_python()
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as folder:
        ours = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", WRITE_CHECKPOINT, folder], env=ours, check=True)
        subprocess.run([peers, "-c", WRITE_ONNX, folder], env=peers_environment(), check=True)
        for round_ in range(rounds + 1):
            for name, command in COMMANDS.items():
                if name in failed or (name == "./dev demo" and round_ > 3):
                    continue
                for pattern in REMOVED.get(name, ()):
                    for path in Path(folder, "cache", "derived").glob(pattern):
                        path.unlink()
                seconds, problem = timed([part.format(folder=folder, peers=peers) for part in command], folder)
                if problem:
                    failed[name] = problem
                elif round_:
                    times[name].append(seconds)
    load = max(load, background_load())
    for name in COMMANDS:
        if name in failed:
            results.add("startup", {"command": name}, failed=failed[name])
            continue
        results.add("startup", {"command": name}, background_load=load, seconds=summarize(times[name]))
        if name in TARGETS:
            base, bound = TARGETS[name]
            value = statistics.median(times[name]) - (statistics.median(times[base]) if base else 0)
            target = f"{name}, seconds over {base}" if base else f"{name}, seconds"
            results.add("targets", {"of": "startup", "target": target}, value=round(value, 3), bound=bound)


def timed(command: Sequence[str], folder: str) -> Tuple[float, Optional[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REPVGG_ZOO_HOME": f"{folder}/cache"}
    if FIRST_LOGITS in command:
        # The registry knows no digest of this file; the first one is kept.
        environment.update(REPVGG_ZOO_MIRROR=folder, REPVGG_ZOO_ALLOW_UNVERIFIED="1")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or Python's own cache would never be warm
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        return seconds, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return seconds, None


def time_fusion(results: Results, rounds: int) -> None:
    """Time the re-parameterization of B3, without the check that ours does by default and timm does not have."""
    ours = [sys.executable, "-c", FUSION_OURS, str(rounds)]
    torch = [peers_python(), "-c", FUSION_TORCH, str(rounds)]
    medians = []
    for name, command, environment in (
        ("to_deploy of RepVGG_B3, in place, without the check", ours, {**os.environ, "PYTHONPATH": str(ROOT)}),
        ("timm's reparameterize_model of repvgg_b3, in place", torch, peers_environment()),
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            results.add("startup", {"command": name}, failed=(done.stderr.strip().splitlines() or ["no output"])[-1])
            continue
        seconds = json.loads(done.stdout.splitlines()[-1])
        medians.append(statistics.median(seconds))
        results.add("startup", {"command": name}, seconds=summarize(seconds))
    if len(medians) == 2:
        results.add(
            "targets", {"of": "startup", "target": TO_DEPLOY}, value=round(medians[0] / medians[1], 3), bound=1.1
        )


if __name__ == "__main__":
    main()
