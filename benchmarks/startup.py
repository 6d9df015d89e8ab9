"""What a user waits for besides downloads and inference: imports, listings, the demo, re-parameterising.

``python -m benchmarks.startup`` starts each command afresh, in turn, and takes medians, with warm caches.
An import counts over a bare interpreter's start. `to_deploy` of RepVGG_B3 is held against the same fusion by timm in
torch, both with one call before that does not count.
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

from .results_file import ROOT, Record, disturbance, peers_environment, peers_python, spread

BARE = "a bare interpreter"
COMMANDS: Dict[str, Sequence[str]] = {
    BARE: [sys.executable, "-c", "pass"],
    "import repvgg_zoo": [sys.executable, "-c", "import repvgg_zoo"],
    "list_models() after the import": [sys.executable, "-c", "import repvgg_zoo; repvgg_zoo.list_models()"],
    "repvgg-zoo list": [sys.executable, "-m", "repvgg_zoo", "list"],
    "./dev demo": [str(ROOT / "dev"), "demo", "--picture", "{folder}/demo.png"],
}
# Over which other command the seconds count, if any, and the most that they should be.
BOUNDS = {
    "import repvgg_zoo": (BARE, 0.030),
    "list_models() after the import": ("import repvgg_zoo", 0.060),
    "repvgg-zoo list": (None, 0.25),
    "./dev demo": (None, 5.0),
}
TO_DEPLOY = "to_deploy of RepVGG_B3: ours over timm's"

FUSION_OURS = """
import json, sys, time, megengine
from repvgg_zoo import create, to_deploy
found = []
for _ in range(int(sys.argv[1]) + 1):
    network = create("RepVGG_B3")
    megengine._full_sync()
    began = time.perf_counter()
    to_deploy(network, inplace=True, check=False)
    megengine._full_sync()
    found.append(time.perf_counter() - began)
print(json.dumps(found[1:]))
"""
FUSION_TORCH = """
import json, sys, time, timm
from timm.utils.model import reparameterize_model
found = []
for _ in range(int(sys.argv[1]) + 1):
    network = timm.create_model("repvgg_b3").eval()
    began = time.perf_counter()
    reparameterize_model(network, inplace=True)
    found.append(time.perf_counter() - began)
print(json.dumps(found[1:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    record = Record.resume(options.results, "waiting")
    if record.of("waiting"):
        print("waiting: measured already")
        return
    time_commands(record, options.rounds)
    time_fusion(record, max(3, options.rounds // 3))
    for row in record.of("waiting"):
        print(f"{row['command']}: {row['seconds']['median'] if 'seconds' in row else row['failed']}")


def time_commands(record: Record, rounds: int) -> None:
    """Every command in every round, in turn; the first round only warms caches."""
    found: Dict[str, List[float]] = {name: [] for name in COMMANDS}
    failed: Dict[str, str] = {}
    noise = disturbance()
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as folder:
        for round_ in range(rounds + 1):
            for name, command in COMMANDS.items():
                if name in failed or (name == "./dev demo" and round_ > 3):
                    continue
                seconds, problem = timed([part.format(folder=folder) for part in command], folder)
                if problem:
                    failed[name] = problem
                elif round_:
                    found[name].append(seconds)
    noise = max(noise, disturbance())
    for name in COMMANDS:
        if name in failed:
            record.add("waiting", {"command": name}, failed=failed[name])
            continue
        record.add("waiting", {"command": name}, disturbance=noise, seconds=spread(found[name]))
        if name in BOUNDS:
            base, bound = BOUNDS[name]
            value = statistics.median(found[name]) - (statistics.median(found[base]) if base else 0)
            question = f"{name}, seconds over {base}" if base else f"{name}, seconds"
            record.add("bounds", {"question": question}, value=round(value, 3), bound=bound)


def timed(command: Sequence[str], folder: str) -> Tuple[float, Optional[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REPVGG_ZOO_HOME": f"{folder}/cache"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or a cache of Python's own would never be warm
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        return seconds, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return seconds, None


def time_fusion(record: Record, rounds: int) -> None:
    """Re-parameterising B3, without the check that ours makes by default and timm has not."""
    ours = [sys.executable, "-c", FUSION_OURS, str(rounds)]
    torch = [peers_python(), "-c", FUSION_TORCH, str(rounds)]
    medians = []
    for name, command, environment in (
        ("to_deploy of RepVGG_B3, in place, without the check", ours, {**os.environ, "PYTHONPATH": str(ROOT)}),
        ("timm's reparameterize_model of repvgg_b3, in place", torch, peers_environment()),
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            record.add("waiting", {"command": name}, failed=(done.stderr.strip().splitlines() or ["no output"])[-1])
            continue
        seconds = json.loads(done.stdout.splitlines()[-1])
        medians.append(statistics.median(seconds))
        record.add("waiting", {"command": name}, seconds=spread(seconds))
    if len(medians) == 2:
        record.add("bounds", {"question": TO_DEPLOY}, value=round(medians[0] / medians[1], 3), bound=1.1)


if __name__ == "__main__":
    main()
