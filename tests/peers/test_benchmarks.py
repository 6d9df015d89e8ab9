"""The race between ours and the peers runs, and who is missing is shown; how fast anyone is, is no test's business.

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
    """A record of one burst of our smallest network, by everyone."""
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
        contender = row["contenders"][name]
        assert contender["error"] <= 1e-4
        assert 0 < contender["ms"]["median"] < 1000


def test_every_peer_has_a_time_or_a_reason(results):
    (row,) = json.loads(results.read_text())["rows"]
    assert set(row["contenders"]) == set(NAMES)
    for contender in row["contenders"].values():
        assert ("ms" in contender) != bool(contender.get("failed"))


def test_a_row_that_was_measured_is_not_measured_again(results):
    before = results.read_text()
    bench("inference", "--variants", "N0", "--settings", "1x1", "--bursts", "1", "--results", str(results))
    assert results.read_text() == before


def test_the_page_shows_the_row(results, tmp_path):
    bench("report", "--results", str(results), "--page", str(tmp_path / "page.md"), "--no-pictures")
    assert "| RepVGG_N0 |" in (tmp_path / "page.md").read_text()
