"""Milliseconds for one image on each processor that was measured, from the results of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

from benchmarks.results_file import RESULTS, Results

# A precision, the benchmark that measures it, and the name of our runtime there.
MEASURED = (("float32", "inference", "ours"), ("int8", "int8", "ours int8"))


class Timing(NamedTuple):
    """The median for one image of one variant."""

    variant: str
    precision: str
    image_size: int
    ms: float


class Setting(NamedTuple):
    """What was measured on one processor with one number of threads, one image at a time."""

    cpu: str
    threads: int
    dates: Tuple[str, ...]
    timings: Tuple[Timing, ...]


def read_settings(folder: Path = RESULTS) -> List[Setting]:
    """Return the newest timings of each processor, number of threads and precision, by processor and threads."""
    newest: Dict[Tuple[str, str], Results] = {}
    for path in sorted(folder.glob("*.json")):  # the date comes first in the names
        results = Results.read(path)
        for precision, benchmark, _ in MEASURED:
            if results.rows_of(benchmark):
                newest[results.machine["cpu"], precision] = results
    timings: Dict[Tuple[str, int], List[Timing]] = {}
    dates: Dict[Tuple[str, int], List[str]] = {}
    for precision, benchmark, runtime in MEASURED:
        for (cpu, of), results in newest.items():
            for row in results.rows_of(benchmark) if of == precision else ():
                cell = row["runtimes"].get(runtime, {})
                if row["batch"] == 1 and "ms" in cell:
                    key = (cpu, row["threads"])
                    one = Timing(row["variant"], precision, row["image_size"], cell["ms"]["median"])
                    timings.setdefault(key, []).append(one)
                    dates.setdefault(key, []).append(results.machine["date"])
    return [Setting(*key, dates=tuple(sorted(set(dates[key]))), timings=tuple(timings[key])) for key in sorted(timings)]
