"""Write networks of peers in the publishers' exact formats, with their logits (run by `./dev test-peers`).

Usage: write_network_files.py FOLDER. It reads the names of cases from standard input, a line each. For each it writes
NAME.<suffix>, a file with random weights and BN statistics under the publisher's own keys, and for each size of images
NAME.npz or NAME.small.npz: the input, and the logits in both forms; then it prints the path of the first. All of them
together take 6 GB.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict

import names
import numpy as np
import reference
import timm
import torch
from network_cases import CASES, Case
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import nn

State = Dict[str, torch.Tensor]

RENAMES = {
    "timm": dict,
    "official": dict,
    "openmmlab": names.openmmlab,
    "zcls": names.zcls,
    "paddleclas": names.paddleclas,
}
REFERENCES = {
    "RepVGG_A0": lambda: reference.repvgg("A0", 1, ""),
    "RepVGG_B1g2": lambda: reference.repvgg("B1", 2, ""),
    "RepVGG_B2g2": lambda: reference.repvgg("B2", 2, ""),
    "RepVGG_B3g2": lambda: reference.repvgg("B3", 2, ""),
    "RepVGG_D2se": lambda: reference.repvgg("D2", 1, "before ReLU"),
    "RepVGGplus_L2pse": reference.repvggplus_l2pse,
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cases = {case.name: case for case in CASES}
    for line in sys.stdin:
        print(write(cases[line.strip()], folder), flush=True)


def write(case: Case, folder: Path) -> Path:
    torch.manual_seed(0)
    network = randomized(build(case)).eval()
    path = SAVERS[case.encoding](RENAMES[case.publisher](network.state_dict()), folder / case.name)
    images = {name: torch.randn(2, 3, *size) for name, size in case.image_sizes.items()}
    with torch.no_grad():
        train = {name: network(image).numpy() for name, image in images.items()}
        deployed = reparameterize_model(network, inplace=True)
        deploy = {name: deployed(image).numpy() for name, image in images.items()}
    for name, image in images.items():
        np.savez(folder / name, image=image.numpy(), train=train[name], deploy=deploy[name])
    return path


def build(case: Case) -> nn.Module:
    if case.publisher == "timm":
        return timm.create_model(case.variant.lower())
    return REFERENCES[case.variant]()


def safetensors(state: State, stem: Path) -> Path:
    path = with_suffix(stem, "safetensors")
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def torch_zip(state: Any, stem: Path) -> Path:
    path = with_suffix(stem, "pth")
    torch.save(OrderedDict(state), path)
    return path


def torch_legacy(state: Any, stem: Path) -> Path:
    path = with_suffix(stem, "pth")
    torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=False)
    return path


def paddle(state: State, stem: Path) -> Path:
    import paddle

    path = with_suffix(stem, "pdparams")
    paddle.save({key: paddle.to_tensor(value.numpy()) for key, value in state.items()}, str(path))
    return path


def with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")


SAVERS = {"safetensors": safetensors, "torch_zip": torch_zip, "torch_legacy": torch_legacy, "paddle": paddle}


def randomized(network: nn.Module) -> nn.Module:
    """BN statistics and scales as training leaves them; scales are small enough that deep sums stay finite."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight, 0.6, 0.1)
            nn.init.normal_(part.bias, 0, 0.2)
    return network


if __name__ == "__main__":
    main(Path(sys.argv[1]))
