"""Writes networks of peers in the publishers' exact formats, with their logits (run by `./dev test-peers`).

Usage: write_network_files.py FOLDER. For each case it writes VARIANT.CASE.<suffix>, a file with random weights and BN
statistics under the publisher's own keys, and VARIANT.CASE.npz: the input, and the logits in both forms.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import names
import numpy as np
import reference
import timm
import torch
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import nn

State = Dict[str, torch.Tensor]


class Case(NamedTuple):
    variant: str
    publisher: str
    build: Callable[[], nn.Module]
    rename: Callable[[State], Any]
    save: Callable[[Any, Path], None]
    image_size: int = 64


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        torch.manual_seed(0)
        network = randomized(case.build()).eval()
        stem = folder / f"{case.variant}.{case.publisher}"
        case.save(case.rename(network.state_dict()), stem)
        image = torch.randn(2, 3, case.image_size, case.image_size)
        with torch.no_grad():
            train = network(image).numpy()
            deploy = reparameterize_model(network, inplace=True)(image).numpy()
        np.savez(f"{stem}.npz", image=image.numpy(), train=train, deploy=deploy)
        print(f"wrote {stem.name}, logits up to {np.abs(train).max():.3g}", flush=True)


def cases() -> List[Case]:
    """All 15 variants, each publisher, and both of torch's encodings; five at the size that they are used at."""

    def timms(name: str) -> Callable[[], nn.Module]:
        return lambda: timm.create_model(f"repvgg_{name}")

    def ours(size: str, groups: int = 1, se: str = "") -> Callable[[], nn.Module]:
        return lambda: reference.repvgg(size, groups, se)

    return [
        Case("RepVGG_A0", "timm", timms("a0"), dict, safetensors, 224),
        Case("RepVGG_A1", "timm", timms("a1"), dict, torch_zip),
        Case("RepVGG_A2", "timm", timms("a2"), dict, torch_zip),
        Case("RepVGG_B0", "timm", timms("b0"), dict, torch_legacy),
        Case("RepVGG_B1", "timm", timms("b1"), dict, torch_legacy),
        Case("RepVGG_B1g4", "timm", timms("b1g4"), dict, torch_zip, 224),
        Case("RepVGG_B2", "timm", timms("b2"), dict, safetensors),
        Case("RepVGG_B2g4", "timm", timms("b2g4"), dict, torch_legacy),
        Case("RepVGG_B3", "timm", timms("b3"), dict, safetensors),
        Case("RepVGG_B3g4", "timm", timms("b3g4"), dict, safetensors),
        Case("RepVGG_D2se", "timm", timms("d2se"), dict, safetensors, 224),
        Case("RepVGG_A0", "official", ours("A0"), dict, torch_legacy),
        Case("RepVGG_B1g2", "official", ours("B1", 2), dict, torch_legacy, 224),
        Case("RepVGG_B2g2", "official", ours("B2", 2), dict, torch_legacy),
        Case("RepVGG_B3g2", "official", ours("B3", 2), dict, torch_zip),
        Case("RepVGGplus_L2pse", "official", reference.repvggplus_l2pse, dict, torch_legacy, 224),
        Case("RepVGG_A0", "openmmlab", ours("A0"), names.openmmlab, torch_legacy),
        Case("RepVGG_B1g2", "openmmlab", ours("B1", 2), names.openmmlab, torch_legacy),
        Case("RepVGG_D2se", "openmmlab", ours("D2", se="before ReLU"), names.openmmlab, torch_legacy),
        Case("RepVGG_A0", "zcls", ours("A0"), names.zcls, torch_zip),
        Case("RepVGG_D2se", "zcls", ours("D2", se="before ReLU"), names.zcls, torch_zip),
        Case("RepVGG_A0", "paddleclas", ours("A0"), names.paddleclas, paddle),
        Case("RepVGG_B1g2", "paddleclas", ours("B1", 2), names.paddleclas, paddle),
        Case("RepVGG_D2se", "paddleclas", ours("D2", se="before ReLU"), names.paddleclas, paddle),
    ]


def safetensors(state: State, stem: Path) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, f"{stem}.safetensors")


def torch_zip(state: Any, stem: Path) -> None:
    torch.save(OrderedDict(state), f"{stem}.pth")


def torch_legacy(state: Any, stem: Path) -> None:
    torch.save(OrderedDict(state), f"{stem}.pth", _use_new_zipfile_serialization=False)


def paddle(state: State, stem: Path) -> None:
    import paddle

    paddle.save({key: paddle.to_tensor(value.numpy()) for key, value in state.items()}, f"{stem}.pdparams")


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
