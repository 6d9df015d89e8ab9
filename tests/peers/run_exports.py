"""Run what we export in the runtimes that it is for (run by `./dev test-peers`).

It reads requests from standard input, a JSON object a line: ``model`` is an .onnx file, or a .pth file in timm's layout
of ``variant``; ``data`` is a NPZ file with ``image`` and the expected outputs under the name ``form``. For each it
prints an object with the errors, relative to the outputs' scale, by the name of the check.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Callable, Dict

import numpy as np
import onnx
import onnxruntime
import openvino
import timm
import torch


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        with np.load(request["data"]) as data:
            image, expected = data["image"], data[request["form"]]
        check = check_onnx if request["model"].endswith(".onnx") else check_timm
        print(json.dumps(check(request, image, expected)), flush=True)


def check_onnx(request: Any, image: Any, expected: Any) -> Dict[str, float]:
    path = request["model"]
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    runs: Dict[str, Callable[[Any], Any]] = {
        "ONNX Runtime": lambda x: session.run(["logits"], {"input": x})[0],
        "OpenVINO": lambda x: compiled(x)["logits"],
    }
    # Batches of 1, 2 and 3 images.
    batches = {1: [1], 2: [0, 1], 3: [1, 0, 1]}
    return {
        f"{name}, batch {size}": relative(expected[indices], run(np.ascontiguousarray(image[indices])))
        for name, run in runs.items()
        for size, indices in batches.items()
    }


def check_timm(request: Any, image: Any, expected: Any) -> Dict[str, float]:
    network = timm.create_model(request["variant"].lower()).eval()
    network.load_state_dict(torch.load(request["model"], weights_only=True), strict=True)
    network.load_state_dict(torch.load(request["model"], weights_only=True, mmap=True), strict=True)
    with torch.no_grad():
        return {"timm": relative(expected, network(torch.from_numpy(image)).numpy())}


def relative(expected: Any, actual: Any) -> float:
    assert expected.shape == actual.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
