"""Writes files with real PyTorch, and PaddlePaddle where it is installed, for tests/peers/test_formats.py.

Usage: write_format_files.py FOLDER. Beside each file <name>.<suffix> it writes <name>.npz with the expected arrays.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np


def tensors():
    import torch

    torch.manual_seed(0)
    base = torch.randn(6, 10, 4)
    return OrderedDict(
        weight=torch.randn(8, 4, 3, 3),
        parameter=torch.nn.Parameter(torch.randn(5)),
        half=torch.randn(7).half(),
        bfloat16=torch.randn(3, 5).bfloat16(),
        double=torch.randn(2, 3).double(),
        transposed=base.permute(2, 0, 1),
        part=base[1:4, ::3],
        shared=base,
        channels_last=torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        counter=torch.tensor(41),
        flags=torch.tensor([True, False]),
        bytes=torch.arange(9, dtype=torch.uint8),
        small=torch.arange(9, dtype=torch.int8),
        short=torch.arange(9, dtype=torch.int16),
        int=torch.arange(9, dtype=torch.int32),
        unsigned=torch.tensor([1, 65535], dtype=torch.uint16),
        empty=torch.zeros(0, 3),
        scalar=torch.tensor(1.5),
    )


def write_torch(folder: Path) -> None:
    import torch

    state = tensors()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()  # has _metadata
    optimizer_of = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(optimizer_of.parameters(), lr=0.1, momentum=0.9)
    optimizer_of(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    objects = {
        "bare": state,
        "wrapped": {"state_dict": state, "epoch": 3, "meta": {"lr": 0.1, "classes": ["a", "b"], "np": np.float64(0.5)}},
        "module": model,
        "training": {"model": model, "optimizer": optimizer.state_dict(), "best": 76.5},
        "big": {"weight": torch.arange(3_000_000, dtype=torch.float32)},
    }
    for name, value in objects.items():
        inner = value.get("state_dict", value.get("model", value))
        arrays = {key: tensor.detach() for key, tensor in inner.items()}
        arrays = {
            key: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            for key, tensor in arrays.items()
        }
        for zipped in (True, False):
            for protocol in (2, 4):
                path = folder / f"torch_{name}_{'zip' if zipped else 'legacy'}_{protocol}.pth"
                torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
                np.savez(path.with_suffix(".npz"), **arrays)


def write_paddle(folder: Path) -> None:
    import paddle

    network = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(4, 2))
    state = network.state_dict()
    for protocol in (2, 3, 4):
        paddle.save(state, str(folder / f"paddle_{protocol}.pdparams"), protocol=protocol)
        np.savez(folder / f"paddle_{protocol}.npz", **{key: value.numpy() for key, value in state.items()})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    written = 0
    for write in (write_torch, write_paddle):
        try:
            write(target)
            written += 1
        except ImportError as missing:
            print(f"not written: {missing}")
    sys.exit(0 if written else 1)
