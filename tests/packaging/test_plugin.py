"""The example plugin, built, installed beside our wheel and used, together with a broken plugin."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_its_wheel_holds_the_package_and_its_data(plugin_wheel: Path) -> None:
    with zipfile.ZipFile(plugin_wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("acme_repvgg/")}
    package = ROOT / "examples" / "plugin" / "acme_repvgg"
    files = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.*") if path.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}
    assert {"acme_repvgg/registry.yaml", "acme_repvgg/weights/RepVGG_M1-digits.safetensors"} <= names


@pytest.fixture(scope="module")
def used(with_plugin: Any) -> Any:
    """The results of a program that uses all of the installed plugin."""
    program = """
import json, numpy as np, megengine, repvgg_zoo
from repvgg_zoo.errors import ArgumentError, LayoutError, PluginError, UnknownModelError
from repvgg_zoo._resources import hub_folder

NAME, result = "acme/RepVGG_M1", {}
result["home"] = repvgg_zoo.__file__
result["listed"] = repvgg_zoo.list_models()
network, deployed = (repvgg_zoo.create(NAME, pretrained=True, deploy=deploy) for deploy in (False, True))
result["built"] = [type(network).__module__, network.spec.name, network.checkpoint.name, network.training]
with np.load(str(hub_folder() / "digits-test.npz"), allow_pickle=False) as arrays:
    to_input = repvgg_zoo.preprocess(network)
    images, labels = megengine.Tensor(np.stack([to_input(image) for image in arrays["images"]])), arrays["labels"]
logits = network(images).numpy()
correct = lambda model: int((model(images).numpy().argmax(1) == labels).sum())
result["correct"] = [correct(network), correct(deployed), correct(repvgg_zoo.to_deploy(network))]
result["blocks"] = len(repvgg_zoo.compare_forms(network, images).blocks)
result["end_to_end"] = repvgg_zoo.compare_forms(network, images).end_to_end.relative
result["counts"] = [sum(int(np.prod(p.shape)) for p in n.parameters()) for n in (network, deployed)]
result["spec"] = [network.spec.params.train, network.spec.params.deploy]

repvgg_zoo.save_checkpoint("mine.safetensors", network)
result["again"] = correct(repvgg_zoo.create(NAME, checkpoint="mine.safetensors"))
result["layout"] = repvgg_zoo.load_checkpoint("mine.safetensors", layout="acme/two_layer").layout
repvgg_zoo.save_checkpoint("mine.pkl", network, layout="acme/two_layer")
result["pickle"] = correct(repvgg_zoo.create(NAME, checkpoint="mine.pkl", deploy=True))
result["without_layout"] = dict(repvgg_zoo.load_checkpoint("mine.safetensors").report.skipped)

fresh = repvgg_zoo.create(NAME, pretrained=True, num_classes=3)
same = np.array_equal(fresh.linear.hidden.weight.numpy(), network.linear.hidden.weight.numpy())
result["fresh"] = [list(fresh(images).shape), same, bool(fresh.linear.classes.weight.numpy().any())]
features = repvgg_zoo.create(NAME, pretrained=True, features_only=True, out_indices=(1, 4))(images)
result["features"] = {name: list(value.shape[1:]) for name, value in features.items()}
result["hidden"] = list(repvgg_zoo.create(NAME, hidden=7).linear.hidden.weight.shape)
for wrong in ("hiden", "builder", "options"):
    try: repvgg_zoo.create(NAME, **{wrong: 7})
    except ArgumentError as error: result[wrong] = str(error)
result["derived"] = sorted(path.name for path in __import__("pathlib").Path("cache").rglob("*.derived"))
print(json.dumps(result))
"""
    return json.loads(with_plugin.run(program, MGE_DEFAULT_DEVICE="cpux").stdout)


def test_the_installed_packages_are_used(used: Any, with_plugin: Any) -> None:
    assert Path(used["home"]).parts[-2:] == ("repvgg_zoo", "__init__.py")
    assert Path(used["home"]).resolve().parent == (with_plugin.site / "repvgg_zoo").resolve()
    assert "acme/RepVGG_M1" in used["listed"] and "RepVGG_A0" in used["listed"]


def test_its_network_has_the_accuracy_and_cost_of_its_registry(used: Any) -> None:
    assert used["built"] == ["acme_repvgg.networks", "acme/RepVGG_M1", "acme/RepVGG_M1.digits", False]
    assert used["correct"] == [354] * 3  # 98.33 percent of 360
    assert used["counts"] == used["spec"]


def test_both_forms_compute_the_same(used: Any) -> None:
    assert used["blocks"] == 7
    assert used["end_to_end"] < 1e-5  # measured: 1.4e-6; float32 rounds at 6e-8, seven blocks deep


def test_its_weights_are_not_cached_as_its_layout_may_change(used: Any) -> None:
    assert used["derived"] == []


def test_its_files_are_saved_and_loaded_with_its_layout(used: Any) -> None:
    assert (used["again"], used["pickle"], used["layout"]) == (354, 354, "acme/two_layer")
    assert "linear.hidden.weight" in used["without_layout"]  # a bare backbone beside foreign keys


def test_its_head_features_and_options_can_be_changed(used: Any) -> None:
    assert used["fresh"] == [[360, 3], True, True]
    assert used["features"] == {"stage1": [8, 8, 8], "stage4": [32, 1, 1]}
    assert used["hidden"] == [7, 32]
    assert all("hidden" in used[wrong] for wrong in ("hiden", "builder", "options"))


def test_a_broken_plugin_is_reported_and_affects_no_other(with_plugin: Any) -> None:
    info = with_plugin.site / "broken_zoo-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-zoo\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[repvgg_zoo.plugins]\nbroken = broken_zoo:plugin\n")
    (with_plugin.site / "broken_zoo.py").write_text("import not_installed_anywhere\n")
    program = """
import json, repvgg_zoo
from repvgg_zoo.errors import PluginError
listed = repvgg_zoo.list_models("*/*")
path = repvgg_zoo.fetch("acme/RepVGG_M1")
try: repvgg_zoo.create("broken/RepVGG_X")
except PluginError as error: print(json.dumps([listed, path.stat().st_size, str(error)]))
"""
    try:
        done = with_plugin.run(program)
    finally:
        (info / "entry_points.txt").unlink()
    listed, size, text = json.loads(done.stdout)
    assert (listed, size) == (["acme/RepVGG_M1"], 138920)
    assert "broken (broken-zoo 0.1) fails at broken_zoo:plugin: ModuleNotFoundError" in text
    assert done.stderr.count("left out: the plugin broken") == 1
