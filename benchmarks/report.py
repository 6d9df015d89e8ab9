"""Generates docs/performance.md and its figures from the results; `./dev bench report`.

Each section is of the newest results that have it, and says on which machine and at which commit they were measured.
The figures are drawn by ``benchmarks.plots`` in the peers' environment, which has matplotlib.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence, Tuple

from repvgg_zoo._text import pluralize

from .results_file import RESULTS, ROOT, Results, Row, peers_environment, peers_python

PAGE = ROOT / "docs" / "performance.md"
BENCHMARKS = ("inference", "int8", "scaling", "evaluate", "training", "loading", "startup")
PEERS = ("torch", "torch channels-last", "onnxruntime", "openvino")
COLUMNS = ("ours", *PEERS, "megengine eager")
INT8_COLUMNS = ("ours int8", "onnxruntime int8", "openvino int8")
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "megengine eager": "MegEngine eager"}
# A row is provisional if other programs used more of the machine than this just before or after it.
MAX_BACKGROUND_LOAD = 0.10

FIGURES = {
    "accuracy": "Top-1 of each variant (paper) against milliseconds for one image, for each runtime",
    "ratio": "Ours over the best peer for each variant and setting; left of 1 ours is faster",
    "scaling": "Milliseconds against the batch and against the image size, for each runtime",
}

SUMMARY = """\
The time of `repvgg_zoo.compile` for one image over that of the fastest of torch, ONNX Runtime and OpenVINO on the same
cores: below 1, ours is faster than all of them."""

INTRODUCTION = """\
## How it was measured

The cases of a table ran in turn, so that background load affects all of them alike. Other machines give other figures
and other ratios. To measure yours:"""

COMMANDS = """\
```sh
./dev bench                                             # all of it, a good hour
./dev bench inference --variants A0,B1 --settings 1x2   # a part: see --help
./dev bench report                                      # this page
```"""

MACHINE = """\
Measured on {date} at commit `{commit}` on {cores} cores of an {cpu}
({instructions}), {memory_gib} GiB, {system}, with {versions}."""

INFERENCE = """\
The deploy form in float32 with random weights, from NumPy array to NumPy array; the same weights, images, threads and
cores for every runtime. Each runtime has its own process, which is stopped while another one runs. Before anything is
timed, all logits must agree within 1e-4 of their scale. torch runs a plain `Sequential` in inference mode, ONNX Runtime
its default settings, OpenVINO its latency hint in float32; *ours* is `repvgg_zoo.compile`.

Milliseconds for one image, medians of bursts. The last column is ours over the best of torch, ONNX Runtime and
OpenVINO."""

INT8 = """\
The same networks with int8 weights and activations, in the same way. The peers run the model of ONNX Runtime's own
quantization (QDQ, unsigned activations, signed weights for each channel), *ours* is what `repvgg_zoo.quantize` returns;
all calibrate on the same images, and the first convolution and the head stay float. *Error* is relative to the scale of
the float32 logits; random weights lose more than trained ones. OpenVINO and ours use AMX where the processor has it."""

EVALUATE = """\
From JPEG files of 500 x 375 pixels to logits: decoded, preprocessed, and computed in batches of 16 on two cores. *Ours*
is what `repvgg_zoo.evaluate` runs; the plain loop is `preprocess` and `compile` with two threads; MegEngine's
DataLoader feeds the same compiled network, torch's the network in torch. They take turns, each in its own processes."""

TRAINING = """\
A whole step of fine-tuning on the CPU: forward and backward pass, and the update of all parameters by SGD. torch runs
timm's network in its eager mode, from the same weights; the losses after two steps agree. With *BN frozen*, BN layers
keep their running statistics. Memory is that of the process."""

