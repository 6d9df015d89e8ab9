"""Run exported files in ONNX Runtime, in whichever version this interpreter has (started by `./dev test-peers`).

It reads requests from standard input, a JSON object a line: ``model`` is an .onnx file, ``data`` are NPZ files, one for
each size of images, with ``image`` and the expected outputs, and ``outputs`` their names there, by the model's names.
For each request it prints an object with the errors, relative to the outputs' scale, by the name of the check.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Callable, Dict, Mapping

import numpy as np
import onnxruntime

Run = Callable[[Any], Mapping[str, Any]]
# For each number of images, which of the two that there are.
BATCHES = {1: [1], 2: [0, 1], 3: [1, 0, 1]}


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        runs = {f"ONNX Runtime {onnxruntime.__version__}": load(request["model"])}
        print(json.dumps(check(request, runs)), flush=True)


def load(path: str) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"input": image})))


def check(request: Any, runs: Mapping[str, Run]) -> Dict[str, float]:
    errors = {}
    for path in request["data"]:
        with np.load(path) as data:
            image, expected = data["image"], {name: data[key] for name, key in request["outputs"].items()}
        for count, indices in BATCHES.items():
            for runtime, run in runs.items():
                outputs = run(np.ascontiguousarray(image[indices]))
                assert set(outputs) == set(expected)
                errors[f"{runtime}, {count} of {image.shape[1:]}"] = max(
                    relative(array[indices], outputs[name]) for name, array in expected.items()
                )
    return errors


def relative(expected: Any, actual: Any) -> float:
    assert expected.shape == actual.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
