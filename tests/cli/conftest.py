"""Fixtures of the command line's tests: an empty folder, a fresh cache, and a way to run a command line."""

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
class Completed:
    """The exit code of a command line and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return its JSON document; NaN and Infinity are not JSON."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder with an empty cache beside it, without the settings of this machine."""
    for name in list(os.environ):
        if name.startswith("REPVGG_ZOO_") or name.lower().endswith("_proxy") or name in ("NO_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with buffered output, a broken pipe is noticed late
    working = tmp_path / "work"
    working.mkdir()
    monkeypatch.chdir(working)
    return working


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Completed]:
    """Return a function that runs a command line in this process."""

    def run_command(*argv: str) -> Completed:
        capsys.readouterr()
        code = main(argv)
        printed = capsys.readouterr()
        return Completed(code, printed.out, printed.err)

    return run_command


def spawn(*argv: str, **options: Any) -> subprocess.Popen[str]:
    """Start a command line in its own process, with its output in pipes."""
    command = [sys.executable, "-m", "repvgg_zoo", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def piped(*argv: str) -> Completed:
    """Run a command line in its own process, with its output in pipes."""
    process = spawn(*argv)
    out, err = process.communicate(timeout=60)
    return Completed(process.returncode, out, err)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def cached(run) -> Path:
    """The bundled checkpoint's file in the cache."""
    return Path(run("fetch", "RepVGG_N0").out.strip())


def damage(path: Path) -> None:
    """One flipped bit; size and time of change stay."""
    status, body = path.stat(), bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(bytes(body))
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))
