"""Our networks compute the peers' logits, in both forms, from the files that the peers wrote (`./dev test-peers`).

write_network_files.py writes each file when its turn comes, with the interpreter that REPVGG_ZOO_BENCH_PYTHON names,
and it is removed before the next: all of them are 6 GB.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor
from network_cases import CASES

import repvgg_zoo

# The project's bound; the rounding of float32 is about 1e-6 over a network this deep.
BOUND = 1e-4


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    command = [os.environ["REPVGG_ZOO_BENCH_PYTHON"], str(Path(__file__).with_name("write_network_files.py")), folder]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ""}
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module", params=CASES, ids=[case.name for case in CASES])
def case(request):
    return request.param


@pytest.fixture(scope="module")
def file(case, writer):
    writer.stdin.write(f"{case.name}\n")
    writer.stdin.flush()
    path = Path(writer.stdout.readline().rstrip("\n"))
    assert path.is_file(), f"write_network_files.py ended with {writer.wait()}"
    yield path
    path.unlink()


def test_there_is_a_case_of_every_variant_and_publisher():
    assert {case.variant for case in CASES} == set(repvgg_zoo.list_models(exclude="*N0"))
    assert {case.publisher for case in CASES} == {"timm", "official", "openmmlab", "zcls", "paddleclas"}


@pytest.mark.parametrize("deploy", [False, True], ids=["train form", "deploy form"])
def test_logits_are_the_peers(case, file, deploy, capsys):
    with np.load(file.parent / f"{case.name}.npz") as peer:
        image, expected = peer["image"], peer["deploy" if deploy else "train"]
    network = repvgg_zoo.create(case.variant, checkpoint=file, deploy=deploy)
    error = float(np.abs(network(Tensor(image)).numpy() - expected).max() / np.abs(expected).max())
    with capsys.disabled():
        print(f"\n  {case.name}, {'deploy' if deploy else 'train'} form: relative error {error:.1e}", end="")
    assert error <= BOUND


def test_the_layout_is_detected_and_only_counters_are_skipped(case, file):
    checkpoint = repvgg_zoo.load_checkpoint(file)
    assert checkpoint.layout.startswith(case.publisher)
    assert checkpoint.form == "train"
    allowed = ("num_batches_tracked", "meta")
    assert [key for key, _ in checkpoint.report.skipped if not key.endswith(allowed)] == []
