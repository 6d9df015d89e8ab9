"""Weights are lent to MegEngine rather than copied; whoever holds them last, nothing is lost, leaked or written to."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import megengine
import megengine.functional as F
import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.optimizer import SGD

from repvgg_zoo.checkpoints import lending, load_checkpoint, load_state, save_checkpoint
from repvgg_zoo.checkpoints.lending import borrow, lend
from repvgg_zoo.models import RepVGG

SMALL = ((1, 1, 1, 1), (1.0, 1.0, 1.0, 0.5))


def network(**options) -> RepVGG:
    return RepVGG(*SMALL, num_classes=10, **options)


def keepers() -> int:
    return sum(thread.name == "repvgg_zoo-lent" for thread in threading.enumerate())


def wait_until(true) -> bool:
    for _ in range(200):
        gc.collect()
        megengine._full_sync()
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def saved(tmp_path):
    """The file of a network, and its arrays."""
    arrays = network().state_dict()
    save_checkpoint(tmp_path / "net.safetensors", arrays)
    return tmp_path / "net.safetensors", arrays


def loaded(path: Path) -> RepVGG:
    net = network(init_weights=False)
    load_state(net, load_checkpoint(path).arrays, lend=True)
    return net


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere weights are copied")
def test_megengine_still_takes_memory_without_a_copy():
    """It takes a private argument and an assumption about when MegEngine reads what; a new one may break them."""
    array = np.zeros((64, 1024), np.float32)
    (tensor,) = lend([array], Tensor(0.0).device)
    assert tensor.device == Tensor(0.0).device
    array[3, 4] = 7
    assert tensor.numpy()[3, 4] == 7


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_borrowed_values_are_those_of_the_tensor_and_outlive_it(dtype):
    made = Tensor(np.arange(1 << 16).reshape(256, 256) % 1000, dtype=dtype)
    tensors = {"computed": made + 1, "part of one": made[3:, 1:], "spread": F.broadcast_to(made[:1], (256, 256))}
    expected = {key: tensor.numpy() for key, tensor in tensors.items()}
    arrays = borrow(tensors)
    del tensors, made
    assert wait_until(lambda: True)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], strict=True)
        assert not array.flags.writeable


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(5,), (7, 3, 3, 3), (2, 4, 3, 3, 3)])
@pytest.mark.parametrize("offset", [0, 4, 36])
def test_any_shape_dtype_and_alignment_comes_through(dtype, shape, offset):
    """safetensors aligns the numbers to their own size only."""
    count = int(np.prod(shape))
    memory = np.zeros(count * np.dtype(dtype).itemsize + 64, np.uint8)
    array = memory[offset : offset + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    array[...] = np.arange(count).reshape(shape)
    (tensor,) = lend([array], Tensor(0.0).device)
    np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
    np.testing.assert_array_equal((tensor * 2).numpy(), array * 2)


def test_a_network_on_lent_weights_answers_exactly_as_one_on_copies(saved):
    path, _ = saved
    copied = network(init_weights=False)
    load_state(copied, load_checkpoint(path).arrays)
    x = Tensor(np.random.RandomState(0).standard_normal((2, 3, 64, 64)).astype(np.float32))
    lent = loaded(path)
    for net in (lent, copied):
        net.eval()
    assert np.array_equal(lent(x).numpy(), copied(x).numpy())


@pytest.mark.parametrize("in_place", ["0", "1"])
def test_training_goes_on_after_loading_and_the_file_stays_as_it_was(saved, in_place, monkeypatch):
    monkeypatch.setenv("MEGENGINE_INPLACE_UPDATE", in_place)
    path, arrays = saved
    before = path.read_bytes()
    results = []
    for lend_it in (True, False):
        net = network(init_weights=False)
        load_state(net, load_checkpoint(path).arrays, lend=lend_it)
        net.train()
        manager = GradManager().attach(net.parameters())
        optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(2):
            x = Tensor(np.random.RandomState(step).standard_normal((2, 3, 32, 32)).astype(np.float32))
            with manager:
                manager.backward(F.loss.cross_entropy(net(x), Tensor([1, 2])))
            optimizer.step().clear_grad()
        results.append(net.state_dict())
    lent, copied = results
    assert not np.array_equal(lent["linear.weight"], arrays["linear.weight"])
    assert all(np.array_equal(lent[key], copied[key]) for key in copied)
    assert path.read_bytes() == before


def test_deleting_and_replacing_the_file_under_a_network_is_harmless(saved):
    path, arrays = saved
    net = loaded(path)
    other = path.with_name("other.safetensors")
    save_checkpoint(other, {key: value + 1 for key, value in arrays.items()})
    other.replace(path)
    assert all(np.array_equal(value, arrays[key]) for key, value in net.state_dict().items())
    path.unlink()
    assert all(np.array_equal(value, arrays[key]) for key, value in net.state_dict().items())


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_the_file_is_let_go_once_nothing_holds_the_weights_and_not_before(saved):
    path, arrays = saved
    net = loaded(path)
    detached = net.stage1[0].rbr_dense.conv.weight.detach()
    reshaped = net.linear.weight.reshape(-1)
    del net
    assert not wait_until(lambda: not is_mapped(path) or keepers() == 0)
    assert np.array_equal(detached.numpy(), arrays["stage1.0.rbr_dense.conv.weight"])
    assert np.array_equal(reshaped.numpy(), arrays["linear.weight"].reshape(-1))
    del detached, reshaped
    assert wait_until(lambda: not is_mapped(path) and keepers() == 0)


def test_networks_that_come_and_go_leave_nothing_behind(saved):
    path, _ = saved
    for _ in range(30):
        loaded(path)
    assert wait_until(lambda: not is_mapped(path) and keepers() == 0)


def test_megengine_that_takes_memory_no_more_gets_copies(saved, monkeypatch, caplog):
    def refuse(capsule):
        raise RuntimeError("no such thing")

    path, arrays = saved
    monkeypatch.setattr(lending, "from_dlpack", refuse)
    net = loaded(path)
    assert all(np.array_equal(value, arrays[key]) for key, value in net.state_dict().items())
    assert "(no such thing); weights are copied" in caplog.text
    assert wait_until(lambda: keepers() == 0)


SCRIPT = """
import gc, sys, threading
import numpy as np
import megengine
from megengine import Tensor
from repvgg_zoo.checkpoints import load_checkpoint, load_state
from repvgg_zoo.models import RepVGG

