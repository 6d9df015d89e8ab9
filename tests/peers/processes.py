"""Scripts that the peers' interpreter runs, which answer each line with a line."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def peer(script: str, *arguments: Any, python: str = "") -> Iterator[Any]:
    """A process with an interpreter, by default the one that REPVGG_ZOO_BENCH_PYTHON names."""
    command = [python or os.environ["REPVGG_ZOO_BENCH_PYTHON"], str(Path(__file__).with_name(script)), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(process: Any, line: str) -> str:
    """The answer to a line."""
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return str(process.stdout.readline().rstrip("\n"))


def answer(process: Any, request: Any) -> Any:
    """The same for JSON documents; paths are text."""
    return json.loads(ask(process, json.dumps(request, default=str)))
