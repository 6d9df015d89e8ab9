"""A network that was loaded is its own: the file may go, training goes on, and nothing was drawn at random before."""

from __future__ import annotations

import subprocess
import sys

import megengine.functional as F
import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.optimizer import SGD

from repvgg_zoo.checkpoints import load_checkpoint, load_state, save_checkpoint
from repvgg_zoo.models import RepVGG

SMALL = ((1, 1, 1, 1), (1.0, 1.0, 1.0, 0.5))


@pytest.fixture
def saved(tmp_path):
    """The file of a network, and its arrays."""
    arrays = RepVGG(*SMALL, num_classes=10).state_dict()
    save_checkpoint(tmp_path / "net.safetensors", arrays)
    return tmp_path / "net.safetensors", arrays


def loaded(path):
    net = RepVGG(*SMALL, num_classes=10, init_weights=False)
    load_state(net, load_checkpoint(path).arrays)
    return net


@pytest.mark.parametrize("in_place", ["0", "1"])
def test_training_goes_on_after_loading_and_the_file_stays_as_it_was(saved, in_place, monkeypatch):
    monkeypatch.setenv("MEGENGINE_INPLACE_UPDATE", in_place)
    path, arrays = saved
    before = path.read_bytes()
    net = loaded(path)
    net.train()
    manager = GradManager().attach(net.parameters())
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(2):
        x = Tensor(np.random.RandomState(step).standard_normal((2, 3, 32, 32)).astype(np.float32))
        with manager:
            manager.backward(F.loss.cross_entropy(net(x), Tensor([1, 2])))
        optimizer.step().clear_grad()
    assert not np.array_equal(net.linear.weight.numpy(), arrays["linear.weight"])
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


def run(script, *arguments):
    command = [sys.executable, "-W", "error::UserWarning", "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_network_goes_to_another_device_on_a_busy_machine(saved):
    """Tensors on memory that is not MegEngine's own hung here within some thirty rounds."""
    assert run(
        """
import subprocess, sys
import megengine.functional as F
from repvgg_zoo.checkpoints import load_checkpoint, load_state
from repvgg_zoo.models import RepVGG

busy = [subprocess.Popen([sys.executable, "-c", "import time; e = time.time() + 60\\nwhile time.time() < e: pass"])
        for _ in range(2)]
try:
    for _ in range(60):
        net = RepVGG((1, 1, 1, 1), (1.0, 1.0, 1.0, 0.5), num_classes=10, init_weights=False)
        load_state(net, load_checkpoint(sys.argv[1]).arrays)
        for copied in [F.copy(tensor, device="cpu0") for tensor in net.parameters()]:
            copied.numpy()
finally:
    for process in busy:
        process.kill()
print("ended")
""",
        saved[0],
    )


def test_building_a_network_to_be_loaded_draws_no_numbers_and_takes_no_memory():
    grown = run("""
from unittest import mock
import megengine
from repvgg_zoo.models import RepVGG

def memory():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

before = memory()
with mock.patch("megengine.module.init.uniform_", side_effect=AssertionError), mock.patch(
    "megengine.module.init.normal_", side_effect=AssertionError
):
    net = RepVGG((4, 6, 16, 1), (3, 3, 3, 5), deploy=True, init_weights=False)  # RepVGG_B3: 444 MB
megengine._full_sync()
assert net.linear.weight.shape == (1000, 2560)
print(memory() - before)
""")
    assert int(grown) < 50e6
