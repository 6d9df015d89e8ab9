"""The same picture becomes the same input as in the publishers' own code (`./dev test-peers`).

REPVGG_ZOO_PEERS names the folder that write_picture_files.py wrote to. BaseCls prepares its pictures with MegEngine's
own transforms, so it needs no peer: tests/vision.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.registry.api import find_default_checkpoint

FOLDER = Path(os.environ.get("REPVGG_ZOO_PEERS", "peer-files")) / "pictures"
PICTURES = sorted(path for path in FOLDER.glob("*") if path.suffix in (".png", ".jpg"))
# All are made of the same bytes by the same two libraries, so the only difference is the order of float32's
# operations in the normalisation, which ends at about 2.6: a few of its last bits.
BOUND = 2e-6


def test_the_peers_have_written_their_pictures():
    assert len(PICTURES) >= 20, f"run write_picture_files.py {FOLDER} with the peers' Python first"


@pytest.mark.parametrize(
    "checkpoint",
    [
        "RepVGG_A0.timm",
        "RepVGG_D2se.timm",
        "RepVGG_A0.official",
        "RepVGGplus_L2pse.official",
        "RepVGG_A0.openmmlab",
        "RepVGG_D2se.openmmlab",
        "RepVGG_A0.openmmlab_own",
        "RepVGG_A0.paddleclas",
        "RepVGG_D2se.paddleclas",
    ],
)
def test_every_picture_is_prepared_as_the_publisher_does_it(checkpoint, capsys):
    to_input = repvgg_zoo.preprocess(checkpoint)
    size = find_default_checkpoint(checkpoint).preprocessing.image_size
    errors = {}
    for path in PICTURES:
        with np.load(f"{path}.npz") as expected:
            made, theirs = to_input(path), expected[checkpoint]
        assert made.shape == theirs.shape == (3, size, size)
        errors[path.name] = float(np.abs(made - theirs).max())
    with capsys.disabled():
        print(f"\n  {checkpoint}: {len(errors)} pictures, largest difference {max(errors.values()):.1e}", end="")
    assert {name: error for name, error in errors.items() if not error <= BOUND} == {}
