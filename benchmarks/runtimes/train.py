"""A process that trains one network on command, as ``serve`` runs one: a run is a whole step, optimizer included.

``python -m benchmarks.runtimes.train RUNTIME CORES``. The weights are a train-form checkpoint in timm's layout. A step
is the forward pass, cross-entropy, the backward pass, and SGD with Nesterov momentum and weight decay. Its result is
the loss; loading makes two steps, so that the first result depends on gradients and updates.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np

from .serve import Array, Loaded, main, variant

CLASSES = 1000
OPTIMIZER = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
STEPS_BEFORE = 2


def labels(images: Array) -> Array:
    return np.arange(len(images), dtype=np.int64) * 7 % CLASSES


def torch(weights: Path, images: Array, threads: int, bn: str) -> Loaded:
    import timm
    import torch
    from safetensors.torch import load_file
    from torch import nn

    torch.set_num_threads(threads)
    network = timm.create_model(variant(weights).lower())
    network.load_state_dict(load_file(str(weights)))
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and bn == "frozen":
            module.eval()
    optimizer = torch.optim.SGD(network.parameters(), **OPTIMIZER)
    target = torch.from_numpy(labels(images))

    def step(images: Array) -> Array:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(torch.from_numpy(images)), target)
        loss.backward()
        optimizer.step()
        return np.array([loss.item()])

    return prepared(step, images), {"torch": torch.__version__, "timm": timm.__version__}


def ours(weights: Path, images: Array, threads: int, bn: str) -> Loaded:
    from repvgg_zoo.training.trunk import forward_features

    return megengine(weights, images, functools.partial(forward_features, bn=bn, threads=threads))


def eager(weights: Path, images: Array, threads: int, bn: str) -> Loaded:
    from repvgg_zoo.training.trunk import forward_eager

    return megengine(weights, images, functools.partial(forward_eager, bn=bn))


def megengine(weights: Path, images: Array, forward: Callable[..., Any]) -> Loaded:
    import megengine
    import megengine.functional as F
    from megengine.autodiff import GradManager
    from megengine.optimizer import SGD

    import repvgg_zoo

    network = repvgg_zoo.create(variant(weights), checkpoint=weights)
    parameters = list(network.parameters())
    manager, optimizer = GradManager().attach(parameters), SGD(parameters, **OPTIMIZER)
    target = megengine.Tensor(labels(images).astype(np.int32))

    def step(images: Array) -> Array:
        with manager:
            logits = network.linear(forward(network, megengine.Tensor(images)))
            loss = F.loss.cross_entropy(logits, target)
            manager.backward(loss)
        optimizer.step().clear_grad()
        result = np.array([float(loss.numpy())])
        megengine._full_sync()  # the update is a part of the step
        return result

    return prepared(step, images), {"megengine": megengine.__version__, "repvgg_zoo": repvgg_zoo.__version__}


def prepared(step: Callable[[Array], Array], images: Array) -> Callable[[Array], Array]:
    for _ in range(STEPS_BEFORE):
        step(images)
    return step


RUNTIMES: Dict[str, Callable[[Path, Array, int], Loaded]] = {
    f"{name}, BN {bn}": functools.partial(load, bn=bn)
    for bn in ("frozen", "train")
    for name, load in (("torch", torch), ("ours", ours), ("megengine eager", eager))
}

if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), RUNTIMES)
