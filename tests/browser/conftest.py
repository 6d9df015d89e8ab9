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
    """docs/_build, brought up to date in both languages: what `./dev check` built before is used again."""
    build = ROOT / "docs" / "_build"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with FileLock(str(tmp_path_factory.getbasetemp().parent / "docs.lock")):
        for language, folder in (("en", build), ("zh_CN", build / "zh_CN")):
            options = ["-q", "-b", "html", "-D", f"language={language}"]
            command = [sys.executable, "-m", "sphinx", *options, "docs", str(folder)]
            subprocess.run(command, cwd=str(ROOT), env=environment, check=True, timeout=180)
    return build


@pytest.fixture(scope="session")
def browser(docs: Path) -> Iterator[Browser]:
    running = Browser(docs)
    yield running
    running.driver.quit()
