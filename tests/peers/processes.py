"""Scripts that the peers' interpreter runs, which answer each line with a line."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator


@contextmanager
def peer(script: str, *arguments: Any) -> Iterator[Any]:
    """A process with the interpreter that REPVGG_ZOO_BENCH_PYTHON names."""
    command = [os.environ["REPVGG_ZOO_BENCH_PYTHON"], str(Path(__file__).with_name(script)), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ""}
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(process: Any, line: str) -> str:
    """The answer to a line."""
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return str(process.stdout.readline().rstrip("\n"))
