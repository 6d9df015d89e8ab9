"""On GPUs the same call uses MegEngine's own kernels, mixed precision, and a process for each GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from repvgg_zoo.cli.megengine_setup import has_gpu

pytestmark = pytest.mark.skipif(not has_gpu(), reason="fine-tuning on GPUs: there is no NVIDIA GPU")

FINETUNE = """
import json, sys
import repvgg_zoo
report = repvgg_zoo.finetune(**json.loads(sys.argv[1]))
print(json.dumps([report.top1.percent, report.probe_top1.percent, len(report.epochs)]))
"""


@pytest.mark.parametrize("options", [{"devices": 1}, {"devices": 1, "amp": False}, {}], ids=["amp", "float32", "all"])
def test_a_run_on_gpus_is_as_good_as_on_a_cpu(digits, tmp_path, options):
    arguments = {"data": f"{digits}/train", "val": f"{digits}/val", "output": f"{tmp_path}/run", "batch_size": 40}
    environment = {name: value for name, value in os.environ.items() if name != "MGE_DEFAULT_DEVICE"}
    call = json.dumps({"model": "RepVGG_N0", "epochs": 3, **arguments, **options})
    command = [sys.executable, "-c", FINETUNE, call]  # a process that has not used a GPU: it is forked for each
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    top1, probe, epochs = json.loads(done.stdout.splitlines()[-1])
    assert epochs == 3 and top1 >= probe > 75
