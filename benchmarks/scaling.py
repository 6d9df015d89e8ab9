"""How the time of a network scales with the batch and with the image size, for one variant, 1 and 2 threads.

``python -m benchmarks.scaling`` times RepVGG_A0 at 224 pixels for batches of 1 to 32, and one image of 160 to 448
pixels, in the same way as ``benchmarks.inference``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .inference import format_row, measure
from .results_file import Results

RUNTIMES = ("torch", "onnxruntime", "openvino", "ours")
BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (160, 192, 224, 288, 352, 448)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="A0")
    parser.add_argument("--bursts", type=int, default=20)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = Results.resume(options.results, "scaling")
    for threads in (1, 2):
        for batch, size in [(batch, 224) for batch in BATCHES] + [(1, size) for size in SIZES if size != 224]:
            key = {"variant": f"RepVGG_{options.variant}", "batch": batch, "threads": threads, "image_size": size}
            print(size, format_row(key, measure(results, "scaling", key, RUNTIMES, options.bursts)), flush=True)


if __name__ == "__main__":
    main()
