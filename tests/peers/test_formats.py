"""Files written by PyTorch and PaddlePaddle (write_format_files.py) are read bit for bit.

REPVGG_ZOO_PEERS names their folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from repvgg_zoo.checkpoints.formats import read_file

FOLDER = Path(os.environ.get("REPVGG_ZOO_PEERS", "peer-files")) / "formats"
FILES = sorted(path for path in FOLDER.glob("*") if path.suffix in (".pth", ".pdparams"))


def test_the_peers_have_written_their_files():
    assert len(FILES) >= 20, f"run write_format_files.py {FOLDER} with PyTorch first"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_peers_file_is_read_bit_for_bit(path):
    name, tree = read_file(path)
    assert name == path.stem.split("_")[0]
    state = tree.get("state_dict", tree.get("model", tree))
    with np.load(path.with_suffix(".npz")) as expected:
        assert list(state) == list(expected)
        for key in expected:
            np.testing.assert_array_equal(state[key], expected[key], strict=True)
            assert not state[key].flags.writeable or not state[key].size
