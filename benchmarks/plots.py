"""Draws the figures of the performance page with matplotlib, from .venv-bench.

Usage: ``python -m benchmarks.plots RESULTS.json FOLDER BENCHMARK...``, the benchmarks being inference and scaling.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt

Row = Dict[str, Any]

# Okabe and Ito's colors, which people with any color vision can tell apart.
STYLES = {
    "ours": ("#D55E00", "o", "repvgg_zoo"),
    "onnxruntime": ("#0072B2", "s", "ONNX Runtime"),
    "openvino": ("#009E73", "^", "OpenVINO"),
    "torch": ("#999999", "v", "torch"),
    "torch channels-last": ("#56B4E9", "D", "torch, channels-last"),
    "megengine eager": ("#CC79A7", "x", "MegEngine eager"),
}
PEERS = ("torch", "torch channels-last", "onnxruntime", "openvino")
# For light and for dark pages; the figures have no background of their own.
MODES = {"": {"text": "#000000", "grid": "#e6e6e6"}, "-dark": {"text": "#cfd0d0", "grid": "#303335"}}
TEXT_COLORS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
SETTINGS = {(1, 1): ("#E69F00", "o"), (1, 2): ("#D55E00", "s"), (8, 2): ("#0072B2", "D")}


def main(results: Path, folder: Path, benchmarks: Sequence[str], suffix: str = "svg") -> None:
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    inference, scaling_rows = ([row for row in rows if row["benchmark"] == name] for name in ("inference", "scaling"))
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update({"font.size": 9, "axes.grid": True, "axes.axisbelow": True, "savefig.transparent": True})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "repvgg_zoo"})
    for benchmark, name, draw, chosen in (
        ("inference", "accuracy", accuracy, [row for row in inference if (row["batch"], row["threads"]) == (1, 2)]),
        ("inference", "ratio", ratio, inference),
        ("scaling", "scaling", scaling, scaling_rows),
    ):
        if benchmark not in benchmarks:
            continue
        for mode, colors in MODES.items():
            path = folder / f"{name}{mode}.{suffix}"
            path.unlink(missing_ok=True)
            if chosen:
                plt.rcParams.update(dict.fromkeys(TEXT_COLORS, colors["text"]))
                plt.rcParams["grid.color"] = colors["grid"]
                figure = draw(chosen)
                figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if suffix == "svg" else None, dpi=120)
                plt.close(figure)


def accuracy(rows: Sequence[Row]) -> Any:
    """Top-1 against time: up and to the left is better."""
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    for name, (color, marker, title) in STYLES.items():
        points = sorted((ms(row, name), top1(row["variant"]), row["variant"]) for row in rows if has(row, name))
        if not points:
            continue
        times, accuracies, _ = zip(*points)
        size, layer = (7, 3) if name == "ours" else (5, 2)
        axes.plot(times, accuracies, marker, color=color, label=title, markersize=size, zorder=layer)
    below = float("-inf")
    for row in sorted(rows, key=lambda row: top1(row["variant"])):
        left = min(ms(row, name) for name in STYLES if has(row, name))
        crowded = top1(row["variant"]) - below < 0.4  # its label would overlap the last one
        below = top1(row["variant"])
        axes.annotate(
            row["variant"].replace("RepVGG_", ""),
            (left, below),
            xytext=(-7, 5 if crowded else 0),
            textcoords="offset points",
            ha="right",
            va="center",
        )
    axes.margins(x=0.08)
    logarithmic(axes)
    axes.set(xlabel="milliseconds for one image (batch 1, 2 threads)", ylabel="top-1 on ImageNet, percent (paper)")
    axes.legend(loc="lower right", frameon=False)
    return figure


def ratio(rows: Sequence[Row]) -> Any:
    """Ours over the best peer, a point for each setting."""
    variants: List[str] = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.32 * len(variants)))
    for (batch, threads), (color, marker) in SETTINGS.items():
        points = []
        for row in rows:
            peers = [ms(row, name) for name in PEERS if has(row, name)]
            if (row["batch"], row["threads"]) == (batch, threads) and peers and has(row, "ours"):
                points.append((ms(row, "ours") / min(peers), variants.index(row["variant"])))
        label = f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
        axes.plot(*(zip(*points) if points else ((), ())), marker, color=color, label=label, linestyle="none")
    axes.axvline(1, color=plt.rcParams["text.color"], linewidth=1)
    axes.set_yticks(range(len(variants)), [name.replace("RepVGG_", "") for name in variants])
    axes.invert_yaxis()
    axes.set_xlim(left=min(0.6, axes.get_xlim()[0]), right=max(1.1, axes.get_xlim()[1]))
    axes.set(xlabel="our time over the best peer's (left of the line: ours is faster)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncol=3, frameon=False)
    return figure


def scaling(rows: Sequence[Row]) -> Any:
    """Time for one image against the batch and against the image size."""
    figure, (by_batch, by_size) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=False)
    for name, (color, marker, title) in STYLES.items():
        for threads, line in ((2, "-"), (1, "--")):
            chosen = [row for row in rows if row["threads"] == threads and has(row, name)]
            batches = sorted((row["batch"], ms(row, name)) for row in chosen if row["image_size"] == 224)
            sizes = sorted((row["image_size"], ms(row, name)) for row in chosen if row["batch"] == 1)
            label = f"{title}, {threads} thread{'s' if threads > 1 else ''}"
            for axes, points in ((by_batch, batches), (by_size, sizes)):
                if points:
                    axes.plot(*zip(*points), line, marker=marker, markersize=4, color=color, label=label)
    by_batch.set_xscale("log", base=2)
    batches_seen = sorted({row["batch"] for row in rows})
    by_batch.set_xticks(batches_seen, batches_seen)
    by_batch.set_ylim(bottom=0)
    by_batch.set(xlabel="batch (224 pixels)", ylabel="milliseconds for one image")
    sizes_seen = sorted({row["image_size"] for row in rows})
    by_size.set_xticks(sizes_seen, sizes_seen)
    by_size.set_ylim(bottom=0)
    by_size.set(xlabel="pixels on a side (batch 1)")
    handles, labels = by_size.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=4, frameon=False)
    figure.suptitle(rows[0]["variant"])
    return figure


def logarithmic(axes: Any) -> None:
    """A logarithmic axis with plain numbers on it."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= tick <= high]
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()


def top1(variant: str) -> float:
    """The paper's figure, from the registry, which needs no MegEngine."""
    import repvgg_zoo

    paper = repvgg_zoo.model_info(variant).paper
    return paper.top1 if paper else float("nan")


def ms(row: Row, name: str) -> float:
    value: float = row["runtimes"][name]["ms"]["median"]
    return value


def has(row: Row, name: str) -> bool:
    return "ms" in row["runtimes"].get(name, {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
