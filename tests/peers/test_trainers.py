"""Files that real trainers wrote (write_trainer_files.py) load as they are: the weights, their layout, their average.

The kind of fault: what a trainer keeps beside the weights, or where it keeps them, is in the way of loading them.
REPVGG_ZOO_PEERS names the folder. The peer's own state dict of each network is beside its file, with its logits.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.checkpoints.formats import blocked_names, read_file

FOLDER = Path(os.environ.get("REPVGG_ZOO_PEERS", "peer-files")) / "trainers"
BOUND = 1e-4  # the project's, of relative errors of logits

# (file, layout, state= for load_checkpoint, the weights that this gives). mmengine and Lightning save the average as
# the state dict, which is what they load for inference, and the plain weights beside it.
CASES = [
    ("timm.pth.tar", "timm", None, "plain"),
    ("timm.pth.tar", "timm", "ema", "averaged"),
    ("official.pth", "official", None, "plain"),
    ("official.pth", "official", "ema", "averaged"),
    ("lightning.ckpt", "timm", None, "plain"),
    ("lightning_average.ckpt", "timm", None, "averaged"),
    ("lightning_average.ckpt", "timm", "ema", "averaged"),
    ("lightning_average.ckpt", "timm", "current_model_state", "plain"),
    ("torch.pt", "timm", None, "plain"),
    ("torch_average.pt", "timm", None, "averaged"),
    ("mmengine.pth", "openmmlab", None, "averaged"),
    ("mmengine.pth", "openmmlab", "ema", "averaged"),
    ("mmengine.pth", "openmmlab", "ema_state_dict", "plain"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}, state={case[2]}")
def case(request):
    file, layout, state, weights = request.param
    path = FOLDER / file
    return repvgg_zoo.load_checkpoint(path, state=state), layout, FOLDER / f"{file.split('.')[0]}.{weights}"


def test_there_is_a_case_of_every_file():
    assert {file for file, *_ in CASES} == {path.name for path in FOLDER.iterdir() if path.suffix != ".npz"}


@pytest.mark.parametrize(
    ("file", "classes"),
    [
        ("timm.pth.tar", {"argparse.Namespace"}),
        ("official.pth", {"yacs.config.CfgNode"}),
        ("lightning.ckpt", {"argparse.Namespace", "pathlib.PosixPath"}),
        ("mmengine.pth", {"mmengine.logging.history_buffer.HistoryBuffer", "collections.Counter"}),
    ],
)
def test_a_file_has_objects_beside_the_weights_which_are_not_made(file, classes):
    assert set(blocked_names(read_file(FOLDER / file)[1])) == classes


def test_the_weights_are_the_trainers_own_and_only_other_things_are_skipped(case):
    checkpoint, layout, expected = case
    own = repvgg_zoo.load_checkpoint(f"{expected}.npz")
    assert (checkpoint.layout, checkpoint.form) == (layout, "train")
    assert set(checkpoint.arrays) == set(own.arrays)
    for key, array in own.arrays.items():
        np.testing.assert_array_equal(checkpoint.arrays[key], array, strict=True)
    inside = [key for key, reason in checkpoint.report.skipped if "beside " not in reason]
    assert all(key.endswith(("num_batches_tracked", "n_averaged", "steps", "criterion.weight")) for key in inside)


def test_plain_and_averaged_weights_differ():
    for path in FOLDER.glob("*.averaged.logits.npz"):
        plain = Path(str(path).replace("averaged", "plain"))
        assert not plain.is_file() or np.abs(np.load(path)["logits"] - np.load(plain)["logits"]).max() > 1e-3


def test_the_network_computes_the_trainers_logits(case):
    checkpoint, _, expected = case
    with np.load(f"{expected}.logits.npz") as peer:
        image, logits = peer["image"], peer["logits"]
    network = repvgg_zoo.create("RepVGG_A0", checkpoint=checkpoint, num_classes=logits.shape[1])
    error = np.abs(network(Tensor(image)).numpy() - logits).max() / np.abs(logits).max()
    assert error <= BOUND