LOADING = """\
RepVGG_B3 (493 MB in train form, 444 MB in deploy form) from files in the publishers' own formats, page cache warm, each
time in a new process after the imports, until every page of every weight was touched (listing the tensors is not
counted, for ours as for torch). *Cached* means that an earlier call left converted weights in the cache; *second load*
is in the same process; *memory* is what the process grew by, over the size of the weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="one file of results; by default the newest for each section")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--no-figures", action="store_true", help="do not draw the figures again")
    options = parser.parse_args()
    # The date comes first in the names.
    files = [options.results] if options.results else sorted(RESULTS.glob("*.json"))
    records = [Results.read(path) for path in files]
    sections = newest(records)
    if not sections:
        raise SystemExit("no results yet: run ./dev bench")
    figures = options.page.parent / "performance"
    if not options.no_figures:
        draw(sections, figures)
    options.page.write_text(page(records, sorted(file.stem for file in figures.glob("*.svg"))), encoding="utf-8")
    print(f"wrote {options.page} from {', '.join(sorted({str(results.path) for results in sections.values()}))}")


def newest(all_results: Sequence[Results]) -> Dict[str, Results]:
    """Return the last of these results that have rows, for each benchmark."""
    return {benchmark: results for benchmark in BENCHMARKS for results in all_results if results.rows_of(benchmark)}


def draw(sections: Mapping[str, Results], folder: Path) -> None:
    for benchmark in ("inference", "scaling"):
        if benchmark in sections:
            path = sections[benchmark].path.resolve()
            command = [peers_python(), "-m", "benchmarks.plots", str(path), str(folder.resolve()), benchmark]
            subprocess.run(command, env=peers_environment(), cwd=ROOT, check=True)


def page(records: Sequence[Results], figures: Sequence[str]) -> str:
    """Return the whole page in Markdown: a section has the newest figures, the summary those of every processor."""
    sections = newest(records)
    parts = [
        "<!-- Generated by `./dev bench report` from benchmarks/results: edit benchmarks/report.py. -->",
        "# Performance",
        *summary(records),
        INTRODUCTION,
        COMMANDS,
    ]
    for benchmark, write in zip(BENCHMARKS, (inference, int8, scaling, evaluate, training, loading, startup)):
        if benchmark in sections:
            results = sections[benchmark]
            title, *rest = write(results.rows_of(benchmark), figures)
            parts += [title, *origin(results, benchmark), *rest]
    return "\n\n".join([*parts, *targets(sections)]) + "\n"


def origin(results: Results, benchmark: str) -> List[str]:
    """Where, when and with what a section was measured, and whether the machine was busy."""
    rows = results.rows_of(benchmark)
    values = {
        **results.machine,
        "instructions": ", ".join(results.machine["instructions"]),
        "versions": versions(results, rows),
        "commit": results.commits.get(benchmark, "unknown"),
    }
    parts = [MACHINE.format(**values)]
    busy = [row for row in rows if row.get("background_load", 0) > MAX_BACKGROUND_LOAD]
    if busy:
        parts.append(
            f"**These figures are provisional:** other programs used more than {MAX_BACKGROUND_LOAD:.0%} of this "
            f"machine during {len(busy)} of {len(rows)} rows."
        )
    return parts


def versions(results: Results, rows: Sequence[Row]) -> str:
    packages: Dict[str, str] = {}
    for row in rows:
        for cell in row.get("runtimes", {}).values():
            packages.update(cell.get("versions", {}))
    packages.update({name: text for name, text in results.machine["versions"].items() if name != "python"})
    return ", ".join(f"{name} {text}" for name, text in sorted(packages.items()))


# The summary ---------------------------------------------------------------------------------------------------------


def summary(records: Sequence[Results]) -> List[str]:
    """The time of ours over that of the best peer, in one line for each kind of row, and how many targets are met."""
    lines = []
    for benchmark, precision in (("inference", "float32"), ("int8", "int8")):
        for (batch, threads, cpu), rows in sorted(rows_by_setting(records, benchmark).items()):
            ratios = [value for value in map(RATIOS[benchmark], rows) if value == value]
            if ratios:
                what = f"[{precision}](#{benchmark}), batch {batch}, {pluralize(threads, 'thread')}"
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                lines.append([what, f"{geometric_mean(ratios):.2f}", spread, str(len(ratios)), cpu])
    if not lines:
        return []
    sections = newest(records)
    met = [row["value"] <= row["bound"] for benchmark in sections for row in target_rows(sections, benchmark)]
    text = f"{sum(met)} of the {len(met)} [targets](#targets) of these results are met." if met else ""
    head = ["ours / best peer", "geometric mean", "range", "variants", "processor"]
    return ["## Summary", SUMMARY, table(head, lines), *filter(None, [text])]


def rows_by_setting(records: Sequence[Results], benchmark: str) -> Dict[Tuple[int, int, str], List[Row]]:
    """Return the newest rows of each processor by batch, threads and processor."""
    newest_of = {results.machine["cpu"]: results for results in records if results.rows_of(benchmark)}
    settings: Dict[Tuple[int, int, str], List[Row]] = {}
    for cpu, results in newest_of.items():
        for row in results.rows_of(benchmark):
            settings.setdefault((row["batch"], row["threads"], cpu), []).append(row)
    return settings


# The sections: a title, then the rest ------------------------------------------------------------------------------


def inference(rows: Sequence[Row], figures: Sequence[str]) -> List[str]:
    parts = ["## Inference", INFERENCE]
    parts += [figure(name, figures) for name in ("accuracy", "ratio") if name in figures]
    notes: List[str] = []
    for batch, threads in sorted({(row["batch"], row["threads"]) for row in rows}):
        chosen = [row for row in rows if (row["batch"], row["threads"]) == (batch, threads)]
        bursts = min((cell["ms"]["samples"] for row in chosen for cell in timed_fully(row)), default=0)
        parts.append(f"### Batch {batch}, {pluralize(threads, 'thread')}")
        lines = [[row["variant"], *cells(row, notes), format_ratio(ratio(row))] for row in chosen]
        head = ["variant", *(TITLES.get(name, name) for name in COLUMNS), "ours / best peer"]
        parts.append(table(head, lines))
        parts.append(f"At least {bursts} bursts each.")
    parts += bounds(rows)
    if notes:
        parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
    return parts


def bounds(rows: Sequence[Row]) -> List[str]:
    """The ratios of all rows in three figures, against the project's own targets."""
    kinds: Dict[str, List[float]] = {"dense": [], "grouped or with SE": []}
    for row in rows:
        dense = not any(mark in row["variant"] for mark in ("g2", "g4", "se"))
        kinds["dense" if dense else "grouped or with SE"].append(ratio(row))
    both = [value for values in kinds.values() for value in values]
    if not all(both) or any(value != value for value in both) or not all(kinds.values()):
        return []
    lines = [
        [f"the worst of {len(values)} rows that are {kind}", f"{max(values):.2f}", f"{bound:.2f}"]
        for (kind, values), bound in zip(kinds.items(), (0.6, 0.65))
    ]
    lines.append([f"the geometric mean of all {len(both)} rows", f"{geometric_mean(both):.2f}", "0.50"])
    return ["### All rows", table(["ours / best peer", "measured", "target: at most"], lines)]


