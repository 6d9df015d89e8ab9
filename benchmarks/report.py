"""Makes docs/performance.md and its pictures from a record; `./dev bench report` takes the newest.

The pictures are drawn by ``benchmarks.plots`` in the peers' environment, which has matplotlib.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence

from .results_file import RESULTS, ROOT, Record, Row, peers_environment, peers_python

PAGE = ROOT / "docs" / "performance.md"
PEERS = ("torch", "torch channels-last", "onnxruntime", "openvino")
COLUMNS = (*PEERS, "megengine eager", "ours")
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "megengine eager": "MegEngine eager"}
# A row counts as disturbed when more of the machine than this was taken by others just before or after it.
QUIET = 0.10

PICTURES = {
    "accuracy": "Top-1 of each variant (paper) against milliseconds for one image, for each runtime",
    "ratio": "Ours over the best peer for each variant and setting; left of 1 ours is faster",
    "growth": "Milliseconds against the batch and against the size of the image, for each runtime",
}

INTRODUCTION = """\
Measured on {date} on {cores} cores of an {cpu} ({instructions}), {memory_gib} GiB, {system}, with
{versions}; {commits}.

The contenders of a table took turns, so that whatever disturbed one disturbed all. Another machine gives other figures;
quotients change less. To repeat it:"""

COMMANDS = """\
```sh
./dev bench                                             # everything, a good hour on two cores
./dev bench inference --variants A0,B1 --settings 1x2   # a part; --help tells the options
./dev bench report                                      # this page, from the newest record
```"""

INFERENCE = """\
The deploy form in float32 with random weights, NumPy array in to NumPy array out; the same weights, images, threads and
cores for everyone. Each contender is a process of its own, which is stopped while it is another's turn. Before the
clock starts, all logits must agree within 1e-4 of their scale. torch runs a plain `Sequential` in inference mode, ONNX
Runtime its default settings, OpenVINO its latency hint; *ours* is `repvgg_zoo.compile`.

Milliseconds for one image, medians of bursts. The last column is ours over the best of torch, ONNX Runtime and
OpenVINO: below 1, ours is faster than all of them."""

LOADING = """\
RepVGG_B3 (493 MB in train form, 444 MB in deploy form) from files in the publishers' own formats, page cache warm, each
time in a new process with the imports done, until every page of every weight was touched (to list the tensors first is
not counted, for ours as for torch). *Kept* means that an earlier call left native arrays in the cache; *again* is a
second load in the same process; *memory* is what the process grew by, over the size of the weights."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="the record; by default the newest")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--no-pictures", action="store_true", help="leave the pictures as they are")
    options = parser.parse_args()
    path = options.results or newest()
    record = Record.read(path)
    pictures = options.page.parent / "performance"
    if not options.no_pictures:
        command = [peers_python(), "-m", "benchmarks.plots", str(path.resolve()), str(pictures.resolve())]
        subprocess.run(command, env=peers_environment(), cwd=ROOT, check=True)
    options.page.write_text(page(record, sorted(file.stem for file in pictures.glob("*.svg"))), encoding="utf-8")
    print(f"wrote {options.page} from {path}")


def newest() -> Path:
    """The record of the latest date, which stands first in the name."""
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        raise SystemExit("nothing was measured yet: ./dev bench")
    return files[-1]


def page(record: Record, pictures: Sequence[str]) -> str:
    """The whole page in Markdown."""
    parts = [
        "<!-- Made by `./dev bench report` from a record in benchmarks/results: change benchmarks/report.py. -->",
        "# Performance",
        *introduction(record),
        *inference(record, pictures),
        *growth(record, pictures),
        *loading(record),
        *waiting(record),
        *bounds(record),
    ]
    return "\n\n".join(parts) + "\n"


def introduction(record: Record) -> List[str]:
    instructions = ", ".join(record.machine["instructions"])
    facts = {**record.machine, "instructions": instructions, "versions": versions(record), "commits": commits(record)}
    parts = [INTRODUCTION.format(**facts), COMMANDS]
    noisy = [row for row in record.rows if row.get("disturbance", 0) > QUIET]
    if noisy:
        parts.append(
            f"**Not to be relied on:** other programs took more than {QUIET:.0%} of this machine during "
            f"{len(noisy)} of the rows below, so these figures are provisional."
        )
    return parts


def versions(record: Record) -> str:
    found: Dict[str, str] = {}
    for row in record.rows:
        for contender in row.get("contenders", {}).values() if isinstance(row.get("contenders"), dict) else ():
            found.update(contender.get("versions", {}))
    found.update({name: text for name, text in record.machine["versions"].items() if name != "python"})
    return ", ".join(f"{name} {text}" for name, text in sorted(found.items()))


def commits(record: Record) -> str:
    """Which commit each section was measured at."""
    sections: Dict[str, List[str]] = {}
    for benchmark, commit in record.commits.items():
        sections.setdefault(commit, []).append(benchmark)
    return "; ".join(f"{', '.join(names)} at commit `{commit}`" for commit, names in sections.items())


# The sections ------------------------------------------------------------------------------------------------------


