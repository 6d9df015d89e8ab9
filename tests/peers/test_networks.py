"""Our networks give the peers' logits, in both forms, on files that the peers wrote (`./dev test-peers`)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo

FOLDER = Path(os.environ["REPVGG_ZOO_PEERS"])
CASES = sorted(path.stem for path in FOLDER.glob("*.npz"))
# The bound; float32 itself leaves 1e-6 to 1e-5 over a network this deep.
BOUND = 1e-4


@pytest.mark.parametrize("deploy", [False, True], ids=["train form", "deploy form"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_peers(case, deploy, record_property):
    variant, _ = case.split(".")
    with np.load(FOLDER / f"{case}.npz") as peer:
        image, expected = peer["image"], peer["deploy" if deploy else "train"]
    network = repvgg_zoo.create(variant, checkpoint=FOLDER / f"{case}.safetensors", deploy=deploy)
    error = float(np.abs(network(Tensor(image)).numpy() - expected).max() / np.abs(expected).max())
    print(f"{case}, {'deploy' if deploy else 'train'} form: relative error {error:.1e}")
    assert error <= BOUND


def test_every_case_of_the_writer_is_here():
    assert len(CASES) >= 5
