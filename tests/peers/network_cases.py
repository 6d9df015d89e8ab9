"""The networks that are compared with the peers' (imported by both sides, so it imports neither framework)."""

from __future__ import annotations

from typing import Dict, NamedTuple, Tuple


class Case(NamedTuple):
    variant: str
    publisher: str
    encoding: str
    image_size: int = 64

    @property
    def name(self) -> str:
        return f"{self.variant}.{self.publisher}"

    @property
    def image_sizes(self) -> Dict[str, Tuple[int, int]]:
        """The sizes of the images, by the name of the file that has them and their logits."""
        sizes = {f"{self.name}.npz": (self.image_size, self.image_size)}
        if self.image_size == 224:
            sizes[f"{self.name}.small.npz"] = (96, 128)
        return sizes


# All 15 variants, each publisher, and both of torch's encodings; some at the size that they are used at.
CASES = [
    Case("RepVGG_A0", "timm", "safetensors", 224),
    Case("RepVGG_A1", "timm", "torch_zip"),
    Case("RepVGG_A2", "timm", "torch_zip"),
    Case("RepVGG_B0", "timm", "torch_legacy"),
    Case("RepVGG_B1", "timm", "torch_legacy"),
    Case("RepVGG_B1g4", "timm", "torch_zip", 224),
    Case("RepVGG_B2", "timm", "safetensors"),
    Case("RepVGG_B2g4", "timm", "torch_legacy"),
    Case("RepVGG_B3", "timm", "safetensors"),
    Case("RepVGG_B3g4", "timm", "safetensors"),
    Case("RepVGG_D2se", "timm", "safetensors", 224),
    Case("RepVGG_A0", "official", "torch_legacy"),
    Case("RepVGG_B1g2", "official", "torch_legacy", 224),
    Case("RepVGG_B2g2", "official", "torch_legacy"),
    Case("RepVGG_B3g2", "official", "torch_zip"),
    Case("RepVGGplus_L2pse", "official", "torch_legacy", 224),
    Case("RepVGG_A0", "openmmlab", "torch_legacy"),
    Case("RepVGG_B1g2", "openmmlab", "torch_legacy"),
    Case("RepVGG_D2se", "openmmlab", "torch_legacy"),
    Case("RepVGG_A0", "zcls", "torch_zip"),
    Case("RepVGG_D2se", "zcls", "torch_zip"),
    Case("RepVGG_A0", "paddleclas", "paddle"),
    Case("RepVGG_B1g2", "paddleclas", "paddle"),
    Case("RepVGG_D2se", "paddleclas", "paddle"),
]
