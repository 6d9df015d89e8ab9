"""The native cache saves work, is never trusted more than the file it was made of, and may vanish at any time."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.hub.cache import read_stamp, write_stamp
from repvgg_zoo.registry import api

from ..networks import randomised

REGISTRY = """\
schema: 1
variants:
  test/RepVGG_T:
    family: test
    architecture: {num_blocks: [1, 2, 2, 1], width_multiplier: [0.25, 0.25, 0.25, 0.25], groups: 2, num_classes: 10,
                   image_size: 32}
    params: {train: 1, deploy: 1}
    macs: {train: 1, deploy: 1}
    checkpoints:
      timm:
        file: {name: t.safetensors, sources: [t.safetensors], sha256: "%s"}
        publisher: a test
        format: safetensors
        layout: timm
        form: train
        licence: MIT
        preprocessing: {image_size: 32, resize: 32, interpolation: bilinear, backend: pillow, colour: RGB,
                        mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
        origin: [a test]
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A foreign checkpoint in a registry of its own and an empty cache; gives the folder of the native cache."""
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    before = list(api._registered)
    source = tmp_path / "t.safetensors"
    network = repvgg_zoo.create(
        "RepVGG_A0", num_blocks=(1, 2, 2, 1), width_multiplier=(0.25,) * 4, groups=2, num_classes=10
    )
    save_checkpoint(source, randomised(network), layout="timm")
    (tmp_path / "zoo.yaml").write_text(REGISTRY % hashlib.sha256(source.read_bytes()).hexdigest())
    repvgg_zoo.register(tmp_path / "zoo.yaml")
    yield tmp_path / "cache" / "native"
    api._registered[:] = before


def create(**arguments):
    return repvgg_zoo.create("test/RepVGG_T", pretrained=True, **arguments)


def kept_in(folder: Path) -> Path:
    (kept,) = folder.glob("*.safetensors")
    return kept


@pytest.mark.parametrize("deploy", [False, True])
def test_the_first_load_keeps_native_arrays_of_the_form_that_was_asked_for(published, deploy):
    first = create(deploy=deploy).state_dict()
    kept = load_checkpoint(kept_in(published), layout="native")
    assert kept.form == ("deploy" if deploy else "train")
    assert set(kept.arrays) == set(first)
    assert all(np.array_equal(kept.arrays[key].ravel(), first[key].ravel()) for key in first)


@pytest.mark.parametrize("deploy", [False, True])
def test_the_second_load_takes_what_was_kept_and_gives_the_same_network(published, deploy):
    first = create(deploy=deploy).state_dict()
    path = kept_in(published)
    changed = {key: value.copy() for key, value in load_checkpoint(path).arrays.items()}
    changed["linear.bias"] += 1
    stamp = read_stamp(path)
    second = create(deploy=deploy).state_dict()
    assert all(np.array_equal(first[key], second[key]) for key in first)

    # That it was really read: put something else there, under a stamp that fits.
    save_checkpoint(path, changed)
    status = path.stat()
    write_stamp(path, type(stamp)(status.st_size, status.st_mtime_ns, stamp.sha256, stamp.integrity))
    assert np.array_equal(create(deploy=deploy).state_dict()["linear.bias"], first["linear.bias"] + 1)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: os.utime(path, (1, 1)),
        lambda path: Path(f"{path}.stamp").write_text("{}"),
        lambda path: Path(f"{path}.stamp").unlink(),
    ],
    ids=["deleted", "cut", "zeroed", "touched", "stamp damaged", "stamp deleted"],
)
def test_whatever_happens_to_it_the_publishers_file_is_read_again(published, harm):
    first = create().state_dict()
    harm(kept_in(published))
    second = create().state_dict()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    third = create().state_dict()
    assert all(np.array_equal(first[key], third[key]) for key in first)


def test_a_place_where_it_cannot_be_written_does_no_harm(published):
    published.parent.mkdir(parents=True, exist_ok=True)
    published.write_text("a file where the folder should be")
    assert create()(Tensor(np.zeros((1, 3, 32, 32), np.float32))).shape == (1, 10)


def test_a_native_file_of_the_wanted_form_is_not_kept_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    repvgg_zoo.create("RepVGG_N0", pretrained=True)
    assert not (tmp_path / "cache" / "native").exists()