def cells(row: Row, notes: List[str]) -> List[str]:
    """A cell for each runtime; the reason why one has no figure is added to the notes."""
    texts = []
    for name in COLUMNS:
        cell = row["runtimes"].get(name, {"failed": "not selected"})
        if "ms" in cell:
            texts.append(f"{cell['ms']['median']:.1f}")
        else:
            note = f"{TITLES.get(name, name)}: {cell['failed']}"
            if note not in notes:
                notes.append(note)
            texts.append(f"failed ({notes.index(note) + 1})")
    return texts


def timed_fully(row: Row) -> List[Mapping[str, Any]]:
    """The runtimes that take part in every burst."""
    return [cell for name, cell in row["runtimes"].items() if "ms" in cell and name != "megengine eager"]


def ratio(row: Row, own: str = "ours", peers: Sequence[str] = PEERS) -> float:
    """Ours over the best peer; nan where one side is missing."""
    runtimes = row["runtimes"]
    times = [runtimes[name]["ms"]["median"] for name in peers if "ms" in runtimes.get(name, {})]
    if not times or "ms" not in runtimes.get(own, {}):
        return float("nan")
    value: float = runtimes[own]["ms"]["median"] / min(times)
    return value


def int8_ratio(row: Row) -> float:
    return ratio(row, INT8_COLUMNS[0], INT8_COLUMNS[1:])


RATIOS: Mapping[str, Callable[[Row], float]] = {"inference": ratio, "int8": int8_ratio}


