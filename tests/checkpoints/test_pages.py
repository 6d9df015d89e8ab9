"""Weights of a file that stays are not copied: its pages are the network's memory, which nobody can tell otherwise."""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import megengine
import megengine.functional as F
import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.optimizer import SGD

import repvgg_zoo
from repvgg_zoo._tensors import address_of
from repvgg_zoo.checkpoints import load_checkpoint, load_state, pages, save_checkpoint
from repvgg_zoo.models import RepVGG

from ..networks import randomised

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere everything is copied")

SMALL = {"num_blocks": (1, 2, 2, 1), "width_multiplier": (1, 1, 1, 1), "num_classes": 10}
LARGE = "stage3.1.rbr_reparam.weight"  # 2.4 MB


def maps_of(path) -> list:
    """The lines of the kernel's list of this process's maps that name the file, and may be written to."""
    name = str(Path(path).resolve())
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if line.endswith((name, f"{name} (deleted)")) and " rw-p " in line]


def lies_on(tensor: Tensor, path) -> bool:
    """Whether the memory of a tensor is a map of the file."""
    address = address_of(tensor)
    spans = ([int(end, 16) for end in line.split()[0].split("-")] for line in maps_of(path))
    return any(first <= address < last for first, last in spans)


def settle() -> None:
    gc.collect()
    megengine._full_sync()


@pytest.fixture(scope="module")
def given() -> dict:
    return randomised(RepVGG(**SMALL, deploy=True)).state_dict()


@pytest.fixture
def file(given, tmp_path) -> Path:
    save_checkpoint(tmp_path / "net.safetensors", given)
    return tmp_path / "net.safetensors"


def loaded(file: Path, **options) -> RepVGG:
    network = RepVGG(**SMALL, deploy=True, init_weights=False)
    load_state(network, load_checkpoint(file).arrays, **options)
    return network


def test_the_large_weights_lie_on_the_files_pages_and_all_have_its_values(file, given):
    network = loaded(file, file_stays=True)
    assert lies_on(dict(network.named_tensors())[LARGE], file)
    state = network.state_dict()
    assert list(state) == list(given)
    for key, array in given.items():
        np.testing.assert_array_equal(state[key], array, err_msg=key, strict=True)
    images = np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    copied = loaded(file)
    np.testing.assert_array_equal(network(Tensor(images)).numpy(), copied(Tensor(images)).numpy())


def test_nothing_is_mapped_unless_the_caller_knows_that_the_file_stays(file):
    network = loaded(file)
    assert not lies_on(dict(network.named_tensors())[LARGE], file)
    assert not maps_of(file)


def test_a_file_of_the_users_is_copied_and_one_in_the_cache_is_not(file, tmp_path, monkeypatch):
    """A user may write to a file that was loaded; the next training run does."""
    fields = {"num_blocks": SMALL["num_blocks"], "width_multiplier": SMALL["width_multiplier"]}
    network = repvgg_zoo.create("RepVGG_A0", checkpoint=file, deploy=True, **fields)
    assert not maps_of(file)
    monkeypatch.setenv("REPVGG_ZOO_HOME", str(tmp_path / "cache"))
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    path = repvgg_zoo.fetch("RepVGG_N0")
    assert any(lies_on(tensor, path) for tensor in network.tensors())


def test_the_map_ends_with_the_last_of_its_tensors(file):
    network = loaded(file, file_stays=True)
    kept = dict(network.named_tensors())[LARGE]
    del network
    settle()
    assert len(maps_of(file)) == 1
    del kept
    settle()
    assert not maps_of(file)


def test_the_file_may_be_deleted_or_replaced(file, given):
    network = loaded(file, file_stays=True)
    other = file.with_suffix(".other")
    other.write_bytes(b"something else, and shorter")
    other.replace(file)
    np.testing.assert_array_equal(network.state_dict()[LARGE], given[LARGE])
    file.unlink()
    np.testing.assert_array_equal(network.state_dict()[LARGE], given[LARGE])


def test_a_file_that_was_replaced_since_it_was_read_is_copied_from_what_was_read(file, given):
    arrays = load_checkpoint(file).arrays
    other = file.with_suffix(".other")
    other.write_bytes(bytes(file.stat().st_size))
    other.replace(file)
    network = RepVGG(**SMALL, deploy=True, init_weights=False)
    load_state(network, arrays, file_stays=True)
    assert not maps_of(file)
    np.testing.assert_array_equal(network.state_dict()[LARGE], given[LARGE])


