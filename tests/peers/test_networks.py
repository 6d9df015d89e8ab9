"""Our networks compute the peers' logits, in both forms, from the files that the peers wrote (`./dev test-peers`).

write_network_files.py writes each file when its turn comes, with the interpreter that REPVGG_ZOO_BENCH_PYTHON names,
and it is removed before the next: all of them are 6 GB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor
from network_cases import CASES
from processes import answer, ask, peer

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
    repvgg_zoo.export(file, tmp_path / "x.onnx", image_size="dynamic", deploy=form == "deploy")
    data = [file.with_name(name) for name in case.image_sizes]
    errors = answer(runner, {"model": tmp_path / "x.onnx", "data": data, "outputs": {"logits": form}})
    with capsys.disabled():
        print(f"\n  {case.name}, ONNX of the {form} form: relative error {max(errors.values()):.1e}", end="")
    assert len(errors) == 6 * len(data) and max(errors.values()) <= EXPORT_BOUND, errors


# With groups and without, and with each kind of SE.
BACK_TO_TORCH = (
    "RepVGG_A0.timm",
    "RepVGG_B1g4.timm",
    "RepVGG_D2se.timm",
    "RepVGG_B1g2.official",
    "RepVGGplus_L2pse.official",
)


def test_a_network_goes_back_to_its_publishers_code(case, file, runner, tmp_path):
    if case.name not in BACK_TO_TORCH:
        pytest.skip("the same layers as another case")
    network = repvgg_zoo.create(case.variant, checkpoint=file)
    repvgg_zoo.save_checkpoint(tmp_path / "x.pth", network, layout=case.publisher)
    data = file.with_name(f"{case.name}.npz")
    assert answer(runner, {"state": tmp_path / "x.pth", "case": case.name, "data": data}) == 0
