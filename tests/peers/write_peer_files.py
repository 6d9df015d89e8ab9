"""Run by `./dev test-peers` in the environment with torch and timm: networks of theirs, saved with what they answer.

For each case it writes NAME.safetensors (random weights and BN statistics, the publisher's own keys) and NAME.npz (the
input, and the logits in the train and in the deploy form).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Callable, Dict, Tuple

import numpy as np
import reference
import timm
import torch
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import nn

# name: (who builds it, image size); timm has no g2 variants and no RepVGGplus, so those are written anew.
CASES: Dict[str, Tuple[Callable[[], nn.Module], int]] = {
    "RepVGG_A0.timm": (lambda: timm.create_model("repvgg_a0"), 224),
    "RepVGG_B1g4.timm": (lambda: timm.create_model("repvgg_b1g4"), 224),
    "RepVGG_D2se.timm": (lambda: timm.create_model("repvgg_d2se"), 224),
    "RepVGG_B1g2.official": (reference.repvgg_b1g2, 224),
    "RepVGGplus_L2pse.official_plus": (reference.repvggplus_l2pse, 224),
}


def main(folder: Path) -> None:
    torch.manual_seed(0)
    for name, (build, size) in CASES.items():
        network = randomised(build()).eval()
        save_file(
            {key: value.contiguous() for key, value in network.state_dict().items()}, folder / f"{name}.safetensors"
        )
        image = torch.randn(2, 3, size, size)
        with torch.no_grad():
            train = network(image).numpy()
            deploy = reparameterize_model(network)(image).numpy()
        np.savez(folder / f"{name}.npz", image=image.numpy(), train=train, deploy=deploy)
        print(f"wrote {name}, logits up to {np.abs(train).max():.3g}", flush=True)


def randomised(network: nn.Module) -> nn.Module:
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
