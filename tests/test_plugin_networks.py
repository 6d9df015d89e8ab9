"""What a plugin builds is checked, and whatever its code does ends in one of our errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from megengine import Tensor

import repvgg_zoo
from repvgg_zoo.checkpoints import LAYOUTS
from repvgg_zoo.cli import main
from repvgg_zoo.errors import ArgumentError, PluginError, RegistryError

from .registry.installed import registry

PARTS = {
    "raises": "def raises(architecture, **given): raise KeyError('hidden')",
    "refuses": "def refuses(architecture, **given): raise ArgumentError('no such head')",
    "nothing": "def nothing(architecture, **given): pass",
    "an_array": "def an_array(architecture, **given): return [1]",
    "exits": "def exits(architecture, **given): sys.exit('no license')",
    "old": "def old(architecture, classes, channels): return whole(architecture)",
    "deaf": "def deaf(architecture, **given): return whole(architecture, in_chans=given['in_chans'])",
    "vague": """def vague(architecture, **given):
    network = whole(architecture, **given)
    network.num_classes = str(network.num_classes)
    return network""",
    "headless": """def headless(architecture, **given):
    network = whole(architecture, **given)
    network.heads = ["classifier"]
    return network""",
    "bare": "def bare(architecture, **given): return Conv2d(3, 3, 3)",
    "text": "text = 'not callable'",
    "plain": """def plain(architecture, num_classes, in_chans, deploy, init_weights):
    return RepVGG(architecture.num_blocks, architecture.width_multiplier, num_classes=num_classes,
                  in_chans=in_chans, deploy=deploy, init_weights=init_weights)""",
    "loud": """def loud(architecture, **given):
    print("hello from odd")
    return whole(architecture, **given)""",
    "whole": """def whole(architecture, **given):
    return RepVGG(architecture.num_blocks, architecture.width_multiplier, **given)""",
    "mges": """def mges(architecture, **given):
    network = whole(architecture, **given)
    network.linear = Linear(network.linear.in_features, network.num_classes)
    return network""",
}
HEAD = """\
import sys
from megengine.module import Conv2d, Linear
from repvgg_zoo.errors import ArgumentError
from repvgg_zoo.models import RepVGG
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin, odd, with a variant for each builder."""
    install_odd(tmp_path, monkeypatch, "{}")


@pytest.fixture
def plugin_with_a_bad_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_odd(tmp_path, monkeypatch, "{'odd/number': 7}")


def install_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layouts: str) -> None:
    name = f"odd_{tmp_path.name}"
    variants = "".join(
        registry(f"odd/{part}").partition("variants:\n")[2].replace("{num_blocks", f"{{builder: odd/{part}, num_blocks")
        for part in [*PARTS, "missing", "gone"]
    )
    (tmp_path / "odd.yaml").write_text("schema: 1\nvariants:\n" + variants)
    (tmp_path / f"{name}_parts.py").write_text(HEAD + "\n".join(PARTS.values()))
    (tmp_path / f"{name}.py").write_text(
        "from pathlib import Path\nfrom repvgg_zoo import Plugin\n"
        f"parts = {{f'odd/{{part}}': f'{name}_parts:{{part}}' for part in {list(PARTS)!r}}}\n"
        f"plugin = Plugin(Path(__file__).with_name('odd.yaml'), {{**parts, 'odd/gone': '{name}_gone:build'}},\n"
        f"                {layouts})\n"
    )
    info = tmp_path / "odd-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[repvgg_zoo.plugins]\nodd = {name}:plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("raises", PluginError, "fails to build with odd/raises: KeyError: 'hidden'"),
        ("refuses", ArgumentError, "no such head"),
        ("exits", PluginError, "fails to build with odd/exits: SystemExit: no license"),
        ("old", PluginError, "it is called as build(architecture, num_classes, in_chans, deploy, init_weights)"),
        ("vague", PluginError, "whose num_classes is '1000', not 1000"),
        ("headless", PluginError, "whose heads are ['classifier'], which are not names of its modules"),
        ("nothing", PluginError, "built a NoneType with odd/nothing, which is not a MegEngine module"),
        ("an_array", PluginError, "built a list"),
        ("bare", PluginError, "without in_chans and num_classes"),
        ("text", PluginError, "has a str as odd/text"),
        ("gone", PluginError, "_gone:build: ModuleNotFoundError"),
        ("missing", RegistryError, "unknown builder 'odd/missing'"),
    ],
)
def test_a_builder_that_does_not_build_ends_in_an_error_of_ours(plugin, name, error, message):
    with pytest.raises(error) as caught:
        repvgg_zoo.create(f"odd/{name}")
    assert message in str(caught.value)
    assert not isinstance(caught.value, PluginError) or "(odd 1)" in str(caught.value)


def test_a_builder_that_ignores_an_argument_is_named(plugin):
    with pytest.raises(PluginError, match="built a RepVGG with odd/deaf, whose num_classes is 1000, not 5"):
        repvgg_zoo.create("odd/deaf", num_classes=5)


def test_what_a_builder_prints_is_not_on_the_stdout_of_a_command(plugin, capfd):
    assert main(["compare", "odd/loud", "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["name"] == "odd/loud" and "hello from odd" in printed.err


def test_a_builder_whose_package_is_not_installed_is_named():
    from repvgg_zoo.models.build import build_network

    architecture = repvgg_zoo.model_info("RepVGG_A0").architecture._replace(builder="elsewhere/head")
    with pytest.raises(RegistryError, match="plugin elsewhere is not installed") as caught:
        build_network(architecture, features_only=False, out_indices=None)
    assert caught.value.hint == "install the plugin"


def test_a_builder_gets_features_only_if_it_supports_it(plugin):
    images = Tensor(np.zeros((1, 3, 32, 32), np.float32))
    network = repvgg_zoo.create("odd/plain", num_classes=5)
    assert network(images).shape == (1, 5)
    with pytest.raises(ArgumentError, match="the builder odd/plain returns no feature maps"):
        repvgg_zoo.create("odd/plain", features_only=True)
    assert list(repvgg_zoo.create("odd/whole", features_only=True, out_indices=[2])(images)) == ["stage2"]
    with pytest.raises(ArgumentError, match="out_indices is for networks without a head"):
        repvgg_zoo.create("odd/whole", out_indices=[2])


def test_a_builder_gets_output_stride_if_it_supports_it(plugin):
    with pytest.raises(ArgumentError, match="the builder odd/plain takes no output_stride"):
        repvgg_zoo.create("odd/plain", output_stride=8)
    network = repvgg_zoo.create("odd/whole", features_only=True, output_stride=8)
    assert network.feature_info[-1].reduction == 8


def test_a_head_that_is_megengines_own_is_initialized_again(plugin, tmp_path):
    path = tmp_path / "mine.safetensors"
    repvgg_zoo.save_checkpoint(path, repvgg_zoo.create("odd/mges", num_classes=5))
    network = repvgg_zoo.create("odd/mges", checkpoint=path, num_classes=7)
    assert network.linear.weight.shape[0] == 7 and network.linear.weight.numpy().any()


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ("odd/number", PluginError, "has a int as odd/number, not a Layout"),
        ("odd/none", ArgumentError, "unknown layout 'odd/none': it has odd/number"),
        ("even/none", ArgumentError, "unknown layout 'even/none': plugin even is not installed"),
    ],
)
def test_a_layout_that_does_not_exist_is_an_error(plugin_with_a_bad_layout, tmp_path, layout, error, message):
    path = tmp_path / "mine.safetensors"
    network = repvgg_zoo.create("odd/whole")
    for call in (
        lambda: repvgg_zoo.save_checkpoint(path, network, layout=layout),
        lambda: repvgg_zoo.load_checkpoint(path, layout=layout),
    ):
        with pytest.raises(error) as caught:
            call()
        assert message in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5),
        ("block_prefixes", None),
        ("module_names", ["conv"]),
        ("head_names", {"linear": 5}),
        ("tensor_names", {3: "weight"}),
    ],
)
def test_a_layout_whose_tables_are_not_names_is_refused_when_it_is_made(field, value):
    with pytest.raises(ArgumentError, match=field):
        replace(LAYOUTS["official"], **{field: value})


def test_a_layout_of_your_own_saves_and_loads(tmp_path):
    published = replace(LAYOUTS["official"], name="published", head_names={"linear": "top"})
    network = repvgg_zoo.create("RepVGG_N0", pretrained=True)
    path = tmp_path / "published.safetensors"
    repvgg_zoo.save_checkpoint(path, network, layout=published)
    checkpoint = repvgg_zoo.load_checkpoint(path, extra_layouts=[published])
    assert checkpoint.layout == "published"
    assert np.array_equal(checkpoint.state_dict["linear.weight"], network.linear.weight.numpy())
