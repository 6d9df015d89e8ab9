"""How long it takes to load a network from a file into memory, and how much memory: ours and torch in the same run.

``python -m benchmarks.loading`` writes RepVGG_B3 (123 M parameters in train form, 493 MB) with random weights in the
publishers' own formats, and loads it in turn with ours and with torch. Each load is in a new process after the imports,
from a warm page cache, and ends when every page of every weight was touched; a second load in the same process follows.
A figure counts only if the network's logits agree with timm's.
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
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from .results_file import Results, background_load, peers_environment, peers_python, resident, summarize
from .runtimes.touch_pages import touch_pages

NAME = "bench/RepVGG_B3"


class Case(NamedTuple):
    """What is loaded, and by whom."""

    runtime: str  # "ours", "torch", or "read" for the file's digest alone
    form: str = ""
    source: str = ""  # the checkpoint's tag, or the file
    cache: str = ""  # the cache folder
    removed: Optional[str] = None  # what of the cache is deleted before


DEPLOY, TORCH_DEPLOY = "ours, deploy form, cached", "torch, plain deploy network: empty build, mmap, load_state_dict"
TRAIN, TORCH_TRAIN = "ours, train form, cached", "torch, timm's repvgg_b3: empty build, mmap, load_state_dict"
FIRST_TIMM, READ_TIMM = "ours, deploy form, first load of timm's safetensors", "read and SHA-256 of timm's safetensors"
FIRST_OFFICIAL, READ_OFFICIAL = "ours, deploy form, first load of a torch file", "read and SHA-256 of the torch file"
FETCHED = "ours, deploy form, timm's safetensors fetched into an empty cache"
CASES = {
    DEPLOY: Case("ours", "deploy", "timm", "cached"),
    TORCH_DEPLOY: Case("torch", "deploy"),
    TRAIN: Case("ours", "train", "timm", "cached"),
    TORCH_TRAIN: Case("torch", "train"),
    FIRST_TIMM: Case("ours", "deploy", "timm", "first", "derived"),
    READ_TIMM: Case("read", source="timm.safetensors"),
    FIRST_OFFICIAL: Case("ours", "deploy", "official", "first", "derived"),
    READ_OFFICIAL: Case("read", source="official.pth"),
    FETCHED: Case("ours", "deploy", "timm", "fetched", "."),
}
# The quotient of two cases' medians, and its upper bound.
TARGETS = (
    ("deploy form, cached: ours over torch", DEPLOY, TORCH_DEPLOY, 1.0),
    ("train form, cached: ours over torch", TRAIN, TORCH_TRAIN, 0.6),
    ("first load of timm's safetensors over read and SHA-256", FIRST_TIMM, READ_TIMM, 2.5),
    ("first load of an official torch file over read and SHA-256", FIRST_OFFICIAL, READ_OFFICIAL, 2.5),
)
MAX_ERROR = 1e-4  # of the logits, relative to their scale
# Bytes of all float32 tensors of a form, BN statistics included.
WEIGHTS = {"train": 492_741_024, "deploy": 443_843_488}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(*json.loads(options.child))))
        return
    results = Results.resume(options.results, "loading")
    if results.rows_of("loading"):
        print("loading: measured already")
        return
    with tempfile.TemporaryDirectory(prefix="repvgg-zoo-bench-") as name:
        folder = Path(name)
        write_files(folder)
        load = background_load()
        samples = run_interleaved(folder, options.rounds)
        write_rows(results, samples, max(load, background_load()))


def write_files(folder: Path) -> None:
    """Write the publishers' files with timm and torch, and a registry file that names them."""
    command = [peers_python(), "-m", "benchmarks.runtimes.write_weights", str(folder)]
    subprocess.run(command, env=peers_environment(), check=True)
    (folder / "registry.json").write_text(json.dumps(registry(folder)))


FILES = {"timm": ("timm.safetensors", "safetensors"), "official": ("official.pth", "torch")}


def registry(
    folder: Path, variant: str = "RepVGG_B3", files: Mapping[str, Tuple[str, str]] = MappingProxyType(FILES)
) -> Dict[str, Any]:
    """Return a registry of a variant's files, their names and formats by tag, as ``bench/VARIANT``."""
    import repvgg_zoo

    model = repvgg_zoo.model_info(variant)
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
    entry = {
        "family": model.family,
        "architecture": {
            "num_blocks": list(model.architecture.num_blocks),
            "width_multiplier": list(model.architecture.width_multiplier),
        },
        "params": {"train": model.params.train, "deploy": model.params.deploy},
        "macs": {"train": model.macs.train, "deploy": model.macs.deploy},
        "checkpoints": checkpoints,
    }
    return {"schema": 1, "variants": {f"bench/{variant}": entry}}


