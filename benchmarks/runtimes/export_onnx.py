"""Exports timm's RepVGG_B3 with torch and prints the cost as JSON (``-m benchmarks.runtimes.export_onnx FOLDER``)."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import onnx  # noqa: F401  # the exporter imports it
import timm
import torch
from timm.utils.model import reparameterize_model

from benchmarks.results_file import peak_resident, resident


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")  # that this exporter is the older one
    before, cpu, start = resident(), time.process_time(), time.perf_counter()
    with torch.device("meta"):
        network = timm.create_model("repvgg_b3")
    network = network.to_empty(device="cpu")
    network.load_state_dict(torch.load(folder / "timm.pth", mmap=True, weights_only=True))
    network = reparameterize_model(network.eval(), inplace=True)
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 64, 64),),
        str(folder / "deploy.onnx"),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = (folder / "deploy.onnx").stat().st_size
    print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": peak_resident() - before, "size": size}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
