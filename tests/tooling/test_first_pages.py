"""The first pages tell what readers meet in their first minute: MegEngine's lines about CUDA, and their cure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from repvgg_zoo.cli.megengine_setup import has_gpu

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "docs" / "installation.md"]
CURE = "export MGE_DEFAULT_DEVICE=cpux\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_first_page_says_how_to_silence_megengine(page: Path) -> None:
    assert f"```sh\n{CURE}```" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(has_gpu(), reason="MegEngine prints nothing with a GPU")
@pytest.mark.skipif(sys.version_info < (3, 9), reason="MegEngine for Python 3.8 prints it whatever the device")
@pytest.mark.parametrize(("cure", "lines"), [("unset MGE_DEFAULT_DEVICE\n", 8), (CURE, 0)], ids=["without", "with"])
def test_what_the_first_pages_say_silences_megengine(cure: str, lines: int) -> None:
    program = "import megengine; megengine.Tensor(1.0) + 1"
    shell = f'{cure}exec "$0" -c "$1"'
    done = subprocess.run(["sh", "-c", shell, sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and len(done.stdout.splitlines() + done.stderr.splitlines()) == lines
