"""A probe needs NumPy and the kernels only, and what cannot be done without a package says which."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import repvgg_zoo
from repvgg_zoo._requirements import has_megengine_wheels

needs_megengine = pytest.mark.skipif(not has_megengine_wheels(), reason="MegEngine has no wheels for this Python")


WITHOUT = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2].split(","):
            raise ImportError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
import repvgg_zoo
try:
    report = repvgg_zoo.finetune(**json.loads(sys.argv[1]))
    print(report)
except repvgg_zoo.errors.DependencyError as error:
    print(error)
"""


def without(packages, **arguments):
    """Return what a process prints that fine-tunes without some packages."""
    call = json.dumps({key: value if isinstance(value, int) else str(value) for key, value in arguments.items()})
    command = [sys.executable, "-c", WITHOUT, call, packages]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def data(digits, tmp_path):
    return {"model": "RepVGG_N0", "data": digits / "train", "val": digits / "val", "output": tmp_path / "run"}


def test_a_head_is_fitted_to_features(data):
    report = repvgg_zoo.finetune(**data, mode="probe")
    assert report.best_epoch == 0 and not report.epochs and report.curves is None and report.top1.percent > 75
    checkpoint = repvgg_zoo.load_checkpoint(report.path)
    assert checkpoint.form == "train" and checkpoint.metadata.class_names == tuple("0123456789")
    assert repvgg_zoo.finetune(**data, mode="probe") == report


def test_a_probe_needs_no_megengine(data):
    assert "best.safetensors" in without("megengine,matplotlib", **data, mode="probe")


AT_SPEED = """
import hashlib, json, sys
from repvgg_zoo import finetune
from repvgg_zoo._cpu import cpu_name
from repvgg_zoo.inference.cpu_speed import speed_key
from repvgg_zoo.inference.jit.engine import host_microkernel_config, host_processor, jit_compile
from repvgg_zoo.inference.target import derived_cache

code = jit_compile(host_microkernel_config()).digest
key = speed_key(code, f"{cpu_name()} {host_processor()}")
assert derived_cache().write(key, lambda stream: stream.write(sys.argv[2].encode()))
report = finetune(**json.loads(sys.argv[1]), mode="probe")
print(hashlib.sha256(report.path.read_bytes()).hexdigest())
"""


def test_the_bits_do_not_depend_on_what_was_measured_of_the_processor(data, tmp_path):
    digests = set()
    for name, figures in {"slow memory": [1e9, 1e8], "fast memory": [1e9, 1e12]}.items():
        call = json.dumps({key: str(value) for key, value in {**data, "output": tmp_path / name}.items()})
        command = [sys.executable, "-c", AT_SPEED, call, json.dumps(figures)]
        environment = {**os.environ, "REPVGG_ZOO_HOME": str(tmp_path / f"cache of {name}")}
        digests.add(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout)
    assert len(digests) == 1


def test_the_whole_network_needs_megengine(data):
    assert 'mode "full" needs MegEngine' in without("megengine", **data)


@needs_megengine
def test_without_matplotlib_the_report_says_why_there_are_no_curves(data):
    text = without("matplotlib", **data, epochs=1)
    assert "note: no curves: a figure needs matplotlib" in text and "pip install 'repvgg-zoo[plot]'" in text
