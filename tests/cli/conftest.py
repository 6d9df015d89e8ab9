"""What the command line's tests share: an empty folder, a fresh cache, and a way to run one command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from repvgg_zoo.cli import main
from tests.hub.server import Server

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """How a command line ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its one JSON document; NaN and Infinity are not JSON."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a cache of its own beside it, and no setting of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith("REPVGG_ZOO_") or name.lower().endswith("_proxy") or name in ("NO_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is buffered is where a broken pipe shows late
    working = tmp_path / "work"
    working.mkdir()
    monkeypatch.chdir(working)
    return working


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command line in this process."""

    def one(*argv: str) -> Ran:
        capsys.readouterr()
        code = main(argv)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return one


def spawn(*argv: str, **options: Any) -> subprocess.Popen[str]:
    """Starts a command line in a process of its own, its output piped."""
    command = [sys.executable, "-m", "repvgg_zoo", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def piped(*argv: str) -> Ran:
    """Runs a command line in a process of its own, its output piped."""
    process = spawn(*argv)
    out, err = process.communicate(timeout=60)
    return Ran(process.returncode, out, err)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()
