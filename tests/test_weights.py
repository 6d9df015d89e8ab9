"""Weights are converted and fused once; what is stored of them saves work and is never trusted without its digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo._derived_cache import HEADER_BYTES, DerivedCache, DerivedKey
from repvgg_zoo.checkpoints import save_checkpoint
from repvgg_zoo.checkpoints.formats import safetensors_file
from repvgg_zoo.checkpoints.load import CANONICALIZE_VERSION
from repvgg_zoo.checkpoints.save import write_safetensors
from repvgg_zoo.reparam.fusion import FUSE_VERSION

from .networks import randomised

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
        license: MIT
        preprocessing: {image_size: 32, resize: 32, interpolation: bilinear, backend: pillow, color_order: RGB,
                        mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
        provenance: [a test]
"""


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A foreign checkpoint in a registry of its own and an empty cache; return the folder of the derived cache."""
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    source = tmp_path / "t.safetensors"
    network = repvgg_zoo.create(
        "RepVGG_A0", num_blocks=(1, 2, 2, 1), width_multiplier=(0.25,) * 4, groups=2, num_classes=10
    )
    save_checkpoint(source, randomised(network), layout="timm")
    (tmp_path / "zoo.yaml").write_text(REGISTRY % hashlib.sha256(source.read_bytes()).hexdigest())
    repvgg_zoo.register(tmp_path / "zoo.yaml")
    yield tmp_path / "cache" / "derived"
    repvgg_zoo.unregister(tmp_path / "zoo.yaml")


def create(**arguments):
    return repvgg_zoo.create("test/RepVGG_T", pretrained=True, **arguments)


def entry_in(folder: Path) -> Path:
    (path,) = folder.glob("weights-*.derived")
    return path


@pytest.mark.parametrize("deploy", [False, True])
def test_the_first_load_stores_canonical_arrays_of_the_form_asked_for(published, deploy):
    first = create(deploy=deploy).state_dict()
    arrays = safetensors_file.read(entry_in(published).read_bytes()[HEADER_BYTES:])
    assert set(arrays) == set(first)
    assert all(np.array_equal(arrays[key].ravel(), first[key].ravel()) for key in first)


@pytest.mark.parametrize("deploy", [False, True])
def test_the_second_load_reads_the_entry_and_gives_the_same_network(published, deploy, tmp_path):
    first = create(deploy=deploy).state_dict()
    entry_in(published)
    second = create(deploy=deploy).state_dict()
    assert all(np.array_equal(first[key], second[key]) for key in first)

    # That it was really read: store something else under the same key.
    changed = {
        key: value.copy() for key, value in safetensors_file.read(entry_in(published).read_bytes()[512:]).items()
    }
    changed["linear.bias"] += 1
    sha256 = hashlib.sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()
    parameters = {"layout": "timm", "form": "deploy" if deploy else "train", "fuse": FUSE_VERSION}
    key = DerivedKey(sha256, "weights", CANONICALIZE_VERSION, parameters)
    assert DerivedCache(published.parent).write(key, lambda stream: write_safetensors(stream, changed))
    assert np.array_equal(create(deploy=deploy).state_dict()["linear.bias"], first["linear.bias"] + 1)


def flip_all_signs(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for index in range(HEADER_BYTES + 4096 + 3, len(data), 4):
        data[index] ^= 0x80
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: os.utime(path, (1, 1)),
        flip_all_signs,
    ],
    ids=["deleted", "cut", "zeroed", "touched", "signs flipped"],
)
def test_whatever_happens_to_the_entry_the_weights_are_right(published, harm):
    first = create().state_dict()
    path = entry_in(published)
    status = path.stat()
    harm(path)
    if path.exists():
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for _ in range(2):
        again = create().state_dict()
        assert all(np.array_equal(first[key], again[key]) for key in first)


def test_weights_of_a_read_only_cache_without_stamps_are_stored_once(published, monkeypatch, tmp_path):
    create()
    entry_in(published).unlink()
    (file,) = published.parent.glob("*-t.safetensors")
    (tmp_path / "shared").mkdir()
    file.rename(tmp_path / "shared" / file.name)
    monkeypatch.setenv("REPVGG_ZOO_CACHE_DIRS", str(tmp_path / "shared"))
    create()
    assert entry_in(published).exists()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_does_no_harm(published):
    published.parent.mkdir(parents=True, exist_ok=True)
    published.write_text("a file where the folder should be")
    assert create()(Tensor(np.zeros((1, 3, 32, 32), np.float32))).shape == (1, 10)


def test_a_canonical_file_of_the_form_asked_for_is_not_stored_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    repvgg_zoo.create("RepVGG_N0", pretrained=True)
    assert not (tmp_path / "cache" / "derived").exists()
