"""Loads RepVGG_B3 in torch and prints what it cost, as JSON (``-m benchmarks.runtimes.load deploy|train FOLDER``).

`deploy` is torch's quickest way: the plain network built on the meta device, its file mapped and assigned. `train` is
the ordinary one: timm's network built as it builds itself, and the mapped file copied into it. Both then touch every
page. The second sample is a second load in the same process.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Dict, List

import numpy as np
import timm
import torch
from torch import nn

from benchmarks.results_file import resident

from .networks import layers
from .torch_network import torch_network, torch_state
from .touch import touch


def deploy(folder: Path) -> nn.Module:
    network = layers(torch.load(folder / "deploy.pth", mmap=True, weights_only=True))
    with torch.device("meta"):
        built = torch_network(network)
    built.load_state_dict(torch_state(built, network), assign=True)
    return built.eval()


def train(folder: Path) -> nn.Module:
    built = timm.create_model("repvgg_b3")
    built.load_state_dict(torch.load(folder / "timm.pth", mmap=True, weights_only=True))
    return built.eval()


def main(form: str, folder: Path) -> None:
    load = {"deploy": deploy, "train": train}[form]
    touch([torch.zeros(4096)])
    samples: List[Dict[str, float]] = []
    gc.collect()  # as ours does
    for _ in range(2):
        before = resident()
        began = time.perf_counter()
        network = load(folder)
        loaded = time.perf_counter() - began
        tensors = list(network.state_dict().values())
        touched = touch(tensors)
        samples.append({"seconds": loaded + touched, "touch": touched, "grown": resident() - before})
        error = difference(network, folder)
        del network, tensors
    print(json.dumps({"samples": samples, "error": error}))


def difference(network: nn.Module, folder: Path) -> float:
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.load(folder / "image.npy"))).numpy()
    expected = np.load(folder / "logits.npy")
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