def inference(record: Record, pictures: Sequence[str]) -> List[str]:
    rows = record.of("inference")
    if not rows:
        return []
    parts = [
        "## Inference",
        INFERENCE,
    ]
    parts += [picture(name) for name in ("accuracy", "ratio") if name in pictures]
    notes: List[str] = []
    for batch, threads in sorted({(row["batch"], row["threads"]) for row in rows}):
        chosen = [row for row in rows if (row["batch"], row["threads"]) == (batch, threads)]
        bursts = min((spread_of(one)["samples"] for row in chosen for one in racing(row)), default=0)
        threads_text = "1 thread" if threads == 1 else f"{threads} threads"
        parts.append(f"### Batch {batch}, {threads_text}")
        lines = [[row["variant"], *cells(row, notes), quotient_text(row)] for row in chosen]
        head = ["variant", *(TITLES.get(name, name) for name in COLUMNS), "ours / best peer"]
        parts.append(table(head, lines))
        parts.append(f"At least {bursts} bursts each.")
    parts += summary(rows)
    if notes:
        parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
    return parts


def summary(rows: Sequence[Row]) -> List[str]:
    """The quotients of all rows in three figures, against the project's own targets."""
    kinds: Dict[str, List[float]] = {"dense": [], "grouped or with SE": []}
    for row in rows:
        dense = not any(mark in row["variant"] for mark in ("g2", "g4", "se"))
        kinds["dense" if dense else "grouped or with SE"].append(quotient(row))
    both = [value for values in kinds.values() for value in values]
    if not all(both) or any(value != value for value in both) or not all(kinds.values()):
        return []
    lines = [
        [f"the worst of {len(values)} rows that are {kind}", f"{max(values):.2f}", f"{most:.2f}"]
        for (kind, values), most in zip(kinds.items(), (0.9, 1.0))
    ]
    lines.append([f"the geometric mean of all {len(both)} rows", f"{statistics.geometric_mean(both):.2f}", "0.80"])
    return ["### All rows", table(["ours / best peer", "measured", "target: at most"], lines)]


def cells(row: Row, notes: List[str]) -> List[str]:
    """A cell for each contender; why one has no figure goes into the notes."""
    texts = []
    for name in COLUMNS:
        one = row["contenders"].get(name, {"failed": "not asked to run"})
        if "ms" in one:
            texts.append(f"{one['ms']['median']:.1f}")
        else:
            note = f"{TITLES.get(name, name)}: {one['failed']}"
            if note not in notes:
                notes.append(note)
            texts.append(f"failed ({notes.index(note) + 1})")
    return texts


def racing(row: Row) -> List[Mapping[str, Any]]:
    """The contenders that take part in every burst."""
    return [one for name, one in row["contenders"].items() if "ms" in one and name != "megengine eager"]


def spread_of(one: Mapping[str, Any]) -> Dict[str, Any]:
    spread: Dict[str, Any] = one["ms"]
    return spread


def quotient(row: Row) -> float:
    """Ours over the best peer; nan where one side is missing."""
    found = row["contenders"]
    peers = [found[name]["ms"]["median"] for name in PEERS if "ms" in found.get(name, {})]
    if not peers or "ms" not in found.get("ours", {}):
        return float("nan")
    value: float = found["ours"]["ms"]["median"] / min(peers)
    return value


def quotient_text(row: Row) -> str:
    value = quotient(row)
    return "-" if value != value else f"{value:.2f}"


def growth(record: Record, pictures: Sequence[str]) -> List[str]:
    rows = record.of("growth")
    if not rows:
        return []
    parts = [
        "## How the cost grows",
        f"{rows[0]['variant']}: milliseconds for one image against the batch, and against the size of one image.",
    ]
    if "growth" in pictures:
        parts.append(picture("growth"))
    names = [name for name in COLUMNS if any(name in row["contenders"] for row in rows)]
    lines = []
    for row in sorted(rows, key=lambda row: (row["threads"], row["batch"], row["image_size"])):
        one = [row["contenders"].get(name, {}) for name in names]
        texts = [f"{cell['ms']['median']:.1f}" if "ms" in cell else "failed" for cell in one]
        lines.append([str(row["threads"]), str(row["batch"]), str(row["image_size"]), *texts, quotient_text(row)])
    head = ["threads", "batch", "pixels", *(TITLES.get(name, name) for name in names), "ours / best peer"]
    return [*parts, table(head, lines)]


def loading(record: Record) -> List[str]:
    rows = record.of("loading")
    if not rows:
        return []
    lines = []
    for row in rows:
        if "failed" in row:
            lines.append([row["contender"], f"failed: {row['failed']}", "", ""])
            continue
        again = f"{row['again']['median']:.3f}" if "again" in row else ""
        grown = f"{row['grown']['median']:.2f}" if "grown" in row else ""
        lines.append([row["contender"], f"{row['seconds']['median']:.3f}", again, grown])
    return [
        "## Loading",
        LOADING,
        table(["what", "seconds", "again", "memory / weights"], lines),
    ]


def waiting(record: Record) -> List[str]:
    rows = record.of("waiting")
    if not rows:
        return []
    lines = []
    for row in rows:
        text = f"{row['seconds']['median']:.3f}" if "seconds" in row else f"failed: {row['failed']}"
        lines.append([row["command"], text])
    return ["## Waiting", table(["what", "seconds"], lines)]


def bounds(record: Record) -> List[str]:
    """The project's own targets, held or not."""
    lines = []
    for row in record.of("bounds"):
        held = "yes" if row["value"] <= row["bound"] else "**no**"
        lines.append([row["question"], f"{row['value']:.3g}", f"{row['bound']:g}", held])
    if not lines:
        return []
    return ["## Targets", table(["what", "measured", "at most", "held"], lines)]


def picture(name: str) -> str:
    return f"![{PICTURES[name]}](performance/{name}.svg)"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in row)} |" for row in rows)


if __name__ == "__main__":
    main()
