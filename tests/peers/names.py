"""The official repository's state dict with the keys and shapes of other publishers, from their code."""

from __future__ import annotations

import re
from typing import Any, Dict

import torch

State = Dict[str, torch.Tensor]


def openmmlab(state: State) -> Dict[str, Any]:
    """mmpretrain: a backbone and a head, other branch names, and the dict that its publishing tool leaves."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^stage0\.", "backbone.stem.", key)
        key = re.sub(r"^stage(\d)\.", r"backbone.stage_\1.", key)
        key = re.sub(r"\.rbr_(dense|1x1)\.bn\.", r".rbr_\1.norm.", key)
        for official, publisher in (
            ("rbr_dense", "branch_3x3"),
            ("rbr_1x1", "branch_1x1"),
            ("rbr_identity", "branch_norm"),
        ):
            key = key.replace(official, publisher)
        key = key.replace(".se.down.", ".se_layer.conv1.conv.").replace(".se.up.", ".se_layer.conv2.conv.")
        renamed[key.replace("linear.", "head.fc.")] = value
    return {"meta": {"mmcls_version": "0.15.0", "epoch": 120}, "state_dict": renamed}


def zcls(state: State) -> Dict[str, Any]:
    """ZCls: each block is the first part of a pair whose second is SE, made of linear layers."""
    renamed = {}
    for key, value in state.items():
        match = re.match(r"(stage0|stage\d\.\d+)\.(.*)", key)
        if not match:
            renamed[key.replace("linear.", "head.fc.")] = value
            continue
        block, rest = match.groups()
        squeeze = re.match(r"se\.(down|up)\.(weight|bias)", rest)
        if squeeze:
            place = {"down": 0, "up": 2}[squeeze.group(1)]
            renamed[f"backbone.{block}.1.excitation.{place}.{squeeze.group(2)}"] = (
                value.flatten(1) if value.ndim > 1 else value
            )
        else:
            renamed[f"backbone.{block}.0.{rest}"] = value
    return {"model": renamed}


def paddleclas(state: State) -> State:
    """PaddleClas: other names for the running statistics, no counters, and the head transposed."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        key = key.replace("running_mean", "_mean").replace("running_var", "_variance")
        renamed[key] = value.T.contiguous() if key == "linear.weight" else value
    return renamed
