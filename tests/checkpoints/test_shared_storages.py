"""Tensors that share memory are refused: what is fused, converted or saved is at most as large as what the file holds.

The kind: content that a file has once and names often. In torch's formats tensors are views of storages, in a pickle of
arrays a memoized string may be the data of many; each use costs the file some twenty bytes.
"""

from __future__ import annotations

import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from repvgg_zoo.checkpoints import load_checkpoint
from repvgg_zoo.checkpoints.load import MAX_TENSORS
from repvgg_zoo.errors import CheckpointFormatError, LayoutError
from tests.checkpoints import torch_files as write
from tests.checkpoints.hostile_files import array_call

CHANNELS = 64
ELEMENTS = CHANNELS * CHANNELS * 9
BLOCKS = [f"stage{1 + index % 4}.{index // 4}." for index in range(40)]
ONES = struct.pack("<f", 1.0) * ELEMENTS


def state_of(storage_of, first_offset):
    """The pickled state dict of a train form, all of whose tensors begin at ``first_offset(count)`` of a storage."""
    state = {}

    def add(key, *shape):
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        count = int(np.prod(shape))
        state[key] = write.tensor(storage_of, first_offset(count), shape, strides)

    for block in BLOCKS:
        add(f"{block}rbr_dense.conv.weight", CHANNELS, CHANNELS, 3, 3)
        add(f"{block}rbr_1x1.conv.weight", CHANNELS, CHANNELS, 1, 1)
        branches = ["rbr_dense.bn", "rbr_1x1.bn", *(["rbr_identity"] if not block.endswith(".0.") else [])]
        for branch in branches:
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                add(f"{block}{branch}.{tensor}", CHANNELS)
    return write.whole(write.mapping(state))


def one_array_in_many_places():
    data = b"B" + struct.pack("<I", len(ONES)) + ONES + b"q\x05"
    shape = write.group(*map(write.integer, (CHANNELS, CHANNELS, 3, 3)))
    keys = [f"{block}rbr_reparam.weight" for block in BLOCKS]
    arrays = {key: array_call(shape, data=data if key == keys[0] else b"h\x05") for key in keys}
    return write.whole(write.mapping(arrays), 3)


SHARING = {
    "torch's zip format": lambda: write.zip_file(
        state_of(write.storage("0", "f4", ELEMENTS), lambda count: 0), {"0": ONES}
    ),
    "torch's legacy format": lambda: write.legacy_file(
        state_of(write.storage("0", "f4", ELEMENTS, legacy=True), lambda count: 0), {"0": (ELEMENTS, ONES)}
    ),
    "a pickle of arrays": one_array_in_many_places,
}


@pytest.mark.parametrize("kind", SHARING)
def test_tensors_that_share_memory_are_refused_before_any_is_copied(tmp_path, kind):
    path = tmp_path / "file"
    path.write_bytes(SHARING[kind]())
    tracemalloc.start()
    try:
        with pytest.raises(LayoutError, match="share memory") as caught:
            load_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.hint and caught.value.path == str(path)
    assert caught.value.actual > 20 * caught.value.expected
    assert peak < 2 * path.stat().st_size + (8 << 20)


def test_tensors_side_by_side_in_one_storage_are_read(tmp_path):
    offset = 0

    def next_offset(count):
        nonlocal offset
        offset += count
        return offset - count

    state_of(write.storage("0", "f4", 1), next_offset)
    total, offset = offset, 0
    body = state_of(write.storage("0", "f4", total), next_offset)
    (tmp_path / "file").write_bytes(write.zip_file(body, {"0": bytes(4 * total)}))
    checkpoint = load_checkpoint(tmp_path / "file")
    assert sum(array.size for array in checkpoint.state_dict.values()) == total


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({f"stage1.{i}.rbr_dense.conv.weight": np.ones(1) for i in range(MAX_TENSORS + 1)}, LayoutError, "arrays"),
        ({"module." * 100_000 + "linear.weight": np.ones(3)}, CheckpointFormatError, "a key of 700013 characters"),
    ],
    ids=["too many tensors", "a long key"],
)
def test_the_number_of_tensors_and_the_length_of_their_names_are_bounded(tmp_path, content, error, message):
    (tmp_path / "file").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(error, match=message):
        load_checkpoint(tmp_path / "file")
