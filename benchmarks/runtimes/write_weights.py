"""Writes RepVGG_B3 with random weights as its publishers do (``-m benchmarks.runtimes.write_weights FOLDER``).

timm.safetensors is timm's own state dict as its hub serves it; official.pth is the same weights under the official
repository's keys, in torch's zip format; deploy.pth has the fused convolutions of a plain torch network, and logits.npy
is the output of timm's network for image.npy.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Mapping

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import nn

from .networks import official_key


def main(folder: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("repvgg_b3").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales as after training
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 0.6, 0.1)
            nn.init.normal_(module.bias, 0, 0.2)
    state = network.state_dict()
    image = torch.randn(1, 3, 64, 64)
    save_file({key: value.contiguous() for key, value in state.items()}, str(folder / "timm.safetensors"))
    torch.save(state, folder / "timm.pth")
    torch.save(official(state), folder / "official.pth")
    with torch.inference_mode():
        logits = network(image)
        torch.save(official(reparameterize_model(network).state_dict()), folder / "deploy.pth")
    np.save(folder / "image.npy", image.numpy())
    np.save(folder / "logits.npy", logits.numpy())


def official(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    return OrderedDict((official_key(key), value) for key, value in state.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
