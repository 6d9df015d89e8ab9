"""Speed of a training step on the CPU: ours against torch, in the same run, with BN frozen and with BN training.

``python -m benchmarks.training`` times RepVGG_A0 at batch 16 on two threads in the same way as
``benchmarks.inference``: whole steps of the same task from the same weights, SGD included. The losses after two steps
must agree. torch runs timm's network in its eager mode. MegEngine's own step, which takes some 60 times as long, is
timed with ``--runtimes "ours, BN frozen;megengine eager, BN frozen"``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np

from .inference import run_interleaved
from .results_file import Results, background_load

RUNTIMES = ("torch, BN frozen", "ours, BN frozen", "torch, BN train", "ours, BN train")
MAX_ERROR = 2e-3  # of the loss
BOUNDS = {"frozen": 1.0, "train": 3.5}  # times of torch's, which ours must not exceed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="A0")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runtimes", default=";".join(RUNTIMES), help="separated by ;")
    parser.add_argument("--bursts", type=int, default=12, help="steps of each")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = Results.resume(options.results, "training")
    key = {
        "variant": f"RepVGG_{options.variant}",
        "batch": options.batch,
        "threads": options.threads,
        "image_size": options.image_size,
    }
    row = results.find("training", key) or measure(results, key, options.runtimes.split(";"), options.bursts)
    print_row(key, row["runtimes"])


def measure(results: Results, key: Dict[str, Any], names: Sequence[str], bursts: int) -> Dict[str, Any]:
    """Return the row of this key, which is measured and written."""
    import repvgg_zoo

    size = key["image_size"]
    shape = (key["batch"], repvgg_zoo.model_info(key["variant"]).architecture.in_chans, size, size)
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as name:
        folder = Path(name)
        write_network(folder / f"{key['variant']}.safetensors", key["variant"])
        np.save(folder / "images.npy", np.random.RandomState(1).standard_normal(shape).astype(np.float32))
        load = background_load()
        start = time.perf_counter()
        runtimes = run_interleaved(
            folder, key, list(names), bursts, "benchmarks.runtimes.train", agreements(names), MAX_ERROR
        )
    measured = {"runtimes": runtimes, "wall_s": round(time.perf_counter() - start, 1)}
    results.add("training", key, background_load=max(load, background_load()), **measured)
    return measured


def agreements(names: Sequence[str]) -> List[Sequence[str]]:
    """Return the names whose losses must agree."""
    return [[name for name in names if name.endswith(bn)] for bn in BOUNDS]


def write_network(path: Path, variant: str) -> None:
    """Write a train-form network whose activations keep their scale, with and without the statistics of the batch."""
    import repvgg_zoo

    random_state = np.random.RandomState(0)
    arrays = {}
    for key, array in repvgg_zoo.create(variant).state_dict().items():
        if key.endswith("running_var"):
            array = random_state.uniform(0.5, 2, array.shape)
        elif key.endswith(("bn.weight", "rbr_identity.weight")):
            array = random_state.uniform(0.4, 0.6, array.shape)
        elif key.endswith(("bn.bias", "rbr_identity.bias", "running_mean")):
            array = random_state.normal(0, 0.1, array.shape)
        elif "conv" in key:
            array = array * 1.7  # from torch's initialization to one that keeps the variance
        arrays[key] = array.astype(np.float32)
    repvgg_zoo.save_checkpoint(path, arrays, layout="timm")


def print_row(key: Dict[str, Any], runtimes: Dict[str, Any]) -> None:
    """Print the time of a step for each runtime, and the ratios with their bounds."""
    print(", ".join(f"{name} {value}" for name, value in key.items()), flush=True)
    for name, cell in runtimes.items():
        print(f"  {name}: {cell['failed'] if 'failed' in cell else format_step(cell, key['batch'])}")
    for bn, bound in BOUNDS.items():
        pair = [runtimes.get(f"{name}, BN {bn}", {}).get("ms") for name in ("ours", "torch")]
        if all(pair):
            ratios = [pair[0][statistic] / pair[1][statistic] for statistic in ("median", "min")]
            print(f"  ours / torch, BN {bn}: {ratios[0]:.2f} (of the minima {ratios[1]:.2f}), at most {bound}")


def format_step(cell: Dict[str, Any], batch: int) -> str:
    """Format the times of a step, which are stored for one image."""
    median, minimum = (cell["ms"][statistic] * batch / 1000 for statistic in ("median", "min"))
    return f"{median:.2f} s a step (at least {minimum:.2f}), {cell['resident_mib']} MiB"


if __name__ == "__main__":
    main()
