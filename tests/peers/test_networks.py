"""Our networks compute the peers' logits, in both forms, from the files that the peers wrote (`./dev test-peers`).

write_network_files.py writes each file when its turn comes, with the interpreter that REPVGG_ZOO_BENCH_PYTHON names,
and it is removed before the next: all of them are 6 GB.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor
from network_cases import CASES
from processes import ask, peer

import repvgg_zoo

# The project's bound; measured: at most 1.7e-6, as float32 rounds by about 1e-6 over a network this deep.
BOUND = 1e-4
EXPORT_BOUND = 1e-5


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    with peer("write_network_files.py", tmp_path_factory.mktemp("networks")) as process:
        yield process


@pytest.fixture(scope="module")
def runner():
    with peer("run_exports.py") as process:
        yield process


@pytest.fixture(scope="module", params=CASES, ids=[case.name for case in CASES])
def case(request):
    return request.param


@pytest.fixture(scope="module")
def file(case, writer):
    path = Path(ask(writer, case.name))
    assert path.is_file(), f"write_network_files.py ended with {writer.wait()}"
    yield path
    path.unlink()


def test_there_is_a_case_of_every_variant_and_publisher():
    assert {case.variant for case in CASES} == set(repvgg_zoo.list_models(exclude="*N0"))
    assert {case.publisher for case in CASES} == {"timm", "official", "openmmlab", "zcls", "paddleclas"}


@pytest.mark.parametrize("deploy", [False, True], ids=["train form", "deploy form"])
def test_logits_are_the_peers(case, file, deploy, capsys):
    with np.load(file.parent / f"{case.name}.npz") as peer:
        image, expected = peer["image"], peer["deploy" if deploy else "train"]
    network = repvgg_zoo.create(case.variant, checkpoint=file, deploy=deploy)
    error = float(np.abs(network(Tensor(image)).numpy() - expected).max() / np.abs(expected).max())
    with capsys.disabled():
        print(f"\n  {case.name}, {'deploy' if deploy else 'train'} form: relative error {error:.1e}", end="")
    assert error <= BOUND


def test_the_layout_is_detected_and_only_counters_are_skipped(case, file):
    checkpoint = repvgg_zoo.load_checkpoint(file)
    assert checkpoint.layout.startswith(case.publisher)
    assert checkpoint.form == "train"
    allowed = ("num_batches_tracked", "meta")
    assert [key for key, _ in checkpoint.report.skipped if not key.endswith(allowed)] == []


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_an_exported_file_gives_the_peers_logits_in_other_runtimes(case, file, form, runner, tmp_path, capsys):
    if case.publisher not in ("timm", "official") or (form == "train" and case.image_size != 224):
        pytest.skip("the same graph as another case")
    size = case.image_size if case.image_size == 224 else "dynamic"
    repvgg_zoo.export(file, tmp_path / "x.onnx", image_size=size, deploy=form == "deploy")
    request = {"model": str(tmp_path / "x.onnx"), "data": str(file.parent / f"{case.name}.npz"), "form": form}
    errors = json.loads(ask(runner, json.dumps(request)))
    with capsys.disabled():
        print(f"\n  {case.name}, ONNX of the {form} form: relative error {max(errors.values()):.1e}", end="")
    assert len(errors) == 6 and max(errors.values()) <= EXPORT_BOUND, errors


def test_a_network_goes_back_to_torch(case, file, runner, tmp_path):
    if case.name not in ("RepVGG_A0.timm", "RepVGG_B1g4.timm"):
        pytest.skip("one with groups and one without")
    network = repvgg_zoo.create(case.variant, checkpoint=file)
    repvgg_zoo.save_checkpoint(tmp_path / "x.pth", network, layout="timm")
    request = {"model": str(tmp_path / "x.pth"), "data": str(file.parent / f"{case.name}.npz"), "form": "train"}
    assert json.loads(ask(runner, json.dumps({**request, "variant": case.variant}))) == {"timm": 0.0}
