"""No input costs more than the memory and time that its size allows, whatever a search for costly ones finds.

REPVGG_ZOO_FUZZ_SECONDS is the time for each reader (default 3).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cost import Reader, fuzz
from .readers import READERS

SECONDS = float(os.environ.get("REPVGG_ZOO_FUZZ_SECONDS", "3"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of a process from /proc")
@pytest.mark.parametrize("name", READERS)
def test_no_input_costs_more_than_its_size_allows(tmp_path, name):
    seed = os.environ.get("REPVGG_ZOO_FUZZ_SEED")
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.cost", name, str(SECONDS), str(tmp_path)]
    done = subprocess.run(
        [*command, *([seed] if seed else [])], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    print(done.stderr, done.stdout)  # shown when it fails; the input itself stays in tmp_path
    assert done.returncode == 0
    print(done.stdout, file=sys.stderr)


def quadratic(content):
    bytearray(min(len(content) ** 2, 1 << 27))


def linear(content):
    bytes(8 * len(content))


@pytest.mark.parametrize(("run", "is_refused"), [(quadratic, True), (linear, False)])
def test_the_search_finds_work_that_grows_faster_than_its_input(tmp_path, run, is_refused):
    reader = Reader(lambda folder: run, [b"0123456789"], [b"x"], lambda size: (1 << 20) + 64 * size)
    if not is_refused:
        assert fuzz(reader, tmp_path, 0.5, seed=0).tried > 20
        return
    with pytest.raises(AssertionError, match="bytes are allowed"):
        fuzz(reader, tmp_path, 30, seed=0)
