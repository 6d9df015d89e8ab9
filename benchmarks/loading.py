"""How long a network takes from a file to weights in memory, and how much memory: ours and torch in the same run.

``python -m benchmarks.loading`` has RepVGG_B3 (123 M parameters in train form, 493 MB) written with random weights in
the publishers' own formats, and loads it in turn with ours and with torch. Each load is in a new process with the
imports done, from a warm page cache, and ends when every page of every weight was touched; a second load follows in the
same process ("again"). No figure counts before the network's logits were held against timm's.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

from .results_file import Record, disturbance, peers_environment, peers_python, resident, spread
from .runtimes.touch import touch

NAME = "bench/RepVGG_B3"
DEPLOY, TORCH_DEPLOY = "ours, deploy form, kept", "torch, plain deploy network: meta build, mmap, assign"
TRAIN, TORCH_TRAIN = "ours, train form, kept", "torch, timm's repvgg_b3: build, mmap, copy"
FIRST_TIMM, READ_TIMM = "ours, deploy form, first load of timm's safetensors", "read and sha256 of timm's safetensors"
FIRST_OFFICIAL, READ_OFFICIAL = "ours, deploy form, first load of a torch file", "read and sha256 of the torch file"
FETCHED = "ours, deploy form, the same, fetched into an empty cache"
# name: (who, form, the checkpoint's tag or the file, its cache, what of that is removed first)
CONTENDERS = {
    DEPLOY: ("ours", "deploy", "timm", "kept", None),
    TORCH_DEPLOY: ("torch", "deploy", "", "", None),
    TRAIN: ("ours", "train", "timm", "kept", None),
    TORCH_TRAIN: ("torch", "train", "", "", None),
    FIRST_TIMM: ("ours", "deploy", "timm", "first", "native"),
    READ_TIMM: ("read", "", "timm.safetensors", "", None),
    FIRST_OFFICIAL: ("ours", "deploy", "official", "first", "native"),
    READ_OFFICIAL: ("read", "", "official.pth", "", None),
    FETCHED: ("ours", "deploy", "timm", "fetched", "."),
}
# Which quotient of two contenders' medians answers which question, and the most that it should be.
BOUNDS = (
    ("deploy form, kept: ours over torch", DEPLOY, TORCH_DEPLOY, "seconds", 1.0),
    ("deploy form, kept, again in the same process: ours over torch", DEPLOY, TORCH_DEPLOY, "again", 1.0),
    ("train form, kept: ours over torch", TRAIN, TORCH_TRAIN, "seconds", 0.6),
    ("train form, kept, again in the same process: ours over torch", TRAIN, TORCH_TRAIN, "again", 0.6),
    ("first load of timm's safetensors over read + sha256", FIRST_TIMM, READ_TIMM, "seconds", 2.5),
    ("first load of an official torch file over read + sha256", FIRST_OFFICIAL, READ_OFFICIAL, "seconds", 2.5),
)
# Bytes of all float32 tensors of a form, BN statistics included.
WEIGHTS = {"train": 492_741_024, "deploy": 443_843_488}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    record = Record.resume(options.results, "loading")
    if record.of("loading"):
        print("loading: measured already")
        return
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as name:
        folder = Path(name)
        write_files(folder)
        noise = disturbance()
        found = compete(folder, options.rounds)
        report(record, found, max(noise, disturbance()))


def write_files(folder: Path) -> None:
    """The publishers' files, by timm and torch themselves, and a registry of our own that names them."""
    command = [peers_python(), "-m", "benchmarks.runtimes.write_weights", str(folder)]
    subprocess.run(command, env=peers_environment(), check=True)
    (folder / "registry.json").write_text(json.dumps(registry(folder)))


