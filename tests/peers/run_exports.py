"""Read what we write with the programs that it is for (started by `./dev test-peers`).

It reads requests from standard input, a JSON object a line. With ``model``, an .onnx file, they are those of
run_onnxruntime.py, and OpenVINO and onnx's own checker take part. With ``state``, a .pth file, the network of ``case``
is built by its publisher's code and loads it. With ``ncnn``, an .onnx file, ncnn runs what its converter makes of that;
the answer has the errors of the outputs. With ``export``, the arguments of ``repvgg_zoo.export``, the file is
exported here, where its runtimes are installed; the answer has the report's checks, or the error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping

import ncnn
import numpy as np
import onnx
import openvino
import run_onnxruntime
import torch
from network_cases import CASES
from write_network_files import build

import repvgg_zoo
from repvgg_zoo.exporters.onnx import OPENVINO_CONFIG


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        (answer,) = (answer for kind, answer in ANSWERS.items() if kind in request)
        print(json.dumps(answer(request)), flush=True)


def run_model(request: Any) -> Dict[str, float]:
    path = request["model"]
    onnx.checker.check_model(path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(path), check_type=True, strict_mode=True, data_prop=True)
    compiled = openvino.Core().compile_model(path, "CPU", OPENVINO_CONFIG)

    def run(image: Any) -> Mapping[str, Any]:
        results = compiled(image)
        return {output.any_name: results[output] for output in compiled.outputs}

    return run_onnxruntime.check(request, {"ONNX Runtime": run_onnxruntime.load(path), "OpenVINO": run})


def load_state(request: Any) -> float:
    (case,) = (case for case in CASES if case.name == request["case"])
    network = build(case).eval()
    network.load_state_dict(torch.load(request["state"], weights_only=True), strict=True)
    network.load_state_dict(torch.load(request["state"], weights_only=True, mmap=True), strict=True)
    with np.load(request["data"]) as data, torch.no_grad():
        return run_onnxruntime.relative(data["train"], network(torch.from_numpy(data["image"])).numpy())


def run_in_ncnn(request: Any) -> List[float]:
    path = Path(request["ncnn"])
    with np.load(request["data"]) as data:
        image, expected = data["image"], [data[name] for name in request["outputs"]]
    shape = ",".join(map(str, image.shape))
    pnnx = Path(sys.executable).with_name("pnnx")
    command = [pnnx, path, f"inputshape=[{shape}]", "fp16=0"]
    subprocess.run(command, check=True, cwd=path.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    network = ncnn.Net()
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.load_param(str(path.with_suffix(".ncnn.param")))
    network.load_model(str(path.with_suffix(".ncnn.bin")))
    extractor = network.create_extractor()
    extractor.input("in0", ncnn.Mat(image[0]))
    outputs = [np.array(extractor.extract(f"out{index}")[1])[None] for index in range(len(expected))]
    return list(map(run_onnxruntime.relative, expected, outputs))


def export(request: Any) -> List[Any]:
    try:
        return [list(check) for check in repvgg_zoo.export(**request["export"]).checks]
    except repvgg_zoo.errors.ZooError as error:
        return [type(error).__name__, error.message, error.hint]


ANSWERS = {"model": run_model, "state": load_state, "ncnn": run_in_ncnn, "export": export}

if __name__ == "__main__":
    main()