def memory(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

def load(lend=True):
    net = RepVGG((2, 4, 14, 1), (0.75, 0.75, 0.75, 2.5), deploy=True, init_weights=False)
    load_state(net, load_checkpoint(sys.argv[1]).arrays, lend=lend)
    return net
"""


def run(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs ``script`` after SCRIPT with the file of an RepVGG_A0 in the deploy form."""
    path = tmp_path / "a0.safetensors"
    if not path.exists():
        net = RepVGG((2, 4, 14, 1), (0.75, 0.75, 0.75, 2.5), deploy=True)
        save_checkpoint(path, net.state_dict())
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT + script, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_process_ends_in_peace_while_weights_are_lent(tmp_path):
    for _ in range(3):
        ended = run(tmp_path, "net = load(); net(Tensor(np.zeros((1, 3, 32, 32), np.float32)))")
        assert (ended.returncode, ended.stderr) == (0, "")


def test_a_forked_child_and_its_parent_both_end_in_peace(tmp_path):
    ended = run(
        tmp_path,
        """
import os
net = load()
if os.fork() == 0:
    del net
    gc.collect()
    os._exit(0)
print(os.wait()[1])
del net
""",
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "0"), ended.stderr


@pytest.mark.parametrize(("lend_it", "bound"), [(True, 0.1), (False, 1.15)])
def test_memory_grows_by_the_weights_once_at_most(tmp_path, lend_it, bound):
    """Anonymous memory, which is the process's own; lent weights are the file's pages and belong to the page cache."""
    ended = run(
        tmp_path,
        f"""
load(False); megengine._full_sync(); gc.collect()  # the first one brings in code
before = memory("RssAnon")
kept = [load({lend_it}) for _ in range(4)]
weights = 4 * sum(
    4 * int(np.prod(tensor.shape)) for tensor in kept[0].parameters()
)
megengine._full_sync()
print((memory("RssAnon") - before) / weights)
""",
    )
    assert float(ended.stdout) <= bound, ended.stderr


def test_building_a_network_to_be_loaded_draws_no_numbers_and_takes_no_memory(tmp_path):
    ended = run(
        tmp_path,
        """
from unittest import mock
before = memory("VmHWM")
with mock.patch("megengine.module.init.uniform_", side_effect=AssertionError), mock.patch(
    "megengine.module.init.normal_", side_effect=AssertionError
):
    net = RepVGG((4, 6, 16, 1), (3, 3, 3, 5), deploy=True, init_weights=False)  # RepVGG_B3: 444 MB
megengine._full_sync()
assert net.linear.weight.shape == (1000, 2560)
print(memory("VmHWM") - before)
""",
    )
    assert int(ended.stdout) < 50e6, ended.stderr
