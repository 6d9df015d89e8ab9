"""Images are preprocessed as in the publishers' own code (`./dev test-peers`).

REPVGG_ZOO_PEERS names the folder that write_image_files.py wrote to. BaseCls preprocesses with MegEngine's own
transforms, so it needs no peer: tests/image.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.registry.api import find_default_checkpoint

FOLDER = Path(os.environ.get("REPVGG_ZOO_PEERS", "peer-files")) / "images"
IMAGES = sorted(path for path in FOLDER.glob("*") if path.suffix in (".png", ".jpg"))
# The same two libraries decode and resize the same bytes, so the only difference is the order of the float32
# operations in the normalization, whose results go up to about 2.6: a few of its last bits.
BOUND = 2e-6


def test_the_peers_have_written_their_images():
    assert len(IMAGES) >= 20, f"run write_image_files.py {FOLDER} with the peers' Python first"


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
def test_every_image_is_preprocessed_as_by_the_publisher(checkpoint, capsys):
    preprocess = repvgg_zoo.preprocess(checkpoint)
    size = find_default_checkpoint(checkpoint).preprocessing.image_size
    errors = {}
    for path in IMAGES:
        with np.load(f"{path}.npz") as expected:
            actual, peer = preprocess(path), expected[checkpoint]
        assert actual.shape == peer.shape == (3, size, size)
        errors[path.name] = float(np.abs(actual - peer).max())
    with capsys.disabled():
        print(f"\n  {checkpoint}: {len(errors)} images, largest difference {max(errors.values()):.1e}", end="")
    assert {name: error for name, error in errors.items() if not error <= BOUND} == {}
