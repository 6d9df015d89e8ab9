"""Speed of int8 on the CPU: ours against ONNX Runtime's quantization, on ONNX Runtime and on OpenVINO, in the same run.

``python -m benchmarks.int8`` measures in the same way as ``benchmarks.inference``. Every runtime calibrates on the same
random images, and everything but the first convolution and the head is quantized. ONNX Runtime's model has unsigned
activations, signed weights for each channel, and QDQ nodes, its fastest on x86. Errors are relative to float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .inference import format_row, measure
from .results_file import Results

RUNTIMES = ("onnxruntime", "openvino", "ours", "onnxruntime int8", "openvino int8", "ours int8")
VARIANTS = ("A0", "B1", "B1g4")
SETTINGS = ("1x1", "1x2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--settings", default=",".join(SETTINGS), help="batch x threads, such as 1x1,8x2")
    parser.add_argument("--bursts", type=int, default=20)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = Results.resume(options.results, "int8")
    for name in options.variants.split(","):
        for setting in options.settings.split(","):
            batch, threads = (int(text) for text in setting.split("x"))
            key = {"variant": f"RepVGG_{name}", "batch": batch, "threads": threads}
            row = measure(results, "int8", key, RUNTIMES, options.bursts)
            print(format_row(key, row), flush=True)


if __name__ == "__main__":
    main()
