"""Our networks compute the peers' logits, in both forms, from the files that the peers wrote (`./dev test-peers`).

REPVGG_ZOO_PEERS names the folder that write_network_files.py wrote to.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo

FOLDER = Path(os.environ.get("REPVGG_ZOO_PEERS", "peer-files")) / "networks"
CASES = {path.stem: path for path in sorted(FOLDER.glob("*")) if path.suffix != ".npz"}
# The project's bound; the rounding of float32 is about 1e-6 over a network this deep.
BOUND = 1e-4


def test_there_is_a_file_of_every_variant_and_publisher():
    assert {case.split(".")[0] for case in CASES} == set(repvgg_zoo.list_models(exclude="*N0"))
    assert {case.split(".")[1] for case in CASES} == {"timm", "official", "openmmlab", "zcls", "paddleclas"}


@pytest.mark.parametrize("deploy", [False, True], ids=["train form", "deploy form"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_peers(case, deploy, capsys):
    variant = case.split(".")[0]
    with np.load(FOLDER / f"{case}.npz") as peer:
        image, expected = peer["image"], peer["deploy" if deploy else "train"]
    network = repvgg_zoo.create(variant, checkpoint=CASES[case], deploy=deploy)
    error = float(np.abs(network(Tensor(image)).numpy() - expected).max() / np.abs(expected).max())
    with capsys.disabled():
        print(f"\n  {case}, {'deploy' if deploy else 'train'} form: relative error {error:.1e}", end="")
    assert error <= BOUND


@pytest.mark.parametrize("case", CASES)
def test_the_layout_is_detected_and_only_counters_are_skipped(case):
    checkpoint = repvgg_zoo.load_checkpoint(CASES[case])
    publisher = case.split(".")[1]
    assert checkpoint.layout.startswith(publisher)
    assert checkpoint.form == "train"
    allowed = ("num_batches_tracked", "meta")
    assert [key for key, _ in checkpoint.report.skipped if not key.endswith(allowed)] == []
