"""Loads RepVGG_B3 in torch and prints the cost as JSON (``-m benchmarks.runtimes.load deploy|train FOLDER``).

In both forms the network is built without initialization (on the meta device, then ``to_empty``), its file is mapped
with ``torch.load(mmap=True)`` and copied by ``load_state_dict``. Then every page is touched. `deploy` is a plain
Sequential, `train` is timm's network. The second sample is a second load in the same process.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import timm
import torch
from torch import nn

from benchmarks.results_file import resident

from .networks import layers
from .torch_network import torch_network, torch_state
from .touch_pages import touch_pages


def deploy(folder: Path) -> nn.Module:
    network = layers(torch.load(folder / "deploy.pth", mmap=True, weights_only=True))
    with torch.device("meta"):
        built = torch_network(network)
    return filled(built, torch_state(built, network))


def train(folder: Path) -> nn.Module:
    with torch.device("meta"):
        built = timm.create_model("repvgg_b3")
    return filled(built, torch.load(folder / "timm.pth", mmap=True, weights_only=True))


def filled(built: nn.Module, state_dict: Dict[str, Any]) -> nn.Module:
    built = built.to_empty(device="cpu")
    built.load_state_dict(state_dict)
    return built.eval()


def main(form: str, folder: Path) -> None:
    load = {"deploy": deploy, "train": train}[form]
    touch_pages([torch.zeros(4096)])
    samples: List[Dict[str, float]] = []
    gc.collect()  # as ours does
    for _ in range(2):
        before = resident()
        start = time.perf_counter()
        network = load(folder)
        loaded = time.perf_counter() - start
        tensors = list(network.state_dict().values())
        touched = touch_pages(tensors)
        samples.append({"seconds": loaded + touched, "touch": touched, "memory": resident() - before})
        error = relative_error(network, folder)
        del network, tensors
    print(json.dumps({"samples": samples, "error": error}))


def relative_error(network: nn.Module, folder: Path) -> float:
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.load(folder / "image.npy"))).numpy()
    expected = np.load(folder / "logits.npy")
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
