"""Wheels built from this checkout, and environments in which they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any, Dict

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Environment:
    """A new environment with these wheels and access to the packages they require, and an empty folder to run in."""

    def __init__(self, folder: Path, *wheels: Path) -> None:
        self.empty = folder / "empty"
        self.empty.mkdir()
        venv.create(str(folder / "env"), with_pip=False, symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        subprocess.run([*command, str(self.site), *map(str, wheels)], check=True, env=self.variables())
        (self.site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def variables(self) -> Dict[str, str]:
        """Return the environment variables without those that would make Python import the checkout."""
        others = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "REPVGG_ZOO"))}
        return {**others, "REPVGG_ZOO_HOME": str(self.empty / "cache")}

    def run(self, program: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.python), "-c", program],
            cwd=str(self.empty),
            env={**self.variables(), **environ},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done


def build(project: Path, out: Path, target: str = "wheel") -> Path:
    """Build the wheel of a project, without the network, and return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=str(project), check=True, stdout=subprocess.DEVNULL)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: Any) -> Path:
    """Our own wheel."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def plugin_wheel(tmp_path_factory: Any) -> Path:
    """The wheel of the example plugin."""
    return build(ROOT / "examples" / "plugin", tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: Any) -> Environment:
    """An environment with our wheel alone."""
    return Environment(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture(scope="session")
def with_plugin(wheel: Path, plugin_wheel: Path, tmp_path_factory: Any) -> Environment:
    """An environment with our wheel and the example plugin."""
    return Environment(tmp_path_factory.mktemp("with_plugin"), wheel, plugin_wheel)
