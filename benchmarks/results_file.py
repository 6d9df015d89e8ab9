"""What was measured, where and when: one JSON file that grows row by row, so that an interrupted run can continue.

A row is one figure's dict, identified by its benchmark and key. The file also describes the machine and says at which
commit each benchmark ran; rows of another machine, or of another day, are written to another file.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from repvgg_zoo._cpu import cpu_info, cpu_name, usable_cores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Row = Dict[str, Any]


class Results:
    """The rows measured so far, in the file ``path``."""

    def __init__(
        self,
        path: Path,
        machine: Mapping[str, Any],
        rows: Sequence[Row] = (),
        commits: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.path = path
        self.machine = dict(machine)
        self.rows = list(rows)
        self.commits = dict(commits or {})

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, content["machine"], content["rows"], content["commits"])

    @classmethod
    def resume(cls, path: Optional[Path], benchmark: str) -> Results:
        """Return the results to add to: those of ``path``, or today's of this machine, with the rows that exist.

        Exits if they are of another machine of the same name, or if the rows of this benchmark were measured with
        another state of the code: a table must not mix the two.
        """
        here = machine()
        path = path or RESULTS / f"{here['date']}-{slug(here['cpu'])}.json"
        results = cls.read(path) if path.exists() else cls(path, here)
        advice = "delete it, or use another --results"
        for name in ("cpu", "cores", "instructions"):
            if results.machine[name] != here[name]:
                sys.exit(f"{path} has {name} {results.machine[name]}, and here it is {here[name]}: {advice}")
        now = commit()
        then = results.commits.setdefault(benchmark, now)
        if then.replace("-dirty", "") != now.replace("-dirty", ""):
            sys.exit(f"{path} has {benchmark} at commit {then}, and here it is {now}: {advice}")
        return results

    def find(self, benchmark: str, key: Mapping[str, Any]) -> Optional[Row]:
        for row in self.rows:
            if row["benchmark"] == benchmark and all(row.get(name) == value for name, value in key.items()):
                return row
        return None

    def rows_of(self, benchmark: str) -> List[Row]:
        return [row for row in self.rows if row["benchmark"] == benchmark]

    def add(self, benchmark: str, key: Mapping[str, Any], **measured: Any) -> None:
        """Write a row, replacing one with the same key; the file is complete at any time."""
        old = self.find(benchmark, key)
        if old is not None:
            self.rows.remove(old)
        self.rows.append({"benchmark": benchmark, **key, **measured})
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temp = self.path.with_suffix(".tmp")
        rows = ",\n".join(f"    {json.dumps(row)}" for row in self.rows)
        machine, commits = (json.dumps(part, indent=2).replace("\n", "\n  ") for part in (self.machine, self.commits))
        text = f'{{\n  "machine": {machine},\n  "commits": {commits},\n  "rows": [\n{rows}\n  ]\n}}\n'
        temp.write_text(text, encoding="utf-8")
        temp.replace(self.path)


def summarize(values: Sequence[float]) -> Dict[str, float]:
    """Return the median, the minimum and the quartiles, rounded to five digits, and the number of samples."""
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else [ordered[0]] * 3
    summary = {"median": statistics.median(ordered), "min": ordered[0], "q1": quartiles[0], "q3": quartiles[2]}
    return {**{name: float(f"{value:.5g}") for name, value in summary.items()}, "samples": len(ordered)}


# The machine ---------------------------------------------------------------------------------------------------


def machine() -> Dict[str, Any]:
    """Return what a reader needs to judge the figures; no name of a host or user."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "instructions": instructions(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "versions": {"python": platform.python_version(), **versions("megengine", "numpy")},
    }


def instructions() -> List[str]:
    """Return the vector instructions that matter here."""
    flags = cpu_info().get("flags", "").split()
    return [name for name in ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile") if name in flags]


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def versions(*packages: str) -> Dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in packages}


def background_load(seconds: float = 0.3) -> float:
    """Return the share of this machine's CPU time used while we and all peers sleep: 0 on an idle machine."""
    before = cpu_ticks()
    time.sleep(seconds)
    busy, total = (after - then for after, then in zip(cpu_ticks(), before))
    return round(busy / total, 3) if total else 0.0


def cpu_ticks() -> List[int]:
    """Return the ticks since boot in which a CPU was busy, and all ticks."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return [sum(ticks) - ticks[3] - ticks[4], sum(ticks)]  # the fourth is idle, the fifth I/O wait


def resident(process: Union[int, str] = "self") -> float:
    """Return the resident memory of a process in bytes, mapped files included."""
    return 1024.0 * int(Path(f"/proc/{process}/status").read_text().split("VmRSS:")[1].split()[0])


def peak_resident() -> float:
    """Return the most that the resident memory of this process has been, in bytes."""
    return 1024.0 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# The peers' environment ----------------------------------------------------------------------------------------


def peers_python() -> str:
    """Return the interpreter of the peers' environment, which `./dev bench` creates."""
    python = os.environ.get("REPVGG_ZOO_BENCH_PYTHON", str(ROOT / ".venv-bench" / "bin" / "python"))
    if not Path(python).exists():
        sys.exit(f"the peers' environment is missing ({python}): start this with ./dev bench")
    return python


def peers_environment() -> Dict[str, str]:
    """Return environment variables with which a peer finds these files, and timm its stand-in for torchvision."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "peers")])}