def format_ratio(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def int8(rows: Sequence[Row], figures: Sequence[str]) -> List[str]:
    lines = []
    for row in rows:
        measured = row["runtimes"]
        times = {name: cell["ms"]["median"] for name, cell in measured.items() if "ms" in cell}
        texts = [f"{times[name]:.1f}" if name in times else "failed" for name in (*INT8_COLUMNS, "ours")]
        errors = [f"{measured[name]['error']:.1e}" if name in times else "-" for name in INT8_COLUMNS]
        case = f"{row['variant']}, {pluralize(row['threads'], 'thread')}"
        lines.append([case, *texts, format_ratio(int8_ratio(row)), *errors])
    head = ["variant", "ours", "ONNX Runtime", "OpenVINO", "ours, float32", "ours / best peer"]
    return ["## int8", INT8, table([*head, "our error", "ONNX Runtime's error", "OpenVINO's error"], lines)]


def evaluate(rows: Sequence[Row], figures: Sequence[str]) -> List[str]:
    lines = []
    for row in rows:
        speeds = {
            name: cell["images_per_second"]["median"] for name, cell in row["loops"].items() if "failed" not in cell
        }
        for name, cell in row["loops"].items():
            text = f"{speeds[name]:.1f}" if name in speeds else f"failed: {cell['failed']}"
            cpu = f"{cell['cpu_ms']['median']:.1f}" if name in speeds else "-"
            share = format_ratio(speeds["ours"] / speeds[name]) if {"ours", name} <= set(speeds) else "-"
            lines.append([row["variant"], name, text, cpu, share])
    return [
        "## Evaluating",
        EVALUATE,
        table(["variant", "loop", "images/s", "CPU ms for one image", "ours / it"], lines),
    ]


def training(rows: Sequence[Row], figures: Sequence[str]) -> List[str]:
    lines = []
    for row in rows:
        case = (
            f"{row['variant']}, batch {row['batch']}, {row['image_size']} pixels, {pluralize(row['threads'], 'thread')}"
        )
        steps = {name: cell["ms"]["median"] for name, cell in row["runtimes"].items() if "ms" in cell}
        for name, cell in row["runtimes"].items():
            runtime, bn = name.split(", ")
            torch = steps.get(f"torch, {bn}", float("nan"))
            seconds = f"{steps[name] * row['batch'] / 1000:.2f}" if name in steps else f"failed: {cell['failed']}"
            share = format_ratio(steps.get(name, float("nan")) / torch)
            lines.append([case, bn, runtime, seconds, share, f"{cell.get('resident_mib', float('nan')):.0f}"])
    head = ["network", "BN", "runtime", "seconds for a step", "its time / torch's", "memory in MiB"]
    return ["## Fine-tuning", TRAINING, table(head, lines)]


def scaling(rows: Sequence[Row], figures: Sequence[str]) -> List[str]:
    parts = [
        "## Scaling",
        f"{rows[0]['variant']}: milliseconds for one image against the batch, and against the image size.",
    ]
    if "scaling" in figures:
        parts.append(figure("scaling", figures))
    names = [name for name in COLUMNS if any(name in row["runtimes"] for row in rows)]
    lines = []
    for row in sorted(rows, key=lambda row: (row["threads"], row["batch"], row["image_size"])):
        cells_of_row = [row["runtimes"].get(name, {}) for name in names]
        texts = [f"{cell['ms']['median']:.1f}" if "ms" in cell else "failed" for cell in cells_of_row]
        lines.append([str(row["threads"]), str(row["batch"]), str(row["image_size"]), *texts, format_ratio(ratio(row))])
    head = ["threads", "batch", "pixels", *(TITLES.get(name, name) for name in names), "ours / best peer"]
    return [*parts, table(head, lines)]


def loading(rows: Sequence[Row], figures: Sequence[str]) -> List[str]:
    lines = []
    for row in rows:
        if "failed" in row:
            lines.append([row["case"], f"failed: {row['failed']}", "", ""])
            continue
        second = f"{row['second_load']['median']:.3f}" if "second_load" in row else ""
        memory = f"{row['memory']['median']:.2f}" if "memory" in row else ""
        lines.append([row["case"], f"{row['seconds']['median']:.3f}", second, memory])
    return ["## Loading", LOADING, table(["case", "seconds", "second load", "memory / weights"], lines)]


def startup(rows: Sequence[Row], figures: Sequence[str]) -> List[str]:
    lines = []
    for row in rows:
        text = f"{row['seconds']['median']:.3f}" if "seconds" in row else f"failed: {row['failed']}"
        lines.append([row["command"], text])
    return ["## Startup latency", table(["command", "seconds"], lines)]


def targets(sections: Mapping[str, Results]) -> List[str]:
    """The project's own targets, and whether these results meet them."""
    lines = []
    for benchmark in sections:
        for row in target_rows(sections, benchmark):
            met = "yes" if row["value"] <= row["bound"] else "**no**"
            lines.append([row["target"], f"{row['value']:.3g}", f"{row['bound']:g}", met])
    if not lines:
        return []
    return ["## Targets", table(["target", "measured", "at most", "met"], lines)]


def target_rows(sections: Mapping[str, Results], benchmark: str) -> List[Row]:
    return [row for row in sections[benchmark].rows_of("targets") if row["of"] == benchmark]


def figure(name: str, figures: Sequence[str]) -> str:
    """The figure, and the one for dark pages if there is one; furo shows one of the two."""
    dark = f"{name}-dark"
    if dark not in figures:
        return f"![{FIGURES[name]}](performance/{name}.svg)"
    modes = (("only-light", name), ("only-dark", dark))
    blocks = (f"```{{image}} performance/{of}.svg\n:class: {mode}\n:alt: {FIGURES[name]}\n```" for mode, of in modes)
    return "\n\n".join(blocks)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows)


if __name__ == "__main__":
    main()