def run_interleaved(folder: Path, rounds: int) -> Dict[str, List[Dict[str, Any]]]:
    """Run every case in every round, so that background load affects all alike; round 0 fills the caches."""
    samples: Dict[str, List[Dict[str, Any]]] = {name: [] for name in CASES}
    for round_ in range(rounds + 1):
        for name, case in CASES.items():
            if case.removed:
                shutil.rmtree(folder / case.cache / case.removed, ignore_errors=True)
            sample = run(folder, case)
            if round_:
                samples[name].append(sample)
        print(f"loading: round {round_} of {rounds}", file=sys.stderr, flush=True)
    return samples


def run(folder: Path, case: Case) -> Dict[str, Any]:
    """Run one case once, in its own process: its samples, or why there are none."""
    job = json.dumps([*case[:4], str(folder)])
    command, environment = [sys.executable, "-m", "benchmarks.loading", "--child", job], dict(os.environ)
    if case.runtime == "torch":
        command = [peers_python(), "-m", "benchmarks.runtimes.load", case.form, str(folder)]
        environment = peers_environment()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    sample: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if not sample.get("error", 0) <= MAX_ERROR:
        return {"failed": f"its logits are {sample['error']:.1e} off"}
    return sample


def measure(runtime: str, form: str, source: str, cache: str, folder: str) -> Dict[str, Any]:
    """In the child process: two samples of the seconds and the added memory, and the relative error of the logits."""
    if runtime == "read":
        start = time.perf_counter()
        hashlib.sha256((Path(folder) / source).read_bytes()).hexdigest()
        return {"samples": [{"seconds": time.perf_counter() - start}]}
    os.environ["REPVGG_ZOO_HOME"] = str(Path(folder) / cache)
    import megengine
    import numpy as np

    import repvgg_zoo
    from repvgg_zoo._tensors import numpy_views

    repvgg_zoo.register(json.loads((Path(folder) / "registry.json").read_text()))
    repvgg_zoo.model_info(NAME)
    create = repvgg_zoo.create  # imports its module
    megengine.Tensor(0.0).numpy()
    samples = []
    gc.collect()  # what the imports left behind is not part of loading
    for _ in range(2):
        before = resident()
        start = time.perf_counter()
        network = create(NAME, pretrained=source, deploy=form == "deploy", progress=False)
        megengine._full_sync()
        created = time.perf_counter() - start
        arrays = list(numpy_views(dict(network.named_tensors())).values())  # ``numpy()`` would copy them
        touched = touch_pages(arrays)
        samples.append({"seconds": created + touched, "touch": touched, "memory": resident() - before})
        logits = network(megengine.Tensor(np.load(f"{folder}/image.npy"))).numpy()
        del network, arrays
        megengine._full_sync()  # MegEngine frees memory in a thread of its own
    expected = np.load(f"{folder}/logits.npy")
    return {"samples": samples, "error": float(np.abs(logits - expected).max() / np.abs(expected).max())}


def write_rows(results: Results, all_samples: Dict[str, List[Dict[str, Any]]], load: float) -> None:
    """Write a row for each case and one for each target."""
    for name, samples in all_samples.items():
        failed = [sample["failed"] for sample in samples if "failed" in sample]
        if failed:
            results.add("loading", {"case": name}, failed=failed[0])
            continue
        first = [sample["samples"][0] for sample in samples]
        second = [sample["samples"][1] for sample in samples if len(sample["samples"]) > 1]
        measured = {"seconds": summarize([sample["seconds"] for sample in first])}
        if second:
            measured["touch"] = summarize([sample["touch"] for sample in first])
            measured["second_load"] = summarize([sample["seconds"] for sample in second])
            measured["memory"] = summarize([sample["memory"] / WEIGHTS[CASES[name].form] for sample in first])
        results.add("loading", {"case": name}, background_load=load, **measured)
    for target, ours, other, bound in TARGETS:
        rows = [results.find("loading", {"case": name}) or {} for name in (ours, other)]
        if all("seconds" in row for row in rows):
            ratio = rows[0]["seconds"]["median"] / rows[1]["seconds"]["median"]
            results.add("targets", {"of": "loading", "target": target}, value=round(ratio, 3), bound=bound)
    rows = [results.find("loading", {"case": name}) or {} for name, case in CASES.items() if case.runtime == "ours"]
    if all("memory" in row for row in rows):
        value = max(row["memory"]["median"] for row in rows)
        target = "memory over the weights, the worst of ours"
        results.add("targets", {"of": "loading", "target": target}, value=value, bound=1.15)


if __name__ == "__main__":
    main()