@pytest.mark.parametrize("in_place", ["0", "1"])
def test_training_changes_the_network_and_neither_its_file_nor_another_network(file, given, in_place, monkeypatch):
    monkeypatch.setenv("MEGENGINE_INPLACE_UPDATE", in_place)
    before = file.read_bytes()
    network, other = loaded(file, file_stays=True), loaded(file, file_stays=True)
    parameters = dict(network.named_parameters())
    trained = {key: parameters[key] for key in (LARGE, "stage1.0.rbr_reparam.weight", "linear.bias")}
    optimizer = SGD(trained.values(), lr=0.5, momentum=0.9)
    gradients = GradManager().attach(trained.values())
    for _ in range(2):  # the gradient of sum(p) is 1: first -0.5, then -0.5 * (1 + 0.9)
        with gradients:
            gradients.backward(sum(F.sum(parameter) for parameter in trained.values()))
        optimizer.step().clear_grad()
    for key, array in network.state_dict().items():
        moved = array if key not in trained else array + np.float32(1.45)
        np.testing.assert_allclose(moved, given[key], atol=1e-6, err_msg=key)  # two roundings of numbers below 2
    network.linear.weight[2:4] = 0
    assert np.array_equal(other.state_dict()["linear.weight"], given["linear.weight"])
    assert file.read_bytes() == before


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_numbers_of_another_dtype_are_cast_into_memory_of_their_own(tmp_path, given, dtype):
    file = tmp_path / "cast.safetensors"
    save_checkpoint(file, {key: array.astype(dtype) for key, array in given.items()})
    network = loaded(file, file_stays=True)
    assert not maps_of(file)
    np.testing.assert_array_equal(network.state_dict()[LARGE], given[LARGE].astype(dtype).astype(np.float32))


def test_only_file_systems_that_keep_deleted_files_are_trusted(file, monkeypatch):
    for path, lasting in ((file, True), (Path("/proc/self/maps"), False)):
        descriptor = os.open(path, os.O_RDONLY)
        assert pages._is_lasting(descriptor) == lasting
        os.close(descriptor)
    monkeypatch.setattr(pages, "LASTING", {})
    network = loaded(file, file_stays=True)
    assert not maps_of(file)
    assert network.linear.weight.shape == (10, 512)


def test_only_a_block_that_was_mapped_by_itself_gets_a_file_over_it():
    """It rests on how glibc marks such blocks; a libc that does it otherwise would be noticed above: it would copy."""
    small = np.zeros(1 << 10, np.uint8)
    assert not pages._is_mapped_alone(small.ctypes.data, small.ctypes.data + small.nbytes)
    large = np.zeros(256 << 20, np.uint8)
    assert pages._is_mapped_alone(large.ctypes.data, large.ctypes.data + large.nbytes)
    assert not pages._is_mapped_alone(large.ctypes.data, large.ctypes.data + large.nbytes + pages.PAGE)
    assert not pages._is_mapped_alone(large.ctypes.data + 64, large.ctypes.data + large.nbytes)


GAPS_IN_THE_HEAP = """
import sys
import numpy as np
from megengine import Tensor
from repvgg_zoo.checkpoints import load_checkpoint, pages

MB = 1 << 20
arrays = load_checkpoint(sys.argv[1]).arrays
array = arrays["{large}"]
like = Tensor(np.zeros((), np.float32))
np.empty(31 * MB, np.uint8)  # once it is free, glibc puts blocks of up to that size on the heap
for gaps in (0, 1, 6, 30):
    blocks = [np.empty(25 * MB, np.uint8) for _ in range(3 * gaps)]
    blocks = blocks[2::3]  # of each three neighbours two go
    print(len(pages.tensors_on_file({{0: (array, like)}})))
"""


def test_a_heap_with_large_gaps_keeps_nobody_from_mapping_unless_there_are_too_many(file):
    """Such a gap takes the block that should have been mapped by itself; the tests before this one may leave some."""
    command = [sys.executable, "-c", GAPS_IN_THE_HEAP.format(large=LARGE), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1", "0"]


@pytest.mark.parametrize(
    ("moved", "size", "alone"),
    [
        (48, 4 * pages.PAGE - 48 + 2, True),
        (48, 4 * pages.PAGE - 48, False),  # in use, on the heap
        (48, 4 * pages.PAGE - 48 + 3, False),
        (48, 4 * pages.PAGE - 48 + 6, False),  # of another thread's heap
        (48, 4 * pages.PAGE + 2, False),  # no whole pages
        (32, 4 * pages.PAGE - 32 + 2, False),  # does not begin with a page
        (48, 2 * pages.PAGE - 48 + 2, False),  # too small
    ],
)
def test_a_block_is_known_by_the_two_numbers_before_it(moved, size, alone):
    memory = np.frombuffer(mmap.mmap(-1, 4 * pages.PAGE), np.uint64)
    memory[6], memory[7] = moved, size
    address = memory.ctypes.data + 64
    assert pages._is_mapped_alone(address, memory.ctypes.data + 3 * pages.PAGE) == alone
