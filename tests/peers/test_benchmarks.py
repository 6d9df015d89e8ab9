"""The benchmarks run with the peers, and report those that are missing; no test depends on speed.

REPVGG_ZOO_BENCH_PYTHON names an interpreter that has torch; `./dev test-peers` sets it. The other peers may be missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("torch", "torch channels-last", "onnxruntime", "openvino", "megengine eager", "ours")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of one burst of our smallest network, with every runtime."""
    assert "REPVGG_ZOO_BENCH_PYTHON" in os.environ, "start this with ./dev test-peers"
    path = tmp_path_factory.mktemp("bench") / "results.json"
    bench("inference", "--variants", "N0", "--settings", "1x1", "--bursts", "1", "--results", str(path))
    return path


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300).stdout


def test_torch_and_megengine_agree_and_are_timed(results):
    (row,) = json.loads(results.read_text())["rows"]
    for name in ("torch", "torch channels-last", "megengine eager", "ours"):
        cell = row["runtimes"][name]
        assert cell["error"] <= 1e-4
        assert 0 < cell["ms"]["median"] < 1000


def test_every_peer_has_a_time_or_a_reason(results):
    (row,) = json.loads(results.read_text())["rows"]
    assert set(row["runtimes"]) == set(NAMES)
    for cell in row["runtimes"].values():
        assert ("ms" in cell) != bool(cell.get("failed"))


def test_a_row_that_was_measured_is_not_measured_again(results):
    before = results.read_text()
    bench("inference", "--variants", "N0", "--settings", "1x1", "--bursts", "1", "--results", str(results))
    assert results.read_text() == before


def test_the_page_shows_the_row(results, tmp_path):
    bench("report", "--results", str(results), "--page", str(tmp_path / "page.md"), "--no-figures")
    assert "| RepVGG_N0 |" in (tmp_path / "page.md").read_text()
