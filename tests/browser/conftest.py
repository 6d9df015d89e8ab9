"""The built docs and a browser, once for each process that runs these tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from filelock import FileLock

from .browser import ROOT, Browser


@pytest.fixture(scope="session")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docs/_build, brought up to date: what `./dev check` built before is used again."""
    build = ROOT / "docs" / "_build"
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "docs", str(build)]
    with FileLock(str(tmp_path_factory.getbasetemp().parent / "docs.lock")):
        subprocess.run(command, cwd=str(ROOT), env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=180)
    return build


@pytest.fixture(scope="session")
def browser(docs: Path) -> Iterator[Browser]:
    running = Browser(docs)
    yield running
    running.driver.quit()