def registry(folder: Path) -> Dict[str, Any]:
    import repvgg_zoo

    model = repvgg_zoo.model_info("RepVGG_B3")
    files = {"timm": ("timm.safetensors", "safetensors"), "official": ("official.pth", "torch")}
    checkpoints = {}
    for tag, (name, format) in files.items():
        path = folder / name
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        checkpoints[tag] = {
            "file": {"name": name, "sources": [path.as_uri()], "size": path.stat().st_size, "sha256": sha256},
            "publisher": "random weights",
            "format": format,
            "layout": tag,
            "form": "train",
            "license": "none",
            "provenance": ["a benchmark"],
            "preprocessing": {
                "image_size": 224,
                "resize": 256,
                "interpolation": "bilinear",
                "backend": "pillow",
                "color_order": "RGB",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
        }
    variant = {
        "family": "RepVGG-B",
        "architecture": {
            "num_blocks": list(model.architecture.num_blocks),
            "width_multiplier": list(model.architecture.width_multiplier),
        },
        "params": {"train": model.params.train, "deploy": model.params.deploy},
        "macs": {"train": model.macs.train, "deploy": model.macs.deploy},
        "checkpoints": checkpoints,
    }
    return {"schema": 1, "variants": {NAME: variant}}


def compete(folder: Path, rounds: int) -> Dict[str, List[Dict[str, Any]]]:
    """Every contender in every round, in turn, for a noisy neighbour disturbs all alike; round 0 fills the caches."""
    found: Dict[str, List[Dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for round_ in range(rounds + 1):
        for name, (who, form, tag, cache, removed) in CONTENDERS.items():
            if removed:
                shutil.rmtree(folder / cache / removed, ignore_errors=True)
            sample = run(folder, who, form, tag, cache)
            if round_:
                found[name].append(sample)
        print(f"loading: round {round_} of {rounds}", file=sys.stderr, flush=True)
    return found


def run(folder: Path, who: str, form: str, tag: str, cache: str) -> Dict[str, Any]:
    """One contender once, in a process of its own: its samples, or why there are none."""
    job = json.dumps({"who": who, "form": form, "tag": tag, "folder": str(folder), "cache": cache})
    command, environment = [sys.executable, "-m", "benchmarks.loading", "--child", job], dict(os.environ)
    if who == "torch":
        command = [peers_python(), "-m", "benchmarks.runtimes.load", form, str(folder)]
        environment = peers_environment()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    sample: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if not sample.get("error", 0) <= 1e-4:
        return {"failed": f"its logits are {sample['error']:.1e} off"}
    return sample


def measure(who: str, form: str, tag: str, folder: str, cache: str) -> Dict[str, Any]:
    """In the child process: two samples of the seconds and the growth of memory, and how far the logits are off."""
    if who == "read":
        began = time.perf_counter()
        hashlib.sha256((Path(folder) / tag).read_bytes()).hexdigest()
        return {"samples": [{"seconds": time.perf_counter() - began}]}
    os.environ["REPVGG_ZOO_HOME"] = str(Path(folder) / cache)
    import megengine
    import numpy as np

    import repvgg_zoo
    from repvgg_zoo._tensors import numpy_views

    repvgg_zoo.register(json.loads((Path(folder) / "registry.json").read_text()))
    repvgg_zoo.model_info(NAME)
    create = repvgg_zoo.create  # so that the import of its module is over
    megengine.Tensor(0.0).numpy()
    samples = []
    gc.collect()  # what the imports left behind is not the loading's to clear away
    for _ in range(2):
        before = resident()
        began = time.perf_counter()
        network = create(NAME, pretrained=tag, deploy=form == "deploy", progress=False)
        megengine._full_sync()
        created = time.perf_counter() - began
        arrays = list(numpy_views(dict(network.named_tensors())).values())  # ``numpy()`` would copy them
        touched = touch(arrays)
        samples.append({"seconds": created + touched, "touch": touched, "grown": resident() - before})
        logits = network(megengine.Tensor(np.load(f"{folder}/image.npy"))).numpy()
        del network, arrays
        megengine._full_sync()  # MegEngine gives memory back in a thread of its own
    expected = np.load(f"{folder}/logits.npy")
    return {"samples": samples, "error": float(np.abs(logits - expected).max() / np.abs(expected).max())}


def report(record: Record, found: Dict[str, List[Dict[str, Any]]], noise: float) -> None:
    """Writes a row for each contender and one for each question."""
    for name, samples in found.items():
        failed = [sample["failed"] for sample in samples if "failed" in sample]
        if failed:
            record.add("loading", {"contender": name}, failed=failed[0])
            continue
        first = [sample["samples"][0] for sample in samples]
        again = [sample["samples"][1] for sample in samples if len(sample["samples"]) > 1]
        measured = {"seconds": spread([sample["seconds"] for sample in first])}
        if again:
            measured["touch"] = spread([sample["touch"] for sample in first])
            measured["again"] = spread([sample["seconds"] for sample in again])
            measured["grown"] = spread([sample["grown"] / WEIGHTS[CONTENDERS[name][1]] for sample in first])
        record.add("loading", {"contender": name}, disturbance=noise, **measured)
    for question, ours, other, quantity, bound in BOUNDS:
        rows = [record.find("loading", {"contender": name}) or {} for name in (ours, other)]
        if all(quantity in row for row in rows):
            ratio = rows[0][quantity]["median"] / rows[1][quantity]["median"]
            record.add("bounds", {"question": question}, value=round(ratio, 3), bound=bound)
    grown = [record.find("loading", {"contender": name}) or {} for name in CONTENDERS if name.startswith("ours")]
    if all("grown" in row for row in grown):
        value = max(row["grown"]["median"] for row in grown)
        record.add("bounds", {"question": "memory grown over the weights, the worst of ours"}, value=value, bound=1.15)


if __name__ == "__main__":
    main()
