"""Loaded weights have memory of their own: whatever happens to the file, and whatever training does to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import megengine.functional as F
import numpy as np
import pytest
from megengine import Tensor
from megengine.autodiff import GradManager
from megengine.optimizer import SGD

from repvgg_zoo._tensors import load_state_dict
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
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
    load_state_dict(net, load_checkpoint(path).state_dict)
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


# Python code: what loads weights, the path of the file they are from, and a number that depends on all of them.
LOADERS = {
    "create(name)": (
        "network = repvgg_zoo.create('RepVGG_N0', pretrained=True)",
        "repvgg_zoo.fetch('RepVGG_N0')",
        "logits(network)",
    ),
    "create(name, deploy=True)": (
        "network = repvgg_zoo.create('RepVGG_N0', pretrained=True, deploy=True)",
        "repvgg_zoo.fetch('RepVGG_N0')",
        "logits(network)",
    ),
    "create(checkpoint=file)": (
        "network = repvgg_zoo.create('RepVGG_N0', checkpoint=mine)",
        "mine",
        "logits(network)",
    ),
    "load_checkpoint(safetensors)": (
        "checkpoint = repvgg_zoo.load_checkpoint(mine)",
        "mine",
        "total(checkpoint.state_dict)",
    ),
    "load_checkpoint(pickle)": (
        "checkpoint = repvgg_zoo.load_checkpoint(pickled)",
        "pickled",
        "total(checkpoint.state_dict)",
    ),
}
COMPILERS = {
    "compile(name)": (
        "network = repvgg_zoo.compile('RepVGG_N0')",
        "repvgg_zoo.fetch('RepVGG_N0')",
        "total({'logits': network(image)})",
    ),
    "compile(name, low_memory=True)": (
        "network = repvgg_zoo.compile('RepVGG_N0', low_memory=True)",
        "repvgg_zoo.fetch('RepVGG_N0')",
        "total({'logits': network(image)})",
    ),
}
# What may happen to the file at ``path`` afterwards.
HARM = {
    "truncated": "os.truncate(path, 0)",
    "overwritten in place by zeros": "with open(path, 'r+b') as stream: stream.write(bytes(size))",
    "overwritten in place by a shorter file": "with open(path, 'wb') as stream: stream.write(b'x' * 1000)",
    "replaced": "open(f'{path}.new', 'wb').write(b'zz'); os.replace(f'{path}.new', path)",
    "deleted": "os.unlink(path)",
}
# What loads weights, what writes onto their file, and a number that depends on all of them.
SAVED_ONTO = {
    "megengine.save onto the file just read": (
        "arrays = repvgg_zoo.load_checkpoint(pickled).state_dict",
        "megengine.save(dict(arrays), pickled)",
        "total(repvgg_zoo.load_checkpoint(pickled).state_dict)",
    ),
    "save_checkpoint onto the file just read": (
        "arrays = repvgg_zoo.load_checkpoint(mine).state_dict",
        "repvgg_zoo.save_checkpoint(mine, arrays)",
        "total(repvgg_zoo.load_checkpoint(mine).state_dict)",
    ),
    "megengine.save of the network onto its file in the cache": (
        "network = repvgg_zoo.create('RepVGG_N0', pretrained=True)",
        "megengine.save(network.state_dict(), str(repvgg_zoo.fetch('RepVGG_N0')))",
        "total(network.state_dict())",
    ),
}
HARM_SCRIPT = """
import json, os, shutil, sys
import megengine
import numpy as np
import repvgg_zoo

image = np.random.RandomState(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
folder = sys.argv[2]
mine, pickled = f"{folder}/mine.safetensors", f"{folder}/mine.pkl"

def logits(network):
    return total({"logits": network(megengine.Tensor(image)).numpy()})

def total(arrays):
    return sum(float(np.abs(array).sum(dtype=np.float64)) for array in arrays.values())

for loaders, harms in json.loads(sys.argv[1]):
    for load_name, (load, path, value) in loaders.items():
        for harm_name, harm in harms.items():
            shutil.rmtree(f"{folder}/cache", ignore_errors=True)
            network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
            repvgg_zoo.save_checkpoint(mine, network)
            megengine.save(network.state_dict(), pickled)
            scope = dict(globals())
            exec(load, scope)
            scope["path"] = str(eval(path, scope)) if harm_name else path
            scope["size"] = os.path.getsize(scope["path"]) if harm_name else 0
            before = eval(value, scope)
            exec(harm if harm_name else path, scope)
            print(json.dumps([f"{load_name}, {harm_name}", before, eval(value, scope)]), flush=True)
"""


@pytest.fixture(scope="module")
def harmed(tmp_path_factory):
    """A sum over the weights or the logits before and after each harm; those after a crash are missing."""
    folder = tmp_path_factory.mktemp("harmed")
    jobs = json.dumps([[LOADERS, HARM], [COMPILERS, {"truncated": HARM["truncated"]}], [SAVED_ONTO, {"": ""}]])
    environment = {**os.environ, "REPVGG_ZOO_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", HARM_SCRIPT, jobs, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    results = {name: (before, after) for name, before, after in map(json.loads, done.stdout.splitlines())}
    return results, f"exit code {done.returncode}: {done.stderr[-500:]}"


@pytest.mark.parametrize(
    "what",
    [
        *(f"{loader}, {harm}" for loader in LOADERS for harm in HARM),
        *(f"{loader}, truncated" for loader in COMPILERS),
        *(f"{saved}, " for saved in SAVED_ONTO),
    ],
)
def test_whatever_happens_to_the_file_the_values_stay_the_same(harmed, what):
    results, ending = harmed
    assert what in results, ending
    before, after = results[what]
    assert before == after > 0


def run(script, *arguments):
    command = [sys.executable, "-W", "error::UserWarning", "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_network_moves_to_another_device_on_a_busy_machine(saved):
    """Tensors on memory that is not MegEngine's own hung here within some thirty rounds."""
    assert run(
        """
import subprocess, sys
import megengine.functional as F
from repvgg_zoo._tensors import load_state_dict
from repvgg_zoo.checkpoints import load_checkpoint
from repvgg_zoo.models import RepVGG

busy = [subprocess.Popen([sys.executable, "-c", "import time; e = time.time() + 60\\nwhile time.time() < e: pass"])
        for _ in range(2)]
try:
    for _ in range(60):
        net = RepVGG((1, 1, 1, 1), (1.0, 1.0, 1.0, 0.5), num_classes=10, init_weights=False)
        load_state_dict(net, load_checkpoint(sys.argv[1]).state_dict)
        for copied in [F.copy(tensor, device="cpu0") for tensor in net.parameters()]:
            copied.numpy()
finally:
    for process in busy:
        process.kill()
print("ended")
""",
        saved[0],
    )


def test_a_network_built_for_loading_draws_no_numbers_and_no_memory():
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
