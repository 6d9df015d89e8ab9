"""RepVGG in torch for variants that timm lacks, written from the paper and the description of the official code.

Plain and slow on purpose; the state dict has the official repository's keys.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1, se: str = "") -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.rbr_dense = conv_bn(inputs, outputs, 3, stride, groups)
        self.rbr_1x1 = conv_bn(inputs, outputs, 1, stride, groups)
        if inputs == outputs and stride == 1:
            self.rbr_identity = nn.BatchNorm2d(outputs)
        if se == "before ReLU":
            self.se = SE(outputs, outputs // 16)
        if se == "after ReLU":
            self.post_se = SE(outputs, outputs // 4)
        self.fused: Optional[Sequence[Tensor]] = None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            out = F.conv2d(x, *self.fused, stride=self.stride, padding=1, groups=self.groups)
        else:
            out = self.rbr_dense(x) + self.rbr_1x1(x)
            if hasattr(self, "rbr_identity"):
                out = out + self.rbr_identity(x)
        if hasattr(self, "se"):
            out = self.se(out)
        out = F.relu(out)
        return self.post_se(out) if hasattr(self, "post_se") else out

    def reparameterize(self) -> None:
        """Fuse the branches (paper, section 3.3); timm's reparameterize_model calls this on each module."""
        per_group = self.rbr_dense.conv.in_channels // self.groups
        outputs = self.rbr_dense.conv.out_channels
        with torch.no_grad():
            kernel = folded(self.rbr_dense) + F.pad(folded(self.rbr_1x1), [1, 1, 1, 1])
            bias = shift(self.rbr_dense.bn) + shift(self.rbr_1x1.bn)
            if hasattr(self, "rbr_identity"):
                bn = self.rbr_identity
                scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
                for channel in range(outputs):
                    kernel[channel, channel % per_group, 1, 1] += scale[channel]
                bias = bias + shift(bn)
        self.fused = (kernel, bias)


class SE(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.up = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Stage(nn.Module):
    def __init__(self, blocks: List[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


# Depths of the four stages, their widths, and the stem's (paper, tables 2 and 3; official code).
A, B, D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
SIZES = {
    "A0": (A, (48, 96, 192, 1280), 48),
    "A1": (A, (64, 128, 256, 1280), 64),
    "A2": (A, (96, 192, 384, 1408), 64),
    "B0": (B, (64, 128, 256, 1280), 64),
    "B1": (B, (128, 256, 512, 2048), 64),
    "B2": (B, (160, 320, 640, 2560), 64),
    "B3": (B, (192, 384, 768, 2560), 64),
    "D2": (D, (160, 320, 640, 2560), 64),
}


def repvgg(size: str, groups: int = 1, se: str = "") -> nn.Module:
    """RepVGG; ``groups`` holds for every second layer, where the stem is layer 0, and not for the last stage."""
    depths, widths, inputs = SIZES[size]
    parts: Dict[str, nn.Module] = {"stage0": Block(3, inputs, 2, se=se)}
    layer = 0
    for number, (depth, outputs) in enumerate(zip(depths, widths), 1):
        blocks = []
        for position in range(depth):
            layer += 1
            grouped = layer % 2 == 0 and number < 4
            blocks.append(Block(inputs, outputs, 1 if position else 2, groups if grouped else 1, se))
            inputs = outputs
        parts[f"stage{number}"] = nn.Sequential(*blocks)
    return Network(parts, widths[-1], [])


def repvggplus_l2pse() -> nn.Module:
    """RepVGGplus: D2's sizes, stage 3 in halves, SE after ReLU, and three auxiliary heads."""
    parts: Dict[str, nn.Module] = {"stage0": Block(3, 64, 2, se="after ReLU")}
    rows = (
        ("stage1", 8, 64, 160, 2),
        ("stage2", 14, 160, 320, 2),
        ("stage3_first", 12, 320, 640, 2),
        ("stage3_second", 12, 640, 640, 1),
        ("stage4", 1, 640, 2560, 2),
    )
    for name, depth, inputs, outputs, stride in rows:
        blocks = [Block(inputs, outputs, stride, se="after ReLU")]
        blocks += [Block(outputs, outputs, 1, se="after ReLU") for _ in range(depth - 1)]
        parts[name] = Stage(blocks)
    return Network(parts, 2560, [("stage1_aux", 160), ("stage2_aux", 320), ("stage3_first_aux", 640)])


class Network(nn.Module):
    def __init__(self, parts: Dict[str, nn.Module], features: int, heads: Sequence) -> None:
        super().__init__()
        self.order = list(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self.linear = nn.Linear(features, 1000)
        for name, channels in heads:
            downsample = conv_bn(channels, channels, 3, 2, 1)
            head = nn.Sequential(downsample, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
            self.add_module(name, head)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return self.linear(x.mean((2, 3)))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    result = nn.Sequential()
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    result.add_module("conv", conv)
    result.add_module("bn", nn.BatchNorm2d(outputs))
    return result


def folded(branch: nn.Sequential) -> Tensor:
    bn = branch.bn
    return branch.conv.weight * (bn.weight / torch.sqrt(bn.running_var + bn.eps))[:, None, None, None]


def shift(bn: nn.BatchNorm2d) -> Tensor:
    return bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
