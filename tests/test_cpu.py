"""The processor, and the priority of MegEngine's polling thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 240  # until a child that hangs is ended; it takes a few seconds

PROGRAM = """
import json, logging, os, sys

logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s")
import megengine as mge
import numpy as np

import repvgg_zoo

(mge.Tensor([1.0]) + 1).numpy()  # from now on the thread polls

def policies():
    result = []
    for thread in os.listdir("/proc/self/task"):
        try:
            if open(f"/proc/self/task/{thread}/comm").read().strip() == "CompNodeSync":
                result.append(os.sched_getscheduler(int(thread)))
        except FileNotFoundError:  # a thread of a compiled network that ended meanwhile
            pass
    return result

while not policies():  # the thread has just started and names itself
    pass
before = policies()
ACTION
print(json.dumps([before, policies()]))
"""

ACTIONS = {
    "create": 'repvgg_zoo.create("RepVGG_N0", pretrained=True); repvgg_zoo.create("RepVGG_N0")',
    "loading weights": """
from repvgg_zoo._tensors import load_state_dict, numpy_views
from repvgg_zoo.models import RepVGG
network = RepVGG([1, 1, 1, 1], [0.25, 0.25, 0.25, 0.25], num_classes=10)
load_state_dict(network, numpy_views(dict(network.named_tensors())))
""",
    "compile": 'repvgg_zoo.compile("RepVGG_N0"); repvgg_zoo.compile("RepVGG_N0")',
    "predict": """
from repvgg_zoo.models import RepVGG
from repvgg_zoo.registry.api import find_model
network = RepVGG([1, 1, 1, 1], [0.25, 0.25, 0.25, 0.25], num_classes=10, in_chans=1)
network.spec, _ = find_model("RepVGG_N0")
network.checkpoint = network.spec.checkpoints[0]
repvgg_zoo.predict(network, np.zeros((8, 8), np.uint8))
""",
}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies are Linux's")


def run(action: str, home: Path, **variables: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "REPVGG_ZOO_HOME": str(home), **variables}
    program = PROGRAM.replace("ACTION", action)
    return subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=SECONDS, check=True
    )


@linux_only
@pytest.mark.parametrize("action", ACTIONS)
def test_megengines_polling_thread_gets_idle_priority(action, tmp_path):
    child = run(ACTIONS[action], tmp_path)
    assert json.loads(child.stdout.splitlines()[-1]) == [[os.SCHED_OTHER], [os.SCHED_IDLE]]
    assert child.stderr.count("got idle priority") == 1


@linux_only
def test_a_variable_leaves_the_polling_thread_alone(tmp_path):
    child = run(ACTIONS["compile"], tmp_path, REPVGG_ZOO_KEEP_THREAD_PRIORITY="1")
    assert json.loads(child.stdout.splitlines()[-1]) == [[os.SCHED_OTHER], [os.SCHED_OTHER]]
    assert "idle priority" not in child.stderr


TRAINING = """
import megengine.functional as F
import megengine.optimizer as optim
from megengine.autodiff import GradManager

for _ in range(3):
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    x, y = mge.Tensor(np.zeros((8, 1, 32, 32), np.float32)), mge.Tensor(np.arange(8, dtype=np.int32))
    network(x).numpy()
    network.train()
    manager = GradManager().attach(network.parameters())
    optimizer = optim.SGD(network.parameters(), lr=0.01)
    with manager:
        loss = F.nn.cross_entropy(network(x), y)
        manager.backward(loss)
    optimizer.step()
    assert np.isfinite(loss.numpy()).all()
"""


@linux_only
def test_training_goes_on_while_all_cores_are_busy(tmp_path):
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in os.sched_getaffinity(0)]
    try:
        child = run(TRAINING, tmp_path)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert json.loads(child.stdout.splitlines()[-1])[1] == [os.SCHED_IDLE]


def test_no_megengine_is_imported_to_look_for_its_thread():
    program = (
        "import sys; from repvgg_zoo._cpu import lower_sync_thread_priority;"
        "lower_sync_thread_priority(); assert 'megengine' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=SECONDS, check=True)
